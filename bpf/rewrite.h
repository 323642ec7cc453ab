/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The only code that changes a frame: the six DSCP bits, the IPv4 header checksum that covers
 * them, MAC addresses and VLAN tags. Same logic as src/policy/packet/rewrite.rs and vlan.rs.
 */
#ifndef EXITMARK_REWRITE_H
#define EXITMARK_REWRITE_H

#define MAC_BITS 0xffffffffffffULL

/* RFC 1624, equation 3: updates a checksum after one of its words changed. */
static __always_inline __u16 replace_word(__u16 checksum, __u16 old, __u16 new)
{
	__u32 sum = (__u16)~checksum + (__u32)(__u16)~old + new;

	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

#define TOS_REACH 12 /* from the beginning of an IP header to the end of IPv4's checksum */

static __always_inline void write_tos_of(int family, __u8 *ip, __u8 tos)
{
	__u16 *first = (__u16 *)ip;
	__u16 old = *first;

	if (family == V4) {
		__u16 *checksum = (__u16 *)(ip + 10);

		ip[1] = tos;
		*checksum = replace_word(*checksum, old, *first);
	} else {
		/* Version (4 bits), traffic class (8), flow label (20). */
		*first = bpf_htons((bpf_ntohs(old) & 0xf00f) | tos << 4);
	}
}

static __always_inline void write_tos(__u8 *ip, __u8 tos)
{
	write_tos_of(ip[0] >> 4 == 4 ? V4 : V6, ip, tos);
}

/* The same as set_tos(), for a header that is not in the first buffer. */
__noinline int set_scattered_tos(struct xdp_md *ctx, __u64 offset, __u8 tos)
{
	__u64 ip[2] = {};

	if (bpf_xdp_load_bytes(ctx, offset, ip, TOS_REACH))
		return -1;
	write_tos((__u8 *)ip, tos);
	return bpf_xdp_store_bytes(ctx, offset, ip, TOS_REACH);
}

/* Sets the ToS byte, or traffic class, of the IP header at `offset`. */
static __always_inline void set_tos(const struct frame *frame, __u64 offset, __u8 tos)
{
	void *ip = frame->data + (offset & OFFSET_BITS);

	if (ip + TOS_REACH <= frame->end)
		write_tos(ip, tos);
	else if (multi_buffer)
		set_scattered_tos(frame->ctx, offset, tos);
}

/* The MAC address at `offset`, 0 or ETH_ALEN, if the header is not in the first buffer. */
__noinline __u64 scattered_mac(struct xdp_md *ctx, __u32 offset)
{
	__be64 bytes = 0;

	return bpf_xdp_load_bytes(ctx, offset, &bytes, ETH_ALEN) ? 0 : bpf_be64_to_cpu(bytes) >> 16;
}

static __always_inline __u64 destination_mac(const struct frame *frame)
{
	if (frame->data + ETH_HLEN <= frame->end)
		return be64(frame->data) >> 16;
	return multi_buffer ? scattered_mac(frame->ctx, 0) : 0;
}

static __always_inline __u64 source_mac(const struct frame *frame)
{
	if (frame->data + ETH_HLEN <= frame->end)
		return be64(frame->data + 4) & MAC_BITS;
	return multi_buffer ? scattered_mac(frame->ctx, ETH_ALEN) : 0;
}

/* A `source` of 0 leaves the source address unchanged. */
static __always_inline void write_macs(void *header, __u64 destination, __u64 source)
{
	*(__be32 *)header = bpf_htonl(destination >> 16);
	*(__be16 *)(header + 4) = bpf_htons(destination);
	if (source) {
		*(__be16 *)(header + 6) = bpf_htons(source >> 32);
		*(__be32 *)(header + 8) = bpf_htonl(source);
	}
}

__noinline int set_scattered_macs(struct xdp_md *ctx, __u64 destination, __u64 source)
{
	__u64 header[2] = {};

	write_macs(header, destination, source);
	return bpf_xdp_store_bytes(ctx, 0, header, source ? 2 * ETH_ALEN : ETH_ALEN);
}

/* Bytes up to the EtherType behind two tags. */
#define TAGGED_BYTES (2 * ETH_ALEN + 8)

/* How many tags these are. */
static __always_inline int count_tags(__u32 tags)
{
	return (tags / TAG_PRESENT & 1) + (tags >> 16) / TAG_PRESENT;
}

/* The tags in these bytes of a frame, of which `count` are tags. */
static __always_inline __u32 read_tags(const void *tags, __u64 count)
{
	__u32 first = TAG_PRESENT | (be16(tags + 2) & 0xfff);
	__u32 second = TAG_PRESENT | (be16(tags + 6) & 0xfff);

	if (count == 1)
		return first;
	return count == 2 ? first << 16 | second : ~0U;
}

/* The same as tags_of(), for tags that are not all in the first buffer. */
__noinline __u64 scattered_tags(struct xdp_md *ctx, __u64 count)
{
	__u64 tags = 0;

	return bpf_xdp_load_bytes(ctx, 2 * ETH_ALEN, &tags, sizeof(tags)) ?
		       ~0U :
		       read_tags(&tags, count);
}

/* The tags of a frame whose IP header is at `ip`; more than two equal no configured tags. */
static __always_inline __u64 tags_of(const struct frame *frame, __u64 ip)
{
	__u64 count = (ip - ETH_HLEN) / 4;

	if (!count)
		return 0;
	if (frame->data + TAGGED_BYTES <= frame->end)
		return read_tags(frame->data + 2 * ETH_ALEN, count);
	return multi_buffer ? scattered_tags(frame->ctx, count) : ~0U;
}

/*
 * A tag, in network order: EtherType, priority and DEI, ID. `old` is the tag that it replaces, or
 * the one whose priority and DEI it takes over; `type` is 0 if it keeps the EtherType of `old`.
 */
static __always_inline __u32 new_tag(__u32 old, __u16 type, __u32 id, __u32 priority)
{
	__u32 tag = (type ? (__u32)type << 16 : old & 0xffff0000) | (old & 0xf000) | (id & 0xfff);

	if (priority != KEEP_PRIORITY)
		tag = (tag & 0xffff1fff) | (priority & 7) << 13;
	return bpf_htonl(tag);
}

/*
 * Replaces the tags of a frame and its MAC addresses. `tags` is those that it has << 32 | those that
 * it gets; a `source` of 0 leaves the source address unchanged. Returns -1, and changes nothing, if
 * there is no room.
 */
__noinline int retag(struct xdp_md *ctx, __u64 tags, __u32 priority, __u64 destination,
		     __u64 source)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	int had = count_tags(tags >> 32), has = count_tags(tags);
	__u32 outer = 0, inner = 0;

	/* What is left in the first buffer must have room for the same. */
	if (data + TAGGED_BYTES + (had > has ? 8 : 0) > end)
		return -1;
	if (!source)
		source = be64(data + 4) & MAC_BITS;
	if (had) {
		outer = be32(data + 12);
		inner = had == has ? be32(data + 16) : outer;
	}
	if (had != has && bpf_xdp_adjust_head(ctx, (had - has) * 4))
		return -1;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	if (data + TAGGED_BYTES > end)
		return -1;
	/* The source address is written even if it is 0: its place has moved. */
	write_macs(data, destination, source | MAC_BITS + 1);
	if (has == 2) {
		*(__u32 *)(data + 12) =
			new_tag(outer, had == 2 ? 0 : ETH_P_8021AD, tags >> 16, priority);
		*(__u32 *)(data + 16) = new_tag(inner, had == 2 ? 0 : ETH_P_8021Q, tags, priority);
	} else if (has) {
		*(__u32 *)(data + 12) = new_tag(outer, had == 1 ? 0 : ETH_P_8021Q, tags, priority);
	}
	return 0;
}

static __always_inline void set_macs(const struct frame *frame, __u64 destination, __u64 source)
{
	if (frame->data + ETH_HLEN <= frame->end)
		write_macs(frame->data, destination, source);
	else if (multi_buffer)
		set_scattered_macs(frame->ctx, destination, source);
}

#endif

/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The only code that changes a frame: the six DSCP bits, the IPv4 header checksum that covers
 * them, and MAC addresses. Same logic as src/policy/packet/rewrite.rs.
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

static __always_inline void write_tos(__u8 *ip, __u8 tos)
{
	__u16 *first = (__u16 *)ip;
	__u16 old = *first;

	if (ip[0] >> 4 == 4) {
		__u16 *checksum = (__u16 *)(ip + 10);

		ip[1] = tos;
		*checksum = replace_word(*checksum, old, *first);
	} else {
		/* Version (4 bits), traffic class (8), flow label (20). */
		*first = bpf_htons((bpf_ntohs(old) & 0xf00f) | tos << 4);
	}
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

static __always_inline void set_macs(const struct frame *frame, __u64 destination, __u64 source)
{
	if (frame->data + ETH_HLEN <= frame->end)
		write_macs(frame->data, destination, source);
	else if (multi_buffer)
		set_scattered_macs(frame->ctx, destination, source);
}

#endif

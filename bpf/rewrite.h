/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The only bytes that are ever changed: six DSCP bits, the IPv4 header checksum that covers
 * them, and MAC addresses. As src/packet/rewrite.rs.
 */
#ifndef EXITMARK_REWRITE_H
#define EXITMARK_REWRITE_H

#define MAC_BITS 0xffffffffffffULL

/* RFC 1624 equation 3: the checksum after one word that it covers changed. */
static __always_inline __u16 replace_word(__u16 checksum, __u16 old, __u16 new)
{
	__u32 sum = (__u16)~checksum + (__u32)(__u16)~old + new;

	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* Sets the code point of the IP header at `offset`; `tos` is the whole ToS byte. */
static __always_inline void set_tos(const struct frame *frame, __u64 offset, __u8 tos)
{
	__u8 *ip = frame->data + (offset & OFFSET_BITS);
	__u16 *first = (__u16 *)ip;
	__u16 old;

	if ((void *)ip + 20 > frame->end)
		return;
	old = *first;
	if (ip[0] >> 4 == 4) {
		__u16 *checksum = (__u16 *)(ip + 10);

		ip[1] = tos;
		*checksum = replace_word(*checksum, old, *first);
	} else {
		/* Version (4 bits), traffic class (8), flow label (20). */
		*first = bpf_htons((bpf_ntohs(old) & 0xf00f) | tos << 4);
	}
}

/* Both need a frame of at least an Ethernet header, which the kernel sees to. */
static __always_inline __u64 destination_mac(const struct frame *frame)
{
	return frame->data + ETH_HLEN > frame->end ? 0 : be64(frame->data) >> 16;
}

static __always_inline __u64 source_mac(const struct frame *frame)
{
	return frame->data + ETH_HLEN > frame->end ? 0 : be64(frame->data + 4) & MAC_BITS;
}

static __always_inline void set_destination_mac(const struct frame *frame, __u64 mac)
{
	if (frame->data + ETH_HLEN > frame->end)
		return;
	*(__be32 *)frame->data = bpf_htonl(mac >> 16);
	*(__be16 *)(frame->data + 4) = bpf_htons(mac);
}

static __always_inline void set_macs(const struct frame *frame, __u64 destination, __u64 source)
{
	if (frame->data + ETH_HLEN > frame->end)
		return;
	*(__be64 *)frame->data = bpf_cpu_to_be64(destination << 16 | source >> 32);
	*(__be32 *)(frame->data + 8) = bpf_htonl(source);
}

#endif

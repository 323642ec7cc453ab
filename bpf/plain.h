/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The short ways of the most common frames, which take a fraction of the instructions.
 *
 * From host: untagged IPv4 without options or IPv6 without extension headers, with a TCP segment
 * that has neither SYN nor RST, from a known plain host (see struct exitmark_plain). From incoming:
 * to such a host. From uplink: all, unless a worker, a tap or a count comes first.
 *
 * The result is that of the general way, which gets every frame that does not fit. Same logic as
 * src/policy/plain.rs.
 */
#ifndef EXITMARK_PLAIN_H
#define EXITMARK_PLAIN_H

/* What forward_plain() returns for a frame that it has not changed: the general way gets it. */
#define NOT_PLAIN (-1)

/* An EtherType, and the first two bytes of an IP header without its ToS or traffic class. */
#define PLAIN_V4 ((__u32)ETH_P_IP << 16 | 0x4500)
#define PLAIN_V6 ((__u32)ETH_P_IPV6 << 16 | 0x6000)

/* The most bytes of padding behind a packet: that of the shortest Ethernet frame. */
#define PADDING 46

/* Whether the MAC address of a host is learned, and the source of this frame. */
static __always_inline bool is_learned(struct exitmark_links *links, __u64 key, const __u8 *data)
{
	const struct exitmark_host *host = host_slot(links, key, 0);
	__u64 mac = READ_ONCE(host->mac);

	/* 16 bits are shifted out: how often the address has changed, and the destination's end. */
	return host->key == key && !((mac ^ be64(data + 4)) << 16) && (__s64)mac < 0;
}

/* Redirects a frame that took a short way, and counts it. Returns an XDP action. */
static __always_inline int take_short_way(enum exitmark_short way, enum exitmark_role egress,
					  __u64 bytes, struct exitmark_counts *counts)
{
	int action = bpf_redirect_map(&ports, egress, XDP_DROP);

	counts->shorts[way].frames++;
	counts->shorts[way].bytes += bytes;
	if (action != XDP_REDIRECT) {
		/* The NIC of that port is gone. */
		counts->forwarded[egress]--;
		counts->no_egress++;
	}
	return action;
}

/* Forwards a frame of a host with an untagged packet of this family, if it is plain. */
static __always_inline int forward_family(__u8 *data, const __u8 *end, __u64 bytes, int family,
					  const struct exitmark_image *image,
					  struct exitmark_links *links,
					  struct exitmark_counts *counts)
{
	const struct exitmark_policy *policy = &image->policy;
	const struct exitmark_plain *plain = &policy->plain[family];
	const int header = family == V4 ? 20 : 40;
	__u8 *ip = data + ETH_HLEN, *tcp = ip + header;
	struct address source = {}, destination = {};
	__u64 ports, total;
	__u8 tos;

	if (tcp + TCP_BYTES > end)
		return NOT_PLAIN;
	if (family == V4) {
		/* More fragments, or an offset; time to live; protocol. */
		if ((*(__u32 *)(ip + 6) & bpf_htonl(0x3fff00ff)) != bpf_htonl(PROTOCOL_TCP))
			return NOT_PLAIN;
		total = be16(ip + 2);
		source.low = be32(ip + 12);
		destination.low = be32(ip + 16);
		tos = ip[1];
	} else {
		if (ip[6] != PROTOCOL_TCP)
			return NOT_PLAIN;
		total = be16(ip + 4) + 40;
		source.high = be64(ip + 8);
		source.low = be64(ip + 16);
		destination.high = be64(ip + 24);
		destination.low = be64(ip + 32);
		tos = be16(ip) >> 4;
		if (source.high != plain->high)
			return NOT_PLAIN;
	}
	if (tcp[13] & (TCP_SYN | TCP_RST))
		return NOT_PLAIN;
	/* An unsigned comparison on both sides: the packet ends in the frame and behind its header. */
	if (total - (header + TCP_BYTES) > bytes - (ETH_HLEN + header + TCP_BYTES))
		return NOT_PLAIN;
	/* There may be more buffers; see measure_packet(). */
	if (multi_buffer && bytes - ETH_HLEN - total > PADDING)
		return NOT_PLAIN;
	if (source.low - plain->first >= plain->count)
		return NOT_PLAIN;
	ports = be32(tcp);
	if (ports >> 16 <= plain->last_listener && has_bit(policy->listens, ports >> 16))
		return NOT_PLAIN;
	ports &= 0xffff;
	if (ports == DNS || ports == DNS_OVER_TLS)
		return NOT_PLAIN;
	if (!is_learned(links, host_key(family, source), data))
		return NOT_PLAIN;
	if (lists(image, &plain->relays, family, destination, ports)) {
		__u32 hop = plain->hop;
		__u64 next_hop, egress;

		if (policy->clears >> (tos >> 2) & 1)
			return NOT_PLAIN;
		if (hop == HOP_UPLINK)
			return take_short_way(SHORT_BY_UPLINK, ROLE_UPLINK, bytes, counts);
		if (hop >= NEXT_HOPS)
			return NOT_PLAIN;
		/* Read once: user space updates it concurrently. */
		next_hop = READ_ONCE(links->next_hops[hop]);
		egress = links->incoming_port;
		if (!next_hop || egress >= ROLES)
			return NOT_PLAIN;
		write_macs(data, next_hop, links->incoming_mac);
		if (egress == ROLE_UPLINK)
			return take_short_way(SHORT_BY_UPLINK, ROLE_UPLINK, bytes, counts);
		return take_short_way(SHORT_BY_INCOMING, ROLE_INCOMING, bytes, counts);
	}
	if ((tos & DSCP_BITS) == plain->mark)
		return take_short_way(SHORT_EXIT, ROLE_UPLINK, bytes, counts);
	write_tos_of(family, ip, plain->mark | (tos & ~DSCP_BITS));
	return take_short_way(SHORT_MARKED, ROLE_UPLINK, bytes, counts);
}

/*
 * Measures a frame without the helper, if the packet's own length shows that it ends with the first
 * buffer. Bytes of a trailer that begins there go unnoticed.
 */
static __always_inline void measure_packet(struct frame *frame)
{
	const __u8 *ip = frame->data + ETH_HLEN;
	__u64 total = 0;
	__u32 kind;

	if (!multi_buffer)
		return;
	if (ip + 6 <= (const __u8 *)frame->end) {
		kind = *(const __u32 *)(ip - 2) & bpf_htonl(0xfffff000);
		if (kind == bpf_htonl(PLAIN_V4 & 0xfffff000))
			total = be16(ip + 2);
		else if (kind == bpf_htonl(PLAIN_V6))
			total = be16(ip + 4) + 40;
	}
	/*
	 * A packet beyond 64 KiB has a length of 0, which is 40 here for IPv6. One unsigned comparison
	 * bounds both sides.
	 */
	if (total <= 40 || frame->bytes - ETH_HLEN - total > PADDING)
		measure(frame);
}

/* Whether only the policy decides about a frame of this length, and it is not sampled. */
static __always_inline bool is_straight(__u64 bytes, enum exitmark_role role,
					const struct exitmark_links *links,
					const struct exitmark_counts *counts)
{
	return bytes <= READ_ONCE(links->straight[role]) &&
	       !is_sampled(links, next_number(counts, role));
}

/* Forwards a frame of a host if it is plain. Returns an XDP action, or NOT_PLAIN. */
static __always_inline int forward_plain(struct xdp_md *ctx, const struct exitmark_image *image,
					 struct exitmark_links *links,
					 struct exitmark_counts *counts)
{
	struct frame frame = first_buffer(ctx);
	__u8 *data = frame.data;
	const __u8 *end = frame.end;
	__u32 kind;

	if (!is_straight(frame.bytes, ROLE_HOST, links, counts) || data + ETH_HLEN + 2 > end)
		return NOT_PLAIN;
	kind = *(__u32 *)(data + 2 * ETH_ALEN);
	if ((kind & bpf_htonl(0xffffff00)) == bpf_htonl(PLAIN_V4))
		return forward_family(data, end, frame.bytes, V4, image, links, counts);
	if ((kind & bpf_htonl(0xfffff000)) == bpf_htonl(PLAIN_V6))
		return forward_family(data, end, frame.bytes, V6, image, links, counts);
	return NOT_PLAIN;
}

/* Whether answers to hosts are copied for the tap. */
static __always_inline bool copies_answers(void)
{
	const struct exitmark_image *image = has_tap ? current_image() : NULL;

	return image && image->policy.tap & TAP_IN;
}

/* The learned MAC address of a host, if it is in the first entry for its address; otherwise 0. */
static __always_inline __u64 first_learned(struct exitmark_links *links, __u64 key)
{
	const struct exitmark_host *host = host_slot(links, key, 0);
	__u64 mac = READ_ONCE(host->mac) & MAC_BITS;

	return host->key == key ? mac : 0;
}

/*
 * Forwards a frame from incoming that a next hop sent to the box for a known host. Returns an XDP
 * action, or NOT_PLAIN for a frame that it has not changed.
 */
static __always_inline int deliver_plain(struct frame *frame, struct exitmark_links *links,
					 struct exitmark_counts *counts)
{
	const struct exitmark_image *image = current_image();
	const struct exitmark_plain *plain;
	struct address address = {};
	__u8 *data = frame->data, *ip = data + ETH_HLEN;
	__u64 mac = 0;
	__u32 kind;

	if (!image || ip + 40 > (__u8 *)frame->end ||
	    links->incoming_port != ROLE_INCOMING || be64(data) >> 16 != links->incoming_mac)
		return NOT_PLAIN;
	measure_packet(frame);
	if (!is_straight(frame->bytes, ROLE_INCOMING, links, counts))
		return NOT_PLAIN;
	kind = *(__u32 *)(data + 2 * ETH_ALEN) & bpf_htonl(0xfffff000);
	if (kind == bpf_htonl(PLAIN_V4 & 0xfffff000)) {
		plain = &image->policy.plain[V4];
		address.low = be32(ip + 16);
		if (plain->learns && address.low - plain->first < plain->count)
			mac = first_learned(links, host_key(V4, address));
	} else if (kind == bpf_htonl(PLAIN_V6)) {
		plain = &image->policy.plain[V6];
		address.high = be64(ip + 24);
		address.low = be64(ip + 32);
		if (plain->learns && address.high == plain->high &&
		    address.low - plain->first < plain->count)
			mac = first_learned(links, host_key(V6, address));
	}
	if (!mac)
		return NOT_PLAIN;
	write_macs(data, mac, 0);
	return take_short_way(SHORT_FROM_INCOMING, ROLE_HOST, frame->bytes, counts);
}

#endif

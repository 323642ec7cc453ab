/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Finds the frame in a packet of a switch that sends its mirror over a network: ERSPAN type II and
 * III (draft-foschiano-erspan), VXLAN (RFC 7348). Same logic as src/monitor/mirror.rs.
 */
#ifndef EXITMARK_MIRROR_H
#define EXITMARK_MIRROR_H

#define PROTOCOL_GRE 47

/* Mask of the offset behind an outer IP header: at most 30 of Ethernet and 60 of IPv4. */
#define TRANSPORT_MASK 0x7f

/* GRE with a sequence number and no other field (RFC 2784, RFC 2890). */
#define GRE_SEQUENCE_ONLY 0x1000
#define ERSPAN_II 0x88be
#define ERSPAN_III 0x22eb

/* The offset of ERSPAN's frame, 0 if GRE carries something else, MALFORMED. */
static __always_inline __s64 erspan(const struct frame *frame, __u64 at, __u64 reach)
{
	__u8 *gre = frame->data + at;
	__u16 type = be16(gre + 2), last;

	if (type != ERSPAN_II && type != ERSPAN_III)
		return 0;
	if (be16(gre) != GRE_SEQUENCE_ONLY)
		return MALFORMED;
	if (type == ERSPAN_II) {
		if ((void *)gre + 16 > frame->end || at + 16 > reach || gre[8] >> 4 != 1)
			return MALFORMED;
		return at + 16;
	}
	if ((void *)gre + 20 > frame->end || at + 20 > reach || gre[8] >> 4 != 2)
		return MALFORMED;
	last = be16(gre + 18);
	/* The frame type; 0 is Ethernet. The last bit is for a subheader of 8 bytes. */
	if (last >> 10 & 0x1f)
		return MALFORMED;
	return at + 20 + (last & 1) * 8;
}

/* The offset of VXLAN's frame, 0 if UDP goes to another port, MALFORMED. */
static __always_inline __s64 vxlan(const struct frame *frame, __u64 at, __u64 *reach)
{
	__u8 *udp = frame->data + at;
	__u64 length;

	if (be16(udp + 2) != rule.vxlan_port)
		return 0;
	length = be16(udp + 4);
	if (length < 16 + ETH_HLEN)
		return MALFORMED;
	/* The flag: the network identifier is valid (RFC 7348). */
	if ((void *)udp + 16 > frame->end || at + 16 > *reach || !(udp[8] & 0x08))
		return MALFORMED;
	if (*reach > at + length)
		*reach = at + length;
	return at + 16;
}

/*
 * The offset of the frame in a mirror's packet, whose IP header is at `ip`; 0 if the packet carries
 * none, MALFORMED.
 */
static __always_inline __s64 mirrored(const struct frame *frame, int type, __u64 ip, __u64 *reach)
{
	__u8 *outer = frame->data + ip, protocol;
	__u64 at, end;
	__s64 inner;

	if (type == ETH_P_IP) {
		__u64 header, total;

		if ((void *)outer + 20 > frame->end || outer[0] >> 4 != 4)
			return 0;
		header = (outer[0] & 0x0f) * 4;
		total = be16(outer + 2);
		/* A first fragment carries the frame's headers. */
		if (header < 20 || total < header || be16(outer + 6) & 0x1fff)
			return 0;
		at = ip + header;
		end = ip + total;
		protocol = outer[9];
	} else {
		if ((void *)outer + 40 > frame->end || outer[0] >> 4 != 6)
			return 0;
		at = ip + 40;
		end = at + be16(outer + 4);
		protocol = outer[6];
	}
	if (!(rule.erspan && protocol == PROTOCOL_GRE) &&
	    !(rule.vxlan_port && protocol == PROTOCOL_UDP))
		return 0;
	if (*reach > end)
		*reach = end;
	barrier_var(at);
	at &= TRANSPORT_MASK;
	if (frame->data + at + 8 > frame->end || at + 8 > *reach)
		return MALFORMED;
	inner = protocol == PROTOCOL_GRE ? erspan(frame, at, *reach) : vxlan(frame, at, reach);
	if (inner > 0 && inner + ETH_HLEN > *reach)
		return MALFORMED;
	return inner;
}

#endif

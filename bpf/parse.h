/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Parses fast-path frames into the fields that a verdict depends on. Same logic as
 * src/policy/packet, which is the reference: same fields, same errors in the same order.
 */
#ifndef EXITMARK_PARSE_H
#define EXITMARK_PARSE_H

/*
 * Enough for any fast-path frame: 22 bytes of Ethernet header and tags, 60 of IPv4, 4 of ports. An
 * IPv6 destination behind four tags ends at 70.
 */
#define HEADER_BYTES 128

#include "frame.h"

/* Frames with more VLAN tags take the slow path. */
#define ORDINARY_TAGS 2

/* Mask of the offset of an IP header behind that many tags: 14, 18 or 22 bytes. */
#define OFFSET_BITS 0x1f

/* The result of parsing a frame: one of these, or the rule for its error. */
#define SHAPE_PACKET (-1)
/* A slow-path frame. */
#define SHAPE_SLOW (-2)
/* The headers are not all in the first buffer. */
#define SHAPE_SCATTERED (-3)

/* What a TCP segment answers, by its control bits. */
enum answer {
	ANSWERS_NOTHING,
	OPENS, /* SYN, neither ACK nor RST: no answer */
	ACCEPTS, /* SYN and ACK */
	REFUSES, /* RST, and no ACK or sequence number 0 */
};

/* Bytes from the beginning of a TCP header to the end of its control bits. */
#define TCP_BYTES 14
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

struct packet {
	struct address source;
	struct address destination;
	__u16 source_port;
	__u16 destination_port;
	__u8 protocol;
	__u8 tos;
	__u8 answer; /* enum answer */
	enum exitmark_family family;
	/* Offset of the IP header in the frame, in bytes; 0 if none was found. */
	__u64 ip;
};

/* `rule` for bytes that are missing; SHAPE_SCATTERED if the frame continues in another buffer. */
static __always_inline int cut(struct frame *frame, int rule)
{
	if (!multi_buffer)
		return rule;
	measure(frame);
	return frame->bytes > (__u64)(frame->end - frame->data) ? SHAPE_SCATTERED : rule;
}

static __always_inline enum answer answer_of(const __u8 *tcp)
{
	__u8 control = tcp[13];

	if (!(control & (TCP_SYN | TCP_RST)))
		return ANSWERS_NOTHING;
	if ((control & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK))
		return ACCEPTS;
	if (control & TCP_RST && (!(control & TCP_ACK) || !be32(tcp + 4)))
		return REFUSES;
	return (control & (TCP_SYN | TCP_ACK)) == TCP_SYN ? OPENS : ANSWERS_NOTHING;
}

/* Reads TCP and UDP ports and TCP control bits at `at`, `left` bytes before the packet's end. */
static __always_inline int read_ports(struct frame *frame, void *at, __u64 left,
				      struct packet *packet)
{
	__u64 ports = 0, answer = ANSWERS_NOTHING;

	if (packet->protocol == PROTOCOL_TCP || packet->protocol == PROTOCOL_UDP) {
		if (left < 4)
			return RULE_SHORT_TRANSPORT;
		if (at + 4 > frame->end)
			return cut(frame, RULE_SHORT_TRANSPORT);
		ports = be32(at);
	}
	if (packet->protocol == PROTOCOL_TCP && left >= TCP_BYTES) {
		if (at + TCP_BYTES > frame->end)
			return cut(frame, RULE_SHORT_TRANSPORT);
		answer = answer_of(at);
	}
	/* Hides from the verifier which fields were read. */
	ports = hidden(ports | (__u64)packet->protocol << 32 | answer << 40, frame->bytes);
	packet->protocol = ports >> 32;
	packet->answer = ports >> 40;
	packet->source_port = ports >> 16;
	packet->destination_port = ports;
	return SHAPE_PACKET;
}

/* RFC 791. Options are skipped by IHL; fragments take the slow path. */
static __always_inline int read_v4(struct frame *frame, __u64 offset, struct packet *packet)
{
	void *at = frame->data + offset;
	__u8 *ip = at;
	__u64 header, total;

	if (at + 20 > frame->end)
		return cut(frame, RULE_SHORT_HEADER);
	if (ip[0] >> 4 != 4)
		return RULE_WRONG_VERSION;
	header = (ip[0] & 0x0f) * 4;
	total = be16(ip + 2);
	if (header < 20 || total < header)
		return RULE_BAD_LENGTH;
	if (!is_as_long_as(frame, offset + total))
		return RULE_BEYOND_FRAME;
	packet->ip = offset;
	packet->family = V4;
	packet->tos = ip[1];
	packet->protocol = ip[9];
	packet->source.high = 0;
	packet->source.low = be32(ip + 12);
	packet->destination.high = 0;
	packet->destination.low = be32(ip + 16);
	/* More fragments, or an offset. */
	if (be16(ip + 6) & 0x3fff)
		return SHAPE_SLOW;
	return read_ports(frame, at + header, total - header, packet);
}

/* RFC 8200. Packets with extension headers, fragments among them, take the slow path. */
static __always_inline int read_v6(struct frame *frame, __u64 offset, struct packet *packet)
{
	void *at = frame->data + offset;
	__u8 *ip = at;
	__u64 payload;

	if (at + 40 > frame->end)
		return cut(frame, RULE_SHORT_HEADER);
	if (ip[0] >> 4 != 6)
		return RULE_WRONG_VERSION;
	payload = be16(ip + 4);
	if (!is_as_long_as(frame, offset + 40 + payload))
		return RULE_BEYOND_FRAME;
	packet->ip = offset;
	packet->family = V6;
	packet->tos = be16(ip) >> 4;
	packet->protocol = ip[6];
	packet->source.high = be64(ip + 8);
	packet->source.low = be64(ip + 16);
	packet->destination.high = be64(ip + 24);
	packet->destination.low = be64(ip + 32);
	switch (packet->protocol) {
	case 0: /* hop-by-hop options */
	case 43: /* routing */
	case 44: /* fragment */
	case 60: /* destination options */
		return SHAPE_SLOW;
	}
	return read_ports(frame, at + 40, payload, packet);
}

/* Reads a frame: SHAPE_PACKET with `packet` filled, another shape, or a rule. */
static __always_inline int read_reachable(struct frame *frame, struct packet *packet)
{
	void *payload = NULL;
	__u64 offset;
	int type = payload_of(frame, ORDINARY_TAGS, &payload);

	packet->ip = 0;
	if (!payload)
		return cut(frame, RULE_NOT_IP);
	/* The verifier checks the code that follows once, not once per number of tags. */
	barrier_var(payload);
	offset = (payload - frame->data) & OFFSET_BITS;
	if (type == ETH_P_IP)
		return read_v4(frame, offset, packet);
	if (type == ETH_P_IPV6)
		return read_v6(frame, offset, packet);
	return is_tag(type) ? SHAPE_SLOW : RULE_NOT_IP;
}

static __noinline int read_scattered(struct frame *frame, struct packet *packet)
{
	struct frame whole;
	int shape = SHAPE_SCATTERED;

	if (gather(frame, &whole))
		shape = read_reachable(&whole, packet);
	return shape == SHAPE_SCATTERED ? SHAPE_SLOW : shape;
}

/* Reads a frame: SHAPE_PACKET with `packet` filled, SHAPE_SLOW, or a rule. */
static __always_inline int read_packet(struct frame *frame, struct packet *packet)
{
	int shape = read_reachable(frame, packet);

	return multi_buffer && shape == SHAPE_SCATTERED ? read_scattered(frame, packet) : shape;
}

/* The two addresses of a packet. */
enum end {
	SOURCE,
	DESTINATION,
};

static __always_inline int read_reachable_address(const struct frame *frame, enum end end,
						  struct address *address)
{
	void *payload = NULL;
	int type = payload_of(frame, MAX_TAGS, &payload);
	__u8 *ip = payload;

	if (!payload)
		return SHAPE_SCATTERED;
	if (type == ETH_P_IP) {
		if (payload + 20 > frame->end)
			return SHAPE_SCATTERED;
		address->high = 0;
		address->low = end == SOURCE ? be32(ip + 12) : be32(ip + 16);
		return ip[0] >> 4 == 4 ? V4 : FAMILIES;
	}
	if (type == ETH_P_IPV6) {
		if (payload + 40 > frame->end)
			return SHAPE_SCATTERED;
		address->high = end == SOURCE ? be64(ip + 8) : be64(ip + 24);
		address->low = end == SOURCE ? be64(ip + 16) : be64(ip + 32);
		return ip[0] >> 4 == 6 ? V6 : FAMILIES;
	}
	return FAMILIES;
}

static __noinline int read_scattered_address(struct frame *frame, enum end end,
					     struct address *address)
{
	struct frame whole;

	measure(frame);
	if (frame->bytes <= (__u64)(frame->end - frame->data) || !gather(frame, &whole))
		return FAMILIES;
	return read_reachable_address(&whole, end, address);
}

/*
 * Reads an address without validating the rest of the packet, which delivery does not depend on.
 * Returns V4 or V6, or another value for a packet without an IP address.
 */
static __always_inline int read_address(struct frame *frame, enum end end, struct address *address)
{
	int family = read_reachable_address(frame, end, address);

	if (multi_buffer && family == SHAPE_SCATTERED)
		family = read_scattered_address(frame, end, address);
	return family;
}

#endif

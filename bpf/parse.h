/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * From a frame to the few fields that a verdict depends on, for ordinary frames. As
 * src/packet, which is the reference: same fields, same refusals in the same order.
 */
#ifndef EXITMARK_PARSE_H
#define EXITMARK_PARSE_H

#define DSCP_BITS 0xfc
#define PROTOCOL_TCP 6
#define PROTOCOL_UDP 17

/* What is tagged deeper than this is for user space. */
#define ORDINARY_TAGS 2
/* What is tagged deeper than this is no IP to anybody; MAX_VLAN_TAGS in user space. */
#define MAX_TAGS 4

/* No NIC puts less into the first of several buffers, unless that is for headers alone. */
#define SMALLEST_BUFFER 1024

/* What a frame turned out to be: one of these, or the rule that it met unread. */
#define SHAPE_PACKET (-1)
#define SHAPE_ODD (-2)

struct frame {
	struct xdp_md *ctx;
	void *data;
	void *end;
	/* All of it: a frame in several buffers is longer than what lies between data and end. */
	__u64 bytes;
};

/* An address of either family: IPv4's are in `low` alone. */
struct address {
	__u64 high;
	__u64 low;
};

struct packet {
	struct address source;
	struct address destination;
	__u16 source_port;
	__u16 destination_port;
	__u8 protocol;
	__u8 tos;
	/* The IP header, or none where it was not found. */
	__u8 *ip;
	enum exitmark_family family;
};

/* From now on `bytes` is all of it. */
static __always_inline void measure(struct frame *frame)
{
	frame->bytes = bpf_xdp_get_buff_len(frame->ctx);
}

/*
 * To ask for a frame's length is a call into the kernel, which takes as long as the look-up of a
 * relay. A short frame is all in one buffer, but where a NIC splits headers off: there the packet
 * itself tells that there is more of it. What is behind the packet, in another buffer, would not
 * be seen.
 */
static __always_inline struct frame frame_of(struct xdp_md *ctx)
{
	struct frame frame = {
		.ctx = ctx,
		.data = (void *)(long)ctx->data,
		.end = (void *)(long)ctx->data_end,
		.bytes = (void *)(long)ctx->data_end - (void *)(long)ctx->data,
	};

	if (frame.bytes >= SMALLEST_BUFFER)
		measure(&frame);
	return frame;
}

/* Where the packet is not read, and so does not tell. */
static __always_inline void measure_short(struct frame *frame)
{
	if (frame->bytes < SMALLEST_BUFFER)
		measure(frame);
}

/* Whether the frame has so many bytes; where they are in reach, nobody asks for more. */
static __always_inline bool is_as_long_as(struct frame *frame, __u64 bytes)
{
	if (bytes <= frame->bytes)
		return true;
	measure(frame);
	return bytes <= frame->bytes;
}

static __always_inline __u16 be16(const void *at)
{
	return bpf_ntohs(*(const __be16 *)at);
}

static __always_inline __u64 be32(const void *at)
{
	return bpf_ntohl(*(const __be32 *)at);
}

static __always_inline __u64 be64(const void *at)
{
	return bpf_be64_to_cpu(*(const __be64 *)at);
}

static __always_inline bool is_tag(__u16 ethertype)
{
	return ethertype == ETH_P_8021Q || ethertype == ETH_P_8021AD || ethertype == 0x9100;
}

/*
 * The rule for bytes that are not in reach: the frame is cut there, or it goes on in another
 * buffer, which only user space looks at.
 */
static __always_inline int cut(struct frame *frame, int rule)
{
	measure(frame);
	return frame->bytes > (__u64)(frame->end - frame->data) ? SHAPE_ODD : rule;
}

/* Steps over up to `tags` tags. The ethertype behind them, and what follows it in `payload`. */
static __always_inline int payload_of(const struct frame *frame, int tags, void **payload)
{
	void *at = frame->data + 2 * ETH_ALEN;
	__u16 type;

	if (at + 2 > frame->end)
		return 0;
	type = be16(at);
	for (int i = 0; i < tags; i++) {
		if (!is_tag(type))
			break;
		at += 4;
		if (at + 2 > frame->end)
			return 0;
		type = be16(at);
	}
	*payload = at + 2;
	return type;
}

/* Reads TCP's and UDP's ports at `at`, `left` bytes before the packet's end. */
static __always_inline int read_ports(struct frame *frame, void *at, __u64 left,
				      struct packet *packet)
{
	packet->source_port = 0;
	packet->destination_port = 0;
	if (packet->protocol != PROTOCOL_TCP && packet->protocol != PROTOCOL_UDP)
		return SHAPE_PACKET;
	if (left < 4)
		return RULE_SHORT_TRANSPORT;
	if (at + 4 > frame->end)
		return cut(frame, RULE_SHORT_TRANSPORT);
	packet->source_port = be16(at);
	packet->destination_port = be16(at + 2);
	return SHAPE_PACKET;
}

/* RFC 791. Options are skipped by IHL; fragments are for user space. */
static __always_inline int read_v4(struct frame *frame, void *at, struct packet *packet)
{
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
	if (!is_as_long_as(frame, (at - frame->data) + total))
		return RULE_BEYOND_FRAME;
	packet->ip = ip;
	packet->family = V4;
	packet->tos = ip[1];
	packet->protocol = ip[9];
	packet->source.high = 0;
	packet->source.low = be32(ip + 12);
	packet->destination.high = 0;
	packet->destination.low = be32(ip + 16);
	/* More fragments, or an offset. */
	if (be16(ip + 6) & 0x3fff)
		return SHAPE_ODD;
	return read_ports(frame, at + header, total - header, packet);
}

/* RFC 8200. Extension headers, the fragment header among them, are for user space. */
static __always_inline int read_v6(struct frame *frame, void *at, struct packet *packet)
{
	__u8 *ip = at;
	__u64 payload;

	if (at + 40 > frame->end)
		return cut(frame, RULE_SHORT_HEADER);
	if (ip[0] >> 4 != 6)
		return RULE_WRONG_VERSION;
	payload = be16(ip + 4);
	if (!is_as_long_as(frame, (at - frame->data) + 40 + payload))
		return RULE_BEYOND_FRAME;
	packet->ip = ip;
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
		return SHAPE_ODD;
	}
	return read_ports(frame, at + 40, payload, packet);
}

/* Reads a frame: SHAPE_PACKET with `packet` filled, SHAPE_ODD, or a rule. */
static __always_inline int read_packet(struct frame *frame, struct packet *packet)
{
	void *payload = NULL;
	int type = payload_of(frame, ORDINARY_TAGS, &payload);

	packet->ip = NULL;
	if (!payload)
		return cut(frame, RULE_NOT_IP);
	if (type == ETH_P_IP)
		return read_v4(frame, payload, packet);
	if (type == ETH_P_IPV6)
		return read_v6(frame, payload, packet);
	return is_tag(type) ? SHAPE_ODD : RULE_NOT_IP;
}

/*
 * The destination address, whatever the rest of the packet says: to be delivered, a frame need
 * not make sense to us. Its family, or FAMILIES where it has none.
 */
static __always_inline int read_destination(const struct frame *frame, struct address *address)
{
	void *payload = NULL;
	int type = payload_of(frame, MAX_TAGS, &payload);
	__u8 *ip = payload;

	if (!payload)
		return FAMILIES;
	if (type == ETH_P_IP && payload + 20 <= frame->end && ip[0] >> 4 == 4) {
		address->high = 0;
		address->low = be32(ip + 16);
		return V4;
	}
	if (type == ETH_P_IPV6 && payload + 40 <= frame->end && ip[0] >> 4 == 6) {
		address->high = be64(ip + 24);
		address->low = be64(ip + 32);
		return V6;
	}
	return FAMILIES;
}

#endif

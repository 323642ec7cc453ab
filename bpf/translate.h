/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Translates the addresses of the hosts: source addresses of steered frames to addresses of the
 * network of incoming, and destination addresses of the relays' answers back. Same logic as
 * src/policy/translation.rs and src/policy/packet/readdress.rs.
 */
#ifndef EXITMARK_TRANSLATE_H
#define EXITMARK_TRANSLATE_H

/* Bytes from the beginning of a TCP header to the end of its checksum. */
#define TCP_SUM_END 18

#define PROTOCOL_ICMP 1
#define PROTOCOL_FRAGMENT 44
#define PROTOCOL_ICMPV6 58
/* The header of an ICMP error, in front of the quoted packet. */
#define ICMP_BYTES 8

/* What is translated back. */
enum translated {
	TRANSLATES_NOTHING,
	TRANSLATES_SEGMENT,
	TRANSLATES_ERROR, /* an ICMP error, with the packet that it quotes */
	/* A fragment, of which a worker remembers the ports. */
	TRANSLATES_FRAGMENT,
};

/* The packet that arrives at a translated address, per CPU: it would not fit on the stack. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct packet);
} arriving SEC(".maps");

/*
 * Where a packet is: the offset of its IP header, and flags. A number, so that the verifier checks
 * the functions below for all values at once.
 */
#define PLACE_OFFSET 0xff
#define PLACE_V6 0x100
#define PLACE_DESTINATION 0x200

/* The sum of a checksum grows by `delta`: RFC 1624, equation 3, for all changed words at once. */
static __always_inline void add_to_sum(void *at, __u64 delta)
{
	__u32 sum = (__u16)~be16(at) + (__u32)delta;

	sum = (sum & 0xffff) + (sum >> 16);
	*(__be16 *)at = bpf_htons(~sum);
}

/* The same for a checksum, and for an ICMP checksum that covers this checksum. */
static __always_inline void add_to_quoted_sum(void *at, void *icmp_sum, __u64 delta)
{
	__u16 old = *(__u16 *)at;

	add_to_sum(at, delta);
	*(__u16 *)icmp_sum = replace_word(*(__u16 *)icmp_sum, old, *(__u16 *)at);
}

static __always_inline void flip_v4(void *at, const struct change *change)
{
	*(__be32 *)at ^= bpf_htonl(change->flipped.low);
}

static __always_inline void flip_v6(void *at, const struct change *change)
{
	*(__be64 *)at ^= bpf_cpu_to_be64(change->flipped.high);
	*(__be64 *)(at + 8) ^= bpf_cpu_to_be64(change->flipped.low);
}

/* Where the TCP header of a packet begins, from its IP header; 0 if the packet ends before its sum. */
static __always_inline __u64 tcp_offset(const __u8 *ip, __u64 place)
{
	__u64 header = (ip[0] & 0x0f) * 4;

	if (place & PLACE_V6)
		return be16(ip + 4) < TCP_SUM_END ? 0 : 40;
	return be16(ip + 2) < header + TCP_SUM_END ? 0 : header;
}

/* The same as readdress(), for headers that are not all in the first buffer. */
static __always_inline int readdress_copy(struct xdp_md *ctx, __u64 place,
					  const struct change *change)
{
	__u64 offset = place & PLACE_OFFSET, sum_at;
	__u64 ip[5] = {};
	__u8 *header = (__u8 *)ip;
	__be16 sum = 0;

	if (place & PLACE_V6 ? bpf_xdp_load_bytes(ctx, offset, header, 40) :
			       bpf_xdp_load_bytes(ctx, offset, header, 20))
		return -1;
	sum_at = tcp_offset(header, place);
	if (!sum_at)
		return -1;
	sum_at += offset + TCP_SUM_END - 2;
	if (bpf_xdp_load_bytes(ctx, sum_at, &sum, sizeof(sum)))
		return -1;
	add_to_sum(&sum, change->delta);
	if (place & PLACE_V6) {
		if (place & PLACE_DESTINATION)
			flip_v6(header + 24, change);
		else
			flip_v6(header + 8, change);
	} else {
		if (place & PLACE_DESTINATION)
			flip_v4(header + 16, change);
		else
			flip_v4(header + 12, change);
		add_to_sum(header + 10, change->delta);
	}
	if (place & PLACE_V6 ? bpf_xdp_store_bytes(ctx, offset, header, 40) :
			       bpf_xdp_store_bytes(ctx, offset, header, 20))
		return -1;
	return bpf_xdp_store_bytes(ctx, sum_at, &sum, sizeof(sum));
}

/* The same as a function of its own, which needs the stack only while it runs. */
__noinline int readdress_scattered(struct xdp_md *ctx, __u64 place, const struct change *change)
{
	return change ? readdress_copy(ctx, place, change) : -1;
}

/* The headers are not all in the first buffer. */
#define BEYOND 1

/*
 * Changes the source or destination address of a TCP segment of this family, and the checksums that
 * cover it. Returns 0, BEYOND, or -1 if the packet has no whole TCP header.
 */
static __always_inline int readdress_at(struct xdp_md *ctx, __u64 place, int family,
					const struct change *change)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	void *ip = data + (place & PLACE_OFFSET), *tcp;
	__u64 offset;

	if (ip + (family == V6 ? 40 : 20) > end)
		return BEYOND;
	offset = tcp_offset(ip, family == V6 ? PLACE_V6 : 0);
	if (!offset)
		return -1;
	tcp = ip + offset;
	barrier_var(tcp);
	if (tcp + TCP_SUM_END > end)
		return BEYOND;
	if (family == V6) {
		flip_v6(place & PLACE_DESTINATION ? ip + 24 : ip + 8, change);
	} else {
		flip_v4(place & PLACE_DESTINATION ? ip + 16 : ip + 12, change);
		add_to_sum(ip + 10, change->delta);
	}
	add_to_sum(tcp + TCP_SUM_END - 2, change->delta);
	return 0;
}

/* A global function: the verifier checks it once, not once per state of its callers. */
__noinline int readdress(struct xdp_md *ctx, __u64 place, const struct change *change)
{
	int result;

	if (!change)
		return -1;
	result = place & PLACE_V6 ? readdress_at(ctx, place, V6, change) :
				    readdress_at(ctx, place, V4, change);
	if (multi_buffer && result == BEYOND)
		return readdress_scattered(ctx, place, change);
	return result;
}

static __always_inline int read_source(const struct frame *frame, __u64 place,
				       struct address *address)
{
	void *ip = frame->data + (place & PLACE_OFFSET);

	if (place & PLACE_V6) {
		if (ip + 40 > frame->end)
			return -1;
		address->high = be64(ip + 8);
		address->low = be64(ip + 16);
		return V6;
	}
	if (ip + 20 > frame->end)
		return -1;
	address->high = 0;
	address->low = be32(ip + 12);
	return V4;
}

/* The same as read_source(), for a header that is not in the first buffer. */
static __always_inline int load_source(struct xdp_md *ctx, __u64 place, struct address *address)
{
	__u64 offset = place & PLACE_OFFSET;

	if (place & PLACE_V6) {
		if (bpf_xdp_load_bytes(ctx, offset + 8, address, 16))
			return -1;
		address->high = bpf_be64_to_cpu(address->high);
		address->low = bpf_be64_to_cpu(address->low);
		return V6;
	}
	if (bpf_xdp_load_bytes(ctx, offset + 12, address, 4))
		return -1;
	address->low = bpf_ntohl(*(__be32 *)address);
	address->high = 0;
	return V4;
}

/* Finds how the source address of this family is translated: 1 if it is. */
static __always_inline int read_departure(const struct exitmark_image *image, int family,
					  struct address source, struct change *change)
{
	if (family == V4)
		return read_change(image, &image->policy.departures[V4], V4, source, change);
	return read_change(image, &image->policy.departures[V6], V6, source, change);
}

/*
 * Replaces the source address of a steered segment. Returns 0, BEYOND, or -1 if it is not
 * translated or has no whole TCP header.
 */
__noinline int depart(struct xdp_md *ctx, const struct exitmark_image *image, __u64 place)
{
	struct frame frame = first_buffer(ctx);
	struct change change = {};
	struct address source = {};
	int family = read_source(&frame, place, &source);

	if (family < 0)
		return BEYOND;
	if (!image || !read_departure(image, family, source, &change))
		return -1;
	return family == V4 ? readdress_at(ctx, place, V4, &change) :
			      readdress_at(ctx, place, V6, &change);
}

/*
 * The same for headers that are not all in the first buffer. Not called by depart(): Linux before
 * 6.8 allows 512 bytes of stack to all functions on the way, each rounded up to 32.
 */
__noinline int depart_scattered(struct xdp_md *ctx, const struct exitmark_image *image, __u64 place)
{
	struct change change = {};
	struct address source = {};
	int family = load_source(ctx, place, &source);

	if (family < 0 || !image || !read_departure(image, family, source, &change))
		return -1;
	return readdress_copy(ctx, place, &change);
}

static __always_inline bool is_error_v4(__u8 type)
{
	/* Destination unreachable, time exceeded, parameter problem. */
	return type == 3 || type == 11 || type == 12;
}

static __always_inline bool is_error_v6(__u8 type)
{
	/* Destination unreachable, packet too big, time exceeded, parameter problem. */
	return type >= 1 && type <= 4;
}

/* The parts of an ICMP error that quotes a segment. */
struct quote {
	void *icmp;
	void *ip; /* the quoted header */
	void *tcp;
	__u64 left; /* bytes from `tcp` to the end of the packet */
};

/*
 * Finds the quoted segment in an ICMP error whose IP header is at `place`. Returns 1, or 0 if it is
 * none, or not in the first buffer.
 */
static __always_inline int find_quote(void *data, void *end, __u64 place, struct quote *quote)
{
	void *ip = data + (place & PLACE_OFFSET);
	__u64 left;
	__u8 *at;

	if (place & PLACE_V6) {
		if (ip + 40 + ICMP_BYTES + 40 + 4 > end)
			return 0;
		at = quote->icmp = ip + 40;
		left = be16(ip + 4);
		if (!is_error_v6(*at) || left < ICMP_BYTES + 40 + 4)
			return 0;
		at = quote->ip = quote->icmp + ICMP_BYTES;
		if (at[0] >> 4 != 6 || at[6] != PROTOCOL_TCP)
			return 0;
		quote->tcp = quote->ip + 40;
		quote->left = left - ICMP_BYTES - 40;
		return 1;
	}
	if (ip + 20 > end)
		return 0;
	at = ip;
	left = (at[0] & 0x0f) * 4;
	quote->icmp = ip + left;
	left = be16(ip + 2) - left;
	if (quote->icmp + ICMP_BYTES + 20 > end || left < ICMP_BYTES + 20)
		return 0;
	at = quote->icmp;
	if (!is_error_v4(*at))
		return 0;
	at = quote->ip = quote->icmp + ICMP_BYTES;
	/* A later fragment has no ports. */
	if (at[0] >> 4 != 4 || (at[0] & 0x0f) < 5 || at[9] != PROTOCOL_TCP ||
	    be16(at + 6) & 0x1fff)
		return 0;
	left -= ICMP_BYTES;
	quote->tcp = quote->ip + (at[0] & 0x0f) * 4;
	if (left < (at[0] & 0x0f) * 4 + 4ULL || quote->tcp + 4 > end)
		return 0;
	quote->left = left - (at[0] & 0x0f) * 4;
	return 1;
}

/* Whether an ICMP error to this address quotes a segment that a host sent to a relay. */
__noinline int quotes_segment(struct xdp_md *ctx, const struct exitmark_image *image, __u64 place,
			      const struct address *to)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct address source = {}, destination = {};
	struct quote quote;

	if (!image || !to || !find_quote(data, end, place, &quote))
		return 0;
	if (place & PLACE_V6) {
		if (quote.ip + 40 > end)
			return 0;
		source.high = be64(quote.ip + 8);
		source.low = be64(quote.ip + 16);
		destination.high = be64(quote.ip + 24);
		destination.low = be64(quote.ip + 32);
	} else {
		source.low = be32(quote.ip + 12);
		destination.low = be32(quote.ip + 16);
	}
	if (source.high != to->high || source.low != to->low)
		return 0;
	if (place & PLACE_V6)
		return lists(image, &image->policy.relays[V6], V6, destination, be16(quote.tcp + 2));
	return lists(image, &image->policy.relays[V4], V4, destination, be16(quote.tcp + 2));
}

/* Changes the destination address of an ICMP error, and the source address that it quotes. */
__noinline int readdress_error(struct xdp_md *ctx, __u64 place, const struct change *change)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	void *ip = data + (place & PLACE_OFFSET), *icmp_sum;
	struct quote quote;

	if (!change || !find_quote(data, end, place, &quote))
		return -1;
	icmp_sum = quote.icmp + 2;
	if (place & PLACE_V6) {
		flip_v6(ip + 24, change);
		flip_v6(quote.ip + 8, change);
		/* It covers both: RFC 4443, section 2.3. */
		add_to_sum(icmp_sum, change->delta);
		add_to_sum(icmp_sum, change->delta);
	} else {
		flip_v4(ip + 16, change);
		add_to_sum(ip + 10, change->delta);
		flip_v4(quote.ip + 12, change);
		add_to_sum(icmp_sum, change->delta);
		add_to_quoted_sum(quote.ip + 10, icmp_sum, change->delta);
	}
	/* The quote may end before. */
	if (quote.left >= TCP_SUM_END && quote.tcp + TCP_SUM_END <= end)
		add_to_quoted_sum(quote.tcp + TCP_SUM_END - 2, icmp_sum, change->delta);
	return 0;
}

/* Whether the header behind an IPv6 fragment header is TCP's. */
static __always_inline bool is_fragment_of_tcp(const struct frame *frame, __u64 offset)
{
	__u8 *at = frame->data + (offset & OFFSET_BITS) + 40;

	return (void *)at + 1 <= frame->end && *at == PROTOCOL_TCP;
}

/* The control bits of a TCP segment; -1 if the packet ends before its checksum. */
__noinline int control_of(struct xdp_md *ctx, __u64 place)
{
	__u64 at = place & PLACE_OFFSET, offset;
	__u64 ip = 0;
	__u8 control = 0;

	/* The lengths are in the first eight bytes of either header. */
	if (bpf_xdp_load_bytes(ctx, at, &ip, sizeof(ip)))
		return -1;
	offset = tcp_offset((__u8 *)&ip, place);
	if (!offset || bpf_xdp_load_bytes(ctx, at + offset + 13, &control, sizeof(control)))
		return -1;
	return control;
}

/* Whether a segment has a checksum, and does not open a connection: SYN without ACK and RST. */
static __always_inline bool can_be_answer(struct xdp_md *ctx, __u64 place)
{
	int control = control_of(ctx, place);

	return control >= 0 && (control & (TCP_SYN | TCP_ACK | TCP_RST)) != TCP_SYN;
}

/* What a frame to a translated address is, of which a relay may have sent the answer. */
static __always_inline enum translated arrival_of(const struct exitmark_image *image,
						  const struct frame *frame,
						  const struct packet *packet, int shape)
{
	__u64 place = packet->ip | (packet->family == V6 ? PLACE_V6 : 0);
	bool listed;

	if (shape == SHAPE_SLOW) {
		bool is_segment = packet->family == V4 ? packet->protocol == PROTOCOL_TCP :
							 packet->protocol == PROTOCOL_FRAGMENT &&
								 is_fragment_of_tcp(frame, packet->ip);

		return is_segment ? TRANSLATES_FRAGMENT : TRANSLATES_NOTHING;
	}
	if (packet->protocol == (packet->family == V4 ? PROTOCOL_ICMP : PROTOCOL_ICMPV6))
		return quotes_segment(frame->ctx, image, place, &packet->destination) ?
			       TRANSLATES_ERROR :
			       TRANSLATES_NOTHING;
	if (packet->protocol != PROTOCOL_TCP || !can_be_answer(frame->ctx, place))
		return TRANSLATES_NOTHING;
	if (packet->family == V4)
		listed = lists(image, &image->policy.relays[V4], V4, packet->source,
			       packet->source_port);
	else
		listed = lists(image, &image->policy.relays[V6], V6, packet->source,
			       packet->source_port);
	return listed ? TRANSLATES_SEGMENT : TRANSLATES_NOTHING;
}

#endif

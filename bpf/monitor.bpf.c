// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The monitor's filter, on the NIC of a passive tap. Packets with the mark and a clearnet source
 * address of the host are redirected to user space, truncated behind the part of the transport
 * header that is needed: payload is not passed on. All other frames are dropped. The monitor's own
 * network stack receives nothing, not even ARP, and so answers nothing.
 *
 * Packets are parsed, and refused as malformed, as in src/policy/packet; in addition, a packet with
 * headers of more than LONGEST_HEADERS is malformed.
 *
 * VLAN tags are not passed on, so whether the NIC strips them has no effect.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <stdbool.h>
#include <stddef.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* Must match src/monitor/tap/program.rs, like the two structures below. */
#define MAX_SOURCES 64

/* In bytes: the smallest MTU of IPv6, which fits into an AF_XDP chunk of 2,048 bytes. */
#define LONGEST_HEADERS 1280

#define HEADER_BYTES LONGEST_HEADERS
#include "frame.h"

/* Must match src/policy/packet/ipv6.rs. */
#define MAX_EXTENSION_HEADERS 8

/* Bytes of the fixed transport headers; that of TCP includes the flags. */
#define TCP_BYTES 20
#define UDP_BYTES 8

/* Set before the program is loaded. */
const volatile struct {
	__u64 mark; /* the code point shifted left by two, as in the ToS byte */
	__u64 v4_count;
	__u64 v6_count;
	__u64 v4[MAX_SOURCES];
	struct address v6[MAX_SOURCES];
} rule;

/* Per CPU: all frames, then frames by fate. */
struct counts {
	__u64 received;
	__u64 passed;
	__u64 not_ip;
	__u64 malformed;
	__u64 unmarked;
	__u64 other_source;
	__u64 no_socket;
};

/* Sockets by receive queue; resized to the NIC's queues. */
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counts);
} counters SEC(".maps");

struct fields {
	struct address source;
	__u8 tos;
	__u8 protocol;
	/* The payload continues an earlier fragment and has no ports. */
	bool is_later_fragment;
	enum { V4, V6 } family;
	/* Offsets in the frame: of the transport header, and of the end of the packet. */
	__u64 transport;
	__u64 end;
};

/* RFC 791. Options are skipped by IHL. */
static __always_inline bool read_v4(struct frame *frame, __u64 at, struct fields *fields)
{
	__u8 *ip = frame->data + at;
	__u64 header, total;

	if ((void *)ip + 20 > frame->end || ip[0] >> 4 != 4)
		return false;
	header = (ip[0] & 0x0f) * 4;
	total = be16(ip + 2);
	if (header < 20 || total < header)
		return false;
	fields->end = at + total;
	if (!is_as_long_as(frame, fields->end))
		return false;
	fields->source.high = 0;
	fields->source.low = be32(ip + 12);
	fields->tos = ip[1];
	fields->protocol = ip[9];
	fields->is_later_fragment = be16(ip + 6) & 0x1fff;
	fields->transport = at + header;
	return true;
}

static __always_inline bool is_extension(__u8 protocol)
{
	switch (protocol) {
	case 0: /* hop-by-hop options */
	case 43: /* routing */
	case 44: /* fragment */
	case 60: /* destination options */
		return true;
	}
	return false;
}

/* Skips IPv6 extension headers, up to the payload of a later fragment. */
static __always_inline bool skip_extensions(const struct frame *frame, struct fields *fields)
{
	for (int i = 0; i < MAX_EXTENSION_HEADERS && is_extension(fields->protocol); i++) {
		__u8 *extension, kind = fields->protocol;
		__u64 at = fields->transport;

		/* Otherwise the compiler emits comparisons that the verifier cannot follow. */
		barrier_var(at);
		/* Also bounds the offset for the verifier if the headers are a copy. */
		if (at > HEADER_BYTES - 8)
			return false;
		extension = frame->data + at;
		if ((void *)extension + 8 > frame->end || at + 8 > fields->end)
			return false;
		fields->protocol = extension[0];
		if (kind != 44) {
			fields->transport += (extension[1] + 1) * 8;
			continue;
		}
		fields->transport += 8;
		fields->is_later_fragment = be16(extension + 2) >> 3;
		if (fields->is_later_fragment)
			return true;
	}
	return !is_extension(fields->protocol);
}

/* RFC 8200. */
static __always_inline bool read_v6(struct frame *frame, __u64 at, struct fields *fields)
{
	__u8 *ip = frame->data + at;

	if ((void *)ip + 40 > frame->end || ip[0] >> 4 != 6)
		return false;
	fields->end = at + 40 + be16(ip + 4);
	if (!is_as_long_as(frame, fields->end))
		return false;
	fields->source.high = be64(ip + 8);
	fields->source.low = be64(ip + 16);
	fields->tos = be16(ip) >> 4;
	fields->protocol = ip[6];
	fields->is_later_fragment = false;
	fields->transport = at + 40;
	return skip_extensions(frame, fields);
}

/* Bytes of the frame to pass on; 0 if ports are missing, or headers are too long or unreadable. */
static __always_inline __u64 needed(const struct frame *frame, const struct fields *fields)
{
	__u64 reach = frame->end - frame->data;
	__u64 bytes = fields->transport;

	if (!fields->is_later_fragment &&
	    (fields->protocol == PROTOCOL_TCP || fields->protocol == PROTOCOL_UDP)) {
		if (bytes + 4 > fields->end || bytes + 4 > reach)
			return 0;
		bytes += fields->protocol == PROTOCOL_TCP ? TCP_BYTES : UDP_BYTES;
	}
	/* Excludes padding. */
	if (bytes > fields->end)
		bytes = fields->end;
	return bytes <= reach && bytes <= LONGEST_HEADERS ? bytes : 0;
}

static __always_inline bool is_clearnet_v4(const struct address *source)
{
	for (__u32 i = 0; i < MAX_SOURCES && i < rule.v4_count; i++)
		if (rule.v4[i] == source->low)
			return true;
	return false;
}

static __always_inline bool is_clearnet_v6(const struct address *source)
{
	for (__u32 i = 0; i < MAX_SOURCES && i < rule.v6_count; i++)
		if (rule.v6[i].low == source->low && rule.v6[i].high == source->high)
			return true;
	return false;
}

/* Truncates a frame to `bytes` and redirects it to its queue's socket. */
static __always_inline int hand_over(struct xdp_md *ctx, __u64 bytes, struct counts *counts)
{
	__s64 whole = bpf_xdp_get_buff_len(ctx);

	if (bpf_xdp_adjust_tail(ctx, (int)((__s64)bytes - whole)) ||
	    bpf_redirect_map(&sockets, ctx->rx_queue_index, XDP_DROP) != XDP_REDIRECT) {
		counts->no_socket++;
		return XDP_DROP;
	}
	counts->passed++;
	return XDP_REDIRECT;
}

/* Why a frame is not counted as a packet. */
#define NOT_IP (-1)
#define MALFORMED (-2)

/* Parses a frame's headers; returns the bytes to pass on, NOT_IP or MALFORMED. */
static __always_inline __s64 read_headers(struct frame *frame, struct fields *fields)
{
	void *payload = NULL;
	__u64 ip = 0, bytes;
	bool is_whole;
	int type;

	type = payload_of(frame, MAX_TAGS, &payload);
	if (payload)
		ip = payload - frame->data;
	/*
	 * The offset is 14 to 30. The mask bounds it for the verifier even if it is spilled at once:
	 * Linux 6.1 does not narrow a number that is on the stack already by a comparison.
	 */
	barrier_var(ip);
	ip &= 0x1f;
	if (!ip || (type != ETH_P_IP && type != ETH_P_IPV6))
		return NOT_IP;
	fields->family = type == ETH_P_IP ? V4 : V6;
	is_whole = type == ETH_P_IP ? read_v4(frame, ip, fields) : read_v6(frame, ip, fields);
	bytes = is_whole ? needed(frame, fields) : 0;
	return bytes ? bytes : MALFORMED;
}

/* Like read_headers, for headers that are not all in the first of several buffers. */
static __noinline __s64 read_scattered(struct frame *frame, struct fields *fields)
{
	struct frame whole;

	return gather(frame, &whole) ? read_headers(&whole, fields) : MALFORMED;
}

SEC("xdp")
int exitmark_tap(struct xdp_md *ctx)
{
	struct frame frame = frame_of(ctx);
	struct fields fields = {};
	struct counts *counts;
	bool is_clearnet;
	__u32 only = 0;
	__s64 bytes;

	counts = bpf_map_lookup_elem(&counters, &only);
	if (!counts)
		return XDP_DROP;
	counts->received++;
	bytes = read_headers(&frame, &fields);
	if (bytes < 0 && frame.end - frame.data < LONGEST_HEADERS) {
		measure(&frame);
		if (frame.bytes > (__u64)(frame.end - frame.data))
			bytes = read_scattered(&frame, &fields);
	}
	if (bytes == NOT_IP) {
		counts->not_ip++;
		return XDP_DROP;
	}
	if (bytes < 0) {
		counts->malformed++;
		return XDP_DROP;
	}
	if ((fields.tos & DSCP_BITS) != rule.mark) {
		counts->unmarked++;
		return XDP_DROP;
	}
	is_clearnet = fields.family == V4 ? is_clearnet_v4(&fields.source)
					  : is_clearnet_v6(&fields.source);
	if (!is_clearnet) {
		counts->other_source++;
		return XDP_DROP;
	}
	return hand_over(ctx, bytes, counts);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";

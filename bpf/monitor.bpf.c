// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The monitor's filter, on the NIC of a passive tap. What bears the mark and comes from a clearnet
 * address of the host goes to user space, cut right behind the part of its transport header that
 * is counted by: no payload does. All else ends here. The monitor's own stack gets nothing, not
 * even ARP, and so answers nothing.
 *
 * What is a packet, and what is malformed, as src/packet has it; but a packet with headers of more
 * than LONGEST_HEADERS is malformed.
 *
 * A tag that the NIC has taken off is not missed: nobody is told of tags, and behind one there is
 * the same packet as without it.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <stdbool.h>
#include <stddef.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* As in src/monitor/tap/program.rs, like the two structures below. */
#define MAX_SOURCES 64

/* What an AF_XDP chunk of 2,048 bytes has room for, with a margin: the smallest MTU of IPv6. */
#define LONGEST_HEADERS 1280

#define HEADER_BYTES LONGEST_HEADERS
#include "frame.h"

/* As in src/packet/ipv6.rs. */
#define MAX_EXTENSION_HEADERS 8

/* Up to the flags, and the rest of the fixed header. */
#define TCP_BYTES 20
#define UDP_BYTES 8

/* Set before this is loaded. */
const volatile struct {
	__u64 mark; /* as in the ToS byte: the code point shifted left by two */
	__u64 v4_count;
	__u64 v6_count;
	__u64 v4[MAX_SOURCES];
	struct address v6[MAX_SOURCES];
} rule;

/* Per CPU: all, and then what became of each. */
struct counts {
	__u64 received;
	__u64 passed;
	__u64 not_ip;
	__u64 malformed;
	__u64 unmarked;
	__u64 other_source;
	__u64 no_socket;
};

/* By receive queue; as many as the NIC has. */
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
	/* What follows is payload that a first fragment began. */
	bool is_later_fragment;
	enum { V4, V6 } family;
	/* From the frame's beginning: where the transport header is, and where the packet ends. */
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

/* Steps over IPv6's extension headers, up to a later fragment's payload. */
static __always_inline bool skip_extensions(const struct frame *frame, struct fields *fields)
{
	for (int i = 0; i < MAX_EXTENSION_HEADERS && is_extension(fields->protocol); i++) {
		__u8 *extension, kind = fields->protocol;
		__u64 at = fields->transport;

		/* Else the compiler compares in ways that the verifier cannot follow. */
		barrier_var(at);
		/* Also bounds the offset for the verifier where the headers are a copy. */
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

/* How much of the frame is needed; 0 where ports are missing, or it is too much or out of reach. */
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
	/* Neither the next packet's nor padding. */
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

/* Hands a frame over without what follows its first `bytes`. */
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

/* What a frame turned out to be, if it is not a packet. */
#define NOT_IP (-1)
#define MALFORMED (-2)

/* Reads a frame's headers: the number of bytes that are needed of it, NOT_IP or MALFORMED. */
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
	 * It is at 14 to 30 bytes. The mask bounds it for the verifier also where it is spilled at once:
	 * Linux 6.1 forgets what a comparison tells of a number that is on the stack already.
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

/* The same where the first of several buffers does not hold them. */
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

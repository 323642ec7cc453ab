// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The monitor's filter, on the NIC of a passive tap. What bears the mark and comes from a clearnet
 * address of the host goes to user space, cut right behind the part of its transport header that
 * is counted by: no payload does. All else ends here. The monitor's own stack gets nothing, not
 * even ARP, and so answers nothing.
 *
 * What is a packet, and what is malformed, as src/packet has it; but that whoever has headers of
 * more than LONGEST_HEADERS, or such as do not all lie in a frame's first buffer, has none.
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

#include "frame.h"

#ifndef barrier_var
#define barrier_var(var) asm volatile("" : "+r"(var))
#endif

/* As in src/monitor/tap/program.rs, like the two structures below. */
#define MAX_SOURCES 64

/* What an AF_XDP chunk of 2,048 bytes has room for, with a margin: the smallest MTU of IPv6. */
#define LONGEST_HEADERS 1280

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

struct headers {
	struct address source;
	__u8 tos;
	__u8 protocol;
	/* What follows is payload that a first fragment began. */
	bool is_later_fragment;
	/* From the frame's beginning: where the transport header is, and where the packet ends. */
	__u64 transport;
	__u64 end;
};

/* RFC 791. Options are skipped by IHL. */
static __always_inline bool read_v4(struct frame *frame, __u64 at, struct headers *headers)
{
	__u8 *ip = frame->data + at;
	__u64 header, total;

	if ((void *)ip + 20 > frame->end || ip[0] >> 4 != 4)
		return false;
	header = (ip[0] & 0x0f) * 4;
	total = be16(ip + 2);
	if (header < 20 || total < header)
		return false;
	headers->end = at + total;
	if (!is_as_long_as(frame, headers->end))
		return false;
	headers->source.high = 0;
	headers->source.low = be32(ip + 12);
	headers->tos = ip[1];
	headers->protocol = ip[9];
	headers->is_later_fragment = be16(ip + 6) & 0x1fff;
	headers->transport = at + header;
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
static __always_inline bool skip_extensions(const struct frame *frame, struct headers *headers)
{
	for (int i = 0; i < MAX_EXTENSION_HEADERS && is_extension(headers->protocol); i++) {
		__u8 *extension, kind = headers->protocol;
		__u64 at = headers->transport;

		/* Else the compiler compares in ways that the verifier cannot follow. */
		barrier_var(at);
		extension = frame->data + at;
		if ((void *)extension + 8 > frame->end || at + 8 > headers->end)
			return false;
		headers->protocol = extension[0];
		if (kind != 44) {
			headers->transport += (extension[1] + 1) * 8;
			continue;
		}
		headers->transport += 8;
		headers->is_later_fragment = be16(extension + 2) >> 3;
		if (headers->is_later_fragment)
			return true;
	}
	return !is_extension(headers->protocol);
}

/* RFC 8200. */
static __always_inline bool read_v6(struct frame *frame, __u64 at, struct headers *headers)
{
	__u8 *ip = frame->data + at;

	if ((void *)ip + 40 > frame->end || ip[0] >> 4 != 6)
		return false;
	headers->end = at + 40 + be16(ip + 4);
	if (!is_as_long_as(frame, headers->end))
		return false;
	headers->source.high = be64(ip + 8);
	headers->source.low = be64(ip + 16);
	headers->tos = be16(ip) >> 4;
	headers->protocol = ip[6];
	headers->is_later_fragment = false;
	headers->transport = at + 40;
	return skip_extensions(frame, headers);
}

/* How much of the frame is needed; 0 where TCP's or UDP's ports are missing, or it is too much. */
static __always_inline __u64 needed(const struct frame *frame, const struct headers *headers)
{
	__u64 reach = frame->end - frame->data;
	__u64 bytes = headers->transport;

	if (!headers->is_later_fragment &&
	    (headers->protocol == PROTOCOL_TCP || headers->protocol == PROTOCOL_UDP)) {
		if (bytes + 4 > headers->end || bytes + 4 > reach)
			return 0;
		bytes += headers->protocol == PROTOCOL_TCP ? TCP_BYTES : UDP_BYTES;
	}
	/* Neither the next packet's nor padding, nor what is in another buffer. */
	if (bytes > headers->end)
		bytes = headers->end;
	if (bytes > reach)
		bytes = reach;
	return bytes <= LONGEST_HEADERS ? bytes : 0;
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

SEC("xdp.frags")
int exitmark_tap(struct xdp_md *ctx)
{
	struct frame frame = frame_of(ctx);
	struct headers headers = {};
	bool is_whole, is_clearnet;
	struct counts *counts;
	void *payload = NULL;
	__u64 ip = 0, bytes;
	__u32 only = 0;
	int type;

	counts = bpf_map_lookup_elem(&counters, &only);
	if (!counts)
		return XDP_DROP;
	counts->received++;
	type = payload_of(&frame, MAX_TAGS, &payload);
	if (payload)
		ip = payload - frame.data;
	barrier_var(ip);
	/* It is never behind more tags, but for the verifier to see. */
	if (!ip || ip > ETH_HLEN + 4 * MAX_TAGS || (type != ETH_P_IP && type != ETH_P_IPV6)) {
		counts->not_ip++;
		return XDP_DROP;
	}
	is_whole = type == ETH_P_IP ? read_v4(&frame, ip, &headers)
				    : read_v6(&frame, ip, &headers);
	bytes = is_whole ? needed(&frame, &headers) : 0;
	if (!bytes) {
		counts->malformed++;
		return XDP_DROP;
	}
	if ((headers.tos & DSCP_BITS) != rule.mark) {
		counts->unmarked++;
		return XDP_DROP;
	}
	is_clearnet = type == ETH_P_IP ? is_clearnet_v4(&headers.source)
				       : is_clearnet_v6(&headers.source);
	if (!is_clearnet) {
		counts->other_source++;
		return XDP_DROP;
	}
	return hand_over(ctx, bytes, counts);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";

// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The monitor's filter, on the NIC of a passive tap. Packets with the mark and a clearnet source
 * address of the host (and, if both directions are counted, a clearnet destination address) are
 * redirected to user space, truncated behind the part of the transport header that is needed:
 * payload is not passed on. All other frames are dropped. The monitor's own network stack receives
 * nothing, not even ARP, and so answers nothing.
 *
 * Packets are parsed, and refused as malformed, as in src/policy/packet, but for two rules: a mirror
 * may have cut a packet behind its transport header, so the packet's length may exceed the frame;
 * and a packet with headers of more than LONGEST_HEADERS is malformed.
 *
 * A packet in a mirror's packet (ERSPAN, VXLAN) is passed on with the mirror's headers, which user
 * space skips as this program does.
 *
 * VLAN tags are not passed on, so whether the NIC strips them has no effect.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <stdbool.h>
#include <stddef.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* Must match src/monitor/tap/program.rs, like the structures below. */
#define MAX_RANGES 1024
/* A search covers fewer ranges than 1 << RANGE_STEPS. */
#define RANGE_STEPS 11

/* In bytes: the smallest MTU of IPv6, which fits into an AF_XDP chunk of 2,048 bytes. */
#define LONGEST_HEADERS 1280

#define HEADER_BYTES LONGEST_HEADERS
#include "compare.h"
#include "frame.h"

/* Must match src/policy/packet/ipv6.rs. */
#define MAX_EXTENSION_HEADERS 8

/* Bytes of the fixed transport headers; that of TCP includes the flags. */
#define TCP_BYTES 20
#define UDP_BYTES 8

/* Why a frame is not counted as a packet. */
#define NOT_IP (-1)
#define MALFORMED (-2)

struct range {
	struct address first;
	struct address last;
};

/* Set before the program is loaded: the verifier removes what a configuration does not need. */
const volatile struct {
	__u64 mark; /* the code point shifted left by two, as in the ToS byte */
	__u64 both_directions;
	__u64 erspan;
	__u64 vxlan_port; /* 0 if VXLAN is not unwrapped */
	__u64 v4_count;
	__u64 v6_count;
	/* The host's clearnet addresses as disjoint sorted ranges; of IPv4, the first address is in
	 * the upper half. */
	__u64 v4[MAX_RANGES];
	struct range v6[MAX_RANGES];
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
	__u64 inbound;
};

#include "mirror.h"

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

enum family { V4, V6 };

struct fields {
	struct address source;
	struct address destination;
	__u8 tos;
	__u8 protocol;
	/* The payload continues an earlier fragment and has no ports. */
	bool is_later_fragment;
	enum family family;
	/*
	 * Offsets in the frame: of the transport header, of the end of the packet by its own length,
	 * and of the end of what is there of it.
	 */
	__u64 transport;
	__u64 end;
	__u64 reach;
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
	fields->source.high = 0;
	fields->source.low = be32(ip + 12);
	fields->destination.high = 0;
	fields->destination.low = be32(ip + 16);
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
	fields->source.high = be64(ip + 8);
	fields->source.low = be64(ip + 16);
	fields->destination.high = be64(ip + 24);
	fields->destination.low = be64(ip + 32);
	fields->tos = be16(ip) >> 4;
	fields->protocol = ip[6];
	fields->is_later_fragment = false;
	fields->transport = at + 40;
	return skip_extensions(frame, fields);
}

/* Bytes of the frame to pass on; 0 if ports are missing, or headers are too long or unreadable. */
static __always_inline __u64 needed(const struct fields *fields)
{
	__u64 reach = fields->reach, bytes = fields->transport;

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

/* The mask is for the verifier; clang must not prove it redundant. */
static __always_inline __u64 index_of(__u64 at)
{
	barrier_var(at);
	return at & (MAX_RANGES - 1);
}

static __always_inline struct address first_of(int family, __u64 at)
{
	struct address address = {};

	if (family == V4) {
		address.low = rule.v4[index_of(at)] >> 32;
	} else {
		at = index_of(at);
		address.high = rule.v6[at].first.high;
		address.low = rule.v6[at].first.low;
	}
	return address;
}

static __always_inline struct address last_of(int family, __u64 at)
{
	struct address address = {};

	if (family == V4) {
		address.low = rule.v4[index_of(at)] & 0xffffffff;
	} else {
		at = index_of(at);
		address.high = rule.v6[at].last.high;
		address.low = rule.v6[at].last.low;
	}
	return address;
}

static __always_inline bool is_within(int family, __u64 at, struct address address)
{
	return !(is_before(address, first_of(family, at)) | is_before(last_of(family, at), address));
}

static __always_inline bool search(int family, __u64 count, struct address address)
{
	__u64 after = 0; /* number of ranges whose first address is not above the address */

	for (int i = RANGE_STEPS - 1; i >= 0; i--) {
		__u64 next = after + (1 << i);
		struct address first = first_of(family, next - 1);

		after += (~(is_below(count, next) | is_before(address, first)) & 1) << i;
	}
	return after && is_within(family, after - 1, address);
}

/* Global functions: the verifier checks each once, not once per caller. */
__noinline int search_v4(__u64 low)
{
	struct address address = { .low = low };

	return search(V4, rule.v4_count, address);
}

__noinline int search_v6(__u64 high, __u64 low)
{
	struct address address = { .high = high, .low = low };

	return search(V6, rule.v6_count, address);
}

/* Whether the address is the host's. The counts are constants: only one of the cases remains. */
static __always_inline bool is_clearnet(int family, const struct address *address)
{
	__u64 count = family == V4 ? rule.v4_count : rule.v6_count;

	if (count == 0)
		return false;
	if (count == 1)
		return is_within(family, 0, *address);
	return family == V4 ? search_v4(address->low) : search_v6(address->high, address->low);
}

static __always_inline bool is_host(const struct fields *fields, const struct address *address)
{
	return fields->family == V4 ? is_clearnet(V4, address) : is_clearnet(V6, address);
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

/* The offset of an Ethernet payload, 0 if there is none; sets its EtherType. */
static __always_inline __u64 ethernet(const struct frame *frame, __u64 at, __u64 mask, int *type)
{
	struct frame from = *frame;
	void *payload = NULL;
	__u64 offset = 0;

	from.data += at;
	*type = payload_of(&from, MAX_TAGS, &payload);
	if (payload)
		offset = payload - frame->data;
	/*
	 * The mask bounds the offset for the verifier even if it is spilled at once: Linux 6.1 does
	 * not narrow a number that is on the stack already by a comparison.
	 */
	barrier_var(offset);
	return offset & mask;
}

/* Masks of offsets: of the payload of a frame, 14 to 30, and of a mirrored frame, below 150. */
#define OUTER_MASK 0x1f
#define INNER_MASK 0xff

/*
 * Parses a frame's headers; returns the bytes to pass on, NOT_IP or MALFORMED. The pointers of a
 * frame that is not a copy are reloaded, or the verifier would verify what follows once for each
 * combination of tags and headers.
 */
static __always_inline __s64 read_headers(struct frame *frame, struct fields *fields, bool is_copy)
{
	__u64 ip, bytes, whole = frame->end - frame->data;
	bool is_whole;
	int type;

	fields->reach = whole;
	ip = ethernet(frame, 0, OUTER_MASK, &type);
	if (!ip || (type != ETH_P_IP && type != ETH_P_IPV6))
		return NOT_IP;
	if (rule.erspan || rule.vxlan_port) {
		__u64 reach = whole;
		__s64 inner;

		if (!is_copy)
			*frame = frame_again(frame);
		inner = mirrored(frame, type, ip, &reach);
		if (inner < 0)
			return inner;
		if (!is_copy)
			*frame = frame_again(frame);
		if (inner) {
			fields->reach = reach;
			barrier_var(inner);
			ip = ethernet(frame, inner & INNER_MASK, INNER_MASK, &type);
			/* Behind the end of the packet is padding. */
			if (!ip || ip > reach || (type != ETH_P_IP && type != ETH_P_IPV6))
				return NOT_IP;
			if (!is_copy)
				*frame = frame_again(frame);
		}
	}
	fields->family = type == ETH_P_IP ? V4 : V6;
	is_whole = type == ETH_P_IP ? read_v4(frame, ip, fields) : read_v6(frame, ip, fields);
	bytes = is_whole ? needed(fields) : 0;
	return bytes ? bytes : MALFORMED;
}

/* Like read_headers, for headers that are not all in the first of several buffers. */
static __noinline __s64 read_scattered(struct frame *frame, struct fields *fields)
{
	struct frame whole;

	return gather(frame, &whole) ? read_headers(&whole, fields, true) : MALFORMED;
}

SEC("xdp")
int exitmark_tap(struct xdp_md *ctx)
{
	/* The length is read only if the headers are not all in the first buffer. */
	struct frame frame = {
		.ctx = ctx,
		.data = (void *)(long)ctx->data,
		.end = (void *)(long)ctx->data_end,
	};
	struct fields fields = {};
	struct counts *counts;
	__u32 only = 0;
	__s64 bytes;

	counts = bpf_map_lookup_elem(&counters, &only);
	if (!counts)
		return XDP_DROP;
	counts->received++;
	bytes = read_headers(&frame, &fields, false);
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
	if (!is_host(&fields, &fields.source)) {
		if (!is_host(&fields, &fields.destination)) {
			counts->other_source++;
			return XDP_DROP;
		}
		if (!rule.both_directions) {
			counts->inbound++;
			return XDP_DROP;
		}
	}
	return hand_over(ctx, bytes, counts);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";

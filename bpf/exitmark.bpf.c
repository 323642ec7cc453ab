// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The kernel engine: applies the whole policy to fast-path frames, on every port, with or without
 * a process in user space.
 *
 * A fast-path frame has at most two VLAN tags and is neither an IPv4 fragment nor an IPv6 packet
 * with extension headers. All other frames take the slow path, through a worker in user space;
 * without a worker they are forwarded unmarked. With engine "af_xdp" a worker gets every frame, as
 * long as it keeps up.
 *
 * This program handles every frame on host and uplink: the two NICs are a wire, and the box's own
 * stack receives nothing from them. incoming is a member of another network: the program handles
 * only frames for the host's addresses that were sent to the NIC's own MAC address, and passes all
 * others to the stack.
 */
#include <linux/bpf.h>
#include <linux/errno.h>
#include <linux/if_ether.h>
#include <stdbool.h>
#include <stddef.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "exitmark.h"

#define READ_ONCE(x) (*(const volatile typeof(x) *)&(x))

/* User space compares these sizes with its own before it loads the program. */
const volatile __u32 layout_version = LAYOUT_VERSION;
const volatile __u32 policy_bytes = sizeof(struct exitmark_policy);
const volatile __u32 counts_bytes = sizeof(struct exitmark_counts);
const volatile __u32 links_bytes = sizeof(struct exitmark_links);
const volatile __u32 guard_bytes = sizeof(struct exitmark_guard);
const volatile __u32 sample_bytes = sizeof(struct exitmark_sample);

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, ROLES * MAX_QUEUES);
	__type(key, __u32);
	__type(value, __u32);
} sockets SEC(".maps");

/* The NIC of each role. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, ROLES);
	__type(key, __u32);
	__type(value, __u32);
} ports SEC(".maps");

#include "policy.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct exitmark_links);
} links SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, MAX_QUEUES);
	__type(key, __u32);
	__type(value, struct exitmark_guard);
} guards SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct exitmark_counts);
} counters SEC(".maps");

/*
 * The workers' counters, one tally each. This program does not use them; they are pinned with its
 * maps, so that another process that takes over continues the counts.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, MAX_QUEUES);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, __builtin_offsetof(struct exitmark_counts, stack));
} worker_counters SEC(".maps");

static __always_inline bool find_state(struct exitmark_links **found_links,
				       struct exitmark_counts **found_counts)
{
	__u32 only = 0;

	*found_links = bpf_map_lookup_elem(&links, &only);
	*found_counts = bpf_map_lookup_elem(&counters, &only);
	return *found_links && *found_counts;
}

#include "parse.h"
#include "sets.h"
#include "judge.h"
#include "rewrite.h"
#include "sample.h"
#include "hosts.h"
#include "guard.h"

/* The generation of the policy in force; 0 without one. */
static __noinline __u64 generation(void)
{
	const struct exitmark_image *image = current_image();

	return image ? image->policy.generation : 0;
}

/* Redirects a frame to a port, or drops it if the NIC of that port is gone. */
static __always_inline __u32 to_port(__u64 role, struct exitmark_counts *counts)
{
	/* Unreachable; bounds the index for the verifier. */
	barrier_var(role);
	if (role >= ROLES)
		return OUTCOME_NO_EGRESS;
	if (bpf_redirect_map(&ports, role, XDP_DROP) != XDP_REDIRECT) {
		counts->no_egress++;
		return OUTCOME_NO_EGRESS;
	}
	counts->forwarded[role]++;
	return role;
}

static __always_inline int action_of(__u32 outcome)
{
	return outcome < ROLES ? XDP_REDIRECT : XDP_DROP;
}

/*
 * The result of parsing and judging a frame, packed into one number. hidden() makes it unknown to
 * the verifier, which then verifies the code that follows once, not once per result.
 */
#define RULE_OF(known) ((known) & 0xff)
#define IS_SLOW 0x200
#define IS_V6 0x400
#define PART_OF(known) ((known) >> 16 & 0xff)
#define TOS_OF(known) ((known) >> 24 & 0xff)
#define IP_OF(known) ((known) >> 32 & OFFSET_BITS)
#define HOST_KEY_AT 40
#define HOST_KEY_OF(known) ((known) >> HOST_KEY_AT & ((1 << HOST_KEY_BITS) - 1))

/* Parses a frame, and judges it if it is on the fast path. Sets its part if `share` is not 0. */
static __always_inline __u64 know(struct frame *frame, const struct exitmark_image *image,
				  __u64 share)
{
	struct packet packet;
	int shape = read_packet(frame, &packet);
	__u64 known;

	if (shape == SHAPE_PACKET) {
		known = hidden(judge(image, &packet), frame->bytes);
		known |= (share ? part_of(&packet) : LAST_PART) << 16;
	} else {
		known = shape == SHAPE_SLOW ? RULE_NO_USER_SPACE | IS_SLOW : shape;
		known |= LAST_PART << 16;
		measure_short(frame);
	}
	if (packet.ip)
		known |= (__u64)packet.tos << 24 | packet.ip << 32 |
			 (packet.family == V6 ? IS_V6 : 0) |
			 host_key(packet.family, packet.source) << HOST_KEY_AT;
	return hidden(known, frame->bytes);
}

/*
 * Whether the next hop routes a relay frame. The next hop is resolved in the untagged network of
 * incoming, and it may be resolved for one IP version only.
 */
static __always_inline bool is_routed(__u64 known, const struct exitmark_policy *policy,
				      struct exitmark_counts *counts)
{
	if (IP_OF(known) != ETH_HLEN) {
		counts->unrouted_vlan++;
		return false;
	}
	if (!(policy->routed >> (known & IS_V6 ? V6 : V4) & 1)) {
		counts->unrouted_family++;
		return false;
	}
	return true;
}

/* Applies a rule's actions: counts, marks, clears, steers. Returns the outcome. */
static __always_inline __u32 conclude(const struct frame *frame, __u64 known,
				      const struct exitmark_policy *policy,
				      struct exitmark_links *links,
				      struct exitmark_counts *counts)
{
	__u64 egress = ROLE_UPLINK, rule = RULE_OF(known);
	__u8 action;

	/* Unreachable; bounds the index for the verifier. */
	barrier_var(rule);
	if (rule >= RULES)
		return OUTCOME_NO_EGRESS;
	action = policy->actions[rule];
	counts->received[ROLE_HOST]++;
	counts->rules[rule]++;
	counts->bytes[rule] += frame->bytes;
	/* The source address of a slow-path frame was not checked. */
	if (rule > RULE_FOREIGN_SOURCE && rule != RULE_NO_USER_SPACE)
		learn_host(frame, HOST_KEY_OF(known), links);
	if (IP_OF(known)) {
		__u8 tos = TOS_OF(known);
		bool carries_mark = (tos & DSCP_BITS) == policy->mark;

		if (action & ACTION_SET && !carries_mark) {
			set_tos(frame, IP_OF(known), policy->mark | (tos & ~DSCP_BITS));
			counts->marked++;
		} else if (action & ACTION_CLEAR && (carries_mark || carries_host_mark(policy, tos))) {
			set_tos(frame, IP_OF(known), tos & ~DSCP_BITS);
			counts->cleared++;
		}
	}
	if (action & ACTION_STEER) {
		/* Read once: user space updates it concurrently. */
		__u64 next_hop = READ_ONCE(links->next_hop);

		if (is_routed(known, policy, counts) && next_hop &&
		    links->incoming_port < ROLES) {
			set_macs(frame, next_hop, links->incoming_mac);
			egress = links->incoming_port;
		} else if (links->drops_unsteered) {
			counts->steer_unavailable++;
			return OUTCOME_STEER_UNAVAILABLE;
		} else {
			counts->unsteered++;
		}
	}
	return to_port(egress, counts);
}

/* Flag beside a host key: the address belongs to the host. */
#define OF_HOST (1 << HOST_KEY_BITS)

static __always_inline __u64 key_of(struct frame *frame, enum end end)
{
	const struct exitmark_policy *policy;
	const struct exitmark_image *image;
	struct address address = {};
	bool is_host;
	int family;

	family = read_address(frame, end, &address);
	if (family != V4 && family != V6)
		return 0;
	image = current_image();
	if (!image)
		return 0;
	policy = &image->policy;
	if (family == V4)
		is_host = covers(image, &policy->addresses[V4], V4, address) ||
			  covers(image, &policy->relay_addresses[V4], V4, address);
	else
		is_host = covers(image, &policy->addresses[V6], V6, address) ||
			  covers(image, &policy->relay_addresses[V6], V6, address);
	return is_host ? host_key(family, address) | OF_HOST : 0;
}

/*
 * The key of a packet's source or destination address with OF_HOST set, if the address belongs to
 * the host; otherwise 0. A global function: the verifier checks it once, not once per state of
 * its callers.
 */
__noinline __u64 host_at(struct xdp_md *ctx, __u32 end)
{
	struct frame frame = frame_of(ctx);

	return end == SOURCE ? key_of(&frame, SOURCE) : key_of(&frame, DESTINATION);
}

/* host_at(DESTINATION) of a frame sent to the box's own MAC address; 0 for any other frame. */
static __always_inline __u64 routed_to_host(struct frame *frame,
					    const struct exitmark_links *links)
{
	/* Without a port for relay traffic, frames to the box's MAC address are not for the host. */
	if (links->incoming_port >= ROLES || destination_mac(frame) != links->incoming_mac)
		return 0;
	return host_at(frame->ctx, DESTINATION);
}

/* Forwards an inbound frame to the host, without a worker. Returns the outcome. */
static __always_inline __u32 deliver(const struct frame *frame, enum exitmark_role role, __u64 routed,
				     struct exitmark_links *links, struct exitmark_counts *counts)
{
	counts->received[role]++;
	counts->inbound_bytes[role] += frame->bytes;
	if (role == ROLE_UPLINK && READ_ONCE(links->seeks_host) && host_at(frame->ctx, SOURCE))
		counts->host_by_uplink++;
	if (!links->decides[role]) {
		counts->no_egress++;
		return OUTCOME_NO_EGRESS;
	}
	if (routed) {
		__u64 host = host_of(links, routed & (OF_HOST - 1));

		if (!host) {
			counts->host_mac_unknown++;
			return OUTCOME_HOST_MAC_UNKNOWN;
		}
		set_macs(frame, host, 0);
	}
	return to_port(ROLE_HOST, counts);
}

/*
 * Forwards a frame to the host, or hands it to a worker. `routed` frames were sent to the box and
 * get the host's MAC address; others are forwarded unchanged.
 */
static __always_inline int inbound(struct xdp_md *ctx, struct frame *frame,
				   enum exitmark_role role, __u64 routed,
				   struct exitmark_links *links, struct exitmark_counts *counts)
{
	bool meant = links->hand_over[role] == HAND_OVER_ALL || !links->decides[role];
	__u64 arrived;
	__u32 outcome;

	measure_short(frame);
	if (meant || frame->bytes > links->longest_redirect) {
		struct packet packet;
		__u64 share = meant ? share_kept(ctx, role, links) : 0;

		if (!share || (read_packet(frame, &packet) == SHAPE_PACKET ? part_of(&packet) :
									     LAST_PART) >= share)
			if (hand_over(ctx, role) == XDP_REDIRECT)
				return XDP_REDIRECT;
		counts->spilled[role]++;
	}
	/* Merges the verifier's states: the code that follows is verified once. */
	*frame = frame_again(frame);
	arrived = begin_sample(ctx, links, counts->received[role] + 1);
	arrived = hidden(arrived, counts->received[role]);
	outcome = deliver(frame, role, routed, links, counts);
	if (arrived)
		end_sample(ctx, arrived, role, outcome, RULES, generation());
	return action_of(outcome);
}

/* Whether user space gets all frames of this role, as long as it keeps up. */
static __always_inline bool is_meant(const struct exitmark_links *links, enum exitmark_role role)
{
	return READ_ONCE(links->hand_over[role]) == HAND_OVER_ALL ||
	       !READ_ONCE(links->decides[role]);
}

SEC("xdp")
int exitmark_host(struct xdp_md *ctx)
{
	__u64 share = 0, number, arrived, known;
	const struct exitmark_image *image;
	struct exitmark_counts *counts;
	struct exitmark_links *links;
	struct frame frame;
	__u32 outcome;
	bool is_slow;

	if (!find_state(&links, &counts))
		return XDP_DROP;
	if (is_meant(links, ROLE_HOST)) {
		share = share_kept(ctx, ROLE_HOST, links);
		if (!share && hand_over(ctx, ROLE_HOST) == XDP_REDIRECT)
			return XDP_REDIRECT;
	}
	number = counts->received[ROLE_HOST] + 1;
	arrived = hidden(begin_sample(ctx, links, number), number);
	share = hidden(share, number);
	/* Parsed only now: a frame that was handed over above is parsed by the worker. */
	image = current_image();
	if (!image)
		return XDP_DROP;
	frame = frame_of(ctx);
	known = know(&frame, image, share);
	is_slow = known & IS_SLOW || frame.bytes > links->longest_redirect;
	/* Only a worker can parse a slow-path frame; the worker gets it if its ring has room. */
	if (is_meant(links, ROLE_HOST) ? share && (is_slow || PART_OF(known) >= share) : is_slow)
		if (hand_over(ctx, ROLE_HOST) == XDP_REDIRECT)
			return XDP_REDIRECT;
	if (is_slow || is_meant(links, ROLE_HOST))
		counts->spilled[ROLE_HOST]++;
	if (!links->decides[ROLE_HOST]) {
		counts->received[ROLE_HOST]++;
		counts->rules[RULE_NO_USER_SPACE]++;
		counts->bytes[RULE_NO_USER_SPACE] += frame.bytes;
		counts->no_egress++;
		end_sample(ctx, arrived, ROLE_HOST, OUTCOME_NO_EGRESS, RULE_NO_USER_SPACE,
			   image->policy.generation);
		return XDP_DROP;
	}
	if (known & DISAGREES)
		counts->disagreed++;
	frame = frame_again(&frame);
	outcome = conclude(&frame, known, &image->policy, links, counts);
	end_sample(ctx, arrived, ROLE_HOST, outcome, RULE_OF(known), image->policy.generation);
	return action_of(outcome);
}

SEC("xdp")
int exitmark_uplink(struct xdp_md *ctx)
{
	struct frame frame = frame_of(ctx);
	struct exitmark_counts *counts;
	struct exitmark_links *links;
	__u64 routed = 0;

	if (!find_state(&links, &counts))
		return XDP_DROP;
	/* One NIC is both uplink and incoming. */
	if (links->incoming_port == ROLE_UPLINK)
		routed = routed_to_host(&frame, links);
	return inbound(ctx, &frame, ROLE_UPLINK, routed, links, counts);
}

SEC("xdp")
int exitmark_incoming(struct xdp_md *ctx)
{
	struct frame frame = frame_of(ctx);
	struct exitmark_counts *counts;
	struct exitmark_links *links;
	__u64 arrived, routed;

	if (!find_state(&links, &counts))
		return XDP_PASS;
	routed = routed_to_host(&frame, links);
	if (routed)
		return inbound(ctx, &frame, ROLE_INCOMING, routed, links, counts);
	arrived = begin_sample(ctx, links, ++counts->stack[ROLE_INCOMING]);
	if (arrived)
		end_sample(ctx, arrived, ROLE_INCOMING, OUTCOME_STACK, RULES, generation());
	return XDP_PASS;
}

#include "drops.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

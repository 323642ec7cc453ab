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
/* The box has several wires. Otherwise next_wire does not exist. */
const volatile __u32 has_siblings = 1;
/* The wire has a tap. Otherwise taps does not exist. */
const volatile __u32 has_tap = 1;

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, ROLES * MAX_QUEUES);
	__type(key, __u32);
	__type(value, __u32);
} sockets SEC(".maps");

/*
 * exitmark_incoming of the next wire that has the same NIC as incoming, if there is one. Pinned: the
 * kernel empties such a map when no process and no pin refers to it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} next_wire SEC(".maps");

/* The NIC of each role. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, ROLES);
	__type(key, __u32);
	__type(value, __u32);
} ports SEC(".maps");

#include "policy.h"

/* A map of one value, to which the program has a pointer: it takes no look-up. */
struct exitmark_links link_state SEC(".bss.links");

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
 * The workers' counters, one tally and the counts of all groups each, and those of the tap's sender.
 * This program does not use them; they are pinned with its maps, so that another process that takes
 * over continues the counts.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, MAX_QUEUES + 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, __builtin_offsetof(struct exitmark_counts, stack) +
				   MAX_GROUPS * sizeof(struct exitmark_group_counts));
} worker_counters SEC(".maps");

static __always_inline bool find_state(struct exitmark_links **found_links,
				       struct exitmark_counts **found_counts)
{
	__u32 only = 0;

	*found_links = &link_state;
	*found_counts = bpf_map_lookup_elem(&counters, &only);
	return *found_counts;
}

#include "parse.h"
#include "sets.h"
#include "judge.h"
#include "rewrite.h"
#include "translate.h"
#include "sample.h"
#include "hosts.h"
#include "guard.h"
#include "tap.h"

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

#include "plain.h"

/*
 * The result of parsing and judging a frame, packed into one number. hidden() makes it unknown to
 * the verifier, which then verifies the code that follows once, not once per result.
 */
#define IS_SLOW 0x200
#define IS_V6 0x400
#define GROUP_OF(known) ((known) >> GROUP_AT & 0xff)
#define PART_AT 24
#define PART_OF(known) ((known) >> PART_AT & 0xff)
#define TOS_OF(known) ((known) >> 32 & 0xff)
#define IP_OF(known) ((known) >> 40 & OFFSET_BITS)

/*
 * Parses a frame, and judges it if it is on the fast path. Sets its part if `share` is not 0, and
 * the key of its source address if it has one.
 */
static __always_inline __u64 know(struct frame *frame, const struct exitmark_image *image,
				  __u64 share, __u64 *key)
{
	struct packet packet;
	int shape = read_packet(frame, &packet);
	__u64 known;

	if (shape == SHAPE_PACKET) {
		known = (share ? part_of(&packet) : (__u64)LAST_PART) << PART_AT;
		known = hidden(known, frame->bytes);
		known |= hidden(judge(image, &packet), frame->bytes);
	} else {
		known = shape == SHAPE_SLOW ? RULE_NO_USER_SPACE | IS_SLOW : shape;
		known |= (__u64)LAST_PART << PART_AT | NO_GROUP << GROUP_AT;
		measure_short(frame);
	}
	if (packet.ip) {
		known |= (__u64)packet.tos << 32 | packet.ip << 40 |
			 (packet.family == V6 ? IS_V6 : 0);
		*key = host_key(packet.family, packet.source);
	}
	*key = hidden(*key, frame->bytes);
	return hidden(known, frame->bytes);
}

/* Whether a next hop routes a relay frame, by its tags and IP version; counts why not. */
static __always_inline bool is_routed(__u64 known, __u32 tags, const struct exitmark_group *group,
				      bool several, struct exitmark_group_counts *of_group,
				      struct exitmark_counts *counts)
{
	if (tags != group->host_tags) {
		counts->unrouted_vlan++;
		if (several)
			of_group->unrouted_vlan++;
		return false;
	}
	if (!(group->routed >> (known & IS_V6 ? V6 : V4) & 1)) {
		counts->unrouted_family++;
		if (several)
			of_group->unrouted_family++;
		return false;
	}
	if (known & UNANSWERABLE) {
		counts->unrouted_source++;
		if (several)
			of_group->unrouted_source++;
		return false;
	}
	return true;
}

/*
 * Whether a frame has the tags of the group's hosts: in another VLAN, another machine may have the
 * address. A group without tags gets every frame as it is.
 */
static __always_inline bool is_of_host(const struct frame *frame, __u64 known,
				       const struct exitmark_group *group)
{
	return !(group->host_tags | group->steer_tags) ||
	       tags_of(frame, IP_OF(known)) == group->host_tags;
}

/*
 * Writes MAC addresses, tags and source address of a steered frame. Returns its port, or ROLES if it
 * cannot be steered, or OUTCOME_NO_EGRESS if only a part was written.
 */
static __always_inline __u64 steer(const struct frame *frame, __u64 known, __u32 tags,
				   const struct exitmark_image *image,
				   const struct exitmark_group *group,
				   const struct exitmark_links *links,
				   struct exitmark_counts *counts)
{
	__u32 hop = group->next_hops[known & IS_V6 ? V6 : V4];
	__u64 next_hop, place = IP_OF(known) | (known & IS_V6 ? PLACE_V6 : 0);

	barrier_var(hop);
	/* Read once: user space updates it concurrently. */
	next_hop = READ_ONCE(links->next_hops[hop & (NEXT_HOPS - 1)]);
	if (!next_hop || links->incoming_port >= ROLES)
		return ROLES;
	if (group->translates) {
		int result = depart(frame->ctx, image, place);

		if (multi_buffer && result == BEYOND)
			result = depart_scattered(frame->ctx, image, place);
		if (result)
			return ROLES;
		counts->translated++;
	}
	if (!(tags | group->steer_tags)) {
		set_macs(frame, next_hop, links->incoming_mac);
		return links->incoming_port;
	}
	if (!retag(frame->ctx, (__u64)tags << 32 | group->steer_tags, group->priority, next_hop,
		   links->incoming_mac))
		return links->incoming_port;
	return group->translates ? OUTCOME_NO_EGRESS : ROLES;
}

/* Applies a rule's actions: counts, marks, clears, steers. Returns the outcome. */
static __always_inline __u32 conclude(const struct frame *frame, __u64 known, __u64 key,
				      const struct exitmark_image *image,
				      struct exitmark_links *links,
				      struct exitmark_counts *counts)
{
	__u64 egress = ROLE_UPLINK, rule = RULE_OF(known), number = GROUP_OF(known);
	const struct exitmark_policy *policy = &image->policy;
	const struct exitmark_group *group = group_at(policy, number);
	struct exitmark_group_counts *of_group;
	bool several;
	__u8 action;

	/* Unreachable; bounds the index for the verifier. */
	barrier_var(rule);
	if (rule >= RULES)
		return OUTCOME_NO_EGRESS;
	several = policy->several && number < NO_GROUP;
	barrier_var(number);
	of_group = &counts->groups[number & (MAX_GROUPS - 1)];
	action = group->actions[rule];
	counts->received[ROLE_HOST]++;
	counts->rules[rule]++;
	counts->bytes[rule] += frame->bytes;
	if (several) {
		of_group->rules[rule]++;
		of_group->bytes[rule] += frame->bytes;
	}
	/* The source address of a slow-path frame was not checked. */
	if (rule > RULE_FOREIGN_SOURCE && rule != RULE_NO_USER_SPACE &&
	    is_of_host(frame, known, group))
		learn_host(frame, key, links);
	if (IP_OF(known)) {
		__u8 tos = TOS_OF(known);

		if (action & ACTION_SET && (tos & DSCP_BITS) != group->mark) {
			set_tos(frame, IP_OF(known), group->mark | (tos & ~DSCP_BITS));
			counts->marked++;
			if (several)
				of_group->marked++;
		} else if (action & ACTION_CLEAR && policy->clears >> (tos >> 2) & 1) {
			set_tos(frame, IP_OF(known), tos & ~DSCP_BITS);
			counts->cleared++;
			if (several)
				of_group->cleared++;
		}
	}
	if (action & ACTION_STEER) {
		__u32 tags = tags_of(frame, IP_OF(known));

		egress = ROLES;
		if (is_routed(known, tags, group, several, of_group, counts))
			egress = steer(frame, known, tags, image, group, links, counts);
		if (egress == OUTCOME_NO_EGRESS) {
			counts->no_egress++;
			return OUTCOME_NO_EGRESS;
		}
		if (egress < ROLES)
			return to_port(egress, counts);
		egress = ROLE_UPLINK;
		if (links->drops_unsteered) {
			counts->steer_unavailable++;
			return OUTCOME_STEER_UNAVAILABLE;
		} else {
			counts->unsteered++;
			if (several)
				of_group->unsteered++;
		}
	}
	return to_port(egress, counts);
}

#include "inbound.h"

/* Whether user space gets all frames of this role, as long as it keeps up. */
static __always_inline bool is_meant(const struct exitmark_links *links, enum exitmark_role role)
{
	return READ_ONCE(links->hand_over[role]) == HAND_OVER_ALL ||
	       !READ_ONCE(links->decides[role]);
}

static __always_inline bool is_steered(const struct exitmark_group *group, __u64 rule)
{
	barrier_var(rule);
	return rule < RULES && group->actions[rule] & ACTION_STEER;
}

/*
 * The general way of a frame of a host. A global function: the short way has the registers to itself.
 */
__noinline int decide_host(struct xdp_md *ctx)
{
	__u64 share = 0, number, arrived, known, key = 0;
	const struct exitmark_image *image;
	const struct exitmark_group *group;
	struct exitmark_counts *counts;
	struct exitmark_links *links;
	struct frame frame;
	__u64 longest;
	__u32 outcome;
	bool is_slow;

	if (!find_state(&links, &counts))
		return XDP_DROP;
	if (is_meant(links, ROLE_HOST)) {
		share = share_kept(ctx, ROLE_HOST, links);
		if (!share && hand_over(ctx, ROLE_HOST) == XDP_REDIRECT)
			return XDP_REDIRECT;
	}
	number = next_number(counts, ROLE_HOST);
	arrived = hidden(begin_sample(ctx, links, number), number);
	share = hidden(share, number);
	/* Parsed only now: a frame that was handed over above is parsed by the worker. */
	image = current_image();
	if (!image)
		return XDP_DROP;
	frame = frame_of(ctx);
	known = know(&frame, image, share, &key);
	group = group_at(&image->policy, GROUP_OF(known));
	longest = links->longest_redirect - (is_steered(group, RULE_OF(known)) ? group->grows : 0);
	is_slow = known & IS_SLOW || frame.bytes > longest;
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
	if (has_tap && image->policy.tap & TAP_OUT && is_exit(RULE_OF(known)))
		copy_to_tap(ctx, about_copy(frame.bytes, TAP_OUT, group->mark));
	frame = frame_again(&frame);
	outcome = conclude(&frame, known, key, image, links, counts);
	end_sample(ctx, arrived, ROLE_HOST, outcome, RULE_OF(known), image->policy.generation);
	return action_of(outcome);
}

SEC("xdp")
int exitmark_host(struct xdp_md *ctx)
{
	const struct exitmark_image *image;
	struct exitmark_counts *counts;
	struct exitmark_links *links;

	if (!find_state(&links, &counts))
		return XDP_DROP;
	image = current_image();
	if (image) {
		int action = forward_plain(ctx, image, links, counts);

		if (action != NOT_PLAIN)
			return action;
	}
	return decide_host(ctx);
}

/* The general way of a frame that arrived by uplink. */
__noinline int decide_uplink(struct xdp_md *ctx)
{
	struct frame frame = frame_of(ctx);
	struct exitmark_counts *counts;
	struct exitmark_links *links;
	struct hosted host = {};

	if (!find_state(&links, &counts))
		return XDP_DROP;
	/* One NIC is both uplink and incoming. */
	if (links->incoming_port == ROLE_UPLINK)
		find_routed(&frame, links, &host);
	return inbound(ctx, &frame, ROLE_UPLINK, &host, links, counts);
}

SEC("xdp")
int exitmark_uplink(struct xdp_md *ctx)
{
	struct frame frame = first_buffer(ctx);
	struct exitmark_counts *counts;
	struct exitmark_links *links;

	if (!find_state(&links, &counts))
		return XDP_DROP;
	measure_packet(&frame);
	if (copies_answers() || !is_straight(frame.bytes, ROLE_UPLINK, links, counts))
		return decide_uplink(ctx);
	return take_short_way(SHORT_FROM_UPLINK, ROLE_HOST, frame.bytes, counts);
}

SEC("xdp")
int exitmark_incoming(struct xdp_md *ctx)
{
	struct frame frame = first_buffer(ctx);
	struct exitmark_counts *counts;
	struct exitmark_links *links;
	struct hosted host = {};
	__u64 arrived;
	int action;

	if (!find_state(&links, &counts))
		return XDP_PASS;
	action = deliver_plain(&frame, links, counts);
	if (action != NOT_PLAIN)
		return action;
	measure_long(&frame);
	find_routed(&frame, links, &host);
	if (host.translates)
		arrive(ctx, &host);
	if (host.group) {
		/* Of a host of another wire? Without a next wire, the call fails. */
		if (has_siblings && READ_ONCE(links->has_next_wire) &&
		    !learned_host(links, host.key))
			bpf_tail_call(ctx, &next_wire, 0);
		/* A failed tail call invalidates the pointers into the frame. */
		frame = frame_again(&frame);
		if (host.translates != TRANSLATES_FRAGMENT)
			return inbound(ctx, &frame, ROLE_INCOMING, &host, links, counts);
		if (hand_over(ctx, ROLE_INCOMING) == XDP_REDIRECT)
			return XDP_REDIRECT;
	}
	arrived = begin_sample(ctx, links, ++counts->stack[ROLE_INCOMING]);
	if (arrived)
		end_sample(ctx, arrived, ROLE_INCOMING, OUTCOME_STACK, RULES, generation());
	return XDP_PASS;
}

#include "drops.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

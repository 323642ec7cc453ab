// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The kernel engine: the whole policy for ordinary frames, on every port, with or without a
 * process in user space.
 *
 * An ordinary frame has at most two tags and is no IPv4 fragment and no IPv6 packet with
 * extension headers. All else goes to user space; where nobody is there, it crosses unmarked.
 * With engine "af_xdp" user space gets every frame, as long as it keeps up.
 *
 * On host and uplink every frame is ours: the pair is a wire, and the box's own stack takes no
 * part in it. incoming is a member of another network: only frames for the host's addresses,
 * sent to the NIC's own MAC, are ours, and all else is the stack's.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <stdbool.h>
#include <stddef.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "exitmark.h"

#ifndef barrier_var
#define barrier_var(var) asm volatile("" : "+r"(var))
#endif
#define READ_ONCE(x) (*(const volatile typeof(x) *)&(x))

/* Read by user space before it loads this. */
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

struct policy_map {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct exitmark_image));
};

/* One entry: a new policy takes the place of the old one between two frames. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct policy_map);
} policies SEC(".maps");

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
 * What the workers count, a tally each: not this program's, but kept with it, so that their counts
 * go on like its own when another process takes over.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, MAX_QUEUES);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, __builtin_offsetof(struct exitmark_counts, stack));
} worker_counters SEC(".maps");

#include "parse.h"
#include "judge.h"
#include "rewrite.h"
#include "sample.h"
#include "guard.h"

static __always_inline const struct exitmark_image *current_image(void)
{
	__u32 only = 0;
	void *map = bpf_map_lookup_elem(&policies, &only);

	return map ? bpf_map_lookup_elem(map, &only) : NULL;
}

/* Of the policy in force, for what needs no more of it. */
static __noinline __u64 generation(void)
{
	const struct exitmark_image *image = current_image();

	return image ? image->policy.generation : 0;
}

/* Sends a frame out, or drops it where that port has no NIC any more. */
static __always_inline __u32 to_port(__u64 role, struct exitmark_counts *counts)
{
	/* Never so, but for the verifier to see. */
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

/* A frame of the host's own tells where the host is. */
static __always_inline void learn_host(const struct frame *frame, struct exitmark_links *links)
{
	__u64 mac = source_mac(frame);

	if (mac == links->host_mac || !links->learns_host)
		return;
	/* Not zero, and of one NIC. */
	if (mac && !(mac >> 40 & 1))
		links->host_mac = mac;
}

/* Carries a rule out: counts, marks, clears, steers. What became of the frame. */
static __always_inline __u32 conclude(const struct frame *frame, struct packet *packet, __u32 rule,
				      const struct exitmark_policy *policy,
				      struct exitmark_links *links,
				      struct exitmark_counts *counts)
{
	__u64 egress = ROLE_UPLINK;
	__u8 action;

	/* Never so, but for the verifier to see. */
	barrier_var(rule);
	if (rule >= RULES)
		return OUTCOME_NO_EGRESS;
	action = policy->actions[rule];
	counts->received[ROLE_HOST]++;
	counts->rules[rule]++;
	counts->bytes[rule] += frame->bytes;
	/* An odd frame's source address was not looked at. */
	if (rule > RULE_FOREIGN_SOURCE && rule != RULE_NO_USER_SPACE)
		learn_host(frame, links);
	if (packet->ip) {
		bool bears_it = (packet->tos & DSCP_BITS) == policy->mark;

		if (action & ACTION_SET && !bears_it) {
			set_dscp(packet, policy->mark);
			counts->marked++;
		} else if (action & ACTION_CLEAR &&
			   (bears_it || bears_host_mark(policy, packet))) {
			set_dscp(packet, 0);
			counts->cleared++;
		}
	}
	if (action & ACTION_STEER) {
		/* Once: user space follows the next hop. */
		__u64 next_hop = READ_ONCE(links->next_hop);

		if (next_hop && links->incoming_port < ROLES) {
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

/* Whether the frame was sent to the box's own MAC address for an address of the host. */
static __always_inline bool is_routed_to_host(const struct frame *frame,
					      const struct exitmark_links *links)
{
	const struct exitmark_policy *policy;
	const struct exitmark_image *image;
	struct address address;
	int family;

	/* Without a way out for relay traffic there is none back, and no MAC address to compare. */
	if (links->incoming_port >= ROLES || destination_mac(frame) != links->incoming_mac)
		return false;
	family = read_destination(frame, &address);
	image = current_image();
	if (!image)
		return false;
	policy = &image->policy;
	if (family == V4)
		return covers(image, &policy->addresses[V4], V4, address) ||
		       covers(image, &policy->relay_addresses[V4], V4, address);
	if (family == V6)
		return covers(image, &policy->addresses[V6], V6, address) ||
		       covers(image, &policy->relay_addresses[V6], V6, address);
	return false;
}

/* The way to the host for a frame that is decided here. What became of it. */
static __always_inline __u32 deliver(const struct frame *frame, enum exitmark_role role, bool routed,
				     struct exitmark_links *links, struct exitmark_counts *counts)
{
	counts->received[role]++;
	counts->inbound_bytes[role] += frame->bytes;
	if (!links->decides[role]) {
		counts->no_egress++;
		return OUTCOME_NO_EGRESS;
	}
	if (routed) {
		/* Once: another CPU may be learning it. */
		__u64 host = READ_ONCE(links->host_mac);

		if (!host) {
			counts->host_mac_unknown++;
			return OUTCOME_HOST_MAC_UNKNOWN;
		}
		set_destination_mac(frame, host);
	}
	return to_port(ROLE_HOST, counts);
}

/*
 * The way to the host. `routed` frames were sent to the box and get the host's MAC address;
 * others cross as they are.
 */
static __always_inline int inbound(struct xdp_md *ctx, struct frame *frame,
				   enum exitmark_role role, bool routed,
				   struct exitmark_links *links, struct exitmark_counts *counts)
{
	bool meant = links->hand_over[role] == HAND_OVER_ALL || !links->decides[role];
	__u64 arrived;
	__u32 outcome;

	measure_short(frame);
	if (meant || frame->bytes > links->longest_redirect) {
		struct packet packet;
		__u64 share = meant ? share_kept(ctx, role, links) : 0;

		if (!share || part_of(read_packet(frame, &packet), &packet) >= share)
			if (hand_over(ctx, role, links, counts) == XDP_REDIRECT)
				return XDP_REDIRECT;
		counts->spilled[role]++;
	}
	arrived = begin_sample(ctx, links, counts->received[role] + 1);
	outcome = deliver(frame, role, routed, links, counts);
	if (arrived)
		end_sample(ctx, arrived, role, outcome, RULES, generation());
	return action_of(outcome);
}

static __always_inline bool find_state(struct exitmark_links **found_links,
				       struct exitmark_counts **found_counts)
{
	__u32 only = 0;

	*found_links = bpf_map_lookup_elem(&links, &only);
	*found_counts = bpf_map_lookup_elem(&counters, &only);
	return *found_links && *found_counts;
}

SEC("xdp.frags")
int exitmark_host(struct xdp_md *ctx)
{
	const struct exitmark_policy *policy;
	const struct exitmark_image *image;
	struct exitmark_counts *counts;
	struct exitmark_links *links;
	struct verdict verdict = {};
	struct packet packet;
	struct frame frame;
	bool meant, odd;
	__u64 share = 0, arrived;
	__u32 outcome;
	int shape;

	if (!find_state(&links, &counts))
		return XDP_DROP;
	meant = links->hand_over[ROLE_HOST] == HAND_OVER_ALL || !links->decides[ROLE_HOST];
	if (meant) {
		share = share_kept(ctx, ROLE_HOST, links);
		if (!share && hand_over(ctx, ROLE_HOST, links, counts) == XDP_REDIRECT)
			return XDP_REDIRECT;
	}
	arrived = begin_sample(ctx, links, counts->received[ROLE_HOST] + 1);
	/* Whoever hands a frame over needs to know nothing about it. */
	image = current_image();
	if (!image)
		return XDP_DROP;
	policy = &image->policy;
	frame = frame_of(ctx);
	shape = read_packet(&frame, &packet);
	if (shape == SHAPE_PACKET) {
		verdict = judge(image, &packet);
	} else {
		verdict.rule = shape;
		measure_short(&frame);
	}
	odd = shape == SHAPE_ODD || frame.bytes > links->longest_redirect;
	/* Nobody else understands an odd frame: as long as there is room, the worker gets it. */
	if ((odd && !meant) || (share && (odd || part_of(shape, &packet) >= share)))
		if (hand_over(ctx, ROLE_HOST, links, counts) == XDP_REDIRECT)
			return XDP_REDIRECT;
	if (meant || odd)
		counts->spilled[ROLE_HOST]++;
	if (!links->decides[ROLE_HOST]) {
		counts->received[ROLE_HOST]++;
		counts->rules[RULE_NO_USER_SPACE]++;
		counts->bytes[RULE_NO_USER_SPACE] += frame.bytes;
		counts->no_egress++;
		end_sample(ctx, arrived, ROLE_HOST, OUTCOME_NO_EGRESS, RULE_NO_USER_SPACE,
			   policy->generation);
		return XDP_DROP;
	}
	if (shape == SHAPE_ODD)
		verdict.rule = RULE_NO_USER_SPACE;
	if (verdict.disagreement)
		counts->disagreed++;
	outcome = conclude(&frame, &packet, verdict.rule, policy, links, counts);
	end_sample(ctx, arrived, ROLE_HOST, outcome, verdict.rule, policy->generation);
	return action_of(outcome);
}

SEC("xdp.frags")
int exitmark_uplink(struct xdp_md *ctx)
{
	struct frame frame = frame_of(ctx);
	struct exitmark_counts *counts;
	struct exitmark_links *links;
	bool routed;

	if (!find_state(&links, &counts))
		return XDP_DROP;
	/* Where one NIC plays both. */
	routed = links->incoming_port == ROLE_UPLINK && is_routed_to_host(&frame, links);
	return inbound(ctx, &frame, ROLE_UPLINK, routed, links, counts);
}

SEC("xdp.frags")
int exitmark_incoming(struct xdp_md *ctx)
{
	struct frame frame = frame_of(ctx);
	struct exitmark_counts *counts;
	struct exitmark_links *links;
	__u64 arrived;

	if (!find_state(&links, &counts))
		return XDP_PASS;
	if (is_routed_to_host(&frame, links))
		return inbound(ctx, &frame, ROLE_INCOMING, true, links, counts);
	arrived = begin_sample(ctx, links, ++counts->stack[ROLE_INCOMING]);
	if (arrived)
		end_sample(ctx, arrived, ROLE_INCOMING, OUTCOME_STACK, RULES, generation());
	return XDP_PASS;
}

#include "drops.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The contract between the XDP program and user space: numbers and shapes that both sides use.
 * User space has them in src/policy/image.rs (the policy) and src/datapath/kernel (the rest),
 * and refuses to load a program whose `layout` says that they differ.
 *
 * Numbers are in the machine's byte order; addresses and MAC addresses are numbers too, so
 * that 192.0.2.1 is 0xc0000201.
 */
#ifndef EXITMARK_H
#define EXITMARK_H

/* Changes with every change of what a pinned map means. */
#define LAYOUT_VERSION 6

/* What a NIC is to the box; Role in user space. */
enum exitmark_role {
	ROLE_HOST = 0,
	ROLE_UPLINK = 1,
	ROLE_INCOMING = 2,
	ROLES = 3,
};

/* Sockets are at role * MAX_QUEUES + queue, guards at queue. */
#define MAX_QUEUES 64

/* IP versions, as indices. */
enum exitmark_family {
	V4 = 0,
	V6 = 1,
	FAMILIES = 2,
};

/* policy::Rule in user space, in the same order. */
enum exitmark_rule {
	RULE_NOT_IP,
	RULE_SHORT_HEADER,
	RULE_WRONG_VERSION,
	RULE_BAD_LENGTH,
	RULE_BEYOND_FRAME,
	RULE_SHORT_EXTENSION,
	RULE_TOO_MANY_EXTENSIONS,
	RULE_SHORT_TRANSPORT,
	RULE_FOREIGN_SOURCE,
	RULE_TO_RESOLVER,
	RULE_FROM_LISTENER,
	RULE_ACCEPTS,
	RULE_REFUSES,
	RULE_FROM_RELAY_ADDRESS,
	RULE_TO_LISTED_RELAY,
	RULE_TO_EXEMPT_PREFIX,
	RULE_EXIT_PROTOCOL,
	RULE_HOST_MARKED,
	RULE_NOT_HOST_MARKED,
	RULE_OTHER_PROTOCOL,
	RULE_UNSEEN_FRAGMENT,
	RULE_NO_USER_SPACE,
	RULES,
};

/* What is done with the frames that met a rule: one byte a rule. */
#define ACTION_STEER 0x01 /* leaves by incoming, not by uplink */
#define ACTION_SET 0x02 /* bears the mark */
#define ACTION_CLEAR 0x04 /* bears neither the mark nor the host's own */

/* Which protocols from a clearnet address are exit traffic. */
enum exitmark_exit_protocols {
	EXIT_TCP = 0,
	EXIT_TCP_UDP = 1,
	EXIT_ALL = 2,
};

/*
 * Sorted, disjoint ranges of addresses, at a word of the policy: `first << 32 | last` for IPv4,
 * four words (first high, first low, last high, last low) for IPv6.
 */
struct exitmark_ranges {
	__u32 at;
	__u32 count;
};

/* A set has fewer than 1 << RANGE_STEPS ranges. */
#define RANGE_STEPS 11

/*
 * An open-addressed table of endpoints, behind a filter of one bit a hash; `filter` and `slots`
 * are words of the policy. The number of a key's bit is its hash shifted right; the number of
 * its slot is that of its bit divided by BITS_PER_SLOT. A slot is one word for IPv4
 * (address << 16 | port) and three for IPv6 (high, low, port); an empty one is zero. No search
 * takes more than MAX_PROBES steps.
 */
struct exitmark_table {
	__u64 multipliers[3];
	__u32 shift;
	__u32 mask;
	__u32 filter;
	__u32 slots;
};

#define BITS_PER_SLOT 16
#define MAX_PROBES 128

/*
 * All that a verdict depends on besides the frame: published, and replaced, as one piece. It
 * is followed by the ranges and tables.
 */
struct exitmark_policy {
	__u64 generation;
	__u8 mark; /* as in the ToS byte: the code point shifted left by two */
	__u8 exit_protocols;
	__u8 both_kinds; /* clearnet and relay addresses: the relay set is checked against them */
	__u8 host_mark; /* as `mark`: tells what exit traffic is; 0: the relay set does */
	__u8 routed; /* a bit an IP version: does the next hop route it */
	__u8 unused[3];
	__u8 actions[24];
	struct exitmark_ranges addresses[FAMILIES];
	struct exitmark_ranges relay_addresses[FAMILIES];
	struct exitmark_ranges resolvers[FAMILIES];
	struct exitmark_ranges exempt[FAMILIES];
	struct exitmark_table relays[FAMILIES];
	struct exitmark_table listeners[FAMILIES];
	/* A bit a port: is there a listener at some address; at every address. */
	__u64 listens[1024];
	__u64 listens_everywhere[1024];
};

/*
 * Policy, ranges and tables in one map value. A power of two, so that an index can be masked
 * instead of checked; and 4 MiB, the largest value of Linux 6.1.
 */
#define POLICY_WORDS (1 << 19)

struct exitmark_image {
	union {
		struct exitmark_policy policy;
		__u64 words[POLICY_WORDS];
	};
};

/* Which frames go to user space, as long as it is alive. */
enum exitmark_handover {
	HAND_OVER_ODD = 0, /* what this program does not understand */
	HAND_OVER_ALL = 1,
};

/* How many entries there are for the MAC addresses of the host's addresses, half an IP version. */
#define HOST_SLOTS 128
/* So many changes from one MAC address to another mean several hosts. */
#define SEVERAL_CHANGES 3

/*
 * What the box knows of its links, shared with the workers: any of them, and this program,
 * may learn the host's MAC address.
 */
struct exitmark_links {
	__u64 host_mac; /* 0: unknown */
	__u64 next_hop; /* 0: unknown, or no link; nothing is steered */
	__u64 incoming_mac;
	__u64 incoming_port; /* the role that plays incoming; ROLES: none */
	__u64 learns_host; /* the host's MAC address is not configured */
	__u64 longest_redirect; /* the longest frame that every port can be redirected, in bytes */
	__u64 hand_over[ROLES]; /* enum exitmark_handover */
	__u64 decides[ROLES]; /* frames from here can be redirected to where they leave */
	__u64 patience; /* ns without a sign of life after which a worker counts as dead */
	__u64 credit; /* frames under way to a worker before some flows are decided here ... */
	__u64 hard_credit; /* ... and before all are */
	__u64 netns; /* the box's network namespace: NICs have numbers of their own in each */
	__u64 nics[ROLES]; /* the number of each role's; 0: none */
	__u64 drops_unsteered; /* relay frames that cannot be steered are dropped, not sent by uplink */
	__u64 sample; /* what part of the decisions is told to user space, of 1 << 64; 0: none */
	__u64 sample_until; /* CLOCK_MONOTONIC, ns: whoever reads the samples is there until then */
	__u64 seeks_host; /* frames from uplink with the host's source address are counted */
	__u64 host_changes; /* frames from an address of the host by another MAC address than the last */
	__u64 hosts_settled; /* what `host_changes` was when they had ended for a while */
	__u64 hosts[HOST_SLOTS]; /* a tag of an address of the host (16 bits), its MAC address (48) */
};

/* What a worker and this program tell each other about one queue. A line each: one writer. */
struct exitmark_guard {
	/* The worker's. */
	__u64 heartbeat; /* CLOCK_MONOTONIC, ns */
	__u64 processed[ROLES];
	__u64 unused[4];
	/* This program's. */
	struct exitmark_handed {
		__u64 sent;
		__u64 asked; /* when a frame was sent to a worker that had none */
		__u64 share; /* flows of each 256 that stay here, because the worker was behind */
		__u64 ease_at; /* when the next of them may go back */
		__u64 looks;
		__u64 stamped; /* of one frame in `sample`: how many had been sent before it ... */
		__u64 stamped_at; /* ... and when it was */
		__u64 unused;
	} handed[ROLES];
};

/* Per CPU. Up to `stack` as a Tally in user space. */
struct exitmark_counts {
	__u64 received[ROLES];
	__u64 forwarded[ROLES];
	__u64 rules[RULES];
	__u64 bytes[RULES];
	__u64 inbound_bytes[ROLES];
	__u64 marked;
	__u64 cleared;
	__u64 disagreed;
	__u64 unsteered; /* left by uplink, because nothing could be steered */
	__u64 unrouted_vlan; /* not steered: tagged, and the next hop is known untagged */
	__u64 unrouted_family; /* not steered: the next hop routes the other IP version alone */
	__u64 host_by_uplink; /* arrived by uplink from an address of the host, while sought */
	__u64 tx_full[ROLES];
	__u64 host_mac_unknown;
	__u64 not_for_host;
	__u64 no_egress;
	__u64 steer_unavailable;
	__u64 tx_down[ROLES];
	__u64 tx_refused[ROLES];
	__u64 stack[ROLES]; /* left to the box's own network stack */
	__u64 handed[ROLES]; /* given to user space */
	__u64 spilled[ROLES]; /* meant for user space, and decided here */
	__u64 samples_lost; /* nobody read them, or not fast enough */
};

/* What became of a frame: the role of the port by which it left, or one of these. */
enum exitmark_outcome {
	OUTCOME_STACK = ROLES,
	OUTCOME_HOST_MAC_UNKNOWN,
	OUTCOME_NO_EGRESS,
	OUTCOME_STEER_UNAVAILABLE,
	OUTCOMES,
};

/* Enough for four tags, IPv6 with a few extension headers, and TCP with all its options. */
#define SAMPLE_BYTES 192

/* A decision of this program's, as it is told to user space. */
struct exitmark_sample {
	__u64 arrived; /* CLOCK_MONOTONIC, ns */
	__u64 residence; /* from then to the decision, ns */
	__u64 generation; /* of the policy by which it was judged */
	__u32 bytes; /* all of the frame */
	__u8 ingress;
	__u8 outcome; /* enum exitmark_outcome, or a role */
	__u8 rule; /* RULES: none, because it did not come from the host */
	__u8 unused;
	/* How the frame began when it came, and when it left: as much as there is of it. */
	__u8 before[SAMPLE_BYTES];
	__u8 after[SAMPLE_BYTES];
};

#endif

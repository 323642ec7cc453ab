/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The interface between the XDP program and user space: constants and structures that both use.
 * src/datapath/build.rs generates those of user space from this file. src/policy defines its own;
 * the build fails if they differ (src/datapath/kernel/contract.rs).
 *
 * Numbers are in the machine's byte order; addresses and MAC addresses are numbers too, so
 * that 192.0.2.1 is 0xc0000201.
 */
#ifndef EXITMARK_H
#define EXITMARK_H

/* Incremented whenever the layout or meaning of a pinned map changes. */
#define LAYOUT_VERSION 11

/* The role of a NIC; Role in user space. */
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

/*
 * Groups of hosts with a policy of their own. The one after the last is that of all other frames.
 * There is room for a power of two, so that a number can be masked instead of checked.
 */
#define MAX_GROUPS 64
#define NO_GROUP MAX_GROUPS
#define GROUPS_ROOM 128

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

/* The actions on a frame that matches a rule: one byte per rule. */
#define ACTION_STEER 0x01 /* leaves by incoming, not by uplink */
#define ACTION_SET 0x02 /* carries the mark */
#define ACTION_CLEAR 0x04 /* carries neither the mark nor the host's mark */

/* The protocols from a clearnet address that count as exit traffic. */
enum exitmark_exit_protocols {
	EXIT_TCP = 0,
	EXIT_TCP_UDP = 1,
	EXIT_ALL = 2,
};

/*
 * Sorted, disjoint address ranges that begin at word `at` of the image: `first << 32 | last` for
 * IPv4, four words (first high, first low, last high, last low) for IPv6.
 */
struct exitmark_ranges {
	__u32 at;
	__u32 count;
};

/* A set has fewer than 1 << RANGE_STEPS ranges. */
#define RANGE_STEPS 11

/*
 * A perfect hash table of endpoints: see src/policy/endpoint.rs. `pilots` is the index of the first
 * pilot in `halves`, `slots` the word index of the first slot. A slot is one word for IPv4 (address
 * << 16 | port), three for IPv6 (address, high and low, and port); all ones if it is empty.
 */
struct exitmark_table {
	__u64 multipliers[3];
	__u32 pilots;
	__u32 pilot_count;
	__u32 slots;
	__u32 slot_count;
};

#define PILOT_MULTIPLIER 0xd1b54a32d192ed03ULL
#define SLOT_MULTIPLIER 0x9e3779b97f4a7c15ULL

/*
 * What is known of addresses. `ranges` is the word index of sorted, disjoint ranges as above,
 * `values` that of the value of each range. `candidates` is that of a table with the index of a
 * range per hash, four a word: that range may be the one that covers the address. The hash of an
 * address is its masked halves, each multiplied, summed and shifted right.
 */
struct exitmark_range_map {
	__u64 masks[2]; /* high, low */
	__u64 multipliers[2];
	__u32 shift;
	__u32 count; /* of ranges */
	__u32 ranges;
	__u32 values;
	__u32 candidates;
	__u32 mask; /* of a hash: one less than the number of candidates */
};

/*
 * The values of the hosts' addresses are their owners, a word each: the group, with OWNER_OF_RELAY
 * if the address carries Tor traffic only.
 */
#define OWNER_OF_RELAY 0x80

/*
 * The values of translated addresses: the group, what the translation adds to the sum of a checksum
 * << 16, and the bits of the address that flip: << 32 for IPv4, in two words of their own (high,
 * low) for IPv6.
 */
#define TRANSLATED_V6_WORDS 3

/* How engine connect changes the sockets of connections. 0: not set. */
struct exitmark_sockets {
	__u64 source_v6[2]; /* of relay connections: high, low */
	__u32 source_v4;
	__u32 fwmark; /* SO_MARK of relay connections */
	__u32 interface; /* SO_BINDTOIFINDEX of relay connections */
	__u32 overwrites; /* exit connections get the mark in place of another ToS of tor's */
};

/* In place of a priority: that of the frame is kept. */
#define KEEP_PRIORITY 0xff

/* The policy of a group of hosts. */
struct exitmark_group {
	__u8 mark; /* as in the ToS byte: the code point shifted left by two */
	__u8 exit_protocols; /* enum exitmark_exit_protocols */
	__u8 both_kinds; /* clearnet and relay addresses: the relay set is checked against them */
	__u8 routed; /* one bit per IP version: whether it has a next hop */
	__u8 next_hops[FAMILIES]; /* indices in exitmark_links.next_hops */
	__u8 priority; /* of the tags of steered frames, 0 to 7 */
	__u8 grows; /* bytes that the tags of steered frames add to a frame */
	__u8 inbound_grows; /* the same, for frames that come back by incoming */
	__u8 translates; /* the source addresses of steered frames are translated */
	__u8 unused[6];
	/*
	 * VLAN tags: 16 bits for the outer tag of two, 16 for the inner or only one; each is its ID
	 * with TAG_PRESENT, or 0.
	 */
	__u32 host_tags; /* of the hosts' frames */
	__u32 steer_tags; /* of the network of the next hops */
	__u64 mac; /* configured, of all the hosts' addresses; 0: learned */
	__u8 actions[24];
	struct exitmark_ranges resolvers[FAMILIES];
	struct exitmark_ranges exempt[FAMILIES];
	__u64 padding[5]; /* to two cache lines */
};

#define TAG_PRESENT 0x1000

#define HOP_UPLINK 0x100 /* relay traffic is not steered */
#define HOP_NONE 0x101 /* relay traffic of this family is not routed */

/*
 * The hosts of the only group, if it marks exit traffic and has no tags, exempt prefixes,
 * translation or tap, and the relay set classifies. They have `count` addresses, whose upper 64 bits
 * are `high` (0 for IPv4), and whose lower ones begin with `first`. Without such hosts `count` is 0.
 * The fields are together, so that a frame touches few cache lines.
 */
struct exitmark_plain {
	__u64 first;
	__u64 count;
	__u16 hop; /* of relay traffic: as `next_hops` of a group, HOP_UPLINK or HOP_NONE */
	__u16 last_listener; /* the highest port on which something listens; 0: none */
	__u16 mark; /* as that of a group */
	__u16 learns; /* the hosts' MAC addresses are learned, not configured */
	struct exitmark_table relays; /* the same as that of the policy */
	__u64 high;
};

/*
 * Everything besides the frame that a verdict depends on, published and replaced as a whole. The
 * ranges and tables follow it.
 */
struct exitmark_policy {
	__u64 generation;
	__u64 clears; /* one bit per code point: the marks of all groups, and the host's mark */
	__u8 host_mark; /* as `mark` of a group: identifies exit traffic; 0: the relay set does */
	__u8 several; /* more than one group: frames are also counted by group */
	__u8 translates; /* some group translates */
	__u8 tap; /* TAP_OUT and TAP_IN: which exit frames are copied */
	__u8 unused[4];
	struct exitmark_plain plain[FAMILIES];
	struct exitmark_range_map owners[FAMILIES];
	/* Of translated addresses: those of hosts, and those in their place. */
	struct exitmark_range_map departures[FAMILIES];
	struct exitmark_range_map arrivals[FAMILIES];
	struct exitmark_table relays[FAMILIES];
	/*
	 * Listeners with an address. A port on which all addresses of a group listen is the
	 * endpoint of IPv4 with the group's number in place of the address.
	 */
	struct exitmark_table listeners[FAMILIES];
	struct exitmark_sockets sockets;
	struct exitmark_group groups[GROUPS_ROOM];
	/* One bit per port: whether some address, and whether every address, has a listener. */
	__u64 listens[1024];
	__u64 listens_everywhere[1024];
};

/*
 * The words of policy, ranges and tables in one map value. A power of two, so that an index can be
 * masked instead of checked; 4 MiB is the largest value that Linux 6.1 allows.
 */
#define POLICY_WORDS (1 << 19)

struct exitmark_image {
	union {
		struct exitmark_policy policy;
		__u64 words[POLICY_WORDS];
		__u16 halves[4 * POLICY_WORDS];
	};
};

/* Which frames go to a worker while it is alive. */
enum exitmark_handover {
	HAND_OVER_SLOW = 0, /* slow-path frames, which this program does not parse */
	HAND_OVER_ALL = 1, /* all frames */
};

/* Entries of the table of host addresses: an address has one of PROBES entries. */
#define HOST_SLOTS 8192
#define HOST_SLOT_BITS 13
#define HOST_PROBES 8
/* The address has sent a frame since user space last cleared this bit of its MAC address. */
#define HOST_SEEN_BIT 63
/* How often a MAC address has changed is counted modulo this plus 1. */
#define HOST_CHANGES 0x7fff

/* The MAC address of an IP address of a host, learned from its frames. */
struct exitmark_host {
	/*
	 * Of the IP address; 0: the entry is free. Below 1 << 32: when user space has emptied it, in
	 * seconds. It is free only later, when no CPU uses it for its former address any more.
	 */
	__u64 key;
	__u64 mac; /* below MAC_BITS; above, how often it has changed, and HOST_SEEN_BIT */
	__u64 address[2]; /* high, low; for user space */
};

/* Next hops: two for each group. */
#define NEXT_HOPS (2 * MAX_GROUPS)

/*
 * The state of the links, shared with the workers. This program and every worker may learn the
 * hosts' MAC addresses.
 */
struct exitmark_links {
	/* The first fields are those of the short ways, so that they are in one or two cache lines. */
	__u64 straight[ROLES]; /* bytes: the longest frame of a short way; 0: none takes one */
	__u64 sample; /* sampling rate of the decisions, in units of 1 / (1 << 64); 0: none */
	__u64 incoming_mac;
	__u64 incoming_port; /* the role whose NIC is incoming; ROLES: none */
	__u64 next_hops[NEXT_HOPS]; /* MAC addresses; 0: unknown, or no link: not steered */
	__u64 longest_redirect; /* bytes: the longest frame that can be redirected to every port */
	__u64 hand_over[ROLES]; /* enum exitmark_handover */
	__u64 decides[ROLES]; /* frames from this role can be redirected to their egress ports */
	__u64 heartbeat_timeout; /* ns: a worker with an older heartbeat counts as dead */
	__u64 soft_watermark; /* backlog in frames: from it on, this program decides some flows */
	__u64 hard_watermark; /* the same; from it on, this program decides all flows */
	__u64 netns; /* inode of the box's network namespace, to which `nics` belong */
	__u64 nics[ROLES]; /* interface index of each role; 0: none */
	__u64 drops_unsteered; /* relay frames that cannot be steered are dropped */
	__u64 sample_until; /* CLOCK_MONOTONIC, ns: user space reads samples until then */
	__u64 seeks_host; /* frames from uplink with the host's source address are counted */
	__u64 host_mac; /* of the hosts, if all have one; 0: unknown */
	__u64 several_macs; /* the hosts have several MAC addresses */
	__u64 hosts_full; /* frames from an address that found no entry */
	__u64 has_next_wire; /* the program map next_wire has an entry */
	__u64 ports_map; /* the ID of the map ports */
	struct exitmark_host hosts[HOST_SLOTS];
};

/* What a worker and this program share about one queue. One writer per cache line. */
struct exitmark_guard {
	/* Written by the worker. */
	__u64 heartbeat; /* CLOCK_MONOTONIC, ns */
	__u64 processed[ROLES]; /* frames that the worker has finished */
	__u64 unused[4];
	/* Written by this program. */
	struct exitmark_handed {
		__u64 sent; /* frames handed over */
		__u64 woken_at; /* CLOCK_MONOTONIC, ns: last frame sent to a worker without backlog */
		__u64 share; /* of 256 parts of the flows, those that this program decides */
		__u64 ease_at; /* CLOCK_MONOTONIC, ns: when the next parts go back to the worker */
		__u64 looks; /* frames counted between two clock readings */
		__u64 stamped; /* one sampled frame: how many frames were sent before it ... */
		__u64 stamped_at; /* ... and when it was sent: CLOCK_MONOTONIC, ns */
		__u64 unused;
	} handed[ROLES];
};

/*
 * Copies of exit frames for the tap: the beginning of each frame as it arrived, and what user space
 * needs to finish the copy, which cuts it after its headers, marks it and sends it. A ring has one
 * writer: a CPU or a worker.
 */
#define TAP_OUT 1 /* of a host */
#define TAP_IN 2 /* an answer to a host */
#define TAP_UNJUDGED 4 /* a slow-path frame to a host: user space judges it */
#define TAP_FLAGS_AT 24
#define TAP_MARK_AT 16
#define TAP_LENGTH_AT 32
#define TAP_SLOTS 2048
#define TAP_BYTES 184

struct exitmark_tap_copy {
	/*
	 * Length of the whole frame << TAP_LENGTH_AT | flags << TAP_FLAGS_AT | mark << TAP_MARK_AT |
	 * number of bytes in `frame`.
	 */
	__u64 about;
	__u8 frame[TAP_BYTES];
};

struct exitmark_tap {
	__u64 written; /* copies written since the start; by the writer */
	__u64 unused[7];
	__u64 read; /* copies read since the start; by user space */
	__u64 unused_too[7];
	struct exitmark_tap_copy copies[TAP_SLOTS];
};

/* What is counted for each group, if there are several. */
struct exitmark_group_counts {
	__u64 rules[RULES];
	__u64 bytes[RULES];
	__u64 marked;
	__u64 cleared;
	__u64 unsteered;
	__u64 unrouted_vlan;
	__u64 unrouted_family;
	__u64 unrouted_source;
};

/* The frames that took a short way, by what became of them. */
enum exitmark_short {
	SHORT_MARKED, /* from host: exit frames that got the mark */
	SHORT_EXIT, /* exit frames that had it */
	SHORT_BY_UPLINK, /* frames from host to relays that left by uplink */
	SHORT_BY_INCOMING, /* frames from host to relays that left by incoming */
	SHORT_FROM_UPLINK, /* frames from uplink that left by host unchanged */
	SHORT_FROM_INCOMING, /* frames from incoming that left by host with its MAC address */
	SHORTS,
};

/*
 * Per CPU. The fields before `stack` are a Tally in user space, which adds the frames of the short
 * ways to it.
 */
struct exitmark_counts {
	__u64 received[ROLES];
	__u64 forwarded[ROLES];
	__u64 rules[RULES];
	__u64 bytes[RULES];
	__u64 inbound_bytes[ROLES];
	__u64 marked;
	__u64 cleared;
	__u64 disagreed;
	__u64 unsteered; /* relay frames that left by uplink, because they could not be steered */
	__u64 unrouted_vlan; /* not steered: it has other VLAN tags than its group */
	__u64 unrouted_family; /* not steered: its IP version has no next hop */
	__u64 unrouted_source; /* not steered: no answer would be translated back */
	__u64 translated; /* relay frames that got another source address */
	__u64 translated_back; /* frames that got the address of a host again */
	__u64 host_by_uplink; /* arrived by uplink from the host's address, while `seeks_host` */
	__u64 tx_full[ROLES];
	__u64 host_mac_unknown;
	__u64 not_for_host;
	__u64 no_egress;
	__u64 steer_unavailable;
	__u64 tx_down[ROLES];
	__u64 tx_refused[ROLES];
	__u64 tap_copied[2]; /* sent by the tap: frames of hosts, answers */
	__u64 tap_full; /* not copied: user space had not sent the earlier copies */
	__u64 tap_down; /* not sent: the tap has no NIC or no link */
	__u64 tap_refused; /* not sent: the tap did not take them */
	__u64 stack[ROLES]; /* passed to the box's own network stack */
	__u64 handed[ROLES]; /* handed to user space */
	__u64 spilled[ROLES]; /* meant for a worker, but decided by this program */
	__u64 samples_lost; /* user space did not read them in time */
	struct exitmark_short_counts {
		__u64 frames;
		__u64 bytes;
	} shorts[SHORTS]; /* a frame changes one pair, and no other counter */
	struct exitmark_group_counts groups[MAX_GROUPS];
};

/* The outcome for a frame: the role of its egress port, or one of these. */
enum exitmark_outcome {
	OUTCOME_STACK = ROLES,
	OUTCOME_HOST_MAC_UNKNOWN,
	OUTCOME_NO_EGRESS,
	OUTCOME_STEER_UNAVAILABLE,
	OUTCOMES,
};

/* Enough for four VLAN tags, IPv6 with a few extension headers, and TCP with all its options. */
#define SAMPLE_BYTES 192

/* A sampled decision of this program, as user space reads it. */
struct exitmark_sample {
	__u64 arrived; /* CLOCK_MONOTONIC, ns */
	__u64 latency; /* latency from arrival to decision, ns */
	__u64 generation; /* of the policy by which it was judged */
	__u32 bytes; /* length of the whole frame */
	__u8 ingress; /* enum exitmark_role */
	__u8 outcome; /* enum exitmark_outcome, or a role */
	__u8 rule; /* enum exitmark_rule; RULES if the frame did not come from the host */
	__u8 unused;
	__u32 bytes_after; /* length of the whole frame on departure */
	__u32 padding;
	/* The first bytes of the frame on arrival and on departure. */
	__u8 before[SAMPLE_BYTES];
	__u8 after[SAMPLE_BYTES];
};

#endif

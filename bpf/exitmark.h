/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The contract between the XDP program and user space: numbers that both sides use. User
 * space has them in src/datapath/kernel.rs.
 */
#ifndef EXITMARK_H
#define EXITMARK_H

/* What a NIC is to the box; Role in user space. */
enum exitmark_role {
	ROLE_HOST = 0,
	ROLE_UPLINK = 1,
	ROLE_INCOMING = 2,
	ROLES = 3,
};

/* Sockets are at role * MAX_QUEUES + queue. */
#define MAX_QUEUES 64

/* Tags that are walked to find IP, as in user space. */
#define MAX_VLAN_TAGS 4

/* Prefixes of the host's addresses, per family. */
#define MAX_HOST_PREFIXES 1024

/* What the program did with frames that never reached user space. */
enum exitmark_counter {
	/* Left to the box's own network stack. */
	COUNT_STACK = 0,
	/* Dropped: this queue has no socket. */
	COUNT_NO_SOCKET = 1,
	COUNTERS = 2,
};

/* Keys of the two prefix maps, as BPF_MAP_TYPE_LPM_TRIE wants them. */
struct exitmark_prefix4 {
	__u32 bits;
	__u8 address[4];
};

struct exitmark_prefix6 {
	__u32 bits;
	__u8 address[16];
};

#endif

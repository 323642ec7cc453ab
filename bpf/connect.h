/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The interface between the programs of engine connect and user space, besides exitmark.h.
 * src/datapath/build.rs generates that of user space from this file.
 */
#ifndef EXITMARK_CONNECT_H
#define EXITMARK_CONNECT_H

/* Users whose connections are judged. */
#define MAX_USERS 4096

/* 64-bit words of the filter before the search for a user. */
#define USER_FILTER_WORDS 64

/* Connections, per CPU. The first three are by enum exitmark_rule. */
struct exitmark_connections {
	__u64 opened[RULES];
	/* Connections that were open before, when they were looked through. */
	__u64 earlier[RULES];
	__u64 marked; /* exit: the DSCP was set */
	__u64 own_tos; /* exit: left alone, because tor had set a ToS itself */
	__u64 unmarked; /* exit: the kernel refused to set the DSCP */
	__u64 steered; /* relay: bound, or given the fwmark or the NIC */
	__u64 own_source; /* relay: left alone, because tor had bound the socket itself */
	__u64 unsteered; /* relay: the kernel refused, or there is no source of this IP version */
	__u64 earlier_marked; /* exit, open before: the DSCP was set */
	__u64 earlier_unmarked; /* exit, open before: the kernel refused to set the DSCP */
	__u64 no_policy; /* no policy has been published yet */
};

#endif

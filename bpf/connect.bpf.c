// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Engine connect, on the Tor host itself: judges each outgoing TCP connection of tor before its
 * first packet, and sets the DSCP of the socket, or its source address, fwmark or NIC. The kernel
 * then writes the DSCP into every packet, SYN included.
 *
 * A program never refuses a connection: what cannot be set is counted, and the connection goes on.
 */
#include <linux/bpf.h>
#include <linux/errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "exitmark.h"
#include "connect.h"
#include "policy.h"
#include "sets.h"

/* From the kernel's headers for user space, which conflict with one another here. */
#define AF_INET 2
#define AF_INET6 10
#define SOCK_STREAM 1
#define IPPROTO_TCP 6
#define SOL_IP 0
#define SOL_SOCKET 1
#define SOL_IPV6 41
#define IP_TOS 1
#define IPV6_TCLASS 67
#define SO_MARK 36
#define SO_BINDTOIFINDEX 62
#define TCP_LISTEN 10

#define DNS 53
#define DNS_OVER_TLS 853
#define DSCP_BITS 0xfc

/* User space compares these sizes with its own before it loads the programs. */
const volatile __u32 layout_version = LAYOUT_VERSION;
const volatile __u32 policy_bytes = sizeof(struct exitmark_policy);
const volatile __u32 connections_bytes = sizeof(struct exitmark_connections);

/* Whether only connections of `users` are judged; otherwise all of the cgroup. */
const volatile __u32 by_user = 1;

/* User IDs in the initial user namespace. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_USERS);
	__type(key, __u32);
	__type(value, __u8);
} users SEC(".maps");

/* Bits by the lowest bits of a user ID: without its bit, an ID is not in `users`, which costs less
 * to find out than a search. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, USER_FILTER_WORDS);
	__type(key, __u32);
	__type(value, __u64);
} user_filter SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct exitmark_connections);
} connections SEC(".maps");

/* Local ports on which tor listens: connections from them came in. Filled by `exitmark_listening`. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_USERS);
	__type(key, __u32);
	__type(value, __u8);
} listening SEC(".maps");

/* The destination of a connection. */
struct destination {
	struct address address;
	__u32 port;
	int family; /* V4 for an IPv4-mapped address too */
};

static __always_inline bool is_of_tor(__u32 user)
{
	__u32 word = user / 64 % USER_FILTER_WORDS;
	__u64 *bits;

	if (!by_user)
		return true;
	bits = bpf_map_lookup_elem(&user_filter, &word);
	return bits && *bits >> user % 64 & 1 && bpf_map_lookup_elem(&users, &user);
}

static __always_inline struct exitmark_connections *current_counts(void)
{
	__u32 only = 0;

	return bpf_map_lookup_elem(&connections, &only);
}

/* Atomic: the kernel may preempt the program for another connection on the same CPU. */
static __always_inline void count(__u64 *counter)
{
	__sync_fetch_and_add(counter, 1);
}

/* The rules, in order. Same logic as src/policy/connection.rs, which is the reference. */
static __always_inline __u32 judge_family(const struct exitmark_image *image,
					  const struct destination *to, int family)
{
	const struct exitmark_policy *policy = &image->policy;
	const struct exitmark_group *tor = &policy->groups[0];

	if (covers(image, &tor->exempt[family], family, to->address))
		return RULE_TO_EXEMPT_PREFIX;
	if ((to->port == DNS || to->port == DNS_OVER_TLS) &&
	    covers(image, &tor->resolvers[family], family, to->address))
		return RULE_TO_RESOLVER;
	if (lists(image, &policy->relays[family], family, to->address, to->port))
		return RULE_TO_LISTED_RELAY;
	return RULE_EXIT_PROTOCOL;
}

static __always_inline __u32 judge(const struct exitmark_image *image, const struct destination *to)
{
	return to->family == V4 ? judge_family(image, to, V4) : judge_family(image, to, V6);
}

static __always_inline struct destination destination_v4(__u32 address, __u16 port)
{
	struct destination to = {
		.address.low = bpf_ntohl(address),
		.port = bpf_ntohs(port),
		.family = V4,
	};

	return to;
}

static __always_inline struct destination destination_v6(const __u32 *words, __u16 port)
{
	struct destination to = {
		.address.high = (__u64)bpf_ntohl(words[0]) << 32 | bpf_ntohl(words[1]),
		.address.low = (__u64)bpf_ntohl(words[2]) << 32 | bpf_ntohl(words[3]),
		.port = bpf_ntohs(port),
		.family = V6,
	};

	/* An IPv4-mapped address, ::ffff:0:0/96 (RFC 4291, section 2.5.5.2). */
	if (!to.address.high && to.address.low >> 32 == 0xffff) {
		to.address.low &= 0xffffffff;
		to.family = V4;
	}
	return to;
}

/*
 * Sets the DSCP of an exit connection. IP_TOS applies to IPv4-mapped sockets too, where the kernel
 * lets a program set it. The kernel keeps the ECN bits of a TCP socket.
 */
static __always_inline void mark(struct bpf_sock_addr *ctx, int family,
				 const struct exitmark_policy *policy,
				 struct exitmark_connections *counts)
{
	int level = family == V4 ? SOL_IP : SOL_IPV6;
	int option = family == V4 ? IP_TOS : IPV6_TCLASS;
	int tos = 0;

	if (!policy->sockets.overwrites &&
	    bpf_getsockopt(ctx, level, option, &tos, sizeof(tos)) == 0 && (tos & DSCP_BITS) &&
	    (tos & DSCP_BITS) != policy->groups[0].mark) {
		count(&counts->own_tos);
		return;
	}
	tos = policy->groups[0].mark;
	if (bpf_setsockopt(ctx, level, option, &tos, sizeof(tos)))
		count(&counts->unmarked);
	else
		count(&counts->marked);
}

/* Binds to an address and leaves the port to connect(), as with IP_BIND_ADDRESS_NO_PORT. */
static __always_inline bool bind_source(struct bpf_sock_addr *ctx, int family,
					const struct exitmark_sockets *sockets)
{
	if (ctx->family == AF_INET) {
		struct sockaddr_in {
			__u16 family;
			__u16 port;
			__u32 address;
			__u8 unused[8];
		} source = { .family = AF_INET, .address = bpf_htonl(sockets->source_v4) };

		return bpf_bind(ctx, (void *)&source, sizeof(source)) == 0;
	} else {
		struct sockaddr_in6 {
			__u16 family;
			__u16 port;
			__u32 flow;
			__u32 address[4];
			__u32 scope;
		} source = { .family = AF_INET6 };

		if (family == V4) {
			source.address[2] = bpf_htonl(0xffff);
			source.address[3] = bpf_htonl(sockets->source_v4);
		} else {
			source.address[0] = bpf_htonl(sockets->source_v6[0] >> 32);
			source.address[1] = bpf_htonl(sockets->source_v6[0]);
			source.address[2] = bpf_htonl(sockets->source_v6[1] >> 32);
			source.address[3] = bpf_htonl(sockets->source_v6[1]);
		}
		return bpf_bind(ctx, (void *)&source, sizeof(source)) == 0;
	}
}

/* Whether tor has bound the socket to an address. */
static __always_inline bool has_source(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *socket = ctx->sk;

	if (!socket)
		return false;
	if (ctx->family == AF_INET)
		return socket->src_ip4;
	return socket->src_ip6[0] | socket->src_ip6[1] | socket->src_ip6[2] | socket->src_ip6[3];
}

static __always_inline void steer(struct bpf_sock_addr *ctx, int family,
				  const struct exitmark_policy *policy,
				  struct exitmark_connections *counts)
{
	const struct exitmark_sockets *sockets = &policy->sockets;
	bool names_source = family == V4 ? sockets->source_v4 != 0 :
					   (sockets->source_v6[0] | sockets->source_v6[1]) != 0;
	bool is_bound = names_source && has_source(ctx);
	bool done = true;
	int number;

	if (!(policy->groups[0].routed >> family & 1)) {
		count(&counts->unsteered);
		return;
	}
	if (sockets->fwmark) {
		number = sockets->fwmark;
		done &= !bpf_setsockopt(ctx, SOL_SOCKET, SO_MARK, &number, sizeof(number));
	}
	if (sockets->interface) {
		number = sockets->interface;
		done &= !bpf_setsockopt(ctx, SOL_SOCKET, SO_BINDTOIFINDEX, &number, sizeof(number));
	}
	if (names_source && !is_bound)
		done &= bind_source(ctx, family, sockets);
	if (is_bound && !sockets->fwmark && !sockets->interface)
		count(&counts->own_source);
	else if (done)
		count(&counts->steered);
	else
		count(&counts->unsteered);
}

static __always_inline int opened(struct bpf_sock_addr *ctx, const struct destination *to)
{
	const struct exitmark_image *image = current_image();
	struct exitmark_connections *counts = current_counts();
	__u32 rule;
	__u8 action;

	if (!counts)
		return 1;
	if (!image) {
		count(&counts->no_policy);
		return 1;
	}
	rule = judge(image, to);
	count(&counts->opened[rule]);
	action = image->policy.groups[0].actions[rule];
	if (action & ACTION_SET)
		mark(ctx, to->family, &image->policy, counts);
	if (action & ACTION_STEER)
		steer(ctx, to->family, &image->policy, counts);
	return 1;
}

static __always_inline bool is_judged(const struct bpf_sock_addr *ctx)
{
	return ctx->type == SOCK_STREAM && ctx->protocol == IPPROTO_TCP &&
	       is_of_tor(bpf_get_current_uid_gid());
}

SEC("cgroup/connect4")
int exitmark_connect4(struct bpf_sock_addr *ctx)
{
	struct destination to;

	if (!is_judged(ctx))
		return 1;
	to = destination_v4(ctx->user_ip4, ctx->user_port);
	return opened(ctx, &to);
}

SEC("cgroup/connect6")
int exitmark_connect6(struct bpf_sock_addr *ctx)
{
	struct destination to;
	__u32 words[4];

	if (!is_judged(ctx))
		return 1;
	words[0] = ctx->user_ip6[0];
	words[1] = ctx->user_ip6[1];
	words[2] = ctx->user_ip6[2];
	words[3] = ctx->user_ip6[3];
	to = destination_v6(words, ctx->user_port);
	return opened(ctx, &to);
}

/* The parts of the kernel's structures that the iterators read, by their BTF. */
struct in6_addr {
	union {
		__u32 u6_addr32[4];
	} in6_u;
} __attribute__((preserve_access_index));

struct sock_common {
	__u32 skc_daddr;
	__u16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	struct in6_addr skc_v6_daddr;
} __attribute__((preserve_access_index));

struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
	__u32 uid;
} __attribute__((preserve_access_index));

/* Notes the ports on which tor listens. */
SEC("iter/tcp")
int exitmark_listening(struct bpf_iter__tcp *ctx)
{
	struct sock_common *socket = ctx->sk_common;
	__u8 yes = 1;
	__u32 port;

	if (!socket || socket->skc_state != TCP_LISTEN || !is_of_tor(ctx->uid))
		return 0;
	port = socket->skc_num;
	bpf_map_update_elem(&listening, &port, &yes, BPF_ANY);
	return 0;
}

/*
 * Judges a connection that was open before the programs were attached: counts it, and sets the DSCP
 * of an exit connection, for its packets from now on. A source address cannot be changed any more.
 */
SEC("iter/tcp")
int exitmark_earlier(struct bpf_iter__tcp *ctx)
{
	const struct exitmark_image *image = current_image();
	struct exitmark_connections *counts = current_counts();
	struct sock_common *common = ctx->sk_common;
	int level = SOL_IP, option = IP_TOS, tos = 0;
	struct destination to;
	struct tcp_sock *socket;
	__u32 port, rule, words[4];

	if (!common || !image || !counts || common->skc_state == TCP_LISTEN || !is_of_tor(ctx->uid))
		return 0;
	port = common->skc_num;
	if (bpf_map_lookup_elem(&listening, &port))
		return 0;
	/* Only a full socket: no connection that waits for its end, or for its first ACK. */
	socket = bpf_skc_to_tcp_sock(common);
	if (!socket)
		return 0;
	if (common->skc_family == AF_INET) {
		to = destination_v4(common->skc_daddr, common->skc_dport);
	} else {
		words[0] = common->skc_v6_daddr.in6_u.u6_addr32[0];
		words[1] = common->skc_v6_daddr.in6_u.u6_addr32[1];
		words[2] = common->skc_v6_daddr.in6_u.u6_addr32[2];
		words[3] = common->skc_v6_daddr.in6_u.u6_addr32[3];
		to = destination_v6(words, common->skc_dport);
	}
	if (to.family == V6) {
		level = SOL_IPV6;
		option = IPV6_TCLASS;
	}
	rule = judge(image, &to);
	if (!(image->policy.groups[0].actions[rule] & ACTION_SET)) {
		count(&counts->earlier[rule]);
		return 0;
	}
	bpf_getsockopt(socket, level, option, &tos, sizeof(tos));
	/* Opened since the programs are attached. */
	if ((tos & DSCP_BITS) == image->policy.groups[0].mark)
		return 0;
	count(&counts->earlier[rule]);
	if ((tos & DSCP_BITS) && !image->policy.sockets.overwrites) {
		count(&counts->own_tos);
		return 0;
	}
	tos = image->policy.groups[0].mark;
	if (bpf_setsockopt(socket, level, option, &tos, sizeof(tos)))
		count(&counts->earlier_unmarked);
	else
		count(&counts->earlier_marked);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";

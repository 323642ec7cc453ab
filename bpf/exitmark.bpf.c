// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The kernel's side of exitmark: hands frames to the AF_XDP socket of their port and queue.
 *
 * On host and uplink that is every frame: the pair is a wire, and the box's own stack takes no
 * part in it. incoming is a member of another network: only frames for the host's addresses,
 * sent to the NIC's own MAC, are ours, and all else is the stack's.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <stdbool.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "exitmark.h"

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, ROLES * MAX_QUEUES);
	__type(key, __u32);
	__type(value, __u32);
} sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, MAX_HOST_PREFIXES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct exitmark_prefix4);
	__type(value, __u8);
} host_prefixes4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, MAX_HOST_PREFIXES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct exitmark_prefix6);
	__type(value, __u8);
} host_prefixes6 SEC(".maps");

/* Per role and counter. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, ROLES * COUNTERS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

/* incoming's own MAC address, set before the program is loaded. */
const volatile __u8 incoming_mac[ETH_ALEN] = {};

static __always_inline void count(enum exitmark_role role, enum exitmark_counter what)
{
	__u32 slot = role * COUNTERS + what;
	__u64 *number = bpf_map_lookup_elem(&counters, &slot);

	if (number)
		*number += 1;
}

static __always_inline int to_socket(struct xdp_md *ctx, enum exitmark_role role)
{
	__u32 queue = ctx->rx_queue_index;
	__u32 slot = role * MAX_QUEUES + queue;

	if (queue < MAX_QUEUES && bpf_map_lookup_elem(&sockets, &slot))
		return bpf_redirect_map(&sockets, slot, XDP_DROP);
	count(role, COUNT_NO_SOCKET);
	return XDP_DROP;
}

/* Whether the frame is addressed to incoming's own MAC. */
static __always_inline bool is_for_us(const struct ethhdr *eth)
{
	for (int i = 0; i < ETH_ALEN; i++)
		if (eth->h_dest[i] != incoming_mac[i])
			return false;
	return true;
}

/* Whether the frame's destination is an address of the host. */
static __always_inline bool is_for_host(void *data, void *end)
{
	struct ethhdr *eth = data;
	__u8 *cursor = data + sizeof(*eth);
	__be16 type;

	if ((void *)cursor > end || !is_for_us(eth))
		return false;
	type = eth->h_proto;

	for (int i = 0; i < MAX_VLAN_TAGS; i++) {
		if (type != bpf_htons(ETH_P_8021Q) && type != bpf_htons(ETH_P_8021AD) &&
		    type != bpf_htons(0x9100))
			break;
		if ((void *)cursor + 4 > end)
			return false;
		type = *(__be16 *)(cursor + 2);
		cursor += 4;
	}

	if (type == bpf_htons(ETH_P_IP)) {
		struct exitmark_prefix4 key = { .bits = 32 };

		if ((void *)cursor + 20 > end || cursor[0] >> 4 != 4)
			return false;
		__builtin_memcpy(key.address, cursor + 16, sizeof(key.address));
		return bpf_map_lookup_elem(&host_prefixes4, &key);
	}
	if (type == bpf_htons(ETH_P_IPV6)) {
		struct exitmark_prefix6 key = { .bits = 128 };

		if ((void *)cursor + 40 > end || cursor[0] >> 4 != 6)
			return false;
		__builtin_memcpy(key.address, cursor + 24, sizeof(key.address));
		return bpf_map_lookup_elem(&host_prefixes6, &key);
	}
	return false;
}

SEC("xdp.frags")
int exitmark_host(struct xdp_md *ctx)
{
	return to_socket(ctx, ROLE_HOST);
}

SEC("xdp.frags")
int exitmark_uplink(struct xdp_md *ctx)
{
	return to_socket(ctx, ROLE_UPLINK);
}

SEC("xdp.frags")
int exitmark_incoming(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;

	if (is_for_host(data, end))
		return to_socket(ctx, ROLE_INCOMING);
	count(ROLE_INCOMING, COUNT_STACK);
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";

// SPDX-License-Identifier: MIT OR Apache-2.0
// A machine in a VLAN: every frame that it sends gets the tags, and a frame that it receives must
// have exactly these, which are removed. Needs no VLAN interface, which not every kernel has.

#include <linux/bpf.h>
#include <linux/if_packet.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define TAGS 2
#define ID_BITS 0xfff

// Interface to tests/wire/rack.rs. The outer tag first: tag protocol identifier << 16 | tag control
// information; 0 for no tag.
const volatile __u32 tags[TAGS];

// The frames to the machine's own address that have other tags.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} refused SEC(".maps");

static __always_inline int refuse(const struct __sk_buff *skb)
{
	__u32 key = 0;
	__u64 *count = bpf_map_lookup_elem(&refused, &key);

	// A switch floods broadcast and multicast of all VLANs.
	if (count && skb->pkt_type == PACKET_HOST)
		__sync_fetch_and_add(count, 1);
	return TC_ACT_SHOT;
}

SEC("tc")
int push(struct __sk_buff *skb)
{
	// The inner one first: each is pushed in front of the others.
	for (int number = TAGS - 1; number >= 0; number--) {
		__u32 tag = tags[number];

		if (tag && bpf_skb_vlan_push(skb, bpf_htons(tag >> 16), tag & 0xffff))
			return TC_ACT_SHOT;
	}
	return TC_ACT_OK;
}

SEC("tc")
int pop(struct __sk_buff *skb)
{
	for (int number = 0; number < TAGS; number++) {
		__u32 tag = tags[number];

		if (!tag)
			break;
		if (!skb->vlan_present || ((skb->vlan_tci ^ tag) & ID_BITS) ||
		    skb->vlan_proto != bpf_htons(tag >> 16))
			return refuse(skb);
		if (bpf_skb_vlan_pop(skb))
			return TC_ACT_SHOT;
	}
	return skb->vlan_present ? refuse(skb) : TC_ACT_OK;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";

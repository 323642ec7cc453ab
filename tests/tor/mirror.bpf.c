// SPDX-License-Identifier: MIT OR Apache-2.0
// A passive tap: sends a copy of every frame on another interface.

#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>
#include "../../src/lab/map.bpf.h"

MAP(ARRAY, tap, 1, __u32, __u32);

SEC("tc")
int mirror(struct __sk_buff *frame)
{
	__u32 first = 0;
	__u32 *interface = bpf_map_lookup_elem(&tap, &first);

	if (interface)
		bpf_clone_redirect(frame, *interface, 0);
	return TC_ACT_OK;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";

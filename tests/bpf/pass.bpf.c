// SPDX-License-Identifier: MIT OR Apache-2.0
// Replaces the box's program on a NIC and counts no frame, like a program that the driver has lost.

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp.frags")
int pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";

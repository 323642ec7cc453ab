// SPDX-License-Identifier: MIT OR Apache-2.0
// Takes the place of the box's program on a NIC and sees nothing, as a program does that its
// driver has lost.

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp.frags")
int pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";

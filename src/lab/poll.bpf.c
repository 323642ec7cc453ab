// SPDX-License-Identifier: MIT OR Apache-2.0
// What makes the far end of a veth pair poll, as a real NIC does: without that, frames that XDP
// redirects into the pair vanish. GRO would do it too, and would merge frames on the way.

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp.frags")
int poll(struct xdp_md *ctx)
{
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";

// SPDX-License-Identifier: MIT OR Apache-2.0
// Makes the far end of a veth pair poll, as a real NIC does: otherwise frames that XDP redirects
// into the pair are dropped. GRO has the same effect, but merges frames.

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp.frags")
int poll(struct xdp_md *ctx)
{
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";

// SPDX-License-Identifier: MIT OR Apache-2.0
// Generator of the monitor's bench: frames for the tap at a given rate, one in `every` marked.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "../../src/lab/map.bpf.h"

// Interface to benches/monitor/veth.rs.
#define HEADER_BYTES 54 // Ethernet, IPv4 and TCP, all without options
#define MARKED 0x28 // the ToS byte of AF11
#define FRACTION_BITS 10 // intervals are in 1/1024 of a nanosecond
#define LATE (100000ULL << FRACTION_BITS) // the most delay that is made up for: 0.1 ms
#define MAX_CLOCK_READS 4096 // clock reads before a frame is sent in any case

struct load {
	// Parameters.
	__u64 interval; // between frames; 0: full speed
	__u64 every; // one frame in this number is marked
	__u64 interface;
	// State and results.
	__u64 due;
	__u64 sent;
	__u64 marked;
};

MAP(ARRAY, loads, 1, __u32, struct load);

static __always_inline void wait(struct load *load)
{
	__u64 now = 0;

	for (int i = 0; i < MAX_CLOCK_READS; i++) {
		now = bpf_ktime_get_ns() << FRACTION_BITS;
		if (now >= load->due)
			break;
	}
	if (load->due + LATE < now)
		load->due = now - LATE;
	load->due += load->interval;
}

// Run live by BPF_PROG_RUN, once per frame.
SEC("xdp")
int generate(struct xdp_md *context)
{
	__u8 *frame = (void *)(long)context->data;
	struct load *load;
	__u32 only = 0;
	__u16 flow;

	load = bpf_map_lookup_elem(&loads, &only);
	if (!load || frame + HEADER_BYTES > (__u8 *)(long)context->data_end)
		return XDP_ABORTED;
	if (load->interval)
		wait(load);
	load->sent += 1;
	frame[15] = 0;
	if (load->sent % load->every == 0) {
		load->marked += 1;
		frame[15] = MARKED;
	}
	// Many destinations, each often.
	flow = load->sent;
	*(__u16 *)(frame + 31) = flow;
	*(__u16 *)(frame + 34) = flow;
	return bpf_redirect(load->interface, 0);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";

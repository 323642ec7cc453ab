// SPDX-License-Identifier: MIT OR Apache-2.0
// Feeds a program that BPF_PROG_RUN times: each run gets the frame of another flow. The headers of
// the next flow are copied over the frame, then the timed program is called. `redirect` is the least
// that such a program can be.

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "../../src/lab/map.bpf.h"

// Interface to benches/kernel/feed.rs.
#define SLOT_BYTES 80
#define SHORT_BYTES 56 // Ethernet, two tags, IPv4, and TCP up to its control bits

struct slot {
	__u8 headers[SLOT_BYTES];
};

// One slot per flow. The number is set before loading.
MAP(ARRAY, flows, 1, __u32, struct slot);
// The next flow.
MAP(PERCPU_ARRAY, position, 1, __u32, __u32);
// The timed program, loaded for frames in one buffer or in several, and where `redirect` sends.
MAP(PROG_ARRAY, timed, 1, __u32, __u32);
MAP(PROG_ARRAY, timed_frags, 1, __u32, __u32);
MAP(DEVMAP, ports, 1, __u32, __u32);

// The number of flows. Set before loading.
const volatile __u32 count = 1;

// The slots are read in order, so that the hardware prefetches the next ones with any number of flows.
static __always_inline int feed(struct xdp_md *context, void *program, __u32 bytes)
{
	void *frame = (void *)(long)context->data;
	__u32 only = 0, flow, *next;
	struct slot *slot;

	if (frame + bytes > (void *)(long)context->data_end)
		return XDP_ABORTED;
	next = bpf_map_lookup_elem(&position, &only);
	if (!next)
		return XDP_ABORTED;
	flow = *next;
	*next = flow + 1 < count ? flow + 1 : 0;
	slot = bpf_map_lookup_elem(&flows, &flow);
	if (!slot)
		return XDP_ABORTED;
	__builtin_memcpy(frame, slot->headers, bytes);
	bpf_tail_call(context, program, 0);
	return XDP_ABORTED;
}

#define FEED(section, map, name, bytes) \
	SEC(section) \
	int name(struct xdp_md *context) \
	{ \
		return feed(context, &map, bytes); \
	}

FEED("xdp", timed, feed_short, SHORT_BYTES)
FEED("xdp", timed, feed_long, SLOT_BYTES)
FEED("xdp.frags", timed_frags, feed_short_frags, SHORT_BYTES)
FEED("xdp.frags", timed_frags, feed_long_frags, SLOT_BYTES)

SEC("xdp")
int redirect(struct xdp_md *context)
{
	return bpf_redirect_map(&ports, 0, XDP_DROP);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";

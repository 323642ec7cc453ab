// SPDX-License-Identifier: MIT OR Apache-2.0
// Feeds a program that BPF_PROG_RUN times: each run gets the frame of another flow. The headers of
// the next flow are copied over the frame, then the timed program is called. `redirect` is the least
// that such a program can be.

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "../../src/lab/map.bpf.h"

// Interface to benches/kernel/feed.rs.
#define SLOT_BYTES 80
#define SHORT_BYTES 60 // Ethernet, two tags, IPv4, and TCP up to its control bits

struct slot {
	__u8 headers[SLOT_BYTES];
};

// One slot per flow. The number is set before loading.
MAP(ARRAY, flows, 1, __u32, struct slot);
struct position {
	__u32 next; // flow
	__u32 zero;
	__u64 begun; // ns: when this pass over the flows began; 0 before the first
	__u64 fastest; // ns of a pass over all flows
};

MAP(PERCPU_ARRAY, position, 1, __u32, struct position);
// The timed program, loaded for frames in one buffer or in several, and where `redirect` sends.
MAP(PROG_ARRAY, timed, 1, __u32, __u32);
MAP(PROG_ARRAY, timed_frags, 1, __u32, __u32);
MAP(DEVMAP, ports, 1, __u32, __u32);

// The number of flows. Set before loading.
const volatile __u32 count = 1;

// The time of a call of BPF_PROG_RUN includes the kernel's preparations, of milliseconds, and other
// programs; that of the fastest pass does not.
static __always_inline void end_pass(struct position *at)
{
	__u64 now = bpf_ktime_get_ns();

	if (at->begun && now - at->begun < at->fastest)
		at->fastest = now - at->begun;
	at->begun = now;
}

#define COPY(type, at) (*(volatile type *)(to + (at)) = *(const type *)(from + (at)))

// A read of what two stores have just written waits for both, which no NIC makes a program do. So
// each field of Ethernet, IP and TCP is within one store.
static __always_inline void write_headers(void *to, const void *from, __u32 bytes)
{
	COPY(__u32, 0);
	COPY(__u64, 4);
	COPY(__u16, 12);
	for (__u32 at = 14; at + 8 <= bytes; at += 8)
		COPY(__u64, at);
	if (bytes == SHORT_BYTES)
		COPY(__u32, 54);
}

// The slots are read in order, so that the hardware prefetches the next ones with any number of flows.
static __always_inline int feed(struct xdp_md *context, void *program, __u32 bytes)
{
	void *frame = (void *)(long)context->data;
	__u32 only = 0, flow;
	struct position *at;
	struct slot *slot;

	if (frame + bytes > (void *)(long)context->data_end)
		return XDP_ABORTED;
	at = bpf_map_lookup_elem(&position, &only);
	if (!at)
		return XDP_ABORTED;
	flow = at->next;
	if (!flow)
		end_pass(at);
	at->next = flow + 1 < count ? flow + 1 : 0;
	slot = bpf_map_lookup_elem(&flows, &flow);
	if (!slot)
		return XDP_ABORTED;
	write_headers(frame, slot->headers, bytes);
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

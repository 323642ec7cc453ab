// SPDX-License-Identifier: MIT OR Apache-2.0
// The kernel's part of the benches: generates the frames of the packet rate bench, counts received
// frames, and contains the do-nothing forwarder.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "../../src/lab/map.bpf.h"

// Interface to benches/pps/traffic.rs, benches/pps/load.rs and benches/common/bpf.rs.
#define IPV4_BYTES 54 // Ethernet, IPv4 and TCP, all without options
#define IPV6_BYTES 74
#define SLOT_BYTES 80
#define GENERATORS 64
#define SEQUENCE_EXIT 0x45584954 // the TCP sequence number labels the kind of a frame;
#define SEQUENCE_RELAY 0x52454c41 // no forwarder reads it
#define MARKED 0x28 // the ToS byte of AF11
enum sink { UPLINK, INCOMING, SINKS };
enum target { GENERATE, WIRE, WIRE_BACK, TARGETS };

struct slot {
	__u8 headers[SLOT_BYTES];
};

// The flows of one generator: from `begin` up to, but not including, `end`.
struct part {
	__u32 begin;
	__u32 end;
};

struct progress {
	__u64 sent;
	__u64 next; // flow, relative to the part's begin
};

struct tally {
	__u64 exit_marked;
	__u64 exit_unmarked;
	__u64 relay_marked;
	__u64 relay_unmarked;
	__u64 astray; // of the bench, but addressed to another NIC, which would drop it
	__u64 other; // not of the bench
};

// One slot per flow. The number is set before loading.
MAP(ARRAY, flows, 1, __u32, struct slot);

// By the CPU of a generator.
MAP(ARRAY, parts, GENERATORS, __u32, struct part);
MAP(ARRAY, targets, TARGETS, __u32, __u32);
MAP(PERCPU_ARRAY, sent, 1, __u32, struct progress);
MAP(PERCPU_ARRAY, received, SINKS, __u32, struct tally);

// A device map: redirecting through it is faster than by interface index.
MAP(DEVMAP, wires, TARGETS, __u32, __u32);

static __always_inline int redirect_to(__u32 target)
{
	__u32 *interface = bpf_map_lookup_elem(&targets, &target);

	return interface ? bpf_redirect(*interface, 0) : XDP_ABORTED;
}

// Run live by BPF_PROG_RUN. Pages are recycled as the receivers left them, so every frame gets all
// of its headers again; the payload is never changed. The slots are read in order, so that the
// hardware prefetches the next ones with any number of flows.
static __always_inline int generate(struct xdp_md *context, __u32 bytes)
{
	void *frame = (void *)(long)context->data;
	__u32 only = 0, cpu = bpf_get_smp_processor_id(), flow;
	struct progress *progress;
	struct part *part;
	struct slot *slot;

	if (frame + bytes > (void *)(long)context->data_end)
		return XDP_ABORTED;
	progress = bpf_map_lookup_elem(&sent, &only);
	part = bpf_map_lookup_elem(&parts, &cpu);
	if (!progress || !part)
		return XDP_ABORTED;
	flow = part->begin + progress->next;
	if (flow >= part->end) {
		flow = part->begin;
		progress->next = 0;
	}
	progress->next += 1;
	progress->sent += 1;
	slot = bpf_map_lookup_elem(&flows, &flow);
	if (!slot)
		return XDP_ABORTED;
	__builtin_memcpy(frame, slot->headers, bytes);
	return redirect_to(GENERATE);
}

SEC("xdp")
int generate_ipv4(struct xdp_md *context)
{
	return generate(context, IPV4_BYTES);
}

SEC("xdp")
int generate_ipv6(struct xdp_md *context)
{
	return generate(context, IPV6_BYTES);
}

// `last` is the end of the sink's MAC address, behind 02:00:00:00.
static __always_inline int count(struct xdp_md *context, __u32 sink, __u16 last)
{
	__u8 *frame = (void *)(long)context->data;
	struct tally *tally = bpf_map_lookup_elem(&received, &sink);
	void *end = (void *)(long)context->data_end;
	__u32 sequence;
	int marked;

	if (!tally)
		return XDP_ABORTED;
	if ((void *)frame + IPV4_BYTES > end)
		goto other;
	if (*(__u16 *)(frame + 12) == bpf_htons(ETH_P_IP)) {
		sequence = *(__u32 *)(frame + 38);
		marked = frame[15] == MARKED;
	} else if (*(__u16 *)(frame + 12) == bpf_htons(ETH_P_IPV6) &&
		   (void *)frame + IPV6_BYTES <= end) {
		// Version, traffic class, flow label: four, eight and twenty bits.
		sequence = *(__u32 *)(frame + 58);
		marked = (bpf_ntohs(*(__u16 *)(frame + 14)) >> 4 & 0xff) == MARKED;
	} else {
		goto other;
	}
	sequence = bpf_ntohl(sequence);
	if (sequence != SEQUENCE_EXIT && sequence != SEQUENCE_RELAY)
		goto other;
	if (*(__u32 *)frame != bpf_htonl(0x02000000) ||
		 *(__u16 *)(frame + 4) != bpf_htons(last))
		tally->astray += 1;
	else if (sequence == SEQUENCE_EXIT && marked)
		tally->exit_marked += 1;
	else if (sequence == SEQUENCE_EXIT)
		tally->exit_unmarked += 1;
	else if (marked)
		tally->relay_marked += 1;
	else
		tally->relay_unmarked += 1;
	return XDP_DROP;
other:
	tally->other += 1;
	return XDP_DROP;
}

SEC("xdp")
int count_uplink(struct xdp_md *context)
{
	return count(context, UPLINK, 0x0202);
}

SEC("xdp")
int count_incoming(struct xdp_md *context)
{
	return count(context, INCOMING, 0x0302);
}

// The baseline: everything to the uplink, and everything from there to the host, neither parsed nor
// changed.
SEC("xdp")
int wire(struct xdp_md *context)
{
	return bpf_redirect_map(&wires, WIRE, XDP_DROP);
}

SEC("xdp")
int wire_back(struct xdp_md *context)
{
	return bpf_redirect_map(&wires, WIRE_BACK, XDP_DROP);
}

// A veth accepts redirected frames only with NAPI enabled, which any program does.
SEC("xdp")
int pass(struct xdp_md *context)
{
	return XDP_PASS;
}

#include "latency.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

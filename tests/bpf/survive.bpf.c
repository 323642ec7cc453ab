// SPDX-License-Identifier: MIT OR Apache-2.0
// The kernel's part of the survival test: compares every received frame with the expected one, and
// generates frames at full speed.

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "../../src/lab/map.bpf.h"

// Interface to tests/survive/flows.rs and tests/survive/sinks.rs.
#define FLOWS 80 // the first OUTBOUND leave the host
#define OUTBOUND 64
#define STRIDE 37 // coprime to both, so that kinds of flows alternate
#define SEQUENCES (1 << 20) // of each flow
#define FRAME_BYTES 96
#define MACS_BYTES 12
#define HEADER_BYTES 76 // the headers of any flow
#define MAGIC 0x73757276 // "surv"
#define CHUNK_WORDS 512 // a chunk of the bitmap of received frames
#define CHUNK_BITS (CHUNK_WORDS * 64)
#define CHUNKS (FLOWS * (SEQUENCES / CHUNK_BITS))
enum sink { UPLINK, INCOMING, HOST, SINKS };

// Behind the headers of every frame, in host byte order.
struct record {
	__u32 magic;
	__u32 flow;
	__u32 sequence;
};

struct flow {
	__u8 before[HEADER_BYTES]; // as sent
	__u8 after[HEADER_BYTES]; // as expected
	__u32 sink; // the expected one
};

struct progress {
	__u64 arrived; // different frames
	__u64 next; // one more than the highest received sequence number
};

struct tally {
	__u64 arrived; // of the test, including all below but foreign
	__u64 mismarked; // the right MAC addresses, but a wrong header
	__u64 missteered; // the wrong sink or the wrong MAC addresses
	__u64 duplicated; // received before
	__u64 reordered; // behind a frame that was sent after it
	__u64 garbled; // of the test, but of no flow
	__u64 foreign; // not of the test
};

MAP(ARRAY, flows, FLOWS, __u32, struct flow);
MAP(ARRAY, progress, FLOWS, __u32, struct progress);

struct chunk {
	__u64 words[CHUNK_WORDS];
};

MAP(ARRAY, received, CHUNKS, __u32, struct chunk);
MAP(ARRAY, tallies, SINKS, __u32, struct tally);
MAP(ARRAY, sent, 1, __u32, __u64);
MAP(ARRAY, exit_by, 1, __u32, __u32);
MAP(ARRAY, egresses, SINKS, __u32, __u32);

static __always_inline void count(__u64 *counter)
{
	__sync_fetch_and_add(counter, 1);
}

// Whether the bytes from `begin` to `end`, both multiples of 4, are the same.
static __always_inline int same(const __u8 *frame, const __u8 *wanted, int begin, int end)
{
	__u32 difference = 0;

#pragma unroll
	for (int at = begin; at < end; at += 4)
		difference |= *(const __u32 *)(frame + at) ^ *(const __u32 *)(wanted + at);
	return !difference;
}

static __always_inline int check(struct xdp_md *context, __u32 sink)
{
	__u8 *frame = (void *)(long)context->data;
	struct tally *tally = bpf_map_lookup_elem(&tallies, &sink);
	struct progress *flow_progress;
	struct record *record;
	struct chunk *chunk;
	struct flow *flow;
	__u32 number, sequence, key, word;
	__u64 bit;
	int missteered;

	if (!tally)
		return XDP_ABORTED;
	record = (void *)(frame + HEADER_BYTES);
	if (frame + FRAME_BYTES > (__u8 *)(long)context->data_end || record->magic != MAGIC) {
		count(&tally->foreign);
		return XDP_DROP;
	}
	count(&tally->arrived);
	number = record->flow;
	sequence = record->sequence;
	flow = bpf_map_lookup_elem(&flows, &number);
	flow_progress = bpf_map_lookup_elem(&progress, &number);
	if (!flow || !flow_progress || sequence >= SEQUENCES) {
		count(&tally->garbled);
		return XDP_DROP;
	}
	missteered = flow->sink != sink || !same(frame, flow->after, 0, MACS_BYTES);
	if (missteered)
		count(&tally->missteered);
	if (!same(frame, flow->after, MACS_BYTES, HEADER_BYTES))
		count(&tally->mismarked);

	key = number * (SEQUENCES / CHUNK_BITS) + sequence / CHUNK_BITS;
	chunk = bpf_map_lookup_elem(&received, &key);
	if (!chunk)
		return XDP_ABORTED;
	word = sequence / 64 % CHUNK_WORDS;
	bit = 1ULL << (sequence % 64);
	if (__sync_fetch_and_or(&chunk->words[word], bit) & bit) {
		count(&tally->duplicated);
		return XDP_DROP;
	}
	count(&flow_progress->arrived);
	// A flow's frames reach its own sink one at a time: each flow has one queue.
	if (flow->sink == sink) {
		if (sequence < flow_progress->next)
			count(&tally->reordered);
		else
			flow_progress->next = sequence + 1;
	}
	return XDP_DROP;
}

SEC("xdp")
int sink_uplink(struct xdp_md *context)
{
	return check(context, UPLINK);
}

SEC("xdp")
int sink_incoming(struct xdp_md *context)
{
	return check(context, INCOMING);
}

SEC("xdp")
int sink_host(struct xdp_md *context)
{
	return check(context, HOST);
}

// Run live by BPF_PROG_RUN, in one thread. Pages are recycled as the receivers left them, so every
// frame gets all of its headers again.
SEC("xdp")
int generate(struct xdp_md *context)
{
	__u8 *frame = (void *)(long)context->data;
	__u32 only = 0, number, *interface;
	struct record *record;
	struct flow *flow;
	__u64 *count;

	if (frame + FRAME_BYTES > (__u8 *)(long)context->data_end)
		return XDP_ABORTED;
	count = bpf_map_lookup_elem(&sent, &only);
	interface = bpf_map_lookup_elem(&exit_by, &only);
	if (!count || !interface)
		return XDP_ABORTED;
	if (*count >= (__u64)OUTBOUND * SEQUENCES)
		return XDP_DROP;
	number = *count * STRIDE % OUTBOUND;
	flow = bpf_map_lookup_elem(&flows, &number);
	if (!flow)
		return XDP_ABORTED;
	__builtin_memcpy(frame, flow->before, HEADER_BYTES);
	record = (void *)(frame + HEADER_BYTES);
	record->magic = MAGIC;
	record->flow = number;
	record->sequence = *count / OUTBOUND;
	*count += 1;
	return bpf_redirect(*interface, 0);
}

// A faultless box, which takes the expected frame from the record: with it in the middle, only the
// cables can lose frames.
SEC("xdp")
int faultless(struct xdp_md *context)
{
	__u8 *frame = (void *)(long)context->data;
	struct record *record = (void *)(frame + HEADER_BYTES);
	__u32 number, *egress;
	struct flow *flow;

	if (frame + FRAME_BYTES > (__u8 *)(long)context->data_end || record->magic != MAGIC)
		return XDP_DROP;
	number = record->flow;
	flow = bpf_map_lookup_elem(&flows, &number);
	if (!flow)
		return XDP_DROP;
	egress = bpf_map_lookup_elem(&egresses, &flow->sink);
	if (!egress)
		return XDP_ABORTED;
	__builtin_memcpy(frame, flow->after, HEADER_BYTES);
	return bpf_redirect(*egress, 0);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";

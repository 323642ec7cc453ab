// SPDX-License-Identifier: MIT OR Apache-2.0
// The kernel's part of the benches: it makes the frames of the packet rate bench, counts those
// that arrive, and holds the forwarder that does nothing. It decides nothing about the result.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

// Contract with benches/pps/traffic.rs and benches/common/bpf.rs.
#define FLOWS 4096 // a power of two
#define HEADER_BYTES 54 // Ethernet, IPv4 and TCP, all without options
#define SEQUENCE_EXIT 0x45584954 // the TCP sequence number says what a frame is:
#define SEQUENCE_RELAY 0x52454c41 // a label that no forwarder looks at
#define MARKED 0x28 // the ToS byte of AF11
enum sink { UPLINK, INCOMING, SINKS };
enum target { GENERATE, WIRE, WIRE_BACK, TARGETS };

struct header {
	__u8 bytes[HEADER_BYTES];
	__u8 padding[2];
};

struct tally {
	__u64 exit_marked;
	__u64 exit_unmarked;
	__u64 relay_marked;
	__u64 relay_unmarked;
	__u64 astray; // ours, but addressed to another NIC: a real one would not take it
	__u64 other; // not ours
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FLOWS);
	__type(key, __u32);
	__type(value, struct header);
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, TARGETS);
	__type(key, __u32);
	__type(value, __u32);
} targets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} sent SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SINKS);
	__type(key, __u32);
	__type(value, struct tally);
} received SEC(".maps");

static __always_inline int redirect_to(__u32 target)
{
	__u32 *interface = bpf_map_lookup_elem(&targets, &target);

	return interface ? bpf_redirect(*interface, 0) : XDP_ABORTED;
}

// Run live by BPF_PROG_RUN. Pages come back as the receivers left them, so every frame gets
// all of its headers anew; what follows them, nobody changes.
SEC("xdp")
int generate(struct xdp_md *context)
{
	void *frame = (void *)(long)context->data;
	__u32 only = 0, flow;
	struct header *header;
	__u64 *count;

	if (frame + HEADER_BYTES > (void *)(long)context->data_end)
		return XDP_ABORTED;
	count = bpf_map_lookup_elem(&sent, &only);
	if (!count)
		return XDP_ABORTED;
	flow = *count % FLOWS;
	*count += 1;
	header = bpf_map_lookup_elem(&flows, &flow);
	if (!header)
		return XDP_ABORTED;
	__builtin_memcpy(frame, header->bytes, HEADER_BYTES);
	return redirect_to(GENERATE);
}

// `last` is the sink's MAC address but for 02:00:00:00 at its beginning.
static __always_inline int count(struct xdp_md *context, __u32 sink, __u16 last)
{
	__u8 *frame = (void *)(long)context->data;
	struct tally *tally = bpf_map_lookup_elem(&received, &sink);
	__u32 sequence;
	int marked;

	if (!tally)
		return XDP_ABORTED;
	if (frame + HEADER_BYTES > (__u8 *)(long)context->data_end) {
		tally->other += 1;
		return XDP_DROP;
	}
	sequence = bpf_ntohl(*(__u32 *)(frame + 38));
	marked = frame[15] == MARKED;
	if (sequence != SEQUENCE_EXIT && sequence != SEQUENCE_RELAY)
		tally->other += 1;
	else if (*(__u32 *)frame != bpf_htonl(0x02000000) ||
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
}

SEC("xdp")
int count_uplink(struct xdp_md *context)
{
	return count(context, UPLINK, 0x0201);
}

SEC("xdp")
int count_incoming(struct xdp_md *context)
{
	return count(context, INCOMING, 0x0301);
}

// The baseline: everything to the uplink, and everything from there to the host, untouched and
// unread.
SEC("xdp")
int wire(struct xdp_md *context)
{
	return redirect_to(WIRE);
}

SEC("xdp")
int wire_back(struct xdp_md *context)
{
	return redirect_to(WIRE_BACK);
}

// A veth takes redirected frames only with NAPI on; any program turns it on.
SEC("xdp")
int pass(struct xdp_md *context)
{
	return XDP_PASS;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";

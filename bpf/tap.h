/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Copies exit frames for the tap: their beginnings, into a ring from which user space sends them.
 *
 * The frame itself is not touched and never waits. A copy without room in the ring is lost and
 * counted. The kernel could copy a redirected frame to a second NIC itself (BPF_F_BROADCAST), but
 * that takes several times as long as the whole program, fails for long frames, and then loses the
 * frame itself: docs/tap.md has the measurements.
 */
#ifndef EXITMARK_TAP_H
#define EXITMARK_TAP_H

/* One ring for each CPU: max_entries is set before the program is loaded. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct exitmark_tap);
} taps SEC(".maps");

static __always_inline bool is_exit(__u64 rule)
{
	return rule == RULE_EXIT_PROTOCOL || rule == RULE_HOST_MARKED;
}

/* What user space needs to know of a copy, without the number of its bytes. */
static __always_inline __u64 about_copy(__u64 bytes, __u64 flags, __u64 mark)
{
	return bytes << TAP_LENGTH_AT | flags << TAP_FLAGS_AT | mark << TAP_MARK_AT;
}

/* Copies the beginning of a frame. A global function: the verifier checks it once. */
__noinline int copy_to_tap(struct xdp_md *ctx, __u64 about)
{
	struct exitmark_counts *counts;
	struct exitmark_tap_copy *copy;
	struct exitmark_tap *tap;
	__u32 cpu, only = 0;
	__u64 at, bytes;

	/* The verifier of some kernels also checks global functions that are not called. */
	if (!has_tap)
		return 0;
	cpu = bpf_get_smp_processor_id();
	tap = bpf_map_lookup_elem(&taps, &cpu);
	counts = bpf_map_lookup_elem(&counters, &only);
	if (!tap || !counts)
		return 0;
	at = tap->written;
	if (at - READ_ONCE(tap->read) >= TAP_SLOTS) {
		counts->tap_full++;
		return 0;
	}
	barrier_var(at);
	copy = &tap->copies[at & (TAP_SLOTS - 1)];
	bytes = copy_beginning(ctx, about >> TAP_LENGTH_AT, copy->frame, TAP_BYTES);
	if (!bytes) {
		counts->tap_refused++;
		return 0;
	}
	copy->about = about | bytes;
	/* A full barrier because its result is used: the copy is visible before the number is. */
	if (__sync_fetch_and_add(&tap->written, 1) == ~0ULL)
		return -1;
	return 0;
}

/* Scratch of copy_answer(), whose callers leave little room on the stack. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct packet);
} answers SEC(".maps");

/* The packet as a host would send it to the remote address that this one came from. */
static __always_inline void mirror(struct packet *packet)
{
	struct address source = packet->source;
	__u16 port = packet->source_port;

	packet->source = packet->destination;
	packet->destination = source;
	packet->source_port = packet->destination_port;
	packet->destination_port = port;
	packet->answer = ANSWERS_NOTHING;
}

/* What read_answer() has found; above, the length of the frame. */
#define NO_ANSWER 0
#define MAY_ANSWER 1
#define UNJUDGED 2

/*
 * Reads an inbound packet into the scratch. Its result is unknown to the verifier, which then checks
 * the code that follows once, not once per kind of packet.
 */
__noinline __u64 read_answer(struct xdp_md *ctx)
{
	struct frame frame = frame_of(ctx);
	const struct exitmark_image *image;
	struct packet *packet;
	__u32 only = 0;
	int shape;

	if (!has_tap)
		return NO_ANSWER;
	image = current_image();
	if (!image || !(image->policy.tap & TAP_IN))
		return NO_ANSWER;
	packet = bpf_map_lookup_elem(&answers, &only);
	if (!packet)
		return NO_ANSWER;
	shape = read_packet(&frame, packet);
	if (shape == SHAPE_SLOW) {
		measure_short(&frame);
		return frame.bytes << 8 | UNJUDGED;
	}
	/* Without ACK, it opens a connection to the host. */
	if (shape != SHAPE_PACKET || packet->answer == OPENS)
		return NO_ANSWER;
	return frame.bytes << 8 | MAY_ANSWER;
}

/*
 * Copies an inbound frame if it answers exit traffic: its mirror image, with addresses and ports
 * swapped, is exit traffic. Same logic as judge_answer() in src/policy/answer.rs.
 */
__noinline int judge_answer(struct xdp_md *ctx, __u64 found)
{
	const struct exitmark_image *image;
	const struct exitmark_group *group;
	struct packet *packet;
	__u32 only = 0;
	__u64 verdict;

	if (!has_tap)
		return 0;
	image = current_image();
	packet = bpf_map_lookup_elem(&answers, &only);
	if (!image || !packet)
		return 0;
	if ((found & 0xff) == UNJUDGED)
		return copy_to_tap(ctx, about_copy(found >> 8, TAP_IN | TAP_UNJUDGED, 0));
	mirror(packet);
	verdict = hidden(judge(image, packet), found);
	if (!is_exit(RULE_OF(verdict)))
		return 0;
	group = group_at(&image->policy, verdict >> GROUP_AT);
	return copy_to_tap(ctx, about_copy(found >> 8, TAP_IN, group->mark));
}

static __always_inline void copy_answer(struct xdp_md *ctx)
{
	__u64 found = read_answer(ctx);

	if (found != NO_ANSWER)
		judge_answer(ctx, found);
}

#endif

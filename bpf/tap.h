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

/*
 * Copies the beginning of a frame from its first buffer, in words: the helper of copy_beginning()
 * takes 60 ns more for a short frame. Returns the number of bytes.
 */
static __always_inline __u64 copy_reachable(struct xdp_md *ctx, __u8 *to, __u64 unknown)
{
	__u8 *from = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u64 bytes = 0;

	for (int word = 0; word < TAP_BYTES / 8; word++) {
		if (from + 8 * word + 8 > end)
			break;
		*(__u64 *)(to + 8 * word) = *(__u64 *)(from + 8 * word);
		bytes += 8;
	}
	/* Merges the verifier's states. */
	bytes = hidden(bytes, unknown);
	from = (void *)(long)*(volatile __u32 *)&ctx->data;
	end = (void *)(long)*(volatile __u32 *)&ctx->data_end;
	if (bytes > TAP_BYTES - 8)
		return TAP_BYTES;
	from += bytes;
	to += bytes;
	for (int byte = 0; byte < 7; byte++) {
		if (from + byte + 1 > end)
			break;
		/* There is room: both numbers are multiples of 8. */
		to[byte] = from[byte];
		bytes++;
	}
	return bytes;
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
	bytes = copy_reachable(ctx, copy->frame, about);
	if (bytes < TAP_BYTES && bytes < about >> TAP_LENGTH_AT)
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
 * Reads an inbound packet. A global function: its result is unknown to the verifier, which then
 * checks the code that follows once, not once per kind of packet.
 */
__noinline __u64 read_answer(struct xdp_md *ctx, struct packet *packet)
{
	struct frame frame = frame_of(ctx);
	int shape;

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

/* The verdict on the mirror image of an inbound packet. A global function, for its stack. */
__noinline __u64 judge_mirrored(const struct exitmark_image *image, struct packet *packet)
{
	if (!image || !packet)
		return 0;
	mirror(packet);
	return judge(image, packet);
}

/*
 * Copies an inbound frame if it answers exit traffic: its mirror image, with addresses and ports
 * swapped, is exit traffic. Same logic as judge_answer() in src/policy/answer.rs. `packet` is
 * scratch: the stacks of nested functions are limited to 512 bytes together.
 */
static __always_inline void copy_answer(struct xdp_md *ctx, struct packet *packet)
{
	const struct exitmark_image *image = current_image();
	__u64 found, verdict;

	if (!image || !(image->policy.tap & TAP_IN))
		return;
	*packet = (struct packet){};
	found = read_answer(ctx, packet);
	if ((found & 0xff) == UNJUDGED) {
		copy_to_tap(ctx, about_copy(found >> 8, TAP_IN | TAP_UNJUDGED, 0));
	} else if ((found & 0xff) == MAY_ANSWER) {
		verdict = judge_mirrored(image, packet);
		if (is_exit(RULE_OF(verdict)))
			copy_to_tap(ctx, about_copy(found >> 8, TAP_IN,
						    group_at(&image->policy,
							     verdict >> GROUP_AT)->mark));
	}
}

#endif

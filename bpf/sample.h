/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Sends samples of the decisions to user space, which checks them against the policy, measures
 * latency with them, and writes captures of them.
 *
 * Sampling never blocks: a sample without room in the ring buffer is lost and counted. The choice
 * must not be periodic, because traffic may be (every second frame may go to a relay). Therefore
 * the decision's sequence number is multiplied by the golden ratio: the products are evenly
 * distributed and aperiodic. The sequence numbers count decisions of this program; if a chosen
 * frame is handed to a worker after all, one clock reading is wasted and the next frame is chosen.
 */
#ifndef EXITMARK_SAMPLE_H
#define EXITMARK_SAMPLE_H

#define GOLDEN 0x9e3779b97f4a7c15ULL
#define SAMPLES_ROOM (1 << 20)
/*
 * The most samples that a CPU makes between two reads by user space; the ring buffer has room for
 * this many. Without this limit, a capture of every frame would copy each frame twice.
 */
#define SAMPLES_A_LOOK 2048

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, SAMPLES_ROOM);
} samples SEC(".maps");

/* Per-CPU scratch for one sample, and the number of samples since user space last read. */
struct sample_scratch {
	struct exitmark_sample sample;
	__u64 look; /* `sample_until` at the last sample: each read of user space changes it */
	__u64 made; /* samples since it changed */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct sample_scratch);
} sample_scratch SEC(".maps");

/* Whether this CPU may make one more sample; if not, counts a lost sample. Reads no clock. */
static __always_inline bool may_sample(struct sample_scratch *scratch, __u64 sample_until)
{
	struct exitmark_counts *counts;
	__u32 only = 0;

	if (scratch->look != sample_until) {
		scratch->look = sample_until;
		scratch->made = 0;
	}
	if (scratch->made < SAMPLES_A_LOOK) {
		scratch->made++;
		return true;
	}
	counts = bpf_map_lookup_elem(&counters, &only);
	if (counts)
		counts->samples_lost++;
	return false;
}

/* Whether the decision with this sequence number, which is not 0, is sampled. */
static __always_inline bool is_sampled(const struct exitmark_links *links, __u64 number)
{
	return __builtin_expect(number * GOLDEN <= links->sample, false);
}

/* The sequence number of the next decision about a frame of this role. */
static __always_inline __u64 next_number(const struct exitmark_counts *counts,
					 enum exitmark_role role)
{
	__u64 number = counts->received[role] + 1;

	if (role == ROLE_HOST)
		for (int way = SHORT_MARKED; way <= SHORT_BY_INCOMING; way++)
			number += counts->shorts[way].frames;
	if (role == ROLE_UPLINK)
		number += counts->shorts[SHORT_FROM_UPLINK].frames;
	if (role == ROLE_INCOMING)
		number += counts->shorts[SHORT_FROM_INCOMING].frames;
	return number;
}

/* Begins a sample of an arriving frame. Returns the time, or 0 if no sample is made. */
__noinline __u64 sample_arrival(struct xdp_md *ctx, __u64 sample_until)
{
	struct exitmark_sample *sample;
	struct sample_scratch *made;
	__u32 only = 0;
	__u64 now;

	made = bpf_map_lookup_elem(&sample_scratch, &only);
	if (!made || !may_sample(made, sample_until))
		return 0;
	now = bpf_ktime_get_ns();
	/* User space has stopped reading: a sample would stay in the ring buffer. */
	if (now > sample_until)
		return 0;
	sample = &made->sample;
	sample->bytes = bpf_xdp_get_buff_len(ctx);
	copy_beginning(ctx, sample->bytes, sample->before, SAMPLE_BYTES);
	return now;
}

/* Ends and submits a sample of a departing frame. `generation` is 0 if no policy judged it. */
__noinline int sample_departure(struct xdp_md *ctx, __u64 arrived, __u8 ingress, __u32 what,
				__u64 generation)
{
	struct exitmark_sample *sample;
	struct exitmark_counts *counts;
	struct sample_scratch *made;
	__u32 only = 0;

	made = bpf_map_lookup_elem(&sample_scratch, &only);
	counts = bpf_map_lookup_elem(&counters, &only);
	if (!made || !counts)
		return 0;
	sample = &made->sample;
	sample->arrived = arrived;
	sample->latency = bpf_ktime_get_ns() - arrived;
	sample->generation = generation;
	sample->ingress = ingress;
	sample->outcome = what;
	sample->rule = what >> 8;
	/* Tags may have been pushed or popped. */
	sample->bytes_after = bpf_xdp_get_buff_len(ctx);
	copy_beginning(ctx, sample->bytes_after, sample->after, SAMPLE_BYTES);
	if (bpf_ringbuf_output(&samples, sample, sizeof(*sample), BPF_RB_NO_WAKEUP))
		counts->samples_lost++;
	return 0;
}

/* Begins a sample if decision `number` is sampled. Returns the time of arrival, otherwise 0. */
static __always_inline __u64 begin_sample(struct xdp_md *ctx, const struct exitmark_links *links,
					  __u64 number)
{
	return is_sampled(links, number) ? sample_arrival(ctx, links->sample_until) : 0;
}

static __always_inline void end_sample(struct xdp_md *ctx, __u64 arrived, enum exitmark_role ingress,
				       __u32 outcome, __u32 rule, __u64 generation)
{
	if (__builtin_expect(arrived, 0))
		sample_departure(ctx, arrived, ingress, outcome | rule << 8, generation);
}

#endif

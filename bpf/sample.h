/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A few of the decisions are told to user space, which holds them against the policy, measures
 * by them how long frames stay, and shows them to whoever asks.
 *
 * Nobody waits for a sample: where there is no room it is lost, and counted. Which decisions are
 * told of must not keep step with the traffic (every second frame may be to a relay), so their
 * numbers are taken times the golden ratio: the products lie evenly, and repeat nothing. A number
 * is a decision's: one that is left to user space after all costs a look at the clock for nothing,
 * and the next frame is the sample.
 */
#ifndef EXITMARK_SAMPLE_H
#define EXITMARK_SAMPLE_H

#define GOLDEN 0x9e3779b97f4a7c15ULL
#define SAMPLES_ROOM (1 << 20)
/*
 * A CPU makes no more samples than this from one look of user space to the next, which also is what
 * the ring buffer has room for. A capture of every frame costs two copies of each otherwise.
 */
#define SAMPLES_A_LOOK 2048

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, SAMPLES_ROOM);
} samples SEC(".maps");

/* The sample that a CPU is making, and how many it has made since user space looked last. */
struct sketch {
	struct exitmark_sample sample;
	__u64 look; /* `sample_until` then: each look sets another one */
	__u64 made;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct sketch);
} sketch SEC(".maps");

/* Whether this CPU may make one more; counts what is left out. Asks no clock. */
static __always_inline bool may_sample(struct sketch *sketch, __u64 sample_until)
{
	struct exitmark_counts *counts;
	__u32 only = 0;

	if (sketch->look != sample_until) {
		sketch->look = sample_until;
		sketch->made = 0;
	}
	if (sketch->made < SAMPLES_A_LOOK) {
		sketch->made++;
		return true;
	}
	counts = bpf_map_lookup_elem(&counters, &only);
	if (counts)
		counts->samples_lost++;
	return false;
}

/* Whether the decision with this number, which is not 0, is told of. */
static __always_inline bool is_sampled(const struct exitmark_links *links, __u64 number)
{
	return __builtin_expect(number * GOLDEN <= links->sample, false);
}

/* A frame comes that is to be a sample. The time, which is not 0. */
__noinline __u64 sample_arrival(struct xdp_md *ctx, __u64 sample_until)
{
	struct exitmark_sample *sample;
	struct sketch *made;
	__u32 only = 0;
	__u64 now;

	made = bpf_map_lookup_elem(&sketch, &only);
	if (!made || !may_sample(made, sample_until))
		return 0;
	now = bpf_ktime_get_ns();
	/* Where nobody will read it, none is made: it would stay here. */
	if (now > sample_until)
		return 0;
	sample = &made->sample;
	sample->bytes = bpf_xdp_get_buff_len(ctx);
	copy_beginning(ctx, sample->bytes, sample->before, SAMPLE_BYTES);
	return now;
}

/* It leaves. `generation` is 0 where no policy has judged it. */
__noinline int sample_departure(struct xdp_md *ctx, __u64 arrived, __u8 ingress, __u32 what,
				__u64 generation)
{
	struct exitmark_sample *sample;
	struct exitmark_counts *counts;
	struct sketch *made;
	__u32 only = 0;

	made = bpf_map_lookup_elem(&sketch, &only);
	counts = bpf_map_lookup_elem(&counters, &only);
	if (!made || !counts)
		return 0;
	sample = &made->sample;
	sample->arrived = arrived;
	sample->residence = bpf_ktime_get_ns() - arrived;
	sample->generation = generation;
	sample->ingress = ingress;
	sample->outcome = what;
	sample->rule = what >> 8;
	copy_beginning(ctx, sample->bytes, sample->after, SAMPLE_BYTES);
	if (bpf_ringbuf_output(&samples, sample, sizeof(*sample), BPF_RB_NO_WAKEUP))
		counts->samples_lost++;
	return 0;
}

/* When the frame came, if it is the decision with this number and that is told of; else 0. */
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

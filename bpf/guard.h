/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Decides whether a worker gets a frame. The worker of a queue must be alive and keep up, so that
 * no frame waits for a process that is dead, stopped or behind.
 *
 * A worker is alive if it has no backlog, or if less than `heartbeat_timeout` ns ago it stamped its
 * heartbeat or was handed the first frame of its backlog. An idle worker may therefore sleep.
 *
 * A flow that moves from the worker to this program overtakes its own frames that are queued at
 * the worker; moving back does not reorder. Therefore, when a worker falls behind, all flows move
 * to this program once, stay for a while, and move back in small steps as long as the worker keeps
 * up. Deciding per frame by the room in the ring would reorder flows continuously.
 */
#ifndef EXITMARK_GUARD_H
#define EXITMARK_GUARD_H

#define SHARES 256
/* Frames per reading of the clock; a power of two. */
#define LOOKS_EVERY 16
/*
 * This program decides all flows for HOLD ns; then EASE_STEP of 256 parts go back to the worker
 * every EASE_PAUSE ns.
 */
#define HOLD 1000000000
#define EASE_STEP 4
#define EASE_PAUSE 20000000

struct post {
	struct exitmark_guard *guard;
	struct exitmark_handed *handed;
	__u32 slot;
};

/* Finds the socket slot and guard of this queue; false if the queue has none. */
static __always_inline bool find_post(struct xdp_md *ctx, __u64 role,
				      struct post *post)
{
	__u32 queue = ctx->rx_queue_index;

	post->slot = role * MAX_QUEUES + queue;
	post->guard = bpf_map_lookup_elem(&guards, &queue);
	if (!post->guard)
		return false;
	post->handed = &post->guard->handed[role];
	return true;
}

/* Frames that were handed over and that the worker has not reported as done. */
static __always_inline __u64 in_flight(const struct post *post, __u64 role)
{
	__s64 waiting = post->handed->sent - READ_ONCE(post->guard->processed[role]);

	/* A worker that wrote off lost frames may then receive them, and report more than were sent. */
	return waiting < 0 ? 0 : waiting;
}

static __always_inline bool is_alive(struct post *post, const struct exitmark_links *links,
				     __u64 waiting)
{
	__u64 now, sign;

	/* Reading the clock is expensive: under load one reading serves several frames. */
	if (waiting >= LOOKS_EVERY && post->handed->sent % LOOKS_EVERY)
		return true;
	now = bpf_ktime_get_ns();
	if (!waiting) {
		post->handed->woken_at = now;
		return true;
	}
	sign = READ_ONCE(post->guard->heartbeat);
	if (sign < post->handed->woken_at)
		sign = post->handed->woken_at;
	/* Another CPU may have stamped `woken_at` after this one read the clock. */
	return (__s64)(now - sign) < (__s64)links->heartbeat_timeout;
}

/*
 * Records when a sampled frame was handed over, so that the worker can measure its latency. One
 * frame at a time: the next is stamped after the worker has finished this one.
 */
static __always_inline void stamp(const struct post *post, __u64 role,
				  const struct exitmark_links *links, __u64 before)
{
	struct exitmark_handed *handed = post->handed;

	if (!is_sampled(links, before + 1))
		return;
	if (handed->stamped_at &&
	    (__s64)(READ_ONCE(post->guard->processed[role]) - handed->stamped) <= 0)
		return;
	handed->stamped = before;
	handed->stamped_at = bpf_ktime_get_ns();
}

/*
 * Hands the frame to user space. Returns XDP_REDIRECT, or XDP_DROP if that is not possible. A
 * global function: the verifier checks it once, not once per caller.
 */
__noinline int hand_over(struct xdp_md *ctx, __u64 role)
{
	struct exitmark_counts *counts;
	struct exitmark_links *links;
	struct post post;
	__u64 waiting;

	barrier_var(role);
	if (role >= ROLES || !find_state(&links, &counts) || !find_post(ctx, role, &post))
		return XDP_DROP;
	waiting = in_flight(&post, role);
	if (links->decides[role] && waiting >= links->hard_watermark)
		return XDP_DROP;
	if (bpf_redirect_map(&sockets, post.slot, XDP_DROP) != XDP_REDIRECT)
		return XDP_DROP;
	if (links->decides[role] && !is_alive(&post, links, waiting))
		return XDP_DROP;
	/* Atomic: in generic mode two CPUs can process one queue. */
	stamp(&post, role, links, __sync_fetch_and_add(&post.handed->sent, 1));
	counts->handed[role]++;
	return XDP_REDIRECT;
}

/* How many of the 256 parts of the flows this program decides, because the worker is behind. */
static __always_inline __u64 share_kept(struct xdp_md *ctx, enum exitmark_role role,
					const struct exitmark_links *links)
{
	struct post post;
	__u64 waiting, share, now;

	if (!links->decides[role] || !find_post(ctx, role, &post))
		return 0;
	waiting = in_flight(&post, role);
	share = post.handed->share;
	if (waiting < links->soft_watermark) {
		if (!share || waiting > links->soft_watermark / 4)
			return share;
		if (++post.handed->looks % LOOKS_EVERY)
			return share;
	}

	now = bpf_ktime_get_ns();
	if (waiting >= links->soft_watermark) {
		share = SHARES;
		post.handed->ease_at = now + HOLD;
	} else if (now < post.handed->ease_at) {
		return share;
	} else {
		share -= share < EASE_STEP ? share : EASE_STEP;
		post.handed->ease_at = now + EASE_PAUSE;
	}
	post.handed->share = share;
	return share;
}

/* The part, of 256, of frames without a flow. It is the first to go back to the worker. */
#define LAST_PART (SHARES - 1)

/* The part, of 256, to which a packet's flow belongs. */
static __always_inline __u64 part_of(const struct packet *packet)
{
	__u64 mixed;

	mixed = packet->destination.low ^ packet->destination.high ^ packet->source.low;
	mixed ^= (__u64)packet->destination_port << 48 | (__u64)packet->source_port << 32;
	/* Fibonacci hashing: the top bits depend on all of them. */
	return mixed * 0x9e3779b97f4a7c15ULL >> 56;
}

#endif

// SPDX-License-Identifier: MIT OR Apache-2.0 The timed part of traffic.bpf.c: frames at a given
// rate, each stamped with its departure time, and sinks that measure the latency of every frame.

// Interface to benches/pps/latency/.
#define STAMP_BYTES 8 // the time in nanoseconds, 32 bits of it, and its complement
#define PROBE 1 // the lowest bit of a stamp asks the sink to send the frame back
#define FRACTION_BITS 10 // intervals are in 1/1024 of a nanosecond
#define LATE_NANOSECONDS 100000 // the most delay that a late generator makes up for
#define SEQUENCE_BACK 16 // distance of the sequence number from the end of the TCP header
#define BUCKETS 2048
#define MOMENT_BITS 16 // a moment is 2^16 ns, a fifteenth of a millisecond
#define MOMENTS 32768
enum way { ONE_WAY, ROUND_TRIP, WAYS };

struct pace {
	// Parameters.
	__u64 interval; // between frames, before the change
	__u64 change; // time of the change after the start, in nanoseconds
	__u64 interval_then;
	__u64 length; // of the load, in nanoseconds
	__u64 probe; // whether exit frames with a stamp are probes
	__u64 stamp_every; // one frame in this number is stamped; none if 0
	__u64 keep_moments; // whether stamped frames are counted by departure time
	// State and results.
	__u64 begin; // time of the first clock read
	__u64 due; // when the next frame is due after the start, in units of an interval
	__u64 frames; // sent so far
	__u64 probes; // among them
	__u64 over; // whether the load has ended
};

// Histogram of latency: 64 buckets for each power of two of nanoseconds.
struct delays {
	__u64 buckets[BUCKETS];
	__u64 longest;
};

// Frames by departure time.
struct moment {
	__u64 sent;
	__u64 arrived;
};

MAP(ARRAY, pace, 1, __u32, struct pace);
MAP(PERCPU_ARRAY, delays, WAYS, __u32, struct delays);
MAP(ARRAY, moments, MOMENTS, __u32, struct moment);

static __always_inline struct moment *moment_of(__u32 stamp, const struct pace *order)
{
	__u32 number = ((stamp & ~PROBE) - (__u32)order->begin) >> MOMENT_BITS;

	return bpf_map_lookup_elem(&moments, &number);
}

// Run live by BPF_PROG_RUN, repeatedly: every run reads the clock, and sends a frame only if one is
// due. The stamp does not change the TCP checksum, because a number and its complement cancel out.
static __always_inline int generate_paced(struct xdp_md *context, __u32 bytes)
{
	__u8 *frame = (void *)(long)context->data;
	struct moment *moment;
	struct pace *order;
	__u32 only = 0, stamp;
	__u64 now, age, units;
	int verdict;

	order = bpf_map_lookup_elem(&pace, &only);
	if (!order || frame + bytes + STAMP_BYTES > (__u8 *)(long)context->data_end)
		return XDP_ABORTED;
	now = bpf_ktime_get_ns() & ~(__u64)PROBE;
	if (!order->begin)
		order->begin = now;
	age = now - order->begin;
	if (age >= order->length) {
		order->over = 1;
		return XDP_DROP;
	}
	units = age << FRACTION_BITS;
	if (units < order->due)
		return XDP_DROP;
	if (units - order->due > (__u64)LATE_NANOSECONDS << FRACTION_BITS)
		order->due = units - ((__u64)LATE_NANOSECONDS << FRACTION_BITS);
	order->due += age < order->change ? order->interval : order->interval_then;

	verdict = generate(context, bytes);
	order->frames += 1;
	if (!order->stamp_every || order->frames % order->stamp_every) {
		*(__u32 *)(frame + bytes) = 0;
		*(__u32 *)(frame + bytes + 4) = 0;
		return verdict;
	}
	stamp = now;
	if (order->probe &&
	    *(__u32 *)(frame + bytes - SEQUENCE_BACK) == bpf_htonl(SEQUENCE_EXIT)) {
		order->probes += 1;
		stamp |= PROBE;
	}
	*(__u32 *)(frame + bytes) = stamp;
	*(__u32 *)(frame + bytes + 4) = ~stamp;
	if (order->keep_moments) {
		moment = moment_of(stamp, order);
		if (moment)
			moment->sent += 1; // only this program writes it
	}
	return verdict;
}

SEC("xdp")
int paced_ipv4(struct xdp_md *context)
{
	return generate_paced(context, IPV4_BYTES);
}

SEC("xdp")
int paced_ipv6(struct xdp_md *context)
{
	return generate_paced(context, IPV6_BYTES);
}

// The 64 buckets of a power of two begin with that number; numbers below 64 have a bucket each.
static __always_inline __u32 bucket_of(__u32 value)
{
	__u32 power = 0, rest = value;

	if (value < 64)
		return value;
	for (int bits = 16; bits > 1; bits /= 2) {
		if (rest >> bits) {
			rest >>= bits;
			power += bits;
		}
	}
	power += rest >> 1;
	return (power - 5) * 64 + (value >> (power - 6) & 63);
}

// Counts a stamped frame, and returns the stamp; 0 without one.
static __always_inline __u32 read_clock(struct xdp_md *context, __u32 bytes, __u32 way)
{
	__u8 *frame = (void *)(long)context->data;
	struct moment *moment;
	struct delays *times;
	struct pace *order;
	__u32 only = 0, now, stamp, delay;

	if (frame + bytes + STAMP_BYTES > (__u8 *)(long)context->data_end)
		return 0;
	stamp = *(__u32 *)(frame + bytes);
	if (stamp != ~*(__u32 *)(frame + bytes + 4))
		return 0;
	if (way == ROUND_TRIP && !(stamp & PROBE))
		return 0;
	now = bpf_ktime_get_ns();
	delay = now - stamp;
	if (delay >> 31) // clocks of two cores that differ by nanoseconds
		delay = 0;
	times = bpf_map_lookup_elem(&delays, &way);
	if (!times)
		return 0;
	times->buckets[bucket_of(delay) % BUCKETS] += 1;
	if (delay > times->longest)
		times->longest = delay;
	order = bpf_map_lookup_elem(&pace, &only);
	if (way == ONE_WAY && order && order->keep_moments) {
		moment = moment_of(stamp, order);
		if (moment)
			__sync_fetch_and_add(&moment->arrived, 1);
	}
	return stamp;
}

// Length of the headers, or 0 if they are not this bench's.
static __always_inline __u32 header_bytes(struct xdp_md *context)
{
	__u8 *frame = (void *)(long)context->data;

	if (frame + IPV4_BYTES > (__u8 *)(long)context->data_end)
		return 0;
	return *(__u16 *)(frame + 12) == bpf_htons(ETH_P_IP) ? IPV4_BYTES :
	       *(__u16 *)(frame + 12) == bpf_htons(ETH_P_IPV6) ? IPV6_BYTES : 0;
}

static __always_inline void swap_bytes(__u8 *one, __u8 *other, int length)
{
	__u8 kept;

	for (int i = 0; i < length; i++) {
		kept = one[i];
		one[i] = other[i];
		other[i] = kept;
	}
}

// By redirection, because XDP_TX wakes a veth's peer only if that has a program of its own.
static __always_inline int send_back(struct xdp_md *context)
{
	return bpf_redirect(context->ingress_ifindex, 0);
}

// Times a frame before counting it, so that every counted frame has its time recorded.
static __always_inline int time_at_sink(struct xdp_md *context, __u32 sink, __u16 last)
{
	__u8 *frame = (void *)(long)context->data, *end = (void *)(long)context->data_end;
	__u32 bytes = header_bytes(context), stamp = 0;
	int verdict;

	if (bytes == IPV4_BYTES)
		stamp = read_clock(context, IPV4_BYTES, ONE_WAY);
	else if (bytes == IPV6_BYTES)
		stamp = read_clock(context, IPV6_BYTES, ONE_WAY);
	verdict = count(context, sink, last);
	if (!(stamp & PROBE))
		return verdict;
	if (bytes == IPV4_BYTES && frame + IPV4_BYTES <= end) {
		swap_bytes(frame, frame + 6, 6);
		swap_bytes(frame + 26, frame + 30, 4);
		swap_bytes(frame + 34, frame + 36, 2);
	} else if (frame + IPV6_BYTES <= end) {
		swap_bytes(frame, frame + 6, 6);
		swap_bytes(frame + 22, frame + 38, 16);
		swap_bytes(frame + 54, frame + 56, 2);
	}
	return send_back(context);
}

SEC("xdp")
int time_uplink(struct xdp_md *context)
{
	return time_at_sink(context, UPLINK, 0x0202);
}

SEC("xdp")
int time_incoming(struct xdp_md *context)
{
	return time_at_sink(context, INCOMING, 0x0302);
}

// The host's end of its cable, where probes return.
SEC("xdp")
int time_host(struct xdp_md *context)
{
	__u32 bytes = header_bytes(context);

	if (bytes == IPV4_BYTES)
		read_clock(context, IPV4_BYTES, ROUND_TRIP);
	else if (bytes == IPV6_BYTES)
		read_clock(context, IPV6_BYTES, ROUND_TRIP);
	return XDP_DROP;
}

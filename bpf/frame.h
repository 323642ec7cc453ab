/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A frame as far as its Ethernet header and tags, without any rule: shared by the programs.
 */
#ifndef EXITMARK_FRAME_H
#define EXITMARK_FRAME_H

#ifndef barrier_var
#define barrier_var(var) asm volatile("" : "+r"(var))
#endif

#ifndef HEADER_BYTES
#error "HEADER_BYTES: how many bytes of a frame the program reads at most"
#endif

#define DSCP_BITS 0xfc
#define PROTOCOL_TCP 6
#define PROTOCOL_UDP 17

/* What is tagged deeper than this is no IP to anybody; MAX_VLAN_TAGS in user space. */
#define MAX_TAGS 4

/* No NIC puts less into the first of several buffers, unless that is for headers alone. */
#define SMALLEST_BUFFER 1024

struct frame {
	struct xdp_md *ctx;
	void *data;
	void *end;
	/* All of it: a frame in several buffers is longer than what lies between data and end. */
	__u64 bytes;
};

/* An address of either family: IPv4's are in `low` alone. */
struct address {
	__u64 high;
	__u64 low;
};

/*
 * Whether frames can be in several buffers; set before the program is loaded. Where they cannot,
 * what lies between data and end is the frame, and no code that asks for more is left.
 */
const volatile __u32 multi_buffer = 1;

/* From now on `bytes` is all of it. */
static __always_inline void measure(struct frame *frame)
{
	if (multi_buffer)
		frame->bytes = bpf_xdp_get_buff_len(frame->ctx);
}

/*
 * To ask for a frame's length is a call into the kernel, which takes as long as the look-up of a
 * relay. A short frame is all in one buffer, but where a NIC splits headers off: there the packet
 * itself tells that there is more of it. What is behind the packet, in another buffer, would not
 * be seen.
 */
static __always_inline struct frame frame_of(struct xdp_md *ctx)
{
	struct frame frame = {
		.ctx = ctx,
		.data = (void *)(long)ctx->data,
		.end = (void *)(long)ctx->data_end,
		.bytes = (void *)(long)ctx->data_end - (void *)(long)ctx->data,
	};

	if (frame.bytes >= SMALLEST_BUFFER)
		measure(&frame);
	return frame;
}

/*
 * The frame with its pointers read anew: what is known of the old ones differs by what was read
 * through them, and the verifier would follow each case apart.
 */
static __always_inline struct frame frame_again(const struct frame *frame)
{
	return (struct frame){
		.ctx = frame->ctx,
		.data = (void *)(long)*(volatile __u32 *)&frame->ctx->data,
		.end = (void *)(long)*(volatile __u32 *)&frame->ctx->data_end,
		.bytes = frame->bytes,
	};
}

/* Where the packet is not read, and so does not tell. */
static __always_inline void measure_short(struct frame *frame)
{
	if (frame->bytes < SMALLEST_BUFFER)
		measure(frame);
}

/* Whether the frame has so many bytes; where they are in reach, nobody asks for more. */
static __always_inline bool is_as_long_as(struct frame *frame, __u64 bytes)
{
	if (bytes <= frame->bytes)
		return true;
	measure(frame);
	return bytes <= frame->bytes;
}

/*
 * Hides a number from the verifier, which follows every constant that a number can be through all
 * the code behind it, apart. `unknown` is a number of which it knows nothing.
 */
static __always_inline __u64 hidden(__u64 number, __u64 unknown)
{
	number ^= unknown;
	barrier_var(number);
	return number ^ unknown;
}

/* Copies what a frame of `bytes` bytes begins with, `room` bytes at most; how many bytes. */
static __always_inline __u64 copy_beginning(struct xdp_md *ctx, __u64 bytes, void *to, __u64 room)
{
	/*
	 * One unsigned comparison bounds `bytes` on both sides. Verifiers before Linux 6.8 learn
	 * nothing from a comparison with zero, which is what clang makes of `bytes < 1`.
	 */
	__u64 last = (bytes > room ? room : bytes) - 1;

	barrier_var(last);
	if (last >= room || bpf_xdp_load_bytes(ctx, 0, to, last + 1))
		return 0;
	return last + 1;
}

static __always_inline __u16 be16(const void *at)
{
	return bpf_ntohs(*(const __be16 *)at);
}

static __always_inline __u64 be32(const void *at)
{
	return bpf_ntohl(*(const __be32 *)at);
}

static __always_inline __u64 be64(const void *at)
{
	return bpf_be64_to_cpu(*(const __be64 *)at);
}

static __always_inline bool is_tag(__u16 ethertype)
{
	return ethertype == ETH_P_8021Q || ethertype == ETH_P_8021AD || ethertype == 0x9100;
}

/*
 * Some drivers leave the first buffer short or empty where frames can be in several. The headers of
 * such a frame are read from a copy.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, HEADER_BYTES);
} headers SEC(".maps");

/* The beginning of a frame in one piece, in `whole`; false where it cannot be had. */
static __always_inline bool gather(struct frame *frame, struct frame *whole)
{
	__u32 only = 0;
	__u64 bytes;

	whole->ctx = frame->ctx;
	whole->data = bpf_map_lookup_elem(&headers, &only);
	if (!whole->data)
		return false;
	bytes = copy_beginning(frame->ctx, frame->bytes, whole->data, HEADER_BYTES);
	whole->end = whole->data + bytes;
	whole->bytes = frame->bytes;
	return bytes;
}

/* Steps over up to `tags` tags. The ethertype behind them, and what follows it in `payload`. */
static __always_inline int payload_of(const struct frame *frame, int tags, void **payload)
{
	void *at = frame->data + 2 * ETH_ALEN;
	__u16 type;

	if (at + 2 > frame->end)
		return 0;
	type = be16(at);
	for (int i = 0; i < tags; i++) {
		if (!is_tag(type))
			break;
		at += 4;
		if (at + 2 > frame->end)
			return 0;
		type = be16(at);
	}
	*payload = at + 2;
	return type;
}

#endif

/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Reads the Ethernet header and VLAN tags of a frame. Shared by both programs; contains no rule.
 */
#ifndef EXITMARK_FRAME_H
#define EXITMARK_FRAME_H

#include "address.h"

#ifndef HEADER_BYTES
#error "HEADER_BYTES: how many bytes of a frame the program reads at most"
#endif

#define DSCP_BITS 0xfc
#define PROTOCOL_TCP 6
#define PROTOCOL_UDP 17

/* A frame with more VLAN tags is not treated as IP; MAX_VLAN_TAGS in user space. */
#define MAX_TAGS 4

/* A NIC puts at least this into the first of several buffers, unless it splits headers off. */
#define SMALLEST_BUFFER 1024

struct frame {
	struct xdp_md *ctx;
	void *data;
	void *end;
	/* Length of the whole frame, which may be in more buffers than the one from data to end. */
	__u64 bytes;
};

/*
 * Whether frames can be in several buffers; set before the program is loaded. If not, data to end
 * is the whole frame, and the verifier removes the code that reads more as dead code.
 */
const volatile __u32 multi_buffer = 1;

/* Sets `bytes` to the length of the whole frame. */
static __always_inline void measure(struct frame *frame)
{
	if (multi_buffer)
		frame->bytes = bpf_xdp_get_buff_len(frame->ctx);
}

/* A frame of which only the first buffer is measured. */
static __always_inline struct frame first_buffer(struct xdp_md *ctx)
{
	return (struct frame){
		.ctx = ctx,
		.data = (void *)(long)ctx->data,
		.end = (void *)(long)ctx->data_end,
		.bytes = (void *)(long)ctx->data_end - (void *)(long)ctx->data,
	};
}

/*
 * Reading the length of a frame calls a kernel helper, which takes as long as a relay look-up. A
 * frame whose first buffer is short is in one buffer, unless the NIC splits headers off. In that
 * case the packet's own length shows that there is more; bytes after the packet go unnoticed.
 */
static __always_inline void measure_long(struct frame *frame)
{
	if (frame->bytes >= SMALLEST_BUFFER)
		measure(frame);
}

static __always_inline struct frame frame_of(struct xdp_md *ctx)
{
	struct frame frame = first_buffer(ctx);

	measure_long(&frame);
	return frame;
}

/*
 * The frame with its pointers reloaded. The verifier's knowledge of the old pointers depends on
 * what was read through them, and it would verify each case separately.
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

/* As measure(), for a short frame whose packet is not parsed and so does not show its length. */
static __always_inline void measure_short(struct frame *frame)
{
	if (frame->bytes < SMALLEST_BUFFER)
		measure(frame);
}

/* Whether the frame has at least `bytes` bytes. Calls the helper if the first buffer has fewer. */
static __always_inline bool is_as_long_as(struct frame *frame, __u64 bytes)
{
	if (bytes <= frame->bytes)
		return true;
	measure(frame);
	return bytes <= frame->bytes;
}

/*
 * Hides the value of a number from the verifier, which would otherwise verify all code that
 * follows once per possible constant. `unknown` is a number whose value it does not know.
 */
static __always_inline __u64 hidden(__u64 number, __u64 unknown)
{
	number ^= unknown;
	barrier_var(number);
	return number ^ unknown;
}

/* Copies the first bytes of a frame, `room` at most. Returns how many; 0 on failure. */
static __always_inline __u64 copy_beginning(struct xdp_md *ctx, __u64 bytes, void *to, __u64 room)
{
	/*
	 * One unsigned comparison bounds `bytes` on both sides. Verifiers before Linux 6.8 derive
	 * no bound from a comparison with zero, into which clang turns `bytes < 1`.
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
 * Some drivers leave the first of several buffers short or empty. The headers of such a frame are
 * read from a copy.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, HEADER_BYTES);
} headers SEC(".maps");

/* Copies the beginning of a frame into one buffer, `whole`. Returns false on failure. */
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

/* Skips up to `tags` VLAN tags. Returns the EtherType behind them, and its payload in `payload`. */
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

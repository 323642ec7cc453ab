/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Searches of the policy's address ranges and endpoint tables. Same logic as src/policy/prefix.rs
 * and src/policy/endpoint.rs.
 */
#ifndef EXITMARK_SETS_H
#define EXITMARK_SETS_H

#include "compare.h"

/* User space writes only valid indices; the mask is for the verifier. */
static __always_inline __u64 word(const struct exitmark_image *image, __u64 index)
{
	return image->words[index & (POLICY_WORDS - 1)];
}

/* Four a word, as the words in the order of the machine. */
static __always_inline __u64 half(const struct exitmark_image *image, __u64 index)
{
	return image->halves[index & (4 * POLICY_WORDS - 1)];
}

static __always_inline struct address first_of(const struct exitmark_image *image, int family,
					       __u64 at)
{
	struct address address = {};

	if (family == V4) {
		address.low = word(image, at) >> 32;
	} else {
		address.high = word(image, at);
		address.low = word(image, at + 1);
	}
	return address;
}

static __always_inline struct address last_of(const struct exitmark_image *image, int family,
					      __u64 at)
{
	struct address address = {};

	if (family == V4) {
		address.low = word(image, at) & 0xffffffff;
	} else {
		address.high = word(image, at + 2);
		address.low = word(image, at + 3);
	}
	return address;
}

static __always_inline bool is_within(const struct exitmark_image *image, int family, __u64 at,
				      struct address address)
{
	return !(is_before(address, first_of(image, family, at)) |
		 is_before(last_of(image, family, at), address));
}

static __always_inline __u64 range_words(int family)
{
	return family == V4 ? 1 : 4;
}

/*
 * The index of the range that covers the address, plus one; 0 if none does.
 */
static __always_inline __u64 search(const struct exitmark_image *image, int family, __u64 at,
				    __u64 count, struct address address)
{
	__u64 size = range_words(family);
	__u64 after = 0; /* number of ranges whose first address is not above the address */

	for (int i = RANGE_STEPS - 1; i >= 0; i--) {
		__u64 next = after + (1 << i);
		struct address first = first_of(image, family, at + (next - 1) * size);

		after += (~(is_below(count, next) | is_before(address, first)) & 1) << i;
	}
	return after && is_within(image, family, at + (after - 1) * size, address) ? after : 0;
}

/* Global functions, never inlined: the verifier checks each once, not once per caller. */
__noinline __u64 search_v4(const struct exitmark_image *image, __u32 at, __u32 count, __u64 low)
{
	struct address address = { .low = low };

	return image ? search(image, V4, at, count, address) : 0;
}

__noinline __u64 search_v6(const struct exitmark_image *image, __u32 at, __u32 count, __u64 high,
			 __u64 low)
{
	struct address address = { .high = high, .low = low };

	return image ? search(image, V6, at, count, address) : 0;
}

/* Whether one of the ranges covers the address. Most sets are empty or have one range. */
static __always_inline bool covers(const struct exitmark_image *image,
				   const struct exitmark_ranges *ranges, int family,
				   struct address address)
{
	if (ranges->count == 0)
		return false;
	if (ranges->count == 1)
		return is_within(image, family, ranges->at, address);
	if (family == V4)
		return search_v4(image, ranges->at, ranges->count, address.low);
	return search_v6(image, ranges->at, ranges->count, address.high, address.low);
}

/* No range covers the address. */
#define NO_RANGE (~0ULL)

/* The index of the range that covers an address. Same logic as src/policy/range_map.rs. */
static __always_inline __u64 range_of(const struct exitmark_image *image,
				      const struct exitmark_range_map *map, int family,
				      struct address address)
{
	__u64 hash, index;

	if (map->count <= 1)
		return is_within(image, family, map->ranges, address) ? 0 : NO_RANGE;
	hash = (address.low & map->masks[1]) * map->multipliers[1];
	if (family == V6)
		hash += (address.high & map->masks[0]) * map->multipliers[0];
	hash = hash >> (map->shift & 63) & map->mask;
	index = half(image, map->candidates * 4ULL + hash);
	if (is_within(image, family, map->ranges + index * range_words(family), address))
		return index;
	if (family == V4)
		index = search_v4(image, map->ranges, map->count, address.low);
	else
		index = search_v6(image, map->ranges, map->count, address.high, address.low);
	return index - 1;
}

/* No group owns the address. */
#define NO_OWNER 0xff

/* The owner of an address, NO_OWNER if it belongs to no group. */
static __always_inline __u64 owner_of(const struct exitmark_image *image, int family,
				      struct address address)
{
	const struct exitmark_range_map *owners = &image->policy.owners[family];
	__u64 index = range_of(image, owners, family, address);

	return index == NO_RANGE ? NO_OWNER : word(image, owners->values + index);
}

/* The same as a function, for callers of which the verifier knows many states. */
__noinline __u64 owner_at(const struct exitmark_image *image, __u64 family, __u64 high, __u64 low)
{
	struct address address = { .high = high, .low = low };

	if (!image)
		return NO_OWNER;
	return family == V4 ? owner_of(image, V4, address) : owner_of(image, V6, address);
}

/* How an address is translated, and the group whose hosts have it. */
struct change {
	struct address flipped; /* the bits that differ */
	__u32 delta; /* what it adds to the sum of a checksum, modulo 65535 */
	__u32 group;
};

/* Finds how an address is translated: 1 if it is. */
static __always_inline int read_change(const struct exitmark_image *image,
				       const struct exitmark_range_map *map, int family,
				       struct address address, struct change *change)
{
	__u64 index = range_of(image, map, family, address), value;

	if (index == NO_RANGE)
		return 0;
	if (family == V6)
		index *= TRANSLATED_V6_WORDS;
	value = word(image, map->values + index);
	change->group = value & 0xff;
	change->delta = value >> 16 & 0xffff;
	change->flipped.high = family == V6 ? word(image, map->values + index + 1) : 0;
	change->flipped.low = family == V6 ? word(image, map->values + index + 2) : value >> 32;
	return 1;
}

/* Finds how an address in place of a host's arrives: 1 if it is translated. A global function. */
__noinline int find_arrival(const struct exitmark_image *image, __u64 family,
			    const struct address *address, struct change *change)
{
	if (!image || !address || !change)
		return 0;
	if (family == V4)
		return read_change(image, &image->policy.arrivals[V4], V4, *address, change);
	return read_change(image, &image->policy.arrivals[V6], V6, *address, change);
}

/* The upper half of a hash, scaled to an index below `count`. */
static __always_inline __u64 scaled(__u64 hash, __u32 count)
{
	return (hash >> 32) * count >> 32;
}

/* Whether exactly this address and port are in the table: one pilot and one slot. */
static __always_inline bool lists(const struct exitmark_image *image,
				  const struct exitmark_table *table, int family,
				  struct address address, __u16 port)
{
	__u64 key = address.low << 16 | port;
	__u64 hash, pilot, slot, differ;

	if (family == V4)
		hash = key * table->multipliers[0];
	else
		hash = address.high * table->multipliers[0] + address.low * table->multipliers[1] +
		       port * table->multipliers[2];
	pilot = half(image, table->pilots + scaled(hash, table->pilot_count));
	slot = scaled((hash ^ pilot * PILOT_MULTIPLIER) * SLOT_MULTIPLIER, table->slot_count);
	if (family == V4)
		return word(image, table->slots + slot) == key;
	slot = table->slots + slot * 3;
	differ = (word(image, slot) ^ address.high) | (word(image, slot + 1) ^ address.low) |
		 (word(image, slot + 2) ^ port);
	/* In one number: the verifier would follow each comparison. */
	barrier_var(differ);
	return !differ;
}

#endif

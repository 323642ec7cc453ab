/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The rules, in order; the first match wins. Same logic as src/policy/judge.rs, which is the
 * reference and explains why the host's mark is checked after exempt prefixes and on exit
 * protocols only.
 */
#ifndef EXITMARK_JUDGE_H
#define EXITMARK_JUDGE_H

#define DNS 53
#define DNS_OVER_TLS 853

/* User space writes only valid indices; the mask is for the verifier. */
static __always_inline __u64 word(const struct exitmark_image *image, __u64 index)
{
	return image->words[index & (POLICY_WORDS - 1)];
}

/*
 * Branchless comparisons that return 1 or 0. With branches, the verifier would follow each of the
 * thousands of paths through a binary search.
 */
static __always_inline __u64 is_below(__u64 a, __u64 b)
{
	return ((~a & b) | (~(a ^ b) & (a - b))) >> 63;
}

static __always_inline __u64 is_same(__u64 a, __u64 b)
{
	__u64 differ = a ^ b;

	return (~differ & (differ - 1)) >> 63;
}

static __always_inline __u64 is_before(struct address a, struct address b)
{
	return is_below(a.high, b.high) | (is_same(a.high, b.high) & is_below(a.low, b.low));
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

static __always_inline int search(const struct exitmark_image *image, int family, __u64 at,
				  __u64 count, struct address address)
{
	__u64 size = family == V4 ? 1 : 4;
	__u64 after = 0; /* number of ranges whose first address is not above the address */

	for (int i = RANGE_STEPS - 1; i >= 0; i--) {
		__u64 next = after + (1 << i);
		struct address first = first_of(image, family, at + (next - 1) * size);

		after += (~(is_below(count, next) | is_before(address, first)) & 1) << i;
	}
	return after && is_within(image, family, at + (after - 1) * size, address);
}

/* Global functions, never inlined: the verifier checks each once, not once per caller. */
__noinline int search_v4(const struct exitmark_image *image, __u32 at, __u32 count, __u64 low)
{
	struct address address = { .low = low };

	return image ? search(image, V4, at, count, address) : 0;
}

__noinline int search_v6(const struct exitmark_image *image, __u32 at, __u32 count, __u64 high,
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

/* Whether the filter has this bit set: a key with this bit may be in the table. */
static __always_inline bool is_hinted(const struct exitmark_image *image,
				      const struct exitmark_table *table, __u64 bit)
{
	return word(image, table->filter + bit / 64) >> (bit % 64) & 1;
}

__noinline int find_v4(const struct exitmark_image *image, __u32 slots, __u32 mask, __u64 slot,
		       __u64 key)
{
	if (!image)
		return 0;
	for (int i = 0; i < MAX_PROBES; i++) {
		__u64 found = word(image, slots + (slot++ & mask));

		if (found == key)
			return key != 0;
		if (!found)
			return 0;
	}
	return 0;
}

/* `table` is `slots` << 32 | `mask`: a BPF function takes at most five arguments. */
__noinline int find_v6(const struct exitmark_image *image, __u64 table, __u64 slot,
		       const struct address *address, __u16 port)
{
	__u64 slots = table >> 32, mask = (__u32)table;

	if (!image || !address)
		return 0;
	for (int i = 0; i < MAX_PROBES; i++) {
		__u64 at = slots + (slot++ & mask) * 3;
		__u64 found = word(image, at + 2);

		/* No endpoint has port 0. */
		if (!found)
			return 0;
		if (found == port && word(image, at) == address->high &&
		    word(image, at + 1) == address->low)
			return 1;
	}
	return 0;
}

/* Whether exactly this address and port are in the table. */
static __always_inline bool lists(const struct exitmark_image *image,
				  const struct exitmark_table *table, int family,
				  struct address address, __u16 port)
{
	__u64 key = address.low << 16 | port;
	__u64 hash, bit, slot, at, found;

	if (family == V4)
		hash = key * table->multipliers[0];
	else
		hash = address.high * table->multipliers[0] + address.low * table->multipliers[1] +
		       port * table->multipliers[2];
	bit = hash >> (table->shift & 63);
	if (!is_hinted(image, table, bit))
		return false;
	/* Most searches end at the first slot; a call would double their cost. */
	slot = bit / BITS_PER_SLOT;
	if (family == V4) {
		found = word(image, table->slots + (slot & table->mask));
		if (!found || found == key)
			return found;
		return find_v4(image, table->slots, table->mask, slot + 1, key);
	}
	at = table->slots + (slot & table->mask) * 3;
	found = word(image, at + 2);
	if (!found)
		return false;
	if (found == port && word(image, at) == address.high && word(image, at + 1) == address.low)
		return true;
	return find_v6(image, (__u64)table->slots << 32 | table->mask, slot + 1, &address, port);
}

static __always_inline bool has_bit(const __u64 *bits, __u64 port)
{
	/*
	 * Verifiers before Linux 7 do not track the bounds of a byte-swapped number. clang does,
	 * and removes the mask without the barrier.
	 */
	barrier_var(port);
	port &= 0xffff;
	return bits[port / 64] >> (port % 64) & 1;
}

/*
 * Whether the host accepts connections at this address of its own: the operator configured it as
 * a listener, or the relay set lists it.
 */
static __always_inline bool is_listener(const struct exitmark_image *image, int family,
					struct address address, __u16 port)
{
	const struct exitmark_policy *policy = &image->policy;

	if (!has_bit(policy->listens, port))
		return false;
	return has_bit(policy->listens_everywhere, port) ||
	       lists(image, &policy->listeners[family], family, address, port) ||
	       lists(image, &policy->relays[family], family, address, port);
}

/* Flag beside a rule: the relay set and the source address disagree about this flow. */
#define DISAGREES 0x100

static __always_inline bool is_exit_protocol(const struct exitmark_policy *policy, __u8 protocol)
{
	return protocol == PROTOCOL_TCP || policy->exit_protocols == EXIT_ALL ||
	       (policy->exit_protocols == EXIT_TCP_UDP && protocol == PROTOCOL_UDP);
}

static __always_inline bool carries_host_mark(const struct exitmark_policy *policy, __u8 tos)
{
	return policy->host_mark && (tos & DSCP_BITS) == policy->host_mark;
}

static __always_inline __u32 judge_family(const struct exitmark_image *image,
					  const struct packet *packet, int family)
{
	const struct exitmark_policy *policy = &image->policy;
	bool tcp = packet->protocol == PROTOCOL_TCP;
	bool clearnet, listed;

	clearnet = covers(image, &policy->addresses[family], family, packet->source);
	if (!clearnet &&
	    !covers(image, &policy->relay_addresses[family], family, packet->source))
		return RULE_FOREIGN_SOURCE;
	if ((packet->destination_port == DNS || packet->destination_port == DNS_OVER_TLS) &&
	    covers(image, &policy->resolvers[family], family, packet->destination))
		return RULE_TO_RESOLVER;
	if (tcp) {
		if (is_listener(image, family, packet->source, packet->source_port))
			return RULE_FROM_LISTENER;
		if (packet->answer)
			return packet->answer == ACCEPTS ? RULE_ACCEPTS : RULE_REFUSES;
		/* With a host mark, the relay set is not needed. */
		listed = !policy->host_mark &&
			 lists(image, &policy->relays[family], family, packet->destination,
			       packet->destination_port);
		if (!clearnet)
			return RULE_FROM_RELAY_ADDRESS |
			       (!listed && policy->both_kinds ? DISAGREES : 0);
		if (listed)
			return RULE_TO_LISTED_RELAY | (policy->both_kinds ? DISAGREES : 0);
	}
	if (covers(image, &policy->exempt[family], family, packet->destination))
		return RULE_TO_EXEMPT_PREFIX;
	if (!clearnet || !is_exit_protocol(policy, packet->protocol))
		return RULE_OTHER_PROTOCOL;
	if (!policy->host_mark)
		return RULE_EXIT_PROTOCOL;
	if (carries_host_mark(policy, packet->tos))
		return RULE_HOST_MARKED;
	return tcp ? RULE_NOT_HOST_MARKED : RULE_OTHER_PROTOCOL;
}

/* The rule that a packet matches, perhaps with DISAGREES. */
static __always_inline __u32 judge(const struct exitmark_image *image, const struct packet *packet)
{
	return packet->family == V4 ? judge_family(image, packet, V4) :
				      judge_family(image, packet, V6);
}

#endif

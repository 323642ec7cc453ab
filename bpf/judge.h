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
 * Whether a host of the group accepts connections at this address of its own: the operator
 * configured it as a listener, or the relay set lists it.
 */
static __always_inline bool is_listener(const struct exitmark_image *image, int family,
					__u64 group, struct address address, __u16 port)
{
	const struct exitmark_policy *policy = &image->policy;
	struct address everywhere = { .low = group };

	if (!has_bit(policy->listens, port))
		return false;
	return has_bit(policy->listens_everywhere, port) ||
	       lists(image, &policy->listeners[V4], V4, everywhere, port) ||
	       lists(image, &policy->listeners[family], family, address, port) ||
	       lists(image, &policy->relays[family], family, address, port);
}

/* Flag beside a rule: the relay set and the source address disagree about this flow. */
#define DISAGREES 0x100
/* Flag beside a rule: no answer would be translated back. */
#define UNANSWERABLE 0x800

static __always_inline bool is_exit_protocol(const struct exitmark_group *group, __u8 protocol)
{
	return protocol == PROTOCOL_TCP || group->exit_protocols == EXIT_ALL ||
	       (group->exit_protocols == EXIT_TCP_UDP && protocol == PROTOCOL_UDP);
}

/* The policy of a group, or of frames of no group. */
static __always_inline const struct exitmark_group *group_at(const struct exitmark_policy *policy,
							     __u64 number)
{
	barrier_var(number);
	return &policy->groups[number & (GROUPS_ROOM - 1)];
}

static __always_inline __u32 judge_group(const struct exitmark_image *image,
					 const struct packet *packet, int family, __u64 owner)
{
	const struct exitmark_policy *policy = &image->policy;
	const struct exitmark_group *group = group_at(policy, owner & ~OWNER_OF_RELAY);
	bool tcp = packet->protocol == PROTOCOL_TCP;
	bool clearnet = !(owner & OWNER_OF_RELAY);
	bool listed;

	if ((packet->destination_port == DNS || packet->destination_port == DNS_OVER_TLS) &&
	    covers(image, &group->resolvers[family], family, packet->destination))
		return RULE_TO_RESOLVER;
	if (tcp) {
		if (is_listener(image, family, owner & ~OWNER_OF_RELAY, packet->source,
				packet->source_port))
			return RULE_FROM_LISTENER;
		if (packet->answer >= ACCEPTS)
			return packet->answer == ACCEPTS ? RULE_ACCEPTS : RULE_REFUSES;
		/* With a host mark, the relay set is not needed. */
		listed = !policy->host_mark &&
			 lists(image, &policy->relays[family], family, packet->destination,
			       packet->destination_port);
		if (!clearnet)
			return RULE_FROM_RELAY_ADDRESS |
			       (!listed && group->both_kinds ? DISAGREES : 0) |
			       (!listed && group->translates ? UNANSWERABLE : 0);
		if (listed)
			return RULE_TO_LISTED_RELAY | (group->both_kinds ? DISAGREES : 0);
	}
	if (covers(image, &group->exempt[family], family, packet->destination))
		return RULE_TO_EXEMPT_PREFIX;
	if (!clearnet || !is_exit_protocol(group, packet->protocol))
		return RULE_OTHER_PROTOCOL;
	if (!policy->host_mark)
		return RULE_EXIT_PROTOCOL;
	if ((packet->tos & DSCP_BITS) == policy->host_mark)
		return RULE_HOST_MARKED;
	return tcp ? RULE_NOT_HOST_MARKED : RULE_OTHER_PROTOCOL;
}

/* A verdict is the rule, perhaps with DISAGREES, and the group of the source address above it. */
#define GROUP_AT 16
#define RULE_OF(known) ((known) & 0xff)

static __always_inline __u32 judge_family(const struct exitmark_image *image,
					  const struct packet *packet, int family)
{
	__u64 owner = owner_of(image, family, packet->source);
	__u64 rule;

	if (owner == NO_OWNER)
		return RULE_FOREIGN_SOURCE | NO_GROUP << GROUP_AT;
	rule = hidden(judge_group(image, packet, family, owner), owner);
	return rule | (owner & ~OWNER_OF_RELAY) << GROUP_AT;
}

static __always_inline __u32 judge(const struct exitmark_image *image, const struct packet *packet)
{
	return packet->family == V4 ? judge_family(image, packet, V4) :
				      judge_family(image, packet, V6);
}

#endif

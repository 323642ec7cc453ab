/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The general way of frames to hosts: finds the host, gives the frame its MAC address, tags and IP
 * address, and forwards it or hands it to a worker.
 */
#ifndef EXITMARK_INBOUND_H
#define EXITMARK_INBOUND_H

/* A frame of a host, as the policy in force then has it: another one may replace it meanwhile. */
struct hosted {
	__u64 group; /* its number plus one; 0: no group, the other fields are not set */
	__u64 key; /* of the host's address */
	__u64 mac; /* the configured one; 0: the learned one */
	__u64 tags; /* see inbound_tags() */
	__u64 generation;
	__u32 grows; /* by how many bytes its tags make it longer */
	__u32 is_of_only_group;
	/* A frame to an address in place of the host's. */
	__u32 translates; /* enum translated */
	__u32 place; /* see PLACE_OFFSET */
	struct change change;
};

/* The group's tags that a frame from its next hops has, << 32 | those that it gets for the host. */
static __always_inline __u64 inbound_tags(const struct exitmark_group *group)
{
	return (__u64)group->steer_tags << 32 | group->host_tags;
}

/* Describes the host with an address of a group. */
static __always_inline void set_host(const struct exitmark_image *image, __u64 number, int family,
				     struct address address, struct hosted *host)
{
	const struct exitmark_group *group = group_at(&image->policy, number);

	host->tags = inbound_tags(group);
	host->key = host_key(family, address);
	host->mac = group->mac;
	host->grows = group->inbound_grows;
	host->is_of_only_group = !image->policy.several;
	host->generation = image->policy.generation;
	host->group = number + 1;
}

/* Whether a frame has the tags of its network. A group without tags gets every frame as it is. */
static __always_inline bool has_tags_of(const struct frame *frame, const struct hosted *host)
{
	void *payload = NULL;

	if (!host->tags)
		return true;
	payload_of(frame, MAX_TAGS, &payload);
	return !payload || tags_of(frame, payload - frame->data) == host->tags >> 32;
}

static __always_inline int find_host(struct frame *frame, struct hosted *host)
{
	const struct exitmark_image *image;
	struct address address = {};
	int family = read_address(frame, DESTINATION, &address);
	__u64 owner;

	if (family != V4 && family != V6)
		return 0;
	image = current_image();
	if (!image)
		return 0;
	owner = owner_at(image, family, address.high, address.low);
	if (owner == NO_OWNER) {
		/* Perhaps: see arrive(). */
		host->translates = image->policy.translates;
		return 0;
	}
	set_host(image, owner & ~OWNER_OF_RELAY, family, address, host);
	if (!has_tags_of(frame, host))
		host->group = 0;
	return 0;
}

/*
 * Finds the group of a packet's destination address; none if the frame is not of the network of the
 * group's next hops. A global function: the verifier checks it once, not once per state of its
 * callers.
 */
__noinline int host_at(struct xdp_md *ctx, struct hosted *host)
{
	struct frame frame = frame_of(ctx);

	return host ? find_host(&frame, host) : 0;
}

/*
 * Finds the host of a frame to an address in place of the host's. A global function, as host_at().
 */
__noinline int arrive(struct xdp_md *ctx, struct hosted *host)
{
	const struct exitmark_image *image = current_image();
	struct frame frame = frame_of(ctx);
	struct address address;
	struct packet *packet;
	__u32 translates, only = 0;
	int shape;

	packet = bpf_map_lookup_elem(&arriving, &only);
	if (!host || !packet)
		return 0;
	host->translates = TRANSLATES_NOTHING;
	shape = read_packet(&frame, packet);
	if (!image || !packet->ip || (shape != SHAPE_PACKET && shape != SHAPE_SLOW))
		return 0;
	address = packet->destination;
	if (!find_arrival(image, packet->family, &address, &host->change))
		return 0;
	frame = frame_again(&frame);
	translates = arrival_of(image, &frame, packet, shape);
	if (translates == TRANSLATES_NOTHING)
		return 0;
	address.high ^= host->change.flipped.high;
	address.low ^= host->change.flipped.low;
	set_host(image, host->change.group, packet->family, address, host);
	if (!has_tags_of(&frame, host))
		host->group = 0;
	host->place = packet->ip | PLACE_DESTINATION | (packet->family == V6 ? PLACE_V6 : 0);
	host->translates = translates;
	return 0;
}

/* Whether the source address of a frame is a host's. A global function, as host_at(). */
__noinline int is_sent_by_host(struct xdp_md *ctx)
{
	const struct exitmark_image *image = current_image();
	struct frame frame = frame_of(ctx);
	struct address address = {};
	int family = read_address(&frame, SOURCE, &address);

	if (!image || (family != V4 && family != V6))
		return 0;
	return owner_at(image, family, address.high, address.low) != NO_OWNER;
}

/* Finds the host of a frame that a next hop sent to the box's own MAC address. */
static __always_inline void find_routed(struct frame *frame, const struct exitmark_links *links,
					struct hosted *host)
{
	/* Without a port for relay traffic, frames to the box's MAC address are not for the host. */
	if (links->incoming_port < ROLES && destination_mac(frame) == links->incoming_mac)
		host_at(frame->ctx, host);
}

/*
 * Writes the MAC address of the host, and its tags, into a frame. Returns a role, or the outcome of
 * a frame that cannot be delivered.
 */
static __always_inline __u32 address_to_host(const struct frame *frame, const struct hosted *host,
					     struct exitmark_links *links,
					     struct exitmark_counts *counts)
{
	__u64 mac = host->mac ?: learned_host(links, host->key);

	/* With several groups, the address may be of another host, or in another VLAN. */
	if (!mac && host->is_of_only_group)
		mac = other_host(links);
	if (!mac) {
		counts->host_mac_unknown++;
		return OUTCOME_HOST_MAC_UNKNOWN;
	}
	if (host->translates) {
		if (host->translates == TRANSLATES_ERROR ?
			    readdress_error(frame->ctx, host->place, &host->change) :
			    readdress(frame->ctx, host->place, &host->change)) {
			counts->no_egress++;
			return OUTCOME_NO_EGRESS;
		}
		counts->translated_back++;
	}
	if (!host->tags) {
		set_macs(frame, mac, 0);
	} else if (retag(frame->ctx, host->tags, KEEP_PRIORITY, mac, 0)) {
		counts->no_egress++;
		return OUTCOME_NO_EGRESS;
	}
	return ROLE_HOST;
}

/* Forwards an inbound frame to the host, without a worker. Returns the outcome. */
static __always_inline __u32 deliver(const struct frame *frame, enum exitmark_role role,
				     const struct hosted *host, struct exitmark_links *links,
				     struct exitmark_counts *counts)
{
	counts->received[role]++;
	counts->inbound_bytes[role] += frame->bytes;
	if (role == ROLE_UPLINK && READ_ONCE(links->seeks_host))
		counts->host_by_uplink += is_sent_by_host(frame->ctx);
	if (!links->decides[role]) {
		counts->no_egress++;
		return OUTCOME_NO_EGRESS;
	}
	if (host->group) {
		__u32 outcome = address_to_host(frame, host, links, counts);

		if (outcome != ROLE_HOST)
			return outcome;
	}
	return to_port(ROLE_HOST, counts);
}

/* The part of the flows that a frame is of. A global function: the verifier checks it once. */
__noinline __u64 part_at(struct xdp_md *ctx)
{
	struct frame frame = frame_of(ctx);
	struct packet packet;

	return read_packet(&frame, &packet) == SHAPE_PACKET ? part_of(&packet) : LAST_PART;
}

/*
 * Forwards a frame to the host, or hands it to a worker. Frames that were sent to the box for
 * `host` get its MAC address; others are forwarded unchanged.
 */
static __always_inline int inbound(struct xdp_md *ctx, struct frame *frame,
				   enum exitmark_role role, const struct hosted *host,
				   struct exitmark_links *links, struct exitmark_counts *counts)
{
	bool meant = links->hand_over[role] == HAND_OVER_ALL || !links->decides[role];
	__u64 arrived, number;
	__u32 outcome;

	measure_short(frame);
	if (meant || frame->bytes > links->longest_redirect - host->grows) {
		__u64 share = meant ? share_kept(ctx, role, links) : 0;

		if (!share || part_at(ctx) >= share)
			if (hand_over(ctx, role) == XDP_REDIRECT)
				return XDP_REDIRECT;
		counts->spilled[role]++;
	}
	if (has_tap) {
		struct packet packet;

		copy_answer(ctx, &packet);
	}
	/* Merges the verifier's states: the code that follows is verified once. */
	*frame = frame_again(frame);
	number = next_number(counts, role);
	arrived = hidden(begin_sample(ctx, links, number), number);
	outcome = deliver(frame, role, host, links, counts);
	if (arrived)
		end_sample(ctx, arrived, role, outcome, RULES,
			   host->group ? host->generation : generation());
	return action_of(outcome);
}

#endif

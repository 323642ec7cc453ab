/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The MAC address of each address of the hosts, learned from frames. Same logic as
 * src/datapath/hosts.rs.
 */
#ifndef EXITMARK_HOSTS_H
#define EXITMARK_HOSTS_H

#define MAC_BYTES_BITS 48
#define HOST_SEEN (1ULL << HOST_SEEN_BIT)
/* Odd, and independent of GOLDEN: the halves of an address are hashed differently. */
#define GOLDEN_OF_LOW 0xd1b54a32d192ed03ULL

/* The key of an address in the table; not 0. An IPv4 address is its own, and below 1 << 33. */
static __always_inline __u64 host_key(int family, struct address address)
{
	if (family == V4)
		return address.low | 1ULL << 32;
	return (address.high * GOLDEN + address.low * GOLDEN_OF_LOW) | 1ULL << 63;
}

static __always_inline struct exitmark_host *host_slot(struct exitmark_links *links, __u64 key,
						       __u64 probe)
{
	__u64 slot = (key * GOLDEN >> (64 - HOST_SLOT_BITS)) + probe;

	barrier_var(slot);
	return &links->hosts[slot & (HOST_SLOTS - 1)];
}

/* Writes a MAC address into the entry of an address that has sent a frame. */
static __always_inline void note_mac(struct exitmark_links *links, struct exitmark_host *entry,
				     __u64 mac)
{
	__u64 before = READ_ONCE(entry->mac), old = before & MAC_BITS, after;

	after = (before >> MAC_BYTES_BITS) + (old && old != mac);
	after = (after & HOST_CHANGES) << MAC_BYTES_BITS | HOST_SEEN | mac;
	if (after != before)
		entry->mac = after;
	if (old == mac)
		return;
	/* A host whose MAC address has changed, or another host. */
	if (!links->host_mac || old == links->host_mac)
		links->host_mac = mac;
	else if (mac != links->host_mac)
		links->several_macs = 1;
}

/*
 * The probe that finds the entry of an address, or else the first free one; HOST_PROBES if there is
 * neither. An entry in front of that of the address may be free: user space has removed another
 * address. Without branches: the verifier would follow each combination.
 */
static __always_inline __u64 find_probe(struct exitmark_links *links, __u64 key)
{
	__u64 own = HOST_PROBES, free = HOST_PROBES;

	for (__u64 probe = HOST_PROBES; probe--;) {
		__u64 found = READ_ONCE(host_slot(links, key, probe)->key);
		__u64 is_own = is_same(found, key), is_free = is_same(found, 0);

		barrier_var(is_own);
		barrier_var(is_free);
		own += (probe - own) * is_own;
		free += (probe - free) * is_free;
	}
	return own < HOST_PROBES ? own : free;
}

/*
 * Finds or makes the entry of the source address of a frame, and notes the MAC address. A global
 * function: the verifier checks it once.
 */
__noinline int learn_host_slowly(struct xdp_md *ctx, __u64 key)
{
	struct frame frame = frame_of(ctx);
	struct address address = {};
	struct exitmark_counts *counts;
	struct exitmark_links *links;
	struct exitmark_host *entry;
	__u64 mac = source_mac(&frame), probe;

	/* Neither zero nor multicast. */
	if (!mac || mac >> 40 & 1 || !find_state(&links, &counts))
		return 0;
	probe = find_probe(links, key);
	if (probe >= HOST_PROBES) {
		links->hosts_full++;
		return 0;
	}
	entry = host_slot(links, key, probe);
	if (!READ_ONCE(entry->key)) {
		/* Another CPU was faster: the next frame of this address finds another entry. */
		if (__sync_val_compare_and_swap(&entry->key, 0, key))
			return 0;
		read_address(&frame, SOURCE, &address);
		entry->address[0] = address.high;
		entry->address[1] = address.low;
	}
	note_mac(links, entry, mac);
	return 0;
}

/* Learns the MAC address of an address from a frame that its host sent. */
static __always_inline void learn_host(const struct frame *frame, __u64 key,
				       struct exitmark_links *links)
{
	struct exitmark_host *entry = host_slot(links, key, 0);

	if (entry->key != key ||
	    (entry->mac & (MAC_BITS | HOST_SEEN)) != (source_mac(frame) | HOST_SEEN))
		learn_host_slowly(frame->ctx, key);
}

/*
 * The learned MAC address of an address; 0 if unknown. Of two entries that two CPUs have made at
 * once, the first counts, as in find_probe().
 */
__noinline __u64 learned_host(struct exitmark_links *links, __u64 key)
{
	__u64 mac = 0;

	if (!links)
		return 0;
	for (__u64 probe = HOST_PROBES; probe--;) {
		struct exitmark_host *entry = host_slot(links, key, probe);
		__u64 is_own = is_same(READ_ONCE(entry->key), key);

		barrier_var(is_own);
		mac += (READ_ONCE(entry->mac) - mac) * is_own;
	}
	return mac & MAC_BITS;
}

/* The MAC address for an address that has sent no frame yet; 0 if unknown. */
static __always_inline __u64 other_host(const struct exitmark_links *links)
{
	return READ_ONCE(links->several_macs) ? 0 : READ_ONCE(links->host_mac);
}

#endif

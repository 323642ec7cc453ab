/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The MAC address of each of the host's addresses, learned from frames. Same logic as
 * src/datapath/hosts.rs and links.rs.
 */
#ifndef EXITMARK_HOSTS_H
#define EXITMARK_HOSTS_H

#define HOST_TAG_BITS 16
/*
 * From the high bits down: the IP version, the slot's index, and a tag that distinguishes
 * addresses that share the slot.
 */
#define HOST_KEY_BITS 23
#define MAC_BYTES_BITS 48

static __always_inline __u64 host_key(int family, struct address address)
{
	__u64 hash = (address.high ^ address.low) * GOLDEN >> (64 - HOST_KEY_BITS + 1);

	return (__u64)(family == V6) << (HOST_KEY_BITS - 1) | hash;
}

static __always_inline __u64 *host_entry(struct exitmark_links *links, __u64 key)
{
	__u64 slot = key >> HOST_TAG_BITS;

	barrier_var(slot);
	return &links->hosts[slot & (HOST_SLOTS - 1)];
}

/* Learns the MAC address of the host, or of one of several hosts, from a frame sent by the host. */
static __always_inline void learn_host(const struct frame *frame, __u64 key,
				       struct exitmark_links *links)
{
	__u64 mac = source_mac(frame);
	__u64 entry = key << MAC_BYTES_BITS | mac;
	__u64 *known = host_entry(links, key);

	if (mac == links->host_mac && *known == entry)
		return;
	/* Neither zero nor multicast. */
	if (!mac || mac >> 40 & 1)
		return;
	*known = entry;
	if (mac == links->host_mac)
		return;
	if (links->host_mac)
		links->host_changes++;
	if (links->learns_host)
		links->host_mac = mac;
}

/*
 * The destination MAC address of frames for this address; 0 if unknown. A configured MAC address
 * serves every address. An address that has sent no frame yet gets the last MAC address that was
 * learned, unless there are several hosts.
 */
static __always_inline __u64 host_of(struct exitmark_links *links, __u64 key)
{
	/* Read once: another CPU may be updating these two. */
	__u64 last = READ_ONCE(links->host_mac), entry = READ_ONCE(*host_entry(links, key));

	if (!last || !links->learns_host)
		return last;
	if (entry >> MAC_BYTES_BITS == (key & 0xffff) && entry & MAC_BITS)
		return entry & MAC_BITS;
	return links->host_changes - links->hosts_settled < SEVERAL_CHANGES ? last : 0;
}

#endif

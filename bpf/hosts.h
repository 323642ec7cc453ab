/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The MAC address of each of the host's addresses, as far as frames have shown it. As
 * src/datapath/hosts.rs and links.rs.
 */
#ifndef EXITMARK_HOSTS_H
#define EXITMARK_HOSTS_H

#define HOST_TAG_BITS 16
/*
 * A slot's number, the IP version in front, and behind it a tag, by which addresses that share the
 * slot are told apart.
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

/* A frame of the host's own tells where the host is, and which of several it is. */
static __always_inline void learn_host(const struct frame *frame, __u64 key,
				       struct exitmark_links *links)
{
	__u64 mac = source_mac(frame);
	__u64 entry = key << MAC_BYTES_BITS | mac;
	__u64 *known = host_entry(links, key);

	if (mac == links->host_mac && *known == entry)
		return;
	/* Not zero, and of one NIC. */
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
 * The MAC address to which a frame for this address goes; 0 where it is not known. One that is
 * configured is every address'. One of which no frame was seen has the last that was, unless
 * that is one of several.
 */
static __always_inline __u64 host_of(struct exitmark_links *links, __u64 key)
{
	/* Once: another CPU may be learning them. */
	__u64 last = READ_ONCE(links->host_mac), entry = READ_ONCE(*host_entry(links, key));

	if (!last || !links->learns_host)
		return last;
	if (entry >> MAC_BYTES_BITS == (key & 0xffff) && entry & MAC_BITS)
		return entry & MAC_BITS;
	return links->host_changes - links->hosts_settled < SEVERAL_CHANGES ? last : 0;
}

#endif

/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Redirected frames that the NIC did not accept: it is down, its ring is full, or its driver
 * refuses them. The kernel reports this per bulk of frames, after the XDP program has counted them
 * as forwarded.
 */
#ifndef EXITMARK_DROPS_H
#define EXITMARK_DROPS_H

/* Kernel structures, reduced to the fields that are read here. CO-RE relocates the offsets. */
struct ns_common {
	unsigned int inum;
} __attribute__((preserve_access_index));

struct net {
	struct ns_common ns;
} __attribute__((preserve_access_index));

typedef struct {
	struct net *net;
} possible_net_t;

struct bpf_prog;

struct net_device {
	int ifindex;
	possible_net_t nd_net;
} __attribute__((preserve_access_index));

static __always_inline bool is_ours(const struct exitmark_links *links, __u64 nic)
{
	for (int role = 0; role < ROLES; role++)
		if (links->nics[role] == nic)
			return true;
	return false;
}

/* Whether `from`, the NIC that received the frames, is one of the box's. */
static __always_inline bool came_by(const struct exitmark_links *links,
				    const struct net_device *from)
{
	return links->netns == from->nd_net.net->ns.inum && is_ours(links, from->ifindex);
}

/* Counts forwarded frames as dropped instead. `error`: 0 or -errno, of the driver or the kernel. */
static __always_inline void take_back(struct exitmark_counts *counts, __u64 role, __u64 frames,
				      int error)
{
	counts->forwarded[role] -= frames;
	if (!error || error == -ENOSPC || error == -ENOBUFS)
		counts->tx_full[role] += frames;
	else if (error == -ENETDOWN)
		counts->tx_down[role] += frames;
	else
		counts->tx_refused[role] += frames;
}

/* A bulk of frames reached the driver, which dropped some of them. */
SEC("tp_btf/xdp_devmap_xmit")
int BPF_PROG(exitmark_unsent, const struct net_device *from, const struct net_device *to, int sent,
	     int drops, int error)
{
	struct exitmark_counts *counts;
	struct exitmark_links *links;

	if (drops <= 0 || !find_state(&links, &counts) || !came_by(links, from))
		return 0;
	for (int role = 0; role < ROLES; role++) {
		if (links->nics[role] == to->ifindex) {
			take_back(counts, role, drops, error);
			break;
		}
	}
	return 0;
}

/* A frame did not reach the driver: the NIC is down, or the frame is longer than it accepts. */
SEC("tp_btf/xdp_redirect_err")
int BPF_PROG(exitmark_unredirected, const struct net_device *from, const struct bpf_prog *program,
	     const void *to, int error, int map_type, __u32 map_id, __u32 index)
{
	struct exitmark_counts *counts;
	struct exitmark_links *links;

	/*
	 * An AF_XDP socket counts its own losses. Another wire with the same NIC as incoming has
	 * ports of its own; this program cannot refer to the map itself, which is for XDP programs.
	 */
	if (map_type != BPF_MAP_TYPE_DEVMAP || index >= ROLES || !find_state(&links, &counts) ||
	    map_id != links->ports_map || !came_by(links, from))
		return 0;
	take_back(counts, index, 1, error);
	return 0;
}

#endif

/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The policy in force.
 */
#ifndef EXITMARK_POLICY_H
#define EXITMARK_POLICY_H

struct policy_map {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct exitmark_image));
};

/* One entry: replacing it swaps the whole policy between two frames or connections. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct policy_map);
} policies SEC(".maps");

static __always_inline const struct exitmark_image *current_image(void)
{
	__u32 only = 0;
	void *map = bpf_map_lookup_elem(&policies, &only);

	return map ? bpf_map_lookup_elem(map, &only) : NULL;
}

#endif

// SPDX-License-Identifier: MIT OR Apache-2.0
// Declares a map of the BPF programs of tests and benches.

#define MAP(kind, name, entries, key_type, value_type) \
	struct { \
		__uint(type, BPF_MAP_TYPE_##kind); \
		__uint(max_entries, entries); \
		__type(key, key_type); \
		__type(value, value_type); \
	} name SEC(".maps")

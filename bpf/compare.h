/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Comparisons of addresses for binary searches. Shared by all programs.
 */
#ifndef EXITMARK_COMPARE_H
#define EXITMARK_COMPARE_H

#include "address.h"

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
	__u64 differ = a ^ b, below = differ - 1;

	/* clang would recognise a comparison, which is a branch. */
	barrier_var(below);
	return (~differ & below) >> 63;
}

static __always_inline __u64 is_before(struct address a, struct address b)
{
	return is_below(a.high, b.high) | (is_same(a.high, b.high) & is_below(a.low, b.low));
}

#endif

/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef EXITMARK_ADDRESS_H
#define EXITMARK_ADDRESS_H

#ifndef barrier_var
#define barrier_var(var) asm volatile("" : "+r"(var))
#endif

/* An address of either family; an IPv4 address is in `low`. */
struct address {
	__u64 high;
	__u64 low;
};

#endif

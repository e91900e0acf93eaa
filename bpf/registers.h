/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* A probed process's registers, by number, and which probe was hit. */
#ifndef SCA_REGISTERS_H
#define SCA_REGISTERS_H

#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <stddef.h>

#include <bpf/bpf_helpers.h>

/*
 * Each register is loaded with an offset of its own. Left to itself, clang turns the switch into one
 * load at a variable offset into the context, which the verifier refuses.
 */
#define LOAD(field)                                                                                \
	asm volatile("%0 = *(u64 *)(%1 + %2)"                                                      \
		     : "=r"(value)                                                                 \
		     : "r"(ctx), "i"(offsetof(struct pt_regs, field)))

/* The numbers are the instruction set's own: 0 is rax, 4 rsp, 15 r15. */
static __always_inline __u64 sca_register(struct pt_regs *ctx, __u8 number)
{
	__u64 value = 0;

	/* clang-format off */
	switch (number) {
	case 0: LOAD(rax); break;
	case 1: LOAD(rcx); break;
	case 2: LOAD(rdx); break;
	case 3: LOAD(rbx); break;
	case 4: LOAD(rsp); break;
	case 5: LOAD(rbp); break;
	case 6: LOAD(rsi); break;
	case 7: LOAD(rdi); break;
	case 8: LOAD(r8); break;
	case 9: LOAD(r9); break;
	case 10: LOAD(r10); break;
	case 11: LOAD(r11); break;
	case 12: LOAD(r12); break;
	case 13: LOAD(r13); break;
	case 14: LOAD(r14); break;
	case 15: LOAD(r15); break;
	}
	/* clang-format on */
	return value;
}

/*
 * The index of the probe that was hit. Linux has attach cookies from 5.15 on; before it, each probe
 * has a program of its own, loaded with this set, which leaves the call out of the program.
 */
const volatile __s32 sca_only_probe = -1;

static __always_inline __u32 sca_probe_index(struct pt_regs *ctx)
{
	if (sca_only_probe >= 0)
		return sca_only_probe;
	return bpf_get_attach_cookie(ctx);
}

#endif

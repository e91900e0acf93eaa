//go:build ignore

/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Counts the starts of chosen code objects, at the RESUME handlers of CPython's eval loop. Where
 * those are, and in which registers the frame is, pkg/pyframes/evalloop finds in the binary.
 */
#include "registers.h"

char LICENSE[] SEC("license") = "GPL";

#define MAX_SITES 128

struct site {
	__u64 code_tag;     /* bits to clear in the frame's code pointer */
	__u32 frame_code;   /* offset of the code pointer in the frame */
	__u32 eval_breaker; /* offsets in the thread state */
	__u32 tracing;
	__u32 code_version; /* offsets in the code object */
	__u32 code_name;
	__u32 code_first_line;
	__s32 thread_disp;
	__u8 frame, instr; /* registers */
	__u8 instr_ahead;  /* how far instr is past the RESUME, in bytes */
	__u8 skip_opcode;  /* a start that was counted at another site, or 0 */
	__u8 redispatch;   /* compare versions: an old one runs again */
	__u8 thread;       /* register, or the base of the memory operand */
	__u8 thread_memory;
	__u8 reserved[5];
};

/* A code object's address is used again soon after it was freed: what its name and first line are
 * tells it from its successor. */
struct start {
	__u64 count;
	__u64 name; /* address of the str */
	__u32 first_line;
	__u32 reserved;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_SITES);
	__type(key, __u32);
	__type(value, struct site);
} sites SEC(".maps");

/* By address of the code object. Only those present are counted. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct start);
} starts SEC(".maps");

/* Starts that could not be looked at, since the process's memory was not there to be read. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} faults SEC(".maps");

static __always_inline int fault(void)
{
	__u32 zero = 0;
	__u64 *count = bpf_map_lookup_elem(&faults, &zero);

	if (count)
		(*count)++;
	return 0;
}

#define READ(into, address) bpf_probe_read_user(&(into), sizeof(into), (void *)(address))

SEC("uprobe.multi")
int sca_resume(struct pt_regs *ctx)
{
	__u32 index = bpf_get_attach_cookie(ctx);
	struct site *site = bpf_map_lookup_elem(&sites, &index);
	__u64 code, thread, breaker, version, name;
	__u8 instr[2]; /* opcode, oparg */
	struct start *start;
	__u32 first_line;
	__s32 tracing;

	if (!site)
		return 0;
	if (READ(code, sca_register(ctx, site->frame) + site->frame_code))
		return fault();
	code &= ~site->code_tag;
	start = bpf_map_lookup_elem(&starts, &code);
	if (!start)
		return 0;
	if (READ(name, code + site->code_name) || READ(first_line, code + site->code_first_line))
		return fault();
	if (name != start->name || first_line != start->first_line)
		return 0;
	if (READ(instr, sca_register(ctx, site->instr) - site->instr_ahead))
		return fault();
	if (instr[1] & 3) /* resumed after a yield or an await, not started */
		return 0;
	if (site->skip_opcode && instr[0] == site->skip_opcode)
		return 0;
	if (site->redispatch) {
		thread = sca_register(ctx, site->thread);
		if (site->thread_memory && READ(thread, thread + site->thread_disp))
			return fault();
		if (READ(breaker, thread + site->eval_breaker) ||
		    READ(version, code + site->code_version) ||
		    READ(tracing, thread + site->tracing))
			return fault();
		/* the low byte holds pending events; the rest is the version */
		if (((breaker ^ version) & ~0xffULL) && !tracing)
			return 0;
	}
	start->count++;
	return 0;
}

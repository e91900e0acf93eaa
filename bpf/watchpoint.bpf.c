//go:build ignore

/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Counts the starts of a few code objects where the hardware watches the opcode of their first RESUME.
 * To run an instruction is to read it; but a disassembler, an engine that patches the function and
 * CPython itself read it too. A dispatch is told by the frame that is to run it, which the eval loop
 * has in a register or on the stack.
 */
#include <linux/bpf_perf_event.h>

#include "registers.h"

char LICENSE[] SEC("license") = "GPL";

#define MAX_POINTS 4

struct point {
	__u64 code, name; /* the code object, and its name */
	__u32 first_line;
	/* Offsets in the frame and the code object. */
	__u32 frame_code, frame_instr;
	__u32 code_name, code_first_line;
	/* Where the frame is, if it is in memory: at a register plus a displacement. */
	__s32 disp;
	__u8 base;
	__u8 memory;
	__u8 reserved[6];
	__u32 index;
	__u32 reserved2;
};

/* By address of the watched opcode. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_POINTS);
	__type(key, __u64);
	__type(value, struct point);
} points SEC(".maps");

struct touches {
	__u64 starts;
	__u64 others;
	__u64 faults;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_POINTS);
	__type(key, __u32);
	__type(value, struct touches);
} touched SEC(".maps");

enum { NO_FRAME, STARTS, RUNS_AGAIN };

/* What a frame, if it is one of the point's code object, says of the dispatch: it holds the instruction
 * before (3.12), until the RESUME's handler runs. CPython dispatches a RESUME once more after it
 * instrumented the code object. */
static __always_inline int ask(struct point *point, __u64 frame, __u64 addr)
{
	__u64 code = 0, instr;

	bpf_probe_read_user(&code, sizeof(code), (void *)(frame + point->frame_code));
	if (code != point->code)
		return NO_FRAME;
	if (bpf_probe_read_user(&instr, sizeof(instr), (void *)(frame + point->frame_instr)))
		return NO_FRAME;
	return instr == addr ? RUNS_AGAIN : STARTS;
}

#define ASK(number)                                                                                \
	{                                                                                          \
		int answer = ask(point, sca_register(regs, number), addr);                         \
		if (answer > found)                                                                \
			found = answer;                                                            \
	}

SEC("perf_event")
int sca_touched(struct bpf_perf_event_data *ctx)
{
	struct pt_regs *regs = (struct pt_regs *)ctx; /* its first member */
	__u64 addr = ctx->addr, name = 0, frame = 0;
	struct point *point = bpf_map_lookup_elem(&points, &addr);
	struct touches *touches;
	__u32 first_line = 0;
	int found = NO_FRAME;

	if (!point)
		return 0;
	touches = bpf_map_lookup_elem(&touched, &point->index);
	if (!touches)
		return 0;
	if (bpf_probe_read_user(&name, sizeof(name), (void *)(point->code + point->code_name)) ||
	    bpf_probe_read_user(&first_line, sizeof(first_line),
				(void *)(point->code + point->code_first_line))) {
		touches->faults++;
		return 0;
	}
	if (name != point->name || first_line != point->first_line) {
		touches->others++; /* its memory is another object's by now */
		return 0;
	}
	if (point->memory) {
		frame = sca_register(regs, point->base) + point->disp;
		if (!bpf_probe_read_user(&frame, sizeof(frame), (void *)frame))
			found = ask(point, frame, addr);
	}
	/* A call may read its first instruction before it puts the frame in its place. */
	/* clang-format off */
	ASK(0) ASK(1) ASK(2) ASK(3) ASK(5) ASK(6) ASK(7) ASK(8)
	ASK(9) ASK(10) ASK(11) ASK(12) ASK(13) ASK(14) ASK(15)
		/* clang-format on */
		if (found == STARTS) touches->starts++;
	else touches->others++;
	return 0;
}

//go:build ignore

/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Listens to the engine's static probes: counts sca:hit, passes sca:patched and sca:reverted on.
 * Where the probes and their arguments are, pkg/loader reads from the engine's notes.
 */
#include "registers.h"

char LICENSE[] SEC("license") = "GPL";

#define MAX_LOCATIONS 32
#define TARGET_SIZE 520 /* rc bounds a target to 512 bytes */

enum kind { HIT, PATCHED, REVERTED };

struct argument {
	__s64 value; /* the constant, or the displacement */
	__u8 form;
	__u8 reg;
	__u8 reserved[6];
};

enum form { CONSTANT, REGISTER, MEMORY };

struct location {
	struct argument arguments[3];
	__u64 kind;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_LOCATIONS);
	__type(key, __u32);
	__type(value, struct location);
} locations SEC(".maps");

/* By address of the patched code object. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, __u64);
} hits SEC(".maps");

struct event {
	__u64 kind;
	__u64 patched, original;
	char target[TARGET_SIZE];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
	__type(value, struct event);
} events SEC(".maps");

/* What was lost: arguments that could not be read, hits past the map's bound, events past the
 * buffer's. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} lost SEC(".maps");

static __always_inline int lose(void)
{
	__u32 zero = 0;
	__u64 *count = bpf_map_lookup_elem(&lost, &zero);

	if (count)
		(*count)++;
	return 0;
}

static __always_inline int read_argument(struct pt_regs *ctx, struct argument *arg, __u64 *value)
{
	switch (arg->form) {
	case CONSTANT:
		*value = arg->value;
		return 0;
	case REGISTER:
		*value = sca_register(ctx, arg->reg);
		return 0;
	}
	return bpf_probe_read_user(value, sizeof(*value),
				   (void *)(sca_register(ctx, arg->reg) + arg->value));
}

static __always_inline int count_hit(__u64 code)
{
	__u64 *count = bpf_map_lookup_elem(&hits, &code), one = 1;

	if (count) {
		(*count)++;
		return 0;
	}
	if (!bpf_map_update_elem(&hits, &code, &one, BPF_NOEXIST))
		return 0;
	/* another CPU made the entry first */
	count = bpf_map_lookup_elem(&hits, &code);
	if (!count)
		return lose();
	(*count)++;
	return 0;
}

SEC("uprobe.multi")
int sca_static_probe(struct pt_regs *ctx)
{
	__u32 index = sca_probe_index(ctx);
	struct location *location = bpf_map_lookup_elem(&locations, &index);
	__u64 target, patched, original;
	struct event *event;

	if (!location)
		return 0;
	if (read_argument(ctx, &location->arguments[1], &patched))
		return lose();
	if (location->kind == HIT)
		return count_hit(patched);
	if (read_argument(ctx, &location->arguments[0], &target) ||
	    read_argument(ctx, &location->arguments[2], &original))
		return lose();
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event)
		return lose();
	event->kind = location->kind;
	event->patched = patched;
	event->original = original;
	if (bpf_probe_read_user_str(event->target, sizeof(event->target), (void *)target) < 0) {
		event->target[0] = 0;
		lose();
	}
	bpf_ringbuf_submit(event, 0);
	return 0;
}

//go:build ignore

/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Sees the starts of code objects at CPython's eval loop: sca_count counts them, sca_follow tells of
 * the first of each. Where the eval loop shows them, and in which registers the frame then is,
 * pkg/pyframes/evalloop finds in the binary.
 */
#include "registers.h"

char LICENSE[] SEC("license") = "GPL";

#define MAX_SITES 1024
#define NAME_SIZE 128
#define FILENAME_SIZE 256
/* Of most code objects both fit into these. */
#define SHORT_NAME_SIZE 32
#define SHORT_FILENAME_SIZE 96

/* A value: in a register, or in memory at a register plus disp. Add is what it lacks. */
struct location {
	__s32 disp, add;
	__u8 base;
	__u8 memory;
	__u8 reserved[2];
};

struct site {
	__u64 code_tag; /* bits to clear in the frame's code pointer */
	__u64 events;   /* bits of the interpreter's instrumentation version that are none */
	struct location frame, instr, thread;
	/* Offsets in the frame, */
	__u32 frame_code;
	__u32 frame_last_i;
	/* in the thread state; interpreter is 0 where the version is in the thread state itself, */
	__u32 interpreter;
	__u32 current_version;
	__u32 tracing;
	/* in the code object; qualname is 0 where there is none, */
	__u32 code_version;
	__u32 code_name;
	__u32 code_first_line;
	__u32 code_qualname;
	__u32 code_filename;
	__u32 code_flags;
	/* and in a str. */
	__u32 str_length;
	__u32 str_state;
	__u32 str_ascii;
	__u8 entry;         /* the eval loop's entry, not a RESUME */
	__u8 throw;         /* register of the argument throwflag */
	__u8 location_bits; /* of RESUME's argument */
	__u8 versioned;     /* a RESUME may run again for one start */
	__u8 stepped;       /* the kernel does not emulate the probed instruction */
	__u8 checks[2];     /* opcodes of starts that were seen at another site, or 0 */
	__u8 reserved[5];
};

/* A code object's address is used again soon after it was freed: what its name and first line are
 * tells it from its successor. */
struct code {
	__u64 addr;
	__u64 name; /* address of the str */
	__u32 first_line;
	__u32 tgid; /* 0 where one process alone is probed */
};

struct stats {
	__u64 hits;    /* of the probes, starts or not */
	__u64 stepped; /* those among them that the kernel single-stepped */
	__u64 faults;  /* memory that was not there to be read */
	__u64 full;    /* starts of code objects that the map had no room for */
	__u64 dropped; /* events that the buffer had no room for */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_SITES);
	__type(key, __u32);
	__type(value, struct site);
} sites SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct stats);
} stats SEC(".maps");

/* How often each code object started. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct code);
	__type(value, __u64);
} starts SEC(".maps");

/* Count every code object, not only those that are in starts. */
const volatile __u8 count_all = 0;

/* The code objects whose first start was told. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, struct code);
	__type(value, __u8);
} seen SEC(".maps");

struct first {
	__u64 time; /* CLOCK_BOOTTIME, ns */
	struct code code;
	__u32 tid;
	/* How many characters, or -1 where it could not be read or is not ASCII. What exceeds the
	 * array is cut off. */
	__s32 name_length;
	__s32 filename_length;
	__u32 flags; /* co_flags */
};

/* An event is one of these two, told apart by its size. The name is qualified, where the version has it. */
struct short_first {
	struct first first;
	char name[SHORT_NAME_SIZE];
	char filename[SHORT_FILENAME_SIZE];
};

struct long_first {
	struct first first;
	char name[NAME_SIZE];
	char filename[FILENAME_SIZE];
};

union first_event {
	struct short_first brief;
	struct long_first full;
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 22);
	__type(value, union first_event);
} firsts SEC(".maps");

#define READ(into, address) bpf_probe_read_user(&(into), sizeof(into), (void *)(address))

static __always_inline int locate(struct pt_regs *ctx, struct location *at, __u64 *value)
{
	__u64 base = sca_register(ctx, at->base);

	if (at->memory) {
		if (READ(base, base + at->disp))
			return -1;
	}
	*value = base + at->add;
	return 0;
}

enum { FAULT = -1, NO_START, START };

/* Whether this RESUME will run again for the same start: the code object has another
 * instrumentation version than the interpreter, and gets it first. */
static __always_inline int runs_again(struct pt_regs *ctx, struct site *site, __u64 code)
{
	__u64 thread, current, version;
	__s32 tracing;

	if (locate(ctx, &site->thread, &thread) || READ(version, code + site->code_version))
		return FAULT;
	current = thread;
	if (site->interpreter && READ(current, thread + site->interpreter))
		return FAULT;
	if (READ(current, current + site->current_version))
		return FAULT;
	if (!((current ^ version) & ~site->events))
		return 0;
	if (!site->tracing)
		return 1;
	if (READ(tracing, thread + site->tracing))
		return FAULT;
	return !tracing;
}

/* Whether a code object starts here, and which. */
static __always_inline int look(struct pt_regs *ctx, struct site *site, struct code *code)
{
	__u64 frame, at;
	__u8 instr[2]; /* opcode, oparg */
	__s32 last_i;

	if (locate(ctx, &site->frame, &frame))
		return FAULT;
	if (site->entry) {
		if (READ(last_i, frame + site->frame_last_i))
			return FAULT;
		/* thrown into before it started: its body does not run */
		if (last_i != -1 || (__u32)sca_register(ctx, site->throw))
			return NO_START;
	} else {
		if (locate(ctx, &site->instr, &at) || READ(instr, at))
			return FAULT;
		if (instr[1] & site->location_bits) /* resumed after a yield or an await */
			return NO_START;
		if ((site->checks[0] && instr[0] == site->checks[0]) ||
		    (site->checks[1] && instr[0] == site->checks[1]))
			return NO_START;
	}
	if (READ(code->addr, frame + site->frame_code))
		return FAULT;
	code->addr &= ~site->code_tag;
	if (READ(code->name, code->addr + site->code_name) ||
	    READ(code->first_line, code->addr + site->code_first_line))
		return FAULT;
	return START;
}

static __always_inline struct stats *own_stats(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&stats, &zero);
}

SEC("uprobe.multi")
int sca_count(struct pt_regs *ctx)
{
	__u32 index = sca_probe_index(ctx);
	struct site *site = bpf_map_lookup_elem(&sites, &index);
	struct stats *stat = own_stats();
	struct code code = {};
	__u64 *count, one = 1;
	int result;

	if (!site || !stat)
		return 0;
	stat->hits++;
	stat->stepped += site->stepped;
	result = look(ctx, site, &code);
	if (result == NO_START)
		return 0;
	count = result == START ? bpf_map_lookup_elem(&starts, &code) : NULL;
	if (result == START && !count && !count_all)
		return 0;
	if (result == START && site->versioned) {
		result = runs_again(ctx, site, code.addr);
		if (result > 0)
			return 0;
	}
	if (result == FAULT) {
		stat->faults++;
		return 0;
	}
	if (!count) {
		if (!bpf_map_update_elem(&starts, &code, &one, BPF_NOEXIST))
			return 0;
		/* another CPU made the entry first, or there is no room */
		count = bpf_map_lookup_elem(&starts, &code);
		if (!count) {
			stat->full++;
			return 0;
		}
	}
	(*count)++;
	return 0;
}

/* A str whose characters are ASCII. */
struct text {
	__u64 chars;
	__s32 length; /* -1 where it is none */
};

static __always_inline void find_text(struct site *site, __u64 field, struct text *text)
{
	__u64 str, length, ascii = 1 << 6; /* PyASCIIObject.state.ascii, in every version */
	__u32 state;

	text->chars = 0;
	text->length = -1;
	if (READ(str, field) || READ(length, str + site->str_length) ||
	    READ(state, str + site->str_state) || !(state & ascii) || length > 0x7fffffff)
		return;
	text->chars = str + site->str_ascii;
	text->length = length;
}

static __always_inline __s32 read_text(struct text *text, char *into, __u32 size)
{
	into[0] = 0;
	if (text->length < 0 || bpf_probe_read_user_str(into, size, (void *)text->chars) < 0)
		return -1;
	return text->length;
}

/* To wake who reads costs the process more than all else here: it is done where the buffer fills up. Before,
 * what is there is read at the reader's deadline. */
static __always_inline __u64 wakeup(void)
{
	__u64 filled = bpf_ringbuf_query(&firsts, BPF_RB_AVAIL_DATA);

	return filled < bpf_ringbuf_query(&firsts, BPF_RB_RING_SIZE) / 8 ? BPF_RB_NO_WAKEUP :
									   BPF_RB_FORCE_WAKEUP;
}

/* Tells of a code object's first start. Each size of event is reserved as a constant, as it must be. */
#define TELL(event_type)                                                                           \
	({                                                                                         \
		struct event_type *event = bpf_ringbuf_reserve(&firsts, sizeof(*event), 0);        \
		if (event) {                                                                       \
			event->first.time = bpf_ktime_get_boot_ns();                               \
			event->first.code = code;                                                  \
			event->first.tid = id;                                                     \
			event->first.flags = flags;                                                \
			event->first.name_length =                                                 \
				read_text(&name, event->name, sizeof(event->name));                \
			event->first.filename_length =                                             \
				read_text(&filename, event->filename, sizeof(event->filename));    \
			bpf_ringbuf_submit(event, wakeup());                                       \
		}                                                                                  \
		event != NULL;                                                                     \
	})

SEC("uprobe.multi")
int sca_follow(struct pt_regs *ctx)
{
	__u32 index = sca_probe_index(ctx);
	struct site *site = bpf_map_lookup_elem(&sites, &index);
	struct stats *stat = own_stats();
	__u64 id = bpf_get_current_pid_tgid();
	struct text name, filename;
	struct code code = {};
	int result, told;
	__u32 flags;
	__u8 yes = 1;

	if (!site || !stat)
		return 0;
	stat->hits++;
	stat->stepped += site->stepped;
	result = look(ctx, site, &code);
	if (result == FAULT)
		stat->faults++;
	if (result != START)
		return 0;
	code.tgid = id >> 32;
	if (bpf_map_lookup_elem(&seen, &code))
		return 0;
	if (READ(flags, code.addr + site->code_flags)) {
		stat->faults++;
		return 0;
	}
	if (bpf_map_update_elem(&seen, &code, &yes, BPF_NOEXIST)) {
		if (!bpf_map_lookup_elem(&seen, &code))
			stat->full++;
		return 0; /* else another CPU tells of it */
	}
	find_text(site, code.addr + (site->code_qualname ? site->code_qualname : site->code_name),
		  &name);
	find_text(site, code.addr + site->code_filename, &filename);
	if (name.length < SHORT_NAME_SIZE && filename.length < SHORT_FILENAME_SIZE)
		told = TELL(short_first);
	else
		told = TELL(long_first);
	if (!told) {
		bpf_map_delete_elem(&seen, &code); /* the next start may be told */
		stat->dropped++;
	}
	return 0;
}

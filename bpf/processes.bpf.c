//go:build ignore

/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Tells of processes that begin, run another program, and end. */
#include <linux/bpf.h>
#include <stddef.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

/* What is read of the kernel's own structs. Where it is there, BTF says. */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct upid {
	int nr;
};

struct pid {
	unsigned int level;
	struct upid numbers[1];
};

struct live {
	int counter;
};

struct signal_struct {
	struct live live;
};

struct task_struct {
	int pid, tgid;
	struct task_struct *real_parent;
	struct pid *thread_pid;
	struct signal_struct *signal;
	__u64 start_boottime;
	char comm[16];
};
#pragma clang attribute pop

enum kind { FORKED = 1, EXECUTED, EXITED };

struct process_event {
	__u64 time, start_time; /* CLOCK_BOOTTIME, ns */
	__u32 kind;
	__u32 pid, parent_pid;
	__u32 namespace_pid; /* in the PID namespace that the process itself is in */
	__u32 level;         /* of that namespace; 0 is the initial one */
	__u32 reserved;
	char comm[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
	__type(value, struct process_event);
} process_events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} dropped SEC(".maps");

static __always_inline int tell(struct task_struct *task, enum kind kind)
{
	struct process_event *event = bpf_ringbuf_reserve(&process_events, sizeof(*event), 0);
	struct pid *pid = BPF_CORE_READ(task, thread_pid);
	__u32 zero = 0;
	__u64 *count;

	if (!event) {
		count = bpf_map_lookup_elem(&dropped, &zero);
		if (count)
			(*count)++;
		return 0;
	}
	event->time = bpf_ktime_get_boot_ns();
	event->start_time = BPF_CORE_READ(task, start_boottime);
	event->kind = kind;
	event->pid = BPF_CORE_READ(task, tgid);
	event->parent_pid = BPF_CORE_READ(task, real_parent, tgid);
	event->level = BPF_CORE_READ(pid, level);
	event->namespace_pid = 0;
	event->reserved = 0;
	bpf_probe_read_kernel(&event->namespace_pid, sizeof(event->namespace_pid),
			      (char *)pid + bpf_core_field_offset(struct pid, numbers) +
				      event->level * bpf_core_type_size(struct upid) +
				      bpf_core_field_offset(struct upid, nr));
	BPF_CORE_READ_STR_INTO(&event->comm, task, comm);
	bpf_ringbuf_submit(event, 0);
	return 0;
}

SEC("raw_tp/sched_process_fork")
int sca_forked(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *child = (struct task_struct *)ctx->args[1];

	/* a thread is none of its own */
	if (BPF_CORE_READ(child, pid) != BPF_CORE_READ(child, tgid))
		return 0;
	return tell(child, FORKED);
}

SEC("raw_tp/sched_process_exec")
int sca_executed(struct bpf_raw_tracepoint_args *ctx)
{
	return tell((struct task_struct *)ctx->args[0], EXECUTED);
}

SEC("raw_tp/sched_process_exit")
int sca_exited(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *task = (struct task_struct *)ctx->args[0];

	/* other threads live on */
	if (BPF_CORE_READ(task, signal, live.counter))
		return 0;
	return tell(task, EXITED);
}

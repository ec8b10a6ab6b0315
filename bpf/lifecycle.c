/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * lifecycle.c: what user space must hear of at once, from raw tracepoints: control groups made and removed, processes
 * moved between them, executables run. Offsets come from the running kernel's BTF.
 */

static INLINE struct lifecycle_event *lifecycle_reserve(u32 kind)
{
    struct lifecycle_event *event = lifecycle_events.ringbuf_reserve(sizeof(*event));

    if (!event) {
        account_loss(LOSS_LIFECYCLE);
        return 0;
    }
    event->cgroup_id = 0;
    event->exe_inode = 0;
    event->exe_device = 0;
    event->exe_generation = 0;
    event->tgid = 0;
    event->kind = kind;
    event->path[0] = 0;
    return event;
}

static INLINE int lifecycle_is_unified(u64 cgroup)
{
    u64 root = identity_read_pointer(cgroup, OFFSET_CGROUP_ROOT);
    u32 hierarchy = 1;

    kernel_read(&hierarchy, sizeof(hierarchy), (void *)(root + OFFSET_CGROUP_ROOT_HIERARCHY));
    return hierarchy == 0;
}

static INLINE void lifecycle_cgroup(u64 cgroup, u64 path, u32 kind, u32 tgid)
{
    if (!lifecycle_is_unified(cgroup))
        return;
    struct lifecycle_event *event = lifecycle_reserve(kind);
    if (!event)
        return;
    u64 node = identity_read_pointer(cgroup, OFFSET_CGROUP_KN);
    kernel_read(&event->cgroup_id, sizeof(event->cgroup_id), (void *)(node + OFFSET_KERNFS_ID));
    kernel_read_str(event->path, sizeof(event->path), (void *)path);
    event->tgid = tgid;
    bpf_ringbuf_submit(event, BPF_RB_FORCE_WAKEUP);
}

int lifecycle_cgroup_mkdir(struct bpf_raw_tracepoint_args *ctx)
{
    lifecycle_cgroup(ctx->args[0], ctx->args[1], LIFECYCLE_KIND_CGROUP_MADE, 0);
    return 0;
}

int lifecycle_cgroup_rmdir(struct bpf_raw_tracepoint_args *ctx)
{
    lifecycle_cgroup(ctx->args[0], ctx->args[1], LIFECYCLE_KIND_CGROUP_GONE, 0);
    return 0;
}

int lifecycle_attach_task(struct bpf_raw_tracepoint_args *ctx)
{
    u32 tgid = 0;

    kernel_read(&tgid, sizeof(tgid), (void *)(ctx->args[2] + OFFSET_TASK_TGID));
    lifecycle_cgroup(ctx->args[0], ctx->args[1], LIFECYCLE_KIND_MOVED, tgid);
    return 0;
}

/* Reported when the executable has not been attested, or when policy tells executables apart: sockets may be open. */
int lifecycle_exec(struct bpf_raw_tracepoint_args *ctx)
{
    struct control c = control_read();
    struct executable_key exe = {};
    u32 tgid = 0;

    identity_executable(ctx->args[0], &exe);
    if (!exe.inode || (executables.lookup(&exe) && !(c.flags & CONTROL_FLAG_WATCH_EXEC)))
        return 0;
    kernel_read(&tgid, sizeof(tgid), (void *)(ctx->args[0] + OFFSET_TASK_TGID));
    struct lifecycle_event *event = lifecycle_reserve(LIFECYCLE_KIND_EXEC);
    if (!event)
        return 0;
    event->exe_inode = exe.inode;
    event->exe_device = exe.device;
    event->exe_generation = exe.generation;
    event->tgid = tgid;
    bpf_ringbuf_submit(event, BPF_RB_FORCE_WAKEUP);
    return 0;
}

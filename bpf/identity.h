/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * identity.h: from the attributes a socket was opened with to the workload that it is, in one generation.
 *
 * What the kernel attests is stamped into the socket (control group, executable, uid, gid). What policy makes of it is
 * looked up here whenever the generation has moved on, so a new policy needs nobody to walk the sockets.
 * INVARIANT: an unknown identity is never remembered; it is looked up again until user space has attested it.
 */
#ifndef BULKHEAD_IDENTITY_H
#define BULKHEAD_IDENTITY_H

/*
 * Helpers under names of our own. bcc takes bpf_get_socket_cookie for a 32-bit value, and rewrites bpf_probe_read_kernel
 * to the old bpf_probe_read, which these program types lack, wherever the loader may not read /proc/kallsyms.
 */
static long (*kernel_read)(void *to, u32 bytes, const void *from) = (void *)BPF_FUNC_probe_read_kernel;
static long (*kernel_read_str)(void *to, u32 bytes, const void *from) = (void *)BPF_FUNC_probe_read_kernel_str;
static u64 (*socket_cookie)(void *ctx) = (void *)BPF_FUNC_get_socket_cookie;

static INLINE u64 identity_read_pointer(u64 base, u32 offset)
{
    u64 value = 0;
    kernel_read(&value, sizeof(value), (void *)(base + offset));
    return value;
}

/* The executable that `task` runs, as inode, device and inode generation; zeroes for a kernel thread. */
static INLINE void identity_executable(u64 task, struct executable_key *key)
{
    u64 memory = identity_read_pointer(task, OFFSET_TASK_MM);
    u64 file = memory ? identity_read_pointer(memory, OFFSET_MM_EXE_FILE) : 0;
    u64 inode = file ? identity_read_pointer(file, OFFSET_FILE_INODE) : 0;
    u64 superblock = inode ? identity_read_pointer(inode, OFFSET_INODE_SB) : 0;

    if (!superblock)
        return;
    kernel_read(&key->inode, sizeof(key->inode), (void *)(inode + OFFSET_INODE_INO));
    kernel_read(&key->generation, sizeof(key->generation), (void *)(inode + OFFSET_INODE_GENERATION));
    kernel_read(&key->device, sizeof(key->device), (void *)(superblock + OFFSET_SB_DEV));
}

/* Stamp the running process into the state of a socket that it opens. */
static INLINE void identity_stamp(struct sock_state *st, u64 cookie)
{
    struct executable_key exe = {};
    u64 task = bpf_get_current_task(), credentials = identity_read_pointer(task, OFFSET_TASK_CRED);

    st->cgroup_id = bpf_get_current_cgroup_id();
    st->socket_cookie = cookie;
    kernel_read(&st->uid, sizeof(st->uid), (void *)(credentials + OFFSET_CRED_EUID));
    kernel_read(&st->gid, sizeof(st->gid), (void *)(credentials + OFFSET_CRED_EGID));
    st->tgid = bpf_get_current_pid_tgid() >> 32;
    st->opened_ns = bpf_ktime_get_boot_ns();
    bpf_get_current_comm(st->comm, sizeof(st->comm));
    identity_executable(task, &exe);
    st->exe_inode = exe.inode;
    st->exe_device = exe.device;
    st->exe_generation = exe.generation;
    st->flags |= SOCK_FLAG_ORIGIN;
}

static INLINE u32 identity_member(u32 generation, u32 group, u32 dimension, u32 value)
{
    struct subject_member key = {.group = group, .dimension = dimension, .value = value};
    return slot_members(generation, &key) ? value : SUBJECT_OTHER;
}

/* The control group alone does not decide: look at what else the group's workloads ask for. */
static INLINE struct subject_entry *identity_subject(const struct sock_state *st, u32 generation,
                                                     const struct cgroup_entry *e)
{
    struct subject_key key = {
        .group = e->identity,
        .executable = SUBJECT_OTHER,
        .uid = SUBJECT_OTHER,
        .gid = SUBJECT_OTHER,
    };

    if (!(st->flags & SOCK_FLAG_ORIGIN))
        return 0;
    if (e->needs & NEED_EXECUTABLE) {
        struct executable_key exe = {
            .inode = st->exe_inode,
            .device = st->exe_device,
            .generation = st->exe_generation,
        };
        u32 *id = executables.lookup(&exe);
        if (!id)
            return 0; /* not attested yet */
        if (*id)
            key.executable = identity_member(generation, key.group, NEED_EXECUTABLE, *id);
    }
    if (e->needs & NEED_USER)
        key.uid = identity_member(generation, key.group, NEED_USER, st->uid);
    if (e->needs & NEED_GROUP)
        key.gid = identity_member(generation, key.group, NEED_GROUP, st->gid);
    return slot_subjects(generation, &key);
}

static INLINE int identity_is_quarantined(const struct control *c, u32 identity)
{
    return c->flags & CONTROL_FLAG_QUARANTINE && quarantined.lookup(&identity);
}

static INLINE void identity_derive(struct sock_state *st, const struct control *c)
{
    u32 identity = IDENTITY_UNKNOWN;
    u32 mode = c->flags & CONTROL_FLAG_ANY_ENFORCE ? MODE_ENFORCE : MODE_OBSERVE;

    if (st->identity_generation == c->generation)
        return;
    u64 cgroup_id = st->cgroup_id;
    struct cgroup_entry *e = slot_cgroups(c->generation, &cgroup_id);
    if (e && !e->needs) {
        identity = e->identity;
        mode = e->mode;
    } else if (e) {
        struct subject_entry *s = identity_subject(st, c->generation, e);
        if (s) {
            identity = s->identity;
            mode = s->mode;
        }
    }
    if (identity_is_quarantined(c, identity))
        mode = MODE_ENFORCE;
    st->local_identity = identity;
    st->local_mode = mode;
    if (identity != IDENTITY_UNKNOWN)
        st->identity_generation = c->generation;
}

static INLINE u32 identity_host_mode(const struct control *c)
{
    return c->flags & CONTROL_FLAG_HOST_ENFORCE ? MODE_ENFORCE : MODE_OBSERVE;
}

/* What is refused for no identity's sake (malformed, ownerless) is dropped as soon as anybody is enforced. */
static INLINE u32 identity_any_mode(const struct control *c)
{
    return c->flags & CONTROL_FLAG_ANY_ENFORCE ? MODE_ENFORCE : MODE_OBSERVE;
}

#endif

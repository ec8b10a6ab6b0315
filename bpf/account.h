/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * account.h: exact counters and sampled events.
 *
 * Every refusal is counted before its packet's fate is returned; nothing in user space can make a count wrong. Events
 * explain a sample of them: beyond EVENTS_PER_WINDOW or with a full ring they are lost, and the loss is counted.
 */
#ifndef BULKHEAD_ACCOUNT_H
#define BULKHEAD_ACCOUNT_H

#define WINDOW_SHIFT 8 /* jiffies, which cost nothing to read, to windows of 0.26 s (HZ 1000) to 2.6 s (HZ 100) */
#ifndef EVENTS_PER_WINDOW
#define EVENTS_PER_WINDOW 2000
#endif
#define CONTROLS_PER_WINDOW 4000

/* One end's answer to one conversation. */
struct judgement {
    u32 local;
    u32 remote;
    u32 rule_id;
    u32 hit_slot;
    u32 deadline_s;
    u32 flags; /* enum policy_flag, of the entry that allows it */
    u8 direction;
    u8 verdict;
    u8 reason;
};

static INLINE u32 account_boot_seconds(void)
{
    return bpf_ktime_get_boot_ns() / 1000000000ull;
}

static INLINE void account_loss(u32 kind)
{
    u64 *count = losses.lookup(&kind);
    if (count)
        __sync_fetch_and_add(count, 1);
}

static INLINE void account_hit(const struct judgement *j)
{
    u32 slot = j->hit_slot;
    u64 *count = hits.lookup(&slot);
    if (count)
        (*count)++;
}

/*
 * In one instruction each: the hooks in connect() and sendmsg() can be preempted, by each other and by packets, on the
 * CPU whose counter they hold.
 */
static INLINE void account_refusal(const struct judgement *j)
{
    u32 index = j->reason * 4 + (j->direction & 1) * 2 + (j->verdict == VERDICT_WOULD_DENY);
    u64 *total = refusals.lookup(&index);
    if (total)
        __sync_fetch_and_add(total, 1);

    struct edge_key key = {
        .local_identity = j->local,
        .remote_identity = j->remote,
        .direction = j->direction,
        .verdict = j->verdict,
        .reason = j->reason,
    };
    u64 *edge = edges.lookup(&key);
    if (edge) {
        __sync_fetch_and_add(edge, 1);
        return;
    }
    u64 one = 1;
    if (!edges.insert(&key, &one))
        return;
    edge = edges.lookup(&key); /* another CPU was first, or the map is full */
    if (edge)
        __sync_fetch_and_add(edge, 1);
    else
        account_loss(LOSS_EDGE);
}

/* Take one of `allowance` per window; 0 when the window is used up. */
static INLINE int account_take(u32 index, u64 allowance)
{
    struct bucket *b = buckets.lookup(&index);
    if (!b)
        return 0;
    u64 window = bpf_jiffies64() >> WINDOW_SHIFT;
    if (b->window != window) {
        b->window = window;
        b->used = 0;
    }
    if (b->used >= allowance)
        return 0;
    b->used++;
    b->passed++;
    return 1;
}

/* Of a cut conversation the socket is to be destroyed: that event is no sample, and no flood of others displaces it. */
static INLINE struct verdict_event *account_event_reserve(u8 flags)
{
    struct verdict_event *event;

    if (!account_take(CONTROL_KIND_MAX, EVENTS_PER_WINDOW) && !(flags & EVENT_FLAG_CUT)) {
        account_loss(LOSS_EVENT_RATE);
        return 0;
    }
    event = verdict_events.ringbuf_reserve(sizeof(*event));
    if (!event)
        account_loss(LOSS_EVENT_RING);
    return event;
}

static INLINE void account_event_fill(struct verdict_event *event, const struct control *c, const struct judgement *j,
                                      const struct sock_state *st)
{
    event->time_ns = bpf_ktime_get_boot_ns();
    event->local_identity = j->local;
    event->remote_identity = j->remote;
    event->rule_id = j->rule_id;
    event->generation = c->generation;
    event->direction = j->direction;
    event->verdict = j->verdict;
    event->reason = j->reason;
    event->reserved = 0;
    event->node = 0;
    __builtin_memset(event->commit, 0, sizeof(event->commit));
    event->peer_tgid = 0;
    __builtin_memset(event->reserved_too, 0, sizeof(event->reserved_too));
    if (st) {
        event->socket_cookie = st->socket_cookie;
        event->cgroup_id = st->cgroup_id;
        event->exe_inode = st->exe_inode;
        event->exe_device = st->exe_device;
        event->exe_generation = st->exe_generation;
        event->tgid = st->tgid;
        event->uid = st->uid;
        event->peer_tgid = st->peer_tgid;
        __builtin_memcpy(event->comm, st->comm, sizeof(event->comm));
    } else {
        event->socket_cookie = 0;
        event->cgroup_id = 0;
        event->exe_inode = 0;
        event->exe_device = 0;
        event->exe_generation = 0;
        event->tgid = 0;
        event->uid = 0;
        __builtin_memset(event->comm, 0, sizeof(event->comm));
    }
}

static INLINE void account_event_packet(struct verdict_event *event, struct __sk_buff *skb, const struct packet *p,
                                        u32 node, u8 flags)
{
    event->node = node;
    __builtin_memcpy(event->source, p->source, 16);
    __builtin_memcpy(event->destination, p->destination, 16);
    event->source_port = p->source_port;
    event->destination_port = p->destination_port;
    __builtin_memcpy(event->via, p->via, 16);
    event->via_port = p->via_port;
    event->protocol = p->protocol;
    event->ifindex = skb->ifindex;
    event->flags = flags | (p->family == AF_INET6 ? EVENT_FLAG_IPV6 : 0);
}

/* Waking a reader costs more than judging the packet: only a cut conversation, which has a socket to destroy, does. */
static INLINE void account_packet_event(struct __sk_buff *skb, const struct control *c, const struct packet *p,
                                        const struct judgement *j, const struct sock_state *st, u32 node, u8 flags)
{
    struct verdict_event *event = account_event_reserve(flags);
    if (!event)
        return;
    account_event_fill(event, c, j, st);
    account_event_packet(event, skb, p, node, flags);
    event->hook = EVENT_HOOK_TC;
    bpf_ringbuf_submit(event, flags & EVENT_FLAG_CUT ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP);
}

/* What another node has said of its refusal: counted there, told here. */
static INLINE void account_told_event(struct __sk_buff *skb, const struct control *c, const struct packet *p,
                                      const struct judgement *j, const struct sock_state *st, u32 node, const u8 *commit)
{
    struct verdict_event *event = account_event_reserve(0);
    if (!event)
        return;
    account_event_fill(event, c, j, st);
    account_event_packet(event, skb, p, node, 0);
    __builtin_memcpy(event->commit, commit, sizeof(event->commit));
    event->hook = EVENT_HOOK_PEER;
    bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP);
}

#endif

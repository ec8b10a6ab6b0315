/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * steering.h: conversations with the node's proxy at one end.
 *
 * What a workload says on a lane (cgroup.c turns its connect() there), and what the proxy says to a workload of its node
 * on a leg (proxy.c), passes on lo. It is judged by the workload's end alone, as the conversation that it stands for.
 * Which that is stands in `steerings`, in the sockets of both ends, so that either comes to the same judgement.
 */
#ifndef BULKHEAD_STEERING_H
#define BULKHEAD_STEERING_H

/* This node's proxy, or 0 when nothing has need of it. */
static INLINE struct mesh_self *steering_here(void)
{
    u32 zero = 0;
    struct mesh_self *self = mesh_self.lookup(&zero);
    return self && self->flags & MESH_FLAG_PROXY ? self : 0;
}

/* The conversation of `p`; `is_answer`: it was opened by the other end. */
static INLINE void steering_key(struct leg_key *key, const struct packet *p, int is_answer)
{
    __builtin_memcpy(key->source, is_answer ? p->destination : p->source, 16);
    __builtin_memcpy(key->destination, is_answer ? p->source : p->destination, 16);
    key->source_port = is_answer ? p->destination_port : p->source_port;
    key->destination_port = is_answer ? p->source_port : p->destination_port;
}

/* Is this segment on lo one of a conversation with the proxy? A listener's answer is told by the opening. */
static INLINE int steering_is_of(struct scratch *s, const struct sock_state *st, struct bpf_sock *sk)
{
    const struct packet *p = &s->packet;
    u32 state = sk ? sk->state : 0;
    int listens = state == TCP_STATE_LISTEN || state == TCP_STATE_NEW_SYN_RECV;

    if (st->flags & SOCK_FLAG_STEERED && !listens)
        return 1;
    if (!(p->tcp_flags & TCP_FLAG_SYN) || !steering_here())
        return 0;
    if (listens) {
        steering_key(&s->leg, p, 1);
        return legs.lookup(&s->leg) != 0;
    }
    if (state == TCP_STATE_SYN_SENT) {
        /* an opening with the ends of a conversation that was */
        steering_key(&s->leg, p, 0);
        legs.delete(&s->leg);
    }
    return 0;
}

static INLINE int steering_is_lane(const struct steering *way)
{
    return way->role == STEERING_ROLE_LANE_CALLER || way->role == STEERING_ROLE_LANE_PROXY;
}

static INLINE int steering_is_of_proxy(const struct steering *way)
{
    return way->role == STEERING_ROLE_LANE_PROXY || way->role == STEERING_ROLE_LEG_PROXY;
}

#endif

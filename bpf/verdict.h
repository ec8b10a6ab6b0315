/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * verdict.h: what becomes of a packet. Deciding fills a `struct outcome`; verdict_settle() counts it, reports it and
 * gives the TC action. One place counts, so nothing is dropped uncounted and nothing is counted twice.
 *
 * Allow is TC_ACT_UNSPEC: the next filter has its say. TC_ACT_OK would silence other people's filters behind ours.
 */
#ifndef BULKHEAD_VERDICT_H
#define BULKHEAD_VERDICT_H

#define PASS (-1)
#define DROP 2

/* Set on lo by egress in the same pass and required by its ingress; no socket option reaches this field. */
#define LOOPBACK_JUDGED 0xB17C

/* Likewise on the answer that a refused opening was turned into. */
#define WIRE_TOLD 0xB17D

/* And on an opening that was verified when it came through another device (a bond's or bridge's port). */
#define WIRE_VERIFIED 0xB17E

/* And on a carrier, and on the datagram that it precedes, when they leave through one device after another. */
#define WIRE_CARRIER 0xB17F
#define WIRE_PRECEDED 0xB180

/* The kind of device, handed from the first stage to the second in skb->cb[0]. */
enum link_kind {
    LINK_ETHERNET = 0,
    LINK_BARE = 1, /* no link header: tun, tunnels */
    LINK_LOOPBACK = 2,
    LINK_READ = 4, /* beside the kind: what a datagram says has been read, and is in the scratch */
};

enum outcome_kind {
    OUTCOME_PASS,    /* part of a conversation that was counted when it opened */
    OUTCOME_CONTROL, /* one of the kernel's own packets: passes within its allowance */
    OUTCOME_REFUSED, /* refused for `reason`, which no rule could lift; count and report */
    OUTCOME_JUDGED,  /* count and report `j` */
    OUTCOME_COUNTED, /* count `j`, report nothing: the same refusal was reported before */
    OUTCOME_CONSUMED, /* said what it had to say, and carries nothing else */
};

struct outcome {
    struct judgement *j;         /* in scratch: the verifier does not follow values there, and stays fast */
    const struct sock_state *st; /* of the local endpoint, for the report */
    const struct sock_state *receiver; /* of a datagram's receiving socket, where there is one */
    u64 peer;                    /* of a datagram: its other end, as the socket here knows it */
    struct wire_said *w;         /* in scratch too: what is known of the other end from the wire */
    u8 kind;
    u8 control;                  /* enum control_kind */
    u8 reason;                   /* enum drop_reason */
    u8 mode;                     /* enum mode, of the refusal */
    u8 event_flags;
};

static INLINE void verdict_control(struct outcome *o, u32 kind)
{
    o->kind = OUTCOME_CONTROL;
    o->control = kind;
}

/* Refuse for a reason that no rule could lift. Only notes it: it stands in a dozen places, the counting in one. */
static INLINE void verdict_refuse(struct outcome *o, const struct sock_state *st, u8 reason, u32 mode)
{
    o->kind = OUTCOME_REFUSED;
    o->st = st;
    o->reason = reason;
    o->mode = mode;
}

static INLINE int verdict_settle(struct __sk_buff *skb, const struct control *c, const struct packet *p,
                                 struct outcome *o)
{
    if (o->kind == OUTCOME_PASS)
        return PASS;
    if (o->kind == OUTCOME_CONSUMED)
        return DROP;
    if (o->kind == OUTCOME_CONTROL) {
        if (account_take(o->control, CONTROLS_PER_WINDOW))
            return PASS;
        verdict_refuse(o, 0, DROP_REASON_CONTROL_RATE, identity_any_mode(c));
    }
    if (o->kind == OUTCOME_REFUSED) {
        o->j->local = o->st ? o->st->local_identity : IDENTITY_UNKNOWN;
        o->j->remote = IDENTITY_UNKNOWN;
        policy_refuse(o->j, o->reason, o->mode);
    }
    if (o->j->verdict == VERDICT_ALLOW)
        account_hit(o->j);
    else
        account_refusal(o->j);
    if (o->kind != OUTCOME_COUNTED)
        account_packet_event(skb, c, p, o->j, o->st, o->w->node, o->event_flags);
    return o->j->verdict == VERDICT_DENY ? DROP : PASS;
}

/*
 * Working space that would not fit the 512 bytes of stack. One per CPU and direction: a program is never interrupted by
 * another of its direction on the same CPU.
 */
struct scratch {
    struct packet packet;
    struct judgement judgement; /* what is settled */
    struct judgement reading;   /* one reading of a datagram: opening or answer */
    struct judgement end;       /* one end's part in a reading */
    struct fragment_key fragment;
    struct echo_key echo;
    struct wire_said said;
    struct leg_key leg;
    struct steering steering;
};
BPF_F_TABLE("percpu_array", u32, struct scratch, scratches, 2, 0);

/* Who an address is to `local`: a node without an agent, a name or address class that policy knows, or the world. */
static INLINE u32 verdict_remote(const struct control *c, u32 local, u8 family, const __be32 *address, u8 direction,
                                 u8 protocol, __be16 port, u32 *held)
{
    if (wire_here()) {
        struct node_entry *n = wire_node_at(address);
        if (n && n->flags & NODE_FLAG_LEGACY) {
            *held = 0;
            return IDENTITY_LEGACY;
        }
    }
    return policy_remote(c, local, family, address, direction, protocol, port, held);
}

/* Name the wire's reason where the refusal is for not knowing the other end. */
static INLINE void verdict_explain(const struct outcome *o, struct judgement *j)
{
    if (o->w->why && j->reason == DROP_REASON_POLICY)
        j->reason = o->w->why;
}

static INLINE void verdict_fragment_key(struct fragment_key *key, const struct packet *p, u8 direction)
{
    key->identification = p->identification;
    key->protocol = p->protocol;
    key->direction = direction;
    key->reserved = 0;
    __builtin_memcpy(key->source, p->source, 16);
    __builtin_memcpy(key->destination, p->destination, 16);
}

#define FRAGMENT_LIFE_NS 30000000000ull /* Linux's reassembly time */

/* A later fragment goes the way of its first; it carries no ports to judge by. */
static INLINE void verdict_later_fragment(struct outcome *o, const struct control *c, struct scratch *s)
{
    verdict_fragment_key(&s->fragment, &s->packet, o->j->direction);
    struct fragment_entry *seen = fragments.lookup(&s->fragment);

    if (seen && bpf_ktime_get_coarse_ns() - seen->seen_ns < FRAGMENT_LIFE_NS)
        return;
    verdict_refuse(o, o->st, DROP_REASON_FRAGMENT, identity_any_mode(c));
}

/* A refused first fragment also withdraws what an allowed one with the same key had opened. */
static INLINE void verdict_first_fragment(struct scratch *s, u8 direction, int action)
{
    verdict_fragment_key(&s->fragment, &s->packet, direction);
    if (action == PASS) {
        struct fragment_entry entry = {.seen_ns = bpf_ktime_get_coarse_ns()};
        fragments.update(&s->fragment, &entry);
    } else {
        fragments.delete(&s->fragment);
    }
}

#endif

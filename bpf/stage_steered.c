/* SPDX-License-Identifier: GPL-2.0-only */
/* stage_steered.c: judges what passes on lo between a workload and the node's proxy; see steering.h. */

/* Tell the socket that will accept, and the agent, what this opening stands for. */
static INLINE void steered_tell(struct scratch *s)
{
    struct steering *way = &s->steering;

    steering_key(&s->leg, &s->packet, 0);
    way->role++;
    legs.update(&s->leg, way);
    way->role--;
}

/*
 * The workload's end as policy has it. The proxy speaks for those it names, so the other end is the proxy and nobody
 * else; and what it takes for one workload is received by that one, or by nobody.
 */
static INLINE void steered_judge(struct judgement *j, const struct control *c, struct scratch *s,
                                 const struct sock_state *from, const struct endpoint *to)
{
    const struct packet *p = &s->packet;
    const struct steering *way = &s->steering;
    int lane = steering_is_lane(way), far = steering_is_of_proxy(way);
    u32 local = far ? to->identity : from->local_identity, mode = far ? to->mode : from->local_mode;
    u32 proxy = far ? from->local_identity : to->identity, remote = lane ? way->called : way->caller;
    u8 direction = lane ? DIRECTION_EGRESS : DIRECTION_INGRESS;
    __be16 port = lane ? way->port : far ? p->destination_port : p->source_port;

    if (proxy != IDENTITY_PROXY || (!lane && local != way->called && local != IDENTITY_UNKNOWN)) {
        j->local = local;
        j->remote = remote;
        j->direction = direction;
        return policy_refuse(j, DROP_REASON_PROXY, MODE_ENFORCE);
    }
    policy_judge(j, c, local, mode, direction, remote, IPPROTO_TCP, port, 0);
}

static INLINE void steered_decide(struct __sk_buff *skb, struct outcome *o, const struct control *c, struct scratch *s,
                                  struct bpf_sock *sk, struct sock_state *st)
{
    const struct packet *p = &s->packet;
    u32 state = sk->state;
    int listens = state == TCP_STATE_LISTEN || state == TCP_STATE_NEW_SYN_RECV;
    int opens = (p->tcp_flags & (TCP_FLAG_SYN | TCP_FLAG_ACK)) == TCP_FLAG_SYN;
    struct endpoint to = {};
    struct steering *way;

    s->steering.role = STEERING_ROLE_NONE;
    if (!c->generation)
        return verdict_refuse(o, 0, DROP_REASON_NO_POLICY, MODE_ENFORCE);
    if (p->tcp_flags & TCP_FLAG_RST)
        return verdict_control(o, CONTROL_KIND_TCP_RESET);
    if (listens) {
        steering_key(&s->leg, p, 1);
        way = legs.lookup(&s->leg);
    } else {
        way = steerings.sk_storage_get(sk, 0, 0);
    }
    if (!way)
        return verdict_refuse(o, st, DROP_REASON_PROXY, MODE_ENFORCE);
    __builtin_memcpy(&s->steering, way, sizeof(s->steering));
    if (opens) {
        egress_forget(st);
        st->flags |= SOCK_FLAG_OPENED;
    }
    endpoint_receiver(skb, p, c, &to);
    /* as in egress_owned(): the other end of what was allowed has closed */
    if (!to.found && (listens || st->verdict == VERDICT_ALLOW || st->verdict == VERDICT_WOULD_DENY))
        return;
    steered_judge(o->j, c, s, st, &to);
    o->kind = OUTCOME_JUDGED;
    if (listens) {
        if (o->j->verdict != VERDICT_DENY)
            o->kind = OUTCOME_PASS;
        return;
    }
    st->peer_tgid = to.tgid;
    if (opens && o->j->verdict != VERDICT_DENY)
        steered_tell(s);
    egress_keep_stream(o, c, st, st->flags & SOCK_FLAG_OPENED ? DIRECTION_EGRESS : DIRECTION_INGRESS,
                       steering_is_of_proxy(&s->steering));
}

/* For the report: in the proxy's place stands the end that it stands for. */
static INLINE void steered_show(struct scratch *s, struct outcome *o)
{
    struct packet *p = &s->packet;
    const struct steering *way = &s->steering;
    const u64 *words = (const u64 *)way->address;
    /* a lane stands for whom the caller called, a leg for who calls */
    int source = steering_is_of_proxy(way);
    __be32 *shown = source ? p->source : p->destination;

    if (way->role == STEERING_ROLE_NONE || (!words[0] && !words[1]))
        return;
    struct node_entry *n = wire_here() ? wire_node_at((const __be32 *)way->address) : 0;
    o->w->node = n ? n->node : 0;
    __builtin_memcpy(p->via, shown, 16);
    __builtin_memcpy(shown, way->address, 16);
    p->via_port = source ? p->source_port : p->destination_port;
    if (steering_is_lane(way)) {
        if (source)
            p->source_port = way->port;
        else
            p->destination_port = way->port;
    }
    if (!packet_is_mapped(shown))
        p->family = AF_INET6;
    o->event_flags |= EVENT_FLAG_STEERED | (source ? EVENT_FLAG_VIA_SOURCE : 0);
}

int stage_steered(struct __sk_buff *skb)
{
    struct control word = trial_control(), *c = &word;
    struct bpf_sock *sk = skb->sk;
    u32 which = DIRECTION_EGRESS;
    struct scratch *s = scratches.lookup(&which);

    if (!s || !sk)
        return DROP;
    struct sock_state *st = egress_state(skb, sk);
    struct outcome o = {.j = &s->judgement, .st = st, .w = &s->said, .event_flags = EVENT_FLAG_LOOPBACK};

    if (st) {
        identity_derive(st, c);
        steered_decide(skb, &o, c, s, sk, st);
        steered_show(s, &o);
    } else {
        verdict_refuse(&o, 0, DROP_REASON_NO_STATE, MODE_ENFORCE);
    }
    int action = verdict_settle(skb, c, &s->packet, &o);
    if (action == PASS)
        skb->tc_index = LOOPBACK_JUDGED;
    return action;
}

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * egress.h: every packet that leaves through a device.
 *
 * The common packet belongs to a stream whose verdict stands in its socket: one pointer chase, one compare. All else
 * (openings, datagrams, a new generation, packets no socket owns) is parsed and judged in full. On lo both ends are
 * judged here, the receiver found by socket lookup.
 */
#ifndef BULKHEAD_EGRESS_H
#define BULKHEAD_EGRESS_H

#define TCP_STATE(_n) (1u << (_n))
/* states in which a socket's tuple is that of the conversation its verdict was given for */
#define TCP_CARRIES                                                                                                    \
    (TCP_STATE(1) | TCP_STATE(3) | TCP_STATE(4) | TCP_STATE(5) | TCP_STATE(7) | TCP_STATE(8) | TCP_STATE(9) |          \
     TCP_STATE(11))

/*
 * Judge the conversation by `from`'s end, and on lo by the receiver's as well. Of two refusals the first that drops
 * stands. Returns 1 when it is the receiver's end that refuses.
 */
static INLINE int egress_judge(struct scratch *s, const struct control *c, const struct sock_state *from,
                               const struct endpoint *to, u8 direction, __be16 port, int lo)
{
    struct judgement *j = &s->reading, *here = &s->end;
    u32 local = from->local_identity, remote = to->identity, mode = from->local_mode;
    int refused_there = 0;

#pragma nounroll
    for (int end = 0; end < (lo ? 2 : 1); end++) {
        policy_judge(here, c, local, mode, direction, remote, s->packet.protocol, port,
                     lo ? POLICY_FLAG_REQUESTS : POLICY_ANY_PROXY);
        if (!end || here->verdict == VERDICT_DENY ||
            (here->verdict == VERDICT_WOULD_DENY && j->verdict == VERDICT_ALLOW)) {
            *j = *here;
            refused_there = end;
        } else if (here->deadline_s && (!j->deadline_s || here->deadline_s < j->deadline_s)) {
            j->deadline_s = here->deadline_s;
        }
        if (j->verdict == VERDICT_DENY)
            break;
        direction = direction == DIRECTION_EGRESS ? DIRECTION_INGRESS : DIRECTION_EGRESS;
        local = to->identity;
        mode = to->mode;
        remote = from->local_identity;
    }
    return refused_there;
}

/* A socket begins a new conversation. */
static INLINE void egress_forget(struct sock_state *st)
{
    st->flags &= ~(SOCK_FLAG_OPENED | SOCK_FLAG_STREAM | SOCK_FLAG_WIRE | SOCK_FLAG_PENDING);
    st->verdict = VERDICT_NONE;
    st->remote_name = 0;
    st->remote_node = 0;
    st->generation = 0;
}

/* TCP that needs no policy. Returns 1 when `o` is settled. */
static INLINE int egress_tcp_control(struct outcome *o, const struct control *c, const struct packet *p,
                                     struct sock_state *st, u32 state)
{
    if (p->tcp_flags & TCP_FLAG_RST) {
        verdict_control(o, CONTROL_KIND_TCP_RESET);
        return 1;
    }
    if (state == TCP_STATE_LISTEN || state == TCP_STATE_NEW_SYN_RECV) {
        /*
         * A listener's answer to a SYN is judged although the SYN was: address translation behind the device hook, or a
         * program that steers a group of listeners on one port, may have taken it to another listener than the one that
         * was judged. Besides, nothing leaves through a listener but bare ACKs.
         */
        if (p->tcp_flags & TCP_FLAG_SYN) {
            /* it may have been connected before: nothing of that conversation is to be cloned into the accepted one */
            egress_forget(st);
            return 0;
        }
        if (!p->payload_bytes)
            verdict_control(o, CONTROL_KIND_TCP_ACK);
        else
            verdict_refuse(o, st, DROP_REASON_OWNERLESS, st->local_mode);
        return 1;
    }
    if ((p->tcp_flags & (TCP_FLAG_SYN | TCP_FLAG_ACK)) == TCP_FLAG_SYN) {
        egress_forget(st);
        st->flags |= SOCK_FLAG_OPENED;
    }
    return 0;
}

/*
 * What the wire says of the other end of a segment that has to be judged: nothing of an opening, which only asks whether
 * any answer could be allowed; of an answer, what the opening said, from the copy that sock_ops made of the stamped one.
 */
static INLINE void egress_wire(struct __sk_buff *skb, struct outcome *o, const struct control *c,
                               const struct scratch *s, const struct sock_state *st)
{
    const struct packet *p = &s->packet;
    struct wire_self *self = wire_here();
    struct wire_said *w = o->w;
    int is_answer = p->tcp_flags & TCP_FLAG_SYN && p->tcp_flags & TCP_FLAG_ACK;

    if (p->tcp_flags & TCP_FLAG_SYN) {
        wire_find(skb, p, w, 1);
        w->action = w->at ? WIRE_STRIP : WIRE_LEAVE;
    }
    if (!self)
        return;
    if (is_answer && w->at &&
        wire_is_stamped(self, w, w->acknowledgement - 1, wire_caller(p->destination, p->destination_port))) {
        o->w->node = wire_number(w->option.node);
        o->w->action = WIRE_SAY;
        return wire_known(w, bpf_ntohl(w->option.identity));
    }
    if (!(p->tcp_flags & TCP_FLAG_SYN) && st->remote_node) {
        o->w->node = st->remote_node;
        if (!(st->flags & SOCK_FLAG_WIRE))
            return;
        if (!wire_stands(c, st))
            return wire_unknown(w, DROP_REASON_WIRE_CLAIM);
        return wire_known(w, st->remote_identity);
    }
    if (!(p->tcp_flags & TCP_FLAG_SYN) && st->flags & SOCK_FLAG_OPENED)
        return; /* older than the registration of its peer */
    struct node_entry *n = wire_node_at(p->destination);
    if (!wire_speaks(n))
        return;
    o->w->node = n->node;
    if (is_answer || !(p->tcp_flags & TCP_FLAG_SYN)) {
        if (!(n->flags & NODE_FLAG_BY_ADDRESS))
            wire_unknown(w, DROP_REASON_WIRE_MISSING);
        return;
    }
    int has_room = w->at && !p->payload_bytes; /* no data goes to whoever may answer, by a Fast Open cookie from before */
    if (!has_room || !wire_keys_of(n->node, wire_now(self))) {
        if (!(n->flags & NODE_FLAG_BY_ADDRESS))
            wire_unknown(w, has_room ? DROP_REASON_WIRE_NO_KEY : DROP_REASON_WIRE_NO_ROOM);
        return;
    }
    o->w->action = WIRE_SAY;
    w->is_opening = 1;
    /* or a process that no workload selects may answer: then its address decides */
    w->is_known = policy_allows_peer(c, st->local_identity, p->protocol, p->destination_port) != 0;
    w->remote = IDENTITY_PEER;
}

/* An opening that some answer could be allowed for: nothing is granted, and nothing counted, before the answer. */
static INLINE void egress_keep_opening(struct outcome *o, struct sock_state *st)
{
    st->remote_node = o->w->node;
    st->wire_word = o->w->sequence;
    st->flags |= SOCK_FLAG_PENDING | SOCK_FLAG_STREAM;
    o->kind = OUTCOME_PASS;
}

/* Say who sends it, or take off what somebody else has put there. */
static INLINE void egress_say(struct __sk_buff *skb, struct outcome *o, const struct scratch *s)
{
    struct wire_self *self = wire_here();
    u32 identity = o->st ? o->st->local_identity : IDENTITY_UNKNOWN;
    u32 kind = s->packet.tcp_flags & TCP_FLAG_ACK ? WIRE_KIND_ANSWER : WIRE_KIND_OPENING;
    int failed;

    if (o->w->action == WIRE_SAY && self && (wire_is_of_every_node(identity) || identity > IDENTITY_RESERVED_MAX)) {
        wire_count(WIRE_COUNT_SAID);
        failed = wire_say(skb, &s->packet, self, o->w, o->w->node, identity, kind);
    } else {
        wire_count(WIRE_COUNT_STRIPPED);
        failed = wire_strip(skb, &s->packet, o->w);
    }
    if (failed)
        verdict_refuse(o, o->st, DROP_REASON_WIRE_NO_KEY, o->st ? o->st->local_mode : MODE_ENFORCE);
}

/* Keep a stream's verdict in its socket, and decide whether it is news. */
static INLINE void egress_keep_stream(struct outcome *o, const struct control *c, struct sock_state *st, u8 direction,
                                      int refused_there)
{
    const struct judgement *j = o->j;
    u32 before = st->verdict; /* of the same conversation, whoever its end was then */

    st->remote_identity = refused_there ? j->local : j->remote;
    st->rule_id = j->rule_id;
    st->verdict = j->verdict;
    st->reason = j->reason;
    st->direction = j->direction;
    st->deadline_s = j->deadline_s;
    st->flags |= SOCK_FLAG_STREAM;
    if (before == VERDICT_NONE) {
        /* an accepted conversation was counted by its SYN; its first answer counts only if it is dropped after all */
        if (direction == DIRECTION_INGRESS && !(st->flags & SOCK_FLAG_ADOPTED)) {
            if (j->verdict == VERDICT_DENY)
                o->event_flags |= EVENT_FLAG_CUT;
            else
                o->kind = OUTCOME_PASS;
        }
    } else if (before == j->verdict) {
        o->kind = j->verdict == VERDICT_DENY ? OUTCOME_COUNTED : OUTCOME_PASS;
    } else if (j->verdict == VERDICT_DENY) {
        o->event_flags |= EVENT_FLAG_CUT;
    }
    /* an end that is not attested yet is asked for again at the next packet, not at the next generation */
    if (j->verdict == VERDICT_ALLOW || (j->local != IDENTITY_UNKNOWN && j->remote != IDENTITY_UNKNOWN))
        st->generation = c->generation;
}

/* An answer is told from an opening by who spoke first: by the receiver's memory on lo, by a rule elsewhere. */
static INLINE int egress_may_answer(const struct packet *p, const struct sock_state *st, const struct endpoint *to,
                                    int lo)
{
    if (!lo)
        return 1;
    return to->st && endpoint_peer_opened(to->st, endpoint_peer(p->source, p->source_port, st->local_identity));
}

static INLINE void egress_remember_echo(const struct control *c, struct scratch *s)
{
    u32 generation = c->generation;

    __builtin_memset(&s->echo, 0, sizeof(s->echo));
    s->echo.identifier = s->packet.icmp_identifier;
    __builtin_memcpy(s->echo.local_address, s->packet.source, 16);
    __builtin_memcpy(s->echo.remote_address, s->packet.destination, 16);
    echoes.update(&s->echo, &generation);
}

/* A packet of a socket whose identity is known: everything that policy decides. */
static INLINE void egress_owned(struct __sk_buff *skb, struct outcome *o, const struct control *c, struct scratch *s,
                                struct sock_state *st, u32 state, int lo)
{
    const struct packet *p = &s->packet;
    int udp = p->protocol == IPPROTO_UDP || p->protocol == IPPROTO_UDPLITE, tcp = p->protocol == IPPROTO_TCP;
    u8 direction = DIRECTION_EGRESS;
    __be16 port = p->destination_port;
    struct endpoint to = {};
    u64 peer = 0;

    if (tcp) {
        if (egress_tcp_control(o, c, p, st, state))
            return;
        if (st->flags & SOCK_FLAG_STEERED) /* on lo it would not be here: what is for the proxy leaves the machine */
            return verdict_refuse(o, st, DROP_REASON_PROXY, MODE_ENFORCE);
        if (!(st->flags & SOCK_FLAG_OPENED)) {
            direction = DIRECTION_INGRESS;
            port = p->source_port;
        }
    }
    if (udp && st->local_identity == IDENTITY_HOST && packet_is_dhcp(p, DIRECTION_EGRESS))
        return verdict_control(o, CONTROL_KIND_DHCP);
    if (lo && udp && packet_is_for_many(p->family, p->destination))
        return verdict_refuse(o, st, DROP_REASON_MULTICAST, identity_any_mode(c));
    if (lo)
        endpoint_receiver(skb, p, c, &to);
    int listens = tcp && (state == TCP_STATE_LISTEN || state == TCP_STATE_NEW_SYN_RECV);
    /* the other end of what was allowed has closed, or waits for stray segments: nobody to judge, nor to receive it */
    if (tcp && lo && !to.found && (listens || st->verdict == VERDICT_ALLOW || st->verdict == VERDICT_WOULD_DENY))
        return;
    if (udp || (tcp && c->flags & CONTROL_FLAG_NAMES))
        peer = endpoint_peer(p->destination, p->destination_port, to.identity);
    int known = 0;
    if (udp) {
        if (to.st)
            to.st->peer_tgid = st->tgid; /* from here on what it sends may be an answer: see cgroup.c */
        o->receiver = to.st;
        o->peer = peer;
        known = st->local_identity != IDENTITY_UNKNOWN && endpoint_peer_current(st, peer, c);
        if (!lo)
            known = wire_datagram_leaves(o, c, p, st, peer, known);
        if (known && !dns_is_question(c, p))
            return;
    }

    struct judgement *reading = &s->reading;
    int refused_there = 0;
    u32 name = 0;
#pragma nounroll
    for (int answer = 0; answer < 2; answer++) {
        if (!lo) {
            name = tcp && st->peer_word == peer ? st->remote_name : 0;
            if (o->w->is_known)
                to.identity = o->w->remote;
            else
                to.identity = verdict_remote(c, st->local_identity, p->family, p->destination, direction, p->protocol,
                                             port, &name);
        }
        int there = egress_judge(s, c, st, &to, direction, port, lo);
        if (!answer) {
            *o->j = *reading;
            refused_there = there;
            if (reading->verdict == VERDICT_ALLOW || !udp || !egress_may_answer(p, st, &to, lo))
                break;
            if (!lo)
                wire_datagram_answers(o, c, p, st, peer);
            direction = DIRECTION_INGRESS;
            port = p->source_port;
        } else if (reading->verdict == VERDICT_ALLOW || (lo && reading->verdict == VERDICT_WOULD_DENY)) {
            /* counted when its other end opened it */
            endpoint_peer_remember(st, peer, 0, !reading->deadline_s, c);
            return;
        }
    }
    if (known)
        return; /* judged only to tell whether policy allows the question */
    o->kind = OUTCOME_JUDGED;
    verdict_explain(o, o->j);
    if (listens) {
        /* counted by its SYN, unless it is dropped after all; nothing is kept in a listener */
        if (o->j->verdict != VERDICT_DENY)
            o->kind = OUTCOME_PASS;
        return;
    }
    st->peer_tgid = to.tgid;
    if (tcp) {
        st->remote_name = name;
        st->peer_word = peer;
        if (o->w->is_opening && o->j->verdict != VERDICT_DENY)
            return egress_keep_opening(o, st);
        return egress_keep_stream(o, c, st, direction, refused_there);
    }
    if (o->j->verdict == VERDICT_DENY)
        return;
    if (udp)
        endpoint_peer_remember(st, peer, PEER_OPENED, !o->j->deadline_s && st->local_identity != IDENTITY_UNKNOWN, c);
    else if (packet_is_echo(p))
        egress_remember_echo(c, s);
}

/* No socket with a process behind it: the kernel's own control packets by name, nothing else. */
static INLINE void egress_ownerless(struct outcome *o, const struct control *c, const struct packet *p)
{
    if (p->protocol == IPPROTO_TCP && (p->tcp_flags & TCP_FLAG_RST))
        return verdict_control(o, CONTROL_KIND_TCP_RESET);
    if (p->protocol == IPPROTO_TCP && (p->tcp_flags & TCP_FLAG_ACK) && !p->payload_bytes)
        return verdict_control(o, CONTROL_KIND_TCP_ACK);
    if (packet_is_icmp_error(p))
        return verdict_control(o, CONTROL_KIND_ICMP_ERROR);
    if (packet_is_echo_reply(p))
        return verdict_control(o, CONTROL_KIND_ECHO_REPLY);
    if (packet_is_neighbour(p) && p->hop_limit == 255 && p->icmp_type != ND_REDIRECT)
        return verdict_control(o, CONTROL_KIND_NEIGHBOUR);
    if (packet_is_membership(p))
        return verdict_control(o, CONTROL_KIND_GROUP);
    verdict_refuse(o, 0, DROP_REASON_OWNERLESS, identity_any_mode(c));
}

/* A socket that no hook has seen opening (MPTCP subflows, accept queues older than us): its control group at least. */
static INLINE struct sock_state *egress_late_state(struct __sk_buff *skb, struct bpf_sock *sk)
{
    struct sock_state *st = sockets.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
    if (st && !st->cgroup_id) {
        st->cgroup_id = bpf_skb_cgroup_id(skb);
        st->socket_cookie = socket_cookie(skb);
    }
    return st;
}

/*
 * The socket that sends, or for an answer to an opening its listener: its state is made if it has none and somebody's
 * process may be behind it.
 */
static INLINE struct sock_state *egress_state(struct __sk_buff *skb, struct bpf_sock *sk)
{
    struct sock_state *st = sk ? sockets.sk_storage_get(sk, 0, 0) : 0;

    if (st || !sk)
        return st;
    if (sk->state == TCP_STATE_NEW_SYN_RECV) {
        struct bpf_sock *listener = bpf_get_listener_sock(sk);
        return listener ? sockets.sk_storage_get(listener, 0, 0) : 0;
    }
    struct bpf_sock *full = bpf_sk_fullsock(sk);
    /* a raw socket without state is one of the kernel's own: users' are stamped or adopted, packet sockets never */
    return full && (full->type != SOCK_TYPE_RAW || sk->family == AF_PACKET) ? egress_late_state(skb, full) : 0;
}

static INLINE void egress_decide(struct __sk_buff *skb, struct outcome *o, const struct control *c, struct scratch *s,
                                 struct bpf_sock *sk, struct sock_state *st, int bad, int lo)
{
    const struct packet *p = &s->packet;
    u32 state = sk ? sk->state : 0;

    if (!c->generation)
        return verdict_refuse(o, 0, DROP_REASON_NO_POLICY, MODE_ENFORCE);
    /* on lo the receiver of what is forged may be enforced, whoever sends it */
    if (sk && sk->family == AF_PACKET) {
        if (!bad && st && st->local_identity == IDENTITY_HOST && packet_is_dhcp(p, DIRECTION_EGRESS))
            return verdict_control(o, CONTROL_KIND_DHCP);
        return verdict_refuse(o, st, DROP_REASON_PACKET_SOCKET, lo || !st ? identity_any_mode(c) : st->local_mode);
    }
    if (bad)
        return verdict_refuse(o, st, bad, identity_any_mode(c));
    if (p->link_arp)
        return verdict_control(o, CONTROL_KIND_ARP);
    if (!sk && skb->ingress_ifindex)
        return verdict_refuse(o, 0, DROP_REASON_FORWARDED, identity_host_mode(c));
    if (st && (st->flags & SOCK_FLAG_RAW) &&
        (p->protocol == IPPROTO_TCP || p->protocol == IPPROTO_UDP || p->protocol == IPPROTO_UDPLITE))
        return verdict_refuse(o, st, DROP_REASON_RAW_SOCKET, lo ? identity_any_mode(c) : st->local_mode);
    if (p->later_fragment)
        return verdict_later_fragment(o, c, s);
    if (!st) {
        /* kernels that send SYN-ACKs from the request socket: ingress has judged the SYN */
        if (state == TCP_STATE_NEW_SYN_RECV && p->protocol == IPPROTO_TCP && (p->tcp_flags & TCP_FLAG_SYN))
            return;
        return egress_ownerless(o, c, p);
    }
    egress_owned(skb, o, c, s, st, state, lo);
}

/* Have a question that policy allows read, or on lo the answer to one. Returns the stage that does, or 0. */
static INLINE u32 egress_dns(struct __sk_buff *skb, const struct outcome *o, const struct control *c,
                              const struct packet *p, const struct sock_state *st, int lo)
{
    if (!(c->flags & CONTROL_FLAG_NAMES) || !st)
        return 0;
    if (p->destination_port == bpf_htons(DNS_PORT)) {
        if (o->j->verdict != VERDICT_ALLOW)
            return 0;
        if (p->protocol == IPPROTO_TCP && p->tcp_flags & TCP_FLAG_SYN)
            dns_count(DNS_OUTCOME_STREAM);
        if (p->protocol != IPPROTO_UDP)
            return 0;
        dns_hand(skb, p, st, o->peer, DIRECTION_EGRESS);
        return STAGE_DNS_QUESTION;
    }
    if (lo && o->receiver && dns_is_answer(p)) {
        dns_hand(skb, p, o->receiver, endpoint_peer(p->source, p->source_port, st->local_identity), DIRECTION_EGRESS);
        return STAGE_DNS_ANSWER;
    }
    return 0;
}

/* `sk` is what sent the packet; 0: no socket did. */
static INLINE int egress_full(struct __sk_buff *skb, struct bpf_sock *sk)
{
    /* it leaves where it came in: whoever sets the mark in a namespace of his own reaches nobody but himself */
    if (skb->tc_index == WIRE_TOLD && skb->ingress_ifindex == skb->ifindex && skb->cb[0] != LINK_LOOPBACK) {
        skb->tc_index = 0;
        return PASS;
    }
    struct control word = trial_control(), *c = &word;
    int lo = skb->cb[0] == LINK_LOOPBACK;
    u32 l2 = skb->cb[0] == LINK_BARE ? 0 : ETH_HEADER_BYTES;
    u32 which = DIRECTION_EGRESS;
    struct scratch *s = scratches.lookup(&which);
    if (!s)
        return DROP;
    struct outcome o = {.j = &s->judgement, .w = &s->said, .event_flags = lo ? EVENT_FLAG_LOOPBACK : 0};
    int bad = packet_parse(skb, &s->packet, l2);

    __builtin_memset(&s->judgement, 0, sizeof(s->judgement));
    wire_forget(&s->said);
    o.j->direction = DIRECTION_EGRESS;
    struct sock_state *st = egress_state(skb, sk);
    if (st)
        identity_derive(st, c);
    o.st = st;
    if (st && lo && !bad && s->packet.protocol == IPPROTO_TCP && steering_is_of(s, st, sk)) {
        stages.call(skb, STAGE_STEERED);
        return DROP;
    }
    /* here, where the verifier has not yet gone many ways: what it says is used only if a judgement comes to it */
    if (st && !lo && !bad && s->packet.protocol == IPPROTO_TCP)
        egress_wire(skb, &o, c, s, st);
    egress_decide(skb, &o, c, s, sk, st, bad, lo);
    if (o.w->action && s->packet.protocol == IPPROTO_TCP && o.kind != OUTCOME_REFUSED && o.j->verdict != VERDICT_DENY)
        egress_say(skb, &o, s);
    int action = verdict_settle(skb, c, &s->packet, &o);
    if (s->packet.first_fragment)
        verdict_first_fragment(s, DIRECTION_EGRESS, action);
    if (action != PASS)
        return DROP;
    if (lo)
        skb->tc_index = LOOPBACK_JUDGED;
    u32 then = egress_dns(skb, &o, c, &s->packet, st, lo);
    if (st && (o.w->action == WIRE_TRAIL || o.w->action == WIRE_NOTE)) {
        wire_note_said(st, o.peer, o.w->action == WIRE_TRAIL);
        if (o.w->action == WIRE_TRAIL && skb->tc_index != WIRE_PRECEDED) {
            struct wire_hand *h = wire_hand();
            if (!h)
                return DROP;
            h->node = o.w->node;
            h->identity = st->local_identity;
            h->network = l2;
            h->then = then;
            stages.call(skb, STAGE_TRAILER);
            return DROP;
        }
    }
    if (then)
        stages.call(skb, then);
    return PASS;
}

/* A conversation that policy has refused since: nothing leaves but the reset that tells the peer. */
static INLINE int egress_is_reset(struct __sk_buff *skb, u32 l2)
{
    void *data = packet_data(skb), *end = packet_end(skb);
    u32 header = skb->protocol == bpf_htons(ETH_P_IP) ? sizeof(struct ipv4_header) : sizeof(struct ipv6_header);
    struct tcp_header *tcp = data + l2 + header;

    return (void *)(tcp + 1) > end || (tcp->flags & TCP_FLAG_RST);
}

static INLINE int egress_refused_stream(struct sock_state *st)
{
    u8 own = st->flags & SOCK_FLAG_OPENED ? DIRECTION_EGRESS : DIRECTION_INGRESS;
    struct judgement j = {
        .local = st->direction == own ? st->local_identity : st->remote_identity,
        .remote = st->direction == own ? st->remote_identity : st->local_identity,
        .direction = st->direction,
        .verdict = VERDICT_DENY,
        .reason = st->reason,
    };
    account_refusal(&j);
    return DROP;
}

/*
 * A segment that goes where its socket's peer is. A program may set a source route, or a segment routing header, on a
 * connected socket; its segments then leave for an address that the verdict was not given for.
 */
static INLINE int egress_is_plain(struct __sk_buff *skb, u32 l2)
{
    void *data = packet_data(skb), *end = packet_end(skb);

    if (skb->protocol == bpf_htons(ETH_P_IP)) {
        struct ipv4_header *ip = data + l2;
        return (void *)(ip + 1) <= end && ip->version_ihl == 0x45 && ip->protocol == IPPROTO_TCP;
    }
    struct ipv6_header *ip = data + l2;
    return (void *)(ip + 1) <= end && ip->next == IPPROTO_TCP;
}

/* The common packet. `link` tells the second stage what kind of device this is. */
static INLINE int egress(struct __sk_buff *skb, const u32 link)
{
    struct control c = control_read();
    struct bpf_sock *sk = skb->sk;

    if (sk) {
        struct sock_state *st = sockets.sk_storage_get(sk, 0, 0);
        if (st && st->generation == c.generation && c.generation && (TCP_STATE(sk->state & 31) & TCP_CARRIES) &&
            (!st->deadline_s || account_boot_seconds() < st->deadline_s)) {
            u32 l2 = link == LINK_BARE ? 0 : ETH_HEADER_BYTES;
            if (st->verdict == VERDICT_DENY) {
                if (!egress_is_reset(skb, l2))
                    return egress_refused_stream(st);
            } else if (egress_is_plain(skb, l2)) {
                if (link == LINK_LOOPBACK)
                    skb->tc_index = LOOPBACK_JUDGED;
                return PASS;
            }
        }
    }
    skb->cb[0] = link;
    stages.call(skb, STAGE_EGRESS);
    return DROP;
}

#endif

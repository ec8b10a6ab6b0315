/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ingress.h: every packet that arrives through a device other than lo.
 *
 * TCP is judged by its SYN; a later segment is parsed and left to the stack, which refuses what belongs to no socket,
 * and a conversation that policy has cut cannot answer. Everything else is judged packet by packet.
 */
#ifndef BULKHEAD_INGRESS_H
#define BULKHEAD_INGRESS_H

/* Judge by policy, with `to` as the receiving end. An answer to a datagram that `to` sent belongs to its conversation. */
static INLINE void ingress_judge(struct outcome *o, const struct control *c, struct scratch *s, struct endpoint *to)
{
    const struct packet *p = &s->packet;
    int udp = to->st && p->protocol != IPPROTO_TCP;
    struct judgement *reading = &s->reading;
    u8 direction = DIRECTION_INGRESS;
    __be16 port = p->destination_port;
    u64 peer = udp ? endpoint_peer(p->source, p->source_port, 0) : 0;

    o->st = to->st;
#pragma nounroll
    for (int answer = 0; answer < 2; answer++) {
        u32 name = 0;
        u32 remote = o->w->remote;
        if (!o->w->is_known)
            remote = verdict_remote(c, to->identity, p->family, p->source, direction, p->protocol, port, &name);
        policy_judge(reading, c, to->identity, to->mode, direction, remote, p->protocol, port, POLICY_ANY_PROXY);
        if (!answer) {
            *o->j = *reading;
            if (reading->verdict == VERDICT_ALLOW || !udp || !endpoint_peer_opened(to->st, peer))
                break;
            direction = DIRECTION_EGRESS;
            port = p->source_port;
        } else if (reading->verdict != VERDICT_DENY) {
            endpoint_peer_remember(to->st, peer, PEER_OPENED, !reading->deadline_s, c);
            return;
        }
    }
    o->kind = OUTCOME_JUDGED;
    if (udp && o->j->verdict != VERDICT_DENY)
        endpoint_peer_remember(to->st, peer, 0, !o->j->deadline_s && to->identity != IDENTITY_UNKNOWN, c);
}

/* What an opening says of its sender. Returns 1 when it is refused for that. */
static INLINE int ingress_opening(struct __sk_buff *skb, struct outcome *o, const struct control *c, struct scratch *s,
                                  const struct endpoint *to)
{
    const struct packet *p = &s->packet;
    struct wire_self *self = wire_here();
    struct wire_said *w = o->w;

    if (!self)
        return 0;
    wire_find(skb, p, w, 0);
    if (!w->at && !wire_reason(w)) {
        struct node_entry *n = wire_node_at(p->source);
        if (!wire_speaks(n) || n->flags & NODE_FLAG_BY_ADDRESS)
            return 0;
        w->node = n->node;
        w->reason = DROP_REASON_WIRE_MISSING;
    } else if (p->payload_bytes || p->first_fragment) {
        w->reason = DROP_REASON_WIRE_MALFORMED;
    } else if (w->at && skb->tc_index == WIRE_VERIFIED &&
               wire_is_stamped(self, w, w->sequence, wire_caller(p->source, p->source_port))) {
        w->node = wire_number(w->option.node);
        wire_known(w, bpf_ntohl(w->option.identity));
        return 0;
    } else if (!wire_reason(w)) {
        wire_verify(c, self, w, WIRE_KIND_OPENING);
        wire_check_host(w, p);
        if (!wire_reason(w) && to->calls)
            w->reason = DROP_REASON_UNSOLICITED; /* no simultaneous open */
        else if (!wire_reason(w))
            wire_guard(p, w);
    }
    if (wire_reason(w)) {
        verdict_refuse(o, to->st, wire_reason(w), to->mode);
        return 1;
    }
    wire_count(WIRE_COUNT_VERIFIED);
    o->w->action = WIRE_MARK;
    wire_known(w, w->identity);
    return 0;
}

/* The report is about the conversation, which we opened: its source is here. */
static INLINE void ingress_turn_round(struct packet *p)
{
    __be16 port = p->source_port;

#pragma unroll
    for (int at = 0; at < 4; at++) {
        __be32 word = p->source[at];
        p->source[at] = p->destination[at];
        p->destination[at] = word;
    }
    p->source_port = p->destination_port;
    p->destination_port = port;
}

/*
 * The answer to an opening that said who calls: who answers is told now, and judged before the stack sees it. An answer
 * to another opening is left for the stack to refuse, and settles nothing.
 */
static INLINE void ingress_answer(struct __sk_buff *skb, struct outcome *o, const struct control *c, struct scratch *s,
                                  const struct endpoint *to)
{
    struct packet *p = &s->packet;
    struct wire_self *self = wire_here();
    struct wire_said *w = o->w;
    struct sock_state *st = to->st;
    struct judgement *j = o->j;
    u32 name = 0;

    if (!self)
        return verdict_refuse(o, st, DROP_REASON_WIRE_NO_KEY, st->local_mode);
    wire_find(skb, p, w, 0);
    if (w->at && w->acknowledgement != (u32)st->wire_word + 1)
        return verdict_refuse(o, st, DROP_REASON_WIRE_REPLAYED, st->local_mode);
    if (w->at) {
        wire_verify(c, self, w, WIRE_KIND_ANSWER);
        if (!wire_reason(w) && w->node != st->remote_node)
            w->reason = DROP_REASON_WIRE_CLAIM;
    } else if (!wire_reason(w)) {
        struct node_entry *n = wire_node_at(p->source);
        if (!n || !(n->flags & NODE_FLAG_BY_ADDRESS))
            w->reason = DROP_REASON_WIRE_MISSING;
    }
    w->node = st->remote_node;
    if (wire_reason(w)) {
        wire_unknown(w, wire_reason(w));
    } else if (w->at) {
        wire_count(WIRE_COUNT_ANSWERED);
        wire_known(w, w->identity);
    }
    u32 remote = o->w->remote;
    if (!o->w->is_known)
        remote = verdict_remote(c, to->identity, p->family, p->source, DIRECTION_EGRESS, p->protocol, p->source_port,
                                &name);
    policy_judge(j, c, to->identity, to->mode, DIRECTION_EGRESS, remote, p->protocol, p->source_port, POLICY_ANY_PROXY);
    verdict_explain(o, j);
    o->st = st;
    o->kind = OUTCOME_JUDGED;
    ingress_turn_round(p);
    if (j->verdict == VERDICT_DENY && (to->identity == IDENTITY_UNKNOWN || wire_reason(w)))
        return; /* it is sent again: by then we may know more, or it may come as it left */
    st->flags &= ~SOCK_FLAG_PENDING;
    if (w->is_known) /* in observe mode unproven as well: it stays nobody when enforcement begins */
        st->flags |= SOCK_FLAG_WIRE;
    st->remote_identity = j->remote;
    st->remote_name = name;
    st->rule_id = j->rule_id;
    st->verdict = j->verdict;
    st->reason = j->reason;
    st->direction = DIRECTION_EGRESS;
    st->deadline_s = j->deadline_s;
    st->generation = c->generation;
    if (j->verdict == VERDICT_DENY)
        o->event_flags |= EVENT_FLAG_CUT;
}

/* What a socket receives. Returns 1 when `o` is settled without asking policy. */
static INLINE int ingress_transport(struct __sk_buff *skb, struct outcome *o, const struct control *c,
                                    struct scratch *s, struct endpoint *to)
{
    const struct packet *p = &s->packet;
    int tcp = p->protocol == IPPROTO_TCP;

    if (tcp && !(p->tcp_flags & TCP_FLAG_SYN))
        return 1;
    endpoint_receiver(skb, p, c, to);
    if (tcp && (p->tcp_flags & TCP_FLAG_ACK)) {
        if (!to->found)
            verdict_refuse(o, 0, DROP_REASON_UNSOLICITED, identity_any_mode(c));
        else if (to->st && to->st->flags & SOCK_FLAG_PENDING)
            ingress_answer(skb, o, c, s, to);
        return 1;
    }
    if (tcp)
        return ingress_opening(skb, o, c, s, to);
    o->receiver = to->st;
    if (to->identity == IDENTITY_HOST && packet_is_dhcp(p, DIRECTION_INGRESS)) {
        verdict_control(o, CONTROL_KIND_DHCP);
        return 1;
    }
    o->peer = endpoint_peer(p->source, p->source_port, 0);
    int current = to->st && to->identity != IDENTITY_UNKNOWN && endpoint_peer_current(to->st, o->peer, c);
    return wire_datagram_arrives(o, c, p, to, o->peer, current);
}

/* Does an ICMP error quote a conversation that is alive here? The quote is what we sent: its source is ours. */
static INLINE int ingress_quotes_live(struct __sk_buff *skb, const struct packet *p)
{
    struct bpf_sock_tuple tuple = {};
    struct bpf_sock *sk = 0;
    u32 at = p->transport + sizeof(struct icmp_header);
    __be16 ports[2] = {};
    u32 size;
    u8 protocol;

    if (p->family == AF_INET) {
        struct ipv4_header quoted;
        if (bpf_skb_load_bytes(skb, at, &quoted, sizeof(quoted)) || (quoted.version_ihl & 15) < 5)
            return 0;
        if (bpf_skb_load_bytes(skb, at + (quoted.version_ihl & 15) * 4, ports, sizeof(ports)))
            return 0;
        protocol = quoted.protocol;
        tuple.ipv4.saddr = quoted.destination;
        tuple.ipv4.daddr = quoted.source;
        tuple.ipv4.sport = ports[1];
        tuple.ipv4.dport = ports[0];
        size = sizeof(tuple.ipv4);
    } else {
        struct ipv6_header quoted;
        if (bpf_skb_load_bytes(skb, at, &quoted, sizeof(quoted)) ||
            bpf_skb_load_bytes(skb, at + sizeof(quoted), ports, sizeof(ports)))
            return 0;
        protocol = quoted.next;
        __builtin_memcpy(tuple.ipv6.saddr, quoted.destination, 16);
        __builtin_memcpy(tuple.ipv6.daddr, quoted.source, 16);
        tuple.ipv6.sport = ports[1];
        tuple.ipv6.dport = ports[0];
        size = sizeof(tuple.ipv6);
    }
    if (protocol == IPPROTO_TCP)
        sk = bpf_sk_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
    else if (protocol == IPPROTO_UDP || protocol == IPPROTO_UDPLITE)
        sk = bpf_sk_lookup_udp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
    if (!sk)
        return 0;
    int live = sk->state != TCP_STATE_LISTEN;
    bpf_sk_release(sk);
    return live;
}

static INLINE int ingress_echo_was_asked(const struct control *c, struct scratch *s)
{
    __builtin_memset(&s->echo, 0, sizeof(s->echo));
    s->echo.identifier = s->packet.icmp_identifier;
    __builtin_memcpy(s->echo.local_address, s->packet.destination, 16);
    __builtin_memcpy(s->echo.remote_address, s->packet.source, 16);
    u32 *asked = echoes.lookup(&s->echo);
    return asked && *asked == c->generation;
}

/* ICMP and IGMP that need no policy. Returns 1 when `o` is settled; what is left is addressed to the host. */
static INLINE int ingress_icmp(struct __sk_buff *skb, struct outcome *o, const struct control *c, struct scratch *s)
{
    const struct packet *p = &s->packet;

    if (packet_is_neighbour(p) && p->icmp_type != ND_REDIRECT) {
        if (p->hop_limit == 255 && !p->fragment_header)
            verdict_control(o, CONTROL_KIND_NEIGHBOUR);
        else
            verdict_refuse(o, 0, DROP_REASON_NEIGHBOUR, identity_any_mode(c));
        return 1;
    }
    if (packet_is_membership(p)) {
        verdict_control(o, CONTROL_KIND_GROUP);
        return 1;
    }
    if (packet_is_echo_reply(p)) {
        if (!ingress_echo_was_asked(c, s))
            verdict_refuse(o, 0, DROP_REASON_UNSOLICITED, identity_any_mode(c));
        return 1;
    }
    if (packet_is_icmp_error(p)) {
        if (ingress_quotes_live(skb, p))
            verdict_control(o, CONTROL_KIND_ICMP_ERROR);
        else
            verdict_refuse(o, 0, DROP_REASON_UNSOLICITED, identity_any_mode(c));
        return 1;
    }
    return 0;
}

/* Addresses that cannot come off a wire: loopback, IPv4 dressed as IPv6, a group as source, nobody as source. */
static INLINE int ingress_is_martian(const struct packet *p)
{
    if (packet_is_loopback(p->family, p->source) || packet_is_loopback(p->family, p->destination))
        return 1;
    if (packet_is_group(p->family, p->source))
        return 1;
    if (p->family == AF_INET6)
        return packet_is_mapped(p->source) || packet_is_mapped(p->destination);
    return p->source[3] == 0 && !packet_is_membership(p) &&
           !(p->protocol == IPPROTO_UDP && p->source_port == bpf_htons(68));
}

/* A broadcast of a subnet looks like any address: then how it was framed tells. */
static INLINE int ingress_is_for_many(struct __sk_buff *skb, const struct packet *p)
{
    u32 framed = skb->pkt_type;

    if (packet_is_group(p->family, p->destination) || framed == PACKET_LOOPBACK)
        return 1;
    return skb->cb[0] == LINK_ETHERNET && (framed == PACKET_BROADCAST || framed == PACKET_MULTICAST);
}

static INLINE void ingress_decide(struct __sk_buff *skb, struct outcome *o, const struct control *c, struct scratch *s,
                                  int bad, int lo)
{
    const struct packet *p = &s->packet;
    struct endpoint to = {.identity = IDENTITY_HOST, .mode = identity_host_mode(c)};

    if (!c->generation)
        return verdict_refuse(o, 0, DROP_REASON_NO_POLICY, MODE_ENFORCE);
    if (lo)
        return verdict_refuse(o, 0, DROP_REASON_LOOPBACK_BYPASS, identity_any_mode(c));
    if (bad)
        return verdict_refuse(o, 0, bad, identity_any_mode(c));
    if (p->link_arp)
        return verdict_control(o, CONTROL_KIND_ARP);
    if (ingress_is_martian(p))
        return verdict_refuse(o, 0, DROP_REASON_MARTIAN, identity_any_mode(c));
    if (p->later_fragment)
        return verdict_later_fragment(o, c, s);
    if (p->protocol == IPPROTO_ICMPV6 || p->protocol == IPPROTO_ICMP || p->protocol == IPPROTO_IGMP) {
        if (ingress_icmp(skb, o, c, s))
            return;
    } else if (ingress_is_for_many(skb, p) && !packet_is_dhcp(p, DIRECTION_INGRESS)) {
        /* whoever has joined gets it, enforced workloads too */
        return verdict_refuse(o, 0, DROP_REASON_MULTICAST, identity_any_mode(c));
    } else if (p->protocol == IPPROTO_TCP || p->protocol == IPPROTO_UDP || p->protocol == IPPROTO_UDPLITE) {
        if (ingress_transport(skb, o, c, s, &to))
            return;
    }
    ingress_judge(o, c, s, &to);
}

static INLINE int ingress_full(struct __sk_buff *skb)
{
    struct control word = trial_control(), *c = &word;
    int is_read = skb->cb[0] & LINK_READ;
    skb->cb[0] &= ~LINK_READ;
    u32 l2 = skb->cb[0] == LINK_BARE ? 0 : ETH_HEADER_BYTES;
    u32 which = DIRECTION_INGRESS;
    struct scratch *s = scratches.lookup(&which);
    if (!s)
        return DROP;
    struct outcome o = {.j = &s->judgement, .w = &s->said};
    int bad = packet_parse(skb, &s->packet, l2);

    __builtin_memset(&s->judgement, 0, sizeof(s->judgement));
    if (!is_read) {
        wire_forget(&s->said);
        if (!bad && s->packet.surplus_bytes && wire_here()) {
            stages.call(skb, STAGE_DATAGRAM);
            return DROP;
        }
    }
    o.j->direction = DIRECTION_INGRESS;
    ingress_decide(skb, &o, c, s, bad, skb->cb[0] == LINK_LOOPBACK);
    if (o.w->action == WIRE_MARK && o.j->verdict != VERDICT_DENY) {
        struct wire_self *self = wire_here();
        if (!self || wire_mark_verified(skb, &s->packet, self, o.w))
            verdict_refuse(&o, o.st, DROP_REASON_WIRE_MALFORMED, MODE_ENFORCE);
        skb->tc_index = WIRE_VERIFIED;
    }
    int action = verdict_settle(skb, c, &s->packet, &o);
    if (s->packet.first_fragment)
        verdict_first_fragment(s, DIRECTION_INGRESS, action);
    if (action == PASS && (o.w->action == WIRE_NOTE || o.w->action == WIRE_PROVEN) && o.receiver)
        wire_note_let_in((struct sock_state *)o.receiver, o.w, o.peer);
    /* who is not attested yet may be so when the opening is sent again */
    if (action != PASS && o.w->action == WIRE_MARK && o.kind == OUTCOME_JUDGED && o.j->local != IDENTITY_UNKNOWN)
        stages.call(skb, STAGE_WIRE_TELL);
    if (action == PASS && s->packet.protocol == IPPROTO_TCP && s->packet.tcp_flags & TCP_FLAG_RST && wire_here())
        stages.call(skb, STAGE_WIRE_HEAR);
    if (action == PASS && c->flags & CONTROL_FLAG_NAMES && o.receiver && dns_is_answer(&s->packet)) {
        const struct packet *p = &s->packet;
        dns_hand(skb, p, o.receiver, endpoint_peer(p->source, p->source_port, 0), DIRECTION_INGRESS);
        stages.call(skb, STAGE_DNS_ANSWER);
    }
    return action;
}

/* The plain case, told by a handful of loads: an unfragmented IPv4 or IPv6 segment of a stream that is under way. */
static INLINE int ingress_is_stream(struct __sk_buff *skb, u32 l2)
{
    void *data = packet_data(skb), *end = packet_end(skb);

    if (skb->protocol == bpf_htons(ETH_P_IP)) {
        struct ipv4_header *ip = data + l2;
        struct tcp_header *tcp = (void *)(ip + 1);
        if ((void *)(tcp + 1) > end)
            return 0;
        return ip->version_ihl == 0x45 && ip->protocol == IPPROTO_TCP && !(ip->fragment & bpf_htons(0x3fff)) &&
               !(tcp->flags & (TCP_FLAG_SYN | TCP_FLAG_RST)) && (ip->source & bpf_htonl(0xff000000)) != bpf_htonl(0x7f000000) &&
               (ip->destination & bpf_htonl(0xff000000)) != bpf_htonl(0x7f000000) && tcp->offset >= 0x50 &&
               tcp->source && tcp->destination;
    }
    if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
        struct ipv6_header *ip = data + l2;
        struct tcp_header *tcp = (void *)(ip + 1);
        if ((void *)(tcp + 1) > end)
            return 0;
        /* a first word of zero is where loopback, mapped and unspecified addresses live */
        return ip->next == IPPROTO_TCP && !(tcp->flags & (TCP_FLAG_SYN | TCP_FLAG_RST)) && ip->source[0] && ip->destination[0] &&
               (ip->destination[0] & bpf_htonl(0xff000000)) != bpf_htonl(0xff000000) && tcp->offset >= 0x50 &&
               tcp->source && tcp->destination;
    }
    return 0;
}

static INLINE int ingress(struct __sk_buff *skb, const u32 link)
{
    if (skb->pkt_type == PACKET_LOOPBACK) {
        skb->cb[0] = LINK_BARE;
        stages.call(skb, STAGE_INGRESS);
        return DROP;
    }
    if (ingress_is_stream(skb, link == LINK_BARE ? 0 : ETH_HEADER_BYTES))
        return PASS;
    skb->cb[0] = link;
    stages.call(skb, STAGE_INGRESS);
    return DROP;
}

/* lo was judged when the packet left. What skipped that (AF_PACKET past the qdisc) carries no mark. */
static INLINE int ingress_loopback(struct __sk_buff *skb)
{
    if (skb->tc_index == LOOPBACK_JUDGED)
        return PASS;
    skb->cb[0] = LINK_LOOPBACK;
    stages.call(skb, STAGE_INGRESS);
    return DROP;
}

#endif

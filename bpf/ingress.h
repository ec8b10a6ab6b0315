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
        u32 remote = policy_remote(c, to->identity, p->family, p->source, direction, p->protocol, port, &name);
        policy_judge(reading, c, to->identity, to->mode, direction, remote, p->protocol, port);
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

/* What a socket receives. Returns 1 when `o` is settled without asking policy. */
static INLINE int ingress_transport(struct __sk_buff *skb, struct outcome *o, const struct control *c,
                                    const struct packet *p, struct endpoint *to)
{
    int tcp = p->protocol == IPPROTO_TCP;

    if (tcp && !(p->tcp_flags & TCP_FLAG_SYN))
        return 1;
    endpoint_receiver(skb, p, c, to);
    if (tcp && (p->tcp_flags & TCP_FLAG_ACK)) {
        if (!to->found)
            verdict_refuse(o, 0, DROP_REASON_UNSOLICITED, identity_any_mode(c));
        return 1;
    }
    if (tcp)
        return 0;
    o->receiver = to->st;
    if (to->identity == IDENTITY_HOST && packet_is_dhcp(p, DIRECTION_INGRESS)) {
        verdict_control(o, CONTROL_KIND_DHCP);
        return 1;
    }
    return to->st && to->identity != IDENTITY_UNKNOWN &&
           endpoint_peer_current(to->st, endpoint_peer(p->source, p->source_port, 0), c);
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
        if (ingress_transport(skb, o, c, p, &to))
            return;
    }
    ingress_judge(o, c, s, &to);
}

static INLINE int ingress_full(struct __sk_buff *skb)
{
    struct control word = trial_control(), *c = &word;
    u32 l2 = skb->cb[0] == LINK_BARE ? 0 : ETH_HEADER_BYTES;
    u32 which = DIRECTION_INGRESS;
    struct scratch *s = scratches.lookup(&which);
    if (!s)
        return DROP;
    struct outcome o = {.j = &s->judgement};
    int bad = packet_parse(skb, &s->packet, l2);

    __builtin_memset(&s->judgement, 0, sizeof(s->judgement));
    o.j->direction = DIRECTION_INGRESS;
    ingress_decide(skb, &o, c, s, bad, skb->cb[0] == LINK_LOOPBACK);
    int action = verdict_settle(skb, c, &s->packet, &o);
    if (s->packet.first_fragment)
        verdict_first_fragment(s, DIRECTION_INGRESS, action);
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
               !(tcp->flags & TCP_FLAG_SYN) && (ip->source & bpf_htonl(0xff000000)) != bpf_htonl(0x7f000000) &&
               (ip->destination & bpf_htonl(0xff000000)) != bpf_htonl(0x7f000000) && tcp->offset >= 0x50 &&
               tcp->source && tcp->destination;
    }
    if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
        struct ipv6_header *ip = data + l2;
        struct tcp_header *tcp = (void *)(ip + 1);
        if ((void *)(tcp + 1) > end)
            return 0;
        /* a first word of zero is where loopback, mapped and unspecified addresses live */
        return ip->next == IPPROTO_TCP && !(tcp->flags & TCP_FLAG_SYN) && ip->source[0] && ip->destination[0] &&
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

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * packet.h: from bytes to `struct packet`, once per judged packet.
 *
 * Contract: packet_parse() returns 0 and a complete `struct packet`, or the drop reason that describes what is wrong.
 * Nothing is guessed: a length that contradicts another, a header past the end or port 0 is malformed; an IPv6
 * extension header other than a fragment (or hop-by-hop in front of MLD) is refused, since it can hide the transport.
 * Addresses are kept as 16 bytes, IPv4 as ::ffff:a.b.c.d. A later fragment has `later_fragment` set and no ports.
 */
#ifndef BULKHEAD_PACKET_H
#define BULKHEAD_PACKET_H

#define ETH_HEADER_BYTES 14
#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86DD
#define ETH_P_ARP 0x0806

#define AF_INET 2
#define AF_INET6 10
#define AF_PACKET 17

/* skb->pkt_type */
#define PACKET_BROADCAST 1
#define PACKET_MULTICAST 2
#define PACKET_LOOPBACK 5 /* a group's or broadcast's copy for this machine itself; it has no link header */

#define IPPROTO_ICMP 1
#define IPPROTO_IGMP 2
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_ICMPV6 58
#define IPPROTO_UDPLITE 136

#define NEXT_HOP_BY_HOP 0
#define NEXT_ROUTING 43
#define NEXT_FRAGMENT 44
#define NEXT_DESTINATION 60
#define NEXT_MOBILITY 135

#define TCP_FLAG_FIN 1
#define TCP_FLAG_SYN 2
#define TCP_FLAG_RST 4
#define TCP_FLAG_ACK 16

#define ICMP_ECHO_REPLY 0
#define ICMP_UNREACHABLE 3
#define ICMP_ECHO 8
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETER 12
#define ICMPV6_UNREACHABLE 1
#define ICMPV6_TOO_BIG 2
#define ICMPV6_TIME_EXCEEDED 3
#define ICMPV6_PARAMETER 4
#define ICMPV6_ECHO 128
#define ICMPV6_ECHO_REPLY 129
#define MLD_QUERY 130
#define MLD_DONE 132
#define ND_ROUTER_SOLICITATION 133
#define ND_REDIRECT 137
#define MLD_V2_REPORT 143

struct ipv4_header {
    u8 version_ihl;
    u8 tos;
    __be16 total_length;
    __be16 identification;
    __be16 fragment;
    u8 ttl;
    u8 protocol;
    __be16 checksum;
    __be32 source;
    __be32 destination;
};

struct ipv6_header {
    __be32 version_class_flow;
    __be16 payload_length;
    u8 next;
    u8 hop_limit;
    __be32 source[4];
    __be32 destination[4];
};

struct fragment_header {
    u8 next;
    u8 reserved;
    __be16 offset;
    __be32 identification;
};

struct tcp_header {
    __be16 source;
    __be16 destination;
    __be32 sequence;
    __be32 acknowledgement;
    u8 offset;
    u8 flags;
    __be16 window;
    __be32 checksum_urgent;
};

#define TCP_CHECKSUM 16 /* offset in the header */

struct udp_header {
    __be16 source;
    __be16 destination;
    __be16 length;
    __be16 checksum;
};

struct icmp_header {
    u8 type;
    u8 code;
    __be16 checksum;
    __be16 identifier;
    __be16 sequence;
};

struct packet {
    __be32 source[4];
    __be32 destination[4];
    __be32 via[4];         /* see verdict_event */
    u32 identification;
    u32 transport;         /* offset of the transport header from the start of the frame */
    u32 payload_bytes;     /* behind the TCP header */
    u32 udp_bytes;         /* as the UDP header says; 0: not one whole datagram */
    u32 surplus_bytes;     /* of the IP packet behind those */
    __be16 source_port;
    __be16 destination_port; /* ICMP: type << 8 | code, network order */
    __be16 icmp_identifier;
    __be16 via_port;
    u8 family;             /* AF_INET, AF_INET6; 0 for anything that is not IP */
    u8 protocol;
    u8 tcp_flags;
    u8 tcp_bytes;          /* of the TCP header, options included */
    u8 icmp_type;
    u8 hop_limit;
    u8 later_fragment;
    u8 first_fragment;
    u8 hop_by_hop;
    u8 fragment_header;    /* IPv6, an atomic fragment's included */
    u8 link_arp;
};

static INLINE int packet_is_mapped(const __be32 *address)
{
    return address[0] == 0 && address[1] == 0 && address[2] == bpf_htonl(0xffff);
}

static INLINE int packet_is_loopback(u8 family, const __be32 *address)
{
    if (family == AF_INET)
        return (address[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
    return address[0] == 0 && address[1] == 0 && address[2] == 0 && address[3] == bpf_htonl(1);
}

static INLINE int packet_is_group(u8 family, const __be32 *address)
{
    if (family == AF_INET)
        return (address[3] & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000) || address[3] == 0xffffffff;
    return (address[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
}

/* A datagram that several sockets may get. On lo a broadcast is told by its address alone. */
static INLINE int packet_is_for_many(u8 family, const __be32 *address)
{
    return packet_is_group(family, address) || (family == AF_INET && address[3] == bpf_htonl(0x7fffffff));
}

/*
 * skb->data and skb->data_end, by loads that the optimiser cannot share: it would keep the field's address in a
 * register, and the verifier allows context access only at constant offsets from the context itself.
 */
static INLINE void *packet_data(struct __sk_buff *skb)
{
    long data;
    asm volatile("%0 = *(u32 *)(%1 + 76)" : "=r"(data) : "r"(skb));
    return (void *)data;
}

static INLINE void *packet_end(struct __sk_buff *skb)
{
    long end;
    asm volatile("%0 = *(u32 *)(%1 + 80)" : "=r"(end) : "r"(skb));
    return (void *)end;
}

_Static_assert(__builtin_offsetof(struct __sk_buff, data) == 76, "packet_data");
_Static_assert(__builtin_offsetof(struct __sk_buff, data_end) == 80, "packet_end");

/* Make `need` bytes of the frame readable; headers can sit in pages when a device splits them off. */
static INLINE int packet_pull(struct __sk_buff *skb, u32 need)
{
    void *data = packet_data(skb);

    if (data + need <= packet_end(skb))
        return 0;
    if (skb->len < need)
        return -1;
    return bpf_skb_pull_data(skb, need);
}

static INLINE int packet_parse_ports(struct __sk_buff *skb, struct packet *p, u32 l3_end)
{
    u32 at = p->transport;
    void *data, *end;

    /* at most 14 + 60 + 8; said in a way that the optimiser keeps and the verifier sees */
    asm volatile("%0 &= 0xff" : "+r"(at));
    if (p->protocol == IPPROTO_TCP) {
        if (packet_pull(skb, at + sizeof(struct tcp_header)))
            return DROP_REASON_MALFORMED;
        data = packet_data(skb);
        end = packet_end(skb);
        struct tcp_header *tcp = data + at;
        if ((void *)(tcp + 1) > end)
            return DROP_REASON_MALFORMED;
        u32 header = (tcp->offset >> 4) * 4;
        if (header < sizeof(*tcp) || at + header > l3_end)
            return DROP_REASON_MALFORMED;
        p->source_port = tcp->source;
        p->destination_port = tcp->destination;
        p->tcp_flags = tcp->flags;
        p->tcp_bytes = header;
        p->payload_bytes = l3_end - at - header;
    } else if (p->protocol == IPPROTO_UDP || p->protocol == IPPROTO_UDPLITE) {
        if (packet_pull(skb, at + sizeof(struct udp_header)))
            return DROP_REASON_MALFORMED;
        data = packet_data(skb);
        end = packet_end(skb);
        struct udp_header *udp = data + at;
        if ((void *)(udp + 1) > end)
            return DROP_REASON_MALFORMED;
        u32 length = bpf_ntohs(udp->length);
        /* with segmentation offload the length may be any; UDP-Lite counts coverage here */
        if (p->protocol == IPPROTO_UDP && !skb->gso_segs &&
            (length < sizeof(*udp) || (!p->first_fragment && at + length > l3_end)))
            return DROP_REASON_MALFORMED;
        if (at + sizeof(*udp) > l3_end)
            return DROP_REASON_MALFORMED;
        if (p->protocol == IPPROTO_UDP && !skb->gso_segs && !p->first_fragment) {
            p->udp_bytes = length;
            p->surplus_bytes = l3_end - at - length;
        }
        p->source_port = udp->source;
        p->destination_port = udp->destination;
    } else if (p->protocol == IPPROTO_ICMP || p->protocol == IPPROTO_ICMPV6) {
        if (packet_pull(skb, at + sizeof(struct icmp_header)))
            return DROP_REASON_MALFORMED;
        data = packet_data(skb);
        end = packet_end(skb);
        struct icmp_header *icmp = data + at;
        if ((void *)(icmp + 1) > end || at + sizeof(*icmp) > l3_end)
            return DROP_REASON_MALFORMED;
        p->icmp_type = icmp->type;
        p->icmp_identifier = icmp->identifier;
        p->destination_port = bpf_htons((u16)icmp->type << 8 | icmp->code);
        return 0;
    } else {
        return 0;
    }
    /* port 0 is a wildcard in too many tables to let it be a port anywhere */
    if (!p->source_port || !p->destination_port)
        return DROP_REASON_MALFORMED;
    return 0;
}

/* `l3_end` is where the IP packet ends in the frame; link padding may follow. */
static INLINE int packet_parse4(struct __sk_buff *skb, struct packet *p, u32 l2, u32 *l3_end)
{
    if (packet_pull(skb, l2 + sizeof(struct ipv4_header)))
        return DROP_REASON_MALFORMED;
    void *data = packet_data(skb), *end = packet_end(skb);
    struct ipv4_header *ip = data + l2;
    if ((void *)(ip + 1) > end)
        return DROP_REASON_MALFORMED;
    u32 header = (ip->version_ihl & 15) * 4;
    u32 total = bpf_ntohs(ip->total_length);
    if (!total && skb->gso_segs)
        total = skb->len - l2; /* BIG TCP: longer than the field can say */
    if (ip->version_ihl >> 4 != 4 || header < sizeof(*ip) || total < header || l2 + total > skb->len)
        return DROP_REASON_MALFORMED;
    p->source[2] = p->destination[2] = bpf_htonl(0xffff);
    p->source[3] = ip->source;
    p->destination[3] = ip->destination;
    p->family = AF_INET;
    p->protocol = ip->protocol;
    p->hop_limit = ip->ttl;
    p->transport = l2 + header;
    u16 fragment = bpf_ntohs(ip->fragment);
    if (fragment & 0x3fff) {
        p->identification = ip->identification;
        p->later_fragment = !!(fragment & 0x1fff);
        p->first_fragment = !p->later_fragment;
    }
    *l3_end = l2 + total;
    return 0;
}

static INLINE int packet_parse6(struct __sk_buff *skb, struct packet *p, u32 l2, u32 *l3_end)
{
    if (packet_pull(skb, l2 + sizeof(struct ipv6_header)))
        return DROP_REASON_MALFORMED;
    void *data = packet_data(skb), *end = packet_end(skb);
    struct ipv6_header *ip = data + l2;
    if ((void *)(ip + 1) > end || (*(u8 *)ip) >> 4 != 6)
        return DROP_REASON_MALFORMED;
    u32 total = bpf_ntohs(ip->payload_length) + sizeof(*ip);
    u8 next = ip->next;
    if (total == sizeof(*ip) && skb->gso_segs)
        total = skb->len - l2;
    if (l2 + total > skb->len)
        return DROP_REASON_MALFORMED;
    __builtin_memcpy(p->source, ip->source, 16);
    __builtin_memcpy(p->destination, ip->destination, 16);
    p->family = AF_INET6;
    p->hop_limit = ip->hop_limit;
    p->transport = l2 + sizeof(*ip);
    if (next == NEXT_HOP_BY_HOP) {
        if (packet_pull(skb, p->transport + 8))
            return DROP_REASON_MALFORMED;
        data = packet_data(skb);
        end = packet_end(skb);
        u8 *option = data + l2 + sizeof(struct ipv6_header);
        if ((void *)(option + 8) > end)
            return DROP_REASON_MALFORMED;
        /* router alert alone, eight bytes, in front of MLD: the one use a host has for it */
        if (option[0] != IPPROTO_ICMPV6 || option[1] != 0 || option[2] != 5)
            return DROP_REASON_EXTENSION_HEADER;
        next = IPPROTO_ICMPV6;
        p->hop_by_hop = 1;
        p->transport += 8;
    } else if (next == NEXT_FRAGMENT) {
        if (packet_pull(skb, p->transport + sizeof(struct fragment_header)))
            return DROP_REASON_MALFORMED;
        data = packet_data(skb);
        end = packet_end(skb);
        struct fragment_header *fragment = data + l2 + sizeof(struct ipv6_header);
        if ((void *)(fragment + 1) > end)
            return DROP_REASON_MALFORMED;
        next = fragment->next;
        p->fragment_header = 1;
        p->transport += sizeof(*fragment);
        /* neither offset nor more-fragments: an atomic fragment is a whole packet (RFC 6946) */
        if (fragment->offset & bpf_htons(0xfff9)) {
            p->identification = fragment->identification;
            p->later_fragment = !!(fragment->offset & bpf_htons(0xfff8));
            p->first_fragment = !p->later_fragment;
        }
    }
    p->protocol = next;
    *l3_end = l2 + total;
    if (next == NEXT_HOP_BY_HOP || next == NEXT_ROUTING || next == NEXT_FRAGMENT || next == NEXT_DESTINATION ||
        next == NEXT_MOBILITY)
        return DROP_REASON_EXTENSION_HEADER;
    return 0;
}

static INLINE int packet_is_mld(const struct packet *p)
{
    return p->protocol == IPPROTO_ICMPV6 &&
           ((p->icmp_type >= MLD_QUERY && p->icmp_type <= MLD_DONE) || p->icmp_type == MLD_V2_REPORT);
}

/* `l2` is 14 on Ethernet-like devices and 0 on devices that carry bare IP (tun, tunnels). */
static INLINE int packet_parse(struct __sk_buff *skb, struct packet *p, u32 l2)
{
    u32 link = skb->protocol, l3_end = 0;
    int reason = DROP_REASON_LINK_PROTOCOL;

    __builtin_memset(p, 0, sizeof(*p));
    if (link == bpf_htons(ETH_P_ARP)) {
        p->link_arp = 1;
        return 0;
    }
    if (link == bpf_htons(ETH_P_IP))
        reason = packet_parse4(skb, p, l2, &l3_end);
    else if (link == bpf_htons(ETH_P_IPV6))
        reason = packet_parse6(skb, p, l2, &l3_end);
    /* each ICMP belongs to one family: in the other nobody speaks it, and it would be read by the wrong rules */
    if (!reason && p->protocol == (p->family == AF_INET ? IPPROTO_ICMPV6 : IPPROTO_ICMP))
        return DROP_REASON_MALFORMED;
    if (reason || p->later_fragment)
        return reason;
    reason = packet_parse_ports(skb, p, l3_end);
    if (!reason && p->hop_by_hop && !packet_is_mld(p))
        return DROP_REASON_EXTENSION_HEADER;
    return reason;
}

static INLINE int packet_is_icmp_error(const struct packet *p)
{
    if (p->protocol == IPPROTO_ICMP)
        return p->icmp_type == ICMP_UNREACHABLE || p->icmp_type == ICMP_TIME_EXCEEDED || p->icmp_type == ICMP_PARAMETER;
    return p->protocol == IPPROTO_ICMPV6 && p->icmp_type >= ICMPV6_UNREACHABLE && p->icmp_type <= ICMPV6_PARAMETER;
}

static INLINE int packet_is_echo(const struct packet *p)
{
    return (p->protocol == IPPROTO_ICMP && p->icmp_type == ICMP_ECHO) ||
           (p->protocol == IPPROTO_ICMPV6 && p->icmp_type == ICMPV6_ECHO);
}

static INLINE int packet_is_echo_reply(const struct packet *p)
{
    return (p->protocol == IPPROTO_ICMP && p->icmp_type == ICMP_ECHO_REPLY) ||
           (p->protocol == IPPROTO_ICMPV6 && p->icmp_type == ICMPV6_ECHO_REPLY);
}

static INLINE int packet_is_neighbour(const struct packet *p)
{
    return p->protocol == IPPROTO_ICMPV6 && p->icmp_type >= ND_ROUTER_SOLICITATION && p->icmp_type <= ND_REDIRECT;
}

static INLINE int packet_is_membership(const struct packet *p)
{
    return p->protocol == IPPROTO_IGMP || packet_is_mld(p);
}

/* Client to server leaving, server to client arriving; a server in a workload needs a rule like anyone else. */
static INLINE int packet_is_dhcp(const struct packet *p, u8 direction)
{
    __be16 client = p->family == AF_INET ? bpf_htons(68) : bpf_htons(546);
    __be16 server = p->family == AF_INET ? bpf_htons(67) : bpf_htons(547);

    if (p->protocol != IPPROTO_UDP)
        return 0;
    if (direction == DIRECTION_EGRESS)
        return p->source_port == client && p->destination_port == server;
    return p->source_port == server && p->destination_port == client;
}

#endif

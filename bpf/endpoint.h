/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * endpoint.h: the local endpoint of a packet: its socket, its identity, the peers it is in conversation with.
 *
 * INVARIANT: skb->sk is the sender's socket, on ingress too when a packet crosses a veth. A receiver is only ever found
 * by socket lookup.
 */
#ifndef BULKHEAD_ENDPOINT_H
#define BULKHEAD_ENDPOINT_H

#define SOCK_TYPE_STREAM 1
#define SOCK_TYPE_RAW 3
#define TCP_STATE_SYN_SENT 2
#define TCP_STATE_LISTEN 10
#define TCP_STATE_NEW_SYN_RECV 12

#define PEER_OPENED (1ull << 16)
#define PEER_GENERATION 0xffffull
#define PEER_HASH (~0ull << 17)

struct endpoint {
    struct sock_state *st; /* 0: the host itself, or a socket without state */
    u32 identity;
    u32 mode;
    u32 tgid;
    u8 found;              /* a socket of a conversation receives it, no listener */
    u8 calls;              /* that socket waits for the answer to an opening of its own */
};

static INLINE u64 endpoint_mix(u64 x)
{
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9ull;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

/*
 * A peer as one word, so that it is read and written in one piece: 47 bits of a keyed hash of address, port and (on
 * loopback) identity. The key is random and secret; a collision cannot be looked for, only hit, at 2^-47 a try.
 */
static INLINE u64 endpoint_peer(const __be32 *address, __be16 port, u32 identity)
{
    u32 zero = 0;
    struct setting *s = setting.lookup(&zero);
    u64 x = s ? s->hash_seed : 0;

    x = endpoint_mix(x ^ ((u64)address[0] << 32 | address[1]));
    x = endpoint_mix(x ^ ((u64)address[2] << 32 | address[3]));
    x = endpoint_mix(x ^ ((u64)port << 32 | identity));
    return x & PEER_HASH;
}

static INLINE int endpoint_peer_current(const struct sock_state *st, u64 peer, const struct control *c)
{
    u64 word = st->peer_word;
    return (word & PEER_HASH) == peer && (word & PEER_GENERATION) == (c->generation & PEER_GENERATION);
}

/* Has this socket opened a conversation with `peer`, in whatever generation? */
static INLINE int endpoint_peer_opened(const struct sock_state *st, u64 peer)
{
    u64 word = st->peer_word;
    if ((word & PEER_HASH) == peer && (word & PEER_OPENED))
        return 1;
    struct datagram_key key = {.socket_cookie = st->socket_cookie, .peer = peer};
    return datagrams.lookup(&key) != 0;
}

/*
 * Remember `peer` in one word; a displaced peer whose answers are still due moves to the table. `standing`: the verdict
 * may be reused as long as the generation lasts; otherwise only who opened is kept, and the next packet is judged.
 */
static INLINE void endpoint_peer_remember(struct sock_state *st, u64 peer, u64 opened, int standing,
                                          const struct control *c)
{
    u32 generation = standing ? c->generation : c->generation ^ 0x8000;

    u64 word = st->peer_word;

    if ((word & PEER_OPENED) && (word & PEER_HASH) != peer) {
        struct datagram_key key = {.socket_cookie = st->socket_cookie, .peer = word & PEER_HASH};
        struct datagram_entry entry = {.generation = c->generation};
        datagrams.update(&key, &entry);
    }
    if ((word & PEER_HASH) == peer)
        opened |= word & PEER_OPENED;
    st->peer_word = peer | opened | (generation & PEER_GENERATION);
}

static INLINE u32 endpoint_tuple(struct bpf_sock_tuple *tuple, const struct packet *p)
{
    if (p->family == AF_INET) {
        tuple->ipv4.saddr = p->source[3];
        tuple->ipv4.daddr = p->destination[3];
        tuple->ipv4.sport = p->source_port;
        tuple->ipv4.dport = p->destination_port;
        return sizeof(tuple->ipv4);
    }
    __builtin_memcpy(tuple->ipv6.saddr, p->source, 16);
    __builtin_memcpy(tuple->ipv6.daddr, p->destination, 16);
    tuple->ipv6.sport = p->source_port;
    tuple->ipv6.dport = p->destination_port;
    return sizeof(tuple->ipv6);
}

/* The endpoint that `p` will be delivered to: the owner of the receiving socket, or the host when there is none. */
static INLINE void endpoint_receiver(struct __sk_buff *skb, const struct packet *p, const struct control *c,
                                     struct endpoint *to)
{
    struct bpf_sock_tuple tuple = {};
    u32 size = endpoint_tuple(&tuple, p);
    struct bpf_sock *sk = 0;

    to->st = 0;
    to->identity = IDENTITY_HOST;
    to->mode = identity_host_mode(c);
    to->tgid = 0;
    to->found = 0;
    to->calls = 0;
    if (p->protocol == IPPROTO_TCP) {
        sk = bpf_sk_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
        if (!sk && (p->tcp_flags & (TCP_FLAG_SYN | TCP_FLAG_ACK)) == TCP_FLAG_SYN) {
            /* a TIME_WAIT socket holds the tuple and steps aside for a new SYN: who listens behind it? */
            if (p->family == AF_INET)
                tuple.ipv4.sport = 0;
            else
                tuple.ipv6.sport = 0;
            sk = bpf_sk_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
        }
    } else if (p->protocol == IPPROTO_UDP) {
        sk = bpf_sk_lookup_udp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
    } else if (p->protocol == IPPROTO_UDPLITE) {
        /* has a table of its own that no lookup reaches: whoever holds the same UDP port receives none of it */
        to->identity = IDENTITY_UNKNOWN;
        to->mode = identity_any_mode(c);
    }
    if (!sk)
        return;
    to->found = sk->state != TCP_STATE_LISTEN;
    to->calls = sk->state == TCP_STATE_SYN_SENT;
    to->st = sockets.sk_storage_get(sk, 0, 0);
    bpf_sk_release(sk);
    if (to->st) {
        identity_derive(to->st, c);
        to->identity = to->st->local_identity;
        to->mode = to->st->local_mode;
        to->tgid = to->st->tgid;
    } else {
        to->identity = IDENTITY_UNKNOWN;
        to->mode = identity_any_mode(c);
    }
}

#endif

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * wire_datagram.h: identity on the wire of UDP. It stands in a trailer behind the user data (docs/wire.md), on the first
 * datagrams of a conversation and every few seconds after; a datagram that has no room for it is preceded by a carrier,
 * which has nothing else. The receiver remembers what was said for its socket and this peer (`wire_flows`).
 *
 * `sock_state.wire_word` holds what is going on with the socket's current peer, in one word that is replaced in one step:
 *
 *     tag (16) | said (21) | checked (21) | flags and count (6)
 *
 * tag: the first bits of the peer's hash, so that nothing that is known of one peer counts for the next. said: when it
 * was last told who we are (or, if it is no node, when that was looked up). checked: when who it is was last looked up,
 * and it was let in. Times in units of 2^30 ns.
 * INVARIANT: WORD_CHECKED is set only after a datagram of this peer was let in, and taken away before one that says who
 * sends it is judged. Without it a verdict that was given for another at this address is not reused.
 */
#ifndef BULKHEAD_WIRE_DATAGRAM_H
#define BULKHEAD_WIRE_DATAGRAM_H

#define WORD_TAG (~0ull << 48)
#define WORD_SAID_SHIFT 27
#define WORD_CHECKED_SHIFT 6
#define WORD_TIME 0x1fffffull
#define WORD_COUNT 7ull    /* how often it was told, as far as that counts */
#define WORD_HEARD 8ull    /* something was let in that was sent after it knew */
#define WORD_CHECKED 16ull /* `checked` is a time */
#define WORD_PROVEN 32ull  /* by what was said, not by the address */

#define WIRE_AGAIN 4     /* units of time: what was said or checked is good for as long */
#define WIRE_IDLE 28     /* units: a conversation begins anew */
#define WIRE_BELIEVED_S 60
#define WIRE_PATH_BYTES 1280 /* an IP packet that any path carries whole */
#define WIRE_FLAG_CARRIER 1
#define CHECKSUM_PARTIAL 3

#define IPV4_TOTAL_LENGTH 2 /* offsets in headers */
#define IPV4_FRAGMENT 6
#define IPV4_CHECKSUM 10
#define IPV6_PAYLOAD_LENGTH 4
#define UDP_LENGTH 4
#define UDP_CHECKSUM 6
#define IP_DONT_FRAGMENT 0x4000

static long (*wire_check_mtu)(void *ctx, u32 ifindex, u32 *mtu, s32 more, u64 flags) = (void *)BPF_FUNC_check_mtu;

_Static_assert(sizeof(struct wire_trailer) == WIRE_TRAILER_BYTES, "wire_trailer");

/* What the stage that judged a datagram tells the one that says who sends it; and that one its carrier. One per CPU. */
struct wire_hand {
    u32 token;    /* in skb->cb of the carrier that is on its way through this device again; 0: none is */
    u32 node;     /* to be told */
    u32 identity; /* of the sender */
    u32 network;  /* offset of the IP header */
    u32 then;     /* enum stage that is next; 0: none */
};
BPF_F_TABLE("percpu_array", u32, struct wire_hand, wire_hands, 1, 0);

static INLINE struct wire_hand *wire_hand(void)
{
    u32 zero = 0;
    return wire_hands.lookup(&zero);
}

static INLINE u32 wire_unit(void)
{
    return bpf_ktime_get_coarse_ns() >> 30 & WORD_TIME;
}

static INLINE u32 wire_age(u64 word, u32 shift, u32 now)
{
    return (now - (u32)(word >> shift)) & WORD_TIME;
}

/* What is known of `peer`: nothing if the word is about another. */
static INLINE u64 wire_word(const struct sock_state *st, u64 peer)
{
    u64 word = *(volatile u64 *)&st->wire_word;
    return (word ^ peer) & WORD_TAG ? peer & WORD_TAG : word;
}

/* Need a datagram that leaves for this peer say nothing? */
static INLINE int wire_is_quiet(u64 word, u32 now)
{
    u32 age = wire_age(word, WORD_SAID_SHIFT, now);

    if (!(word & WORD_COUNT) || age >= WIRE_AGAIN)
        return 0;
    return word & WORD_HEARD || (!age && (word & WORD_COUNT) == WORD_COUNT);
}

/* Who the other end is was told lately, and it has been noticed that it has heard us. */
static INLINE int wire_is_checked(u64 word, u32 now)
{
    return word & WORD_CHECKED && wire_age(word, WORD_CHECKED_SHIFT, now) < WIRE_AGAIN &&
           (word & WORD_HEARD || !(word & WORD_COUNT));
}

/* `peer` has been told who we are, or is nobody to tell. */
static INLINE void wire_note_said(struct sock_state *st, u64 peer, int is_told)
{
    u64 held = *(volatile u64 *)&st->wire_word, word = wire_word(st, peer);
    u32 now = wire_unit();

    if (wire_age(word, WORD_SAID_SHIFT, now) >= WIRE_IDLE)
        word &= ~(WORD_COUNT | WORD_HEARD);
    if ((word & WORD_COUNT) != WORD_COUNT)
        word++;
    if (!is_told)
        word |= WORD_HEARD;
    word = (word & ~(WORD_TIME << WORD_SAID_SHIFT)) | (u64)now << WORD_SAID_SHIFT;
    __sync_val_compare_and_swap(&st->wire_word, held, word);
}

/*
 * A datagram of `peer` was let in. One that says who sends it comes from somebody who does not know yet that we do:
 * where he spoke first, he is told again who we are. Any other is an answer, or sent by somebody who has heard us.
 */
static INLINE u64 wire_heard(const struct sock_state *st, u64 word, u64 peer, int says)
{
    u64 last = st->peer_word;
    int is_opener = last & PEER_OPENED && (last & PEER_HASH) == peer;

    if (says && !is_opener)
        return word & ~(WORD_COUNT | WORD_HEARD);
    return word & WORD_COUNT ? word | WORD_HEARD : word;
}

static INLINE void wire_note_let_in(struct sock_state *st, const struct wire_said *w, u64 peer)
{
    u64 held = w->held, word = (held ^ peer) & WORD_TAG ? peer & WORD_TAG : held;

    word = wire_heard(st, word, peer, !!w->at) & ~(WORD_TIME << WORD_CHECKED_SHIFT | WORD_PROVEN);
    word |= WORD_CHECKED | (w->action == WIRE_PROVEN ? WORD_PROVEN : 0) | (u64)wire_unit() << WORD_CHECKED_SHIFT;
    __sync_val_compare_and_swap(&st->wire_word, held, word);
}

/* What was said in this conversation, if it may still be believed. */
static INLINE struct wire_flow *wire_flow_of(const struct sock_state *st, u64 peer)
{
    struct wire_flow_key key = {.socket_cookie = st->socket_cookie, .peer = peer};
    struct wire_flow *flow = wire_flows.lookup(&key);

    return flow && account_boot_seconds() - flow->verified_s < WIRE_BELIEVED_S ? flow : 0;
}

/* May what was said before still be said, by who said it? */
static INLINE int wire_flow_stands(const struct control *c, const struct wire_self *self, const struct wire_flow *flow)
{
    return wire_keys_of(flow->node, wire_now(self)) && wire_may_claim(c, flow->identity, flow->node);
}

/*
 * Leaving: is there a node to tell who sends it? Of who receives it nothing is known before the answer: IDENTITY_PEER.
 * Returns 1 when there is nothing to say and `known` settles the rest.
 */
static INLINE int wire_datagram_leaves(struct outcome *o, const struct control *c, const struct packet *p,
                                       const struct sock_state *st, u64 peer, int known)
{
    struct wire_self *self = wire_here();
    struct wire_said *w = o->w;
    u32 flags = 0, node = 0;

    if (!self)
        return known;
    int quiet = wire_is_quiet(wire_word(st, peer), wire_unit());
    if (known && quiet)
        return 1;
    struct node_entry *n = wire_node_at(p->destination);
    if (wire_speaks(n)) {
        node = n->node;
        flags = n->flags;
    } else if (!n) {
        struct wire_flow *flow = wire_flow_of(st, peer);
        if (flow)
            node = flow->node; /* reached through a translated address */
    }
    if (!node || p->protocol != IPPROTO_UDP || !wire_keys_of(node, wire_now(self))) {
        w->action = node ? WIRE_LEAVE : WIRE_NOTE;
        w->node = node;
        if (node && !(flags & NODE_FLAG_BY_ADDRESS))
            wire_unknown(w, p->protocol == IPPROTO_UDP ? DROP_REASON_WIRE_NO_KEY : DROP_REASON_WIRE_NO_ROOM);
        return known;
    }
    w->node = node;
    w->is_known = n && policy_allows_peer(c, st->local_identity, p->protocol, p->destination_port);
    w->remote = IDENTITY_PEER;
    u32 identity = st->local_identity;
    /* what has a surplus area comes from another device of this host, where it was said */
    if (!quiet && !p->surplus_bytes && (wire_is_of_every_node(identity) || identity > IDENTITY_RESERVED_MAX))
        w->action = WIRE_TRAIL;
    return known;
}

/* The same datagram as an answer: to whom is what its receiver said before. */
static INLINE void wire_datagram_answers(struct outcome *o, const struct control *c, const struct packet *p,
                                         const struct sock_state *st, u64 peer)
{
    struct wire_self *self = wire_here();
    struct wire_said *w = o->w;

    if (!self || !w->node)
        return;
    struct wire_flow *flow = wire_flow_of(st, peer);
    if (flow && wire_flow_stands(c, self, flow))
        return wire_known(w, flow->identity);
    struct node_entry *n = wire_node_at(p->destination);
    if (n && !(n->flags & NODE_FLAG_BY_ADDRESS))
        wire_unknown(w, DROP_REASON_NONE); /* what is told is why it may not leave as an opening */
}

/* Fold to 16 bits, in whatever byte order it was summed. */
static INLINE u16 wire_fold(u64 sum)
{
    sum = (sum & 0xffffffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    return (sum & 0xffff) + (sum >> 16);
}

/* The sum of a surplus area of `bytes`, which ends with the trailer, and of this length. */
static INLINE u16 wire_sum(const struct wire_trailer *t, u32 bytes)
{
    const u16 *words = (const u16 *)t;
    u64 sum = bpf_htons(bytes);

#pragma unroll
    for (int at = 0; at < WIRE_TRAILER_BYTES / 2; at++)
        sum += words[at];
    return wire_fold(sum);
}

/*
 * Is the checksum of this packet still to be completed, by the device or in front of it? Then everything to its end is
 * added to what the field holds. No helper tells; a guess by comparing with the pseudo-header's sum would be wrong once
 * in 65,536 datagrams.
 */
static INLINE int wire_is_partial(struct __sk_buff *skb)
{
    struct __sk_buff *held = skb;
    u64 at = 0;
    u8 bits = 0;

    kernel_read(&at, sizeof(at), &held);
    kernel_read(&bits, sizeof(bits), (void *)(at + BIT_SKB_IP_SUMMED / 8));
    return (bits >> (BIT_SKB_IP_SUMMED % 8) & 3) == CHECKSUM_PARTIAL;
}

/* What is said, with its code and checksum, for `user_bytes` of user data and a surplus area of `bytes`. */
static INLINE int wire_compose(struct wire_trailer *t, const struct wire_hand *h, u32 user_bytes, u32 bytes, u8 flags)
{
    struct wire_self *self = wire_here();
    if (!self)
        return -1;
    struct wire_message message = {
        .sequence = bpf_get_prandom_u32(),
        .acknowledgement = bpf_get_prandom_u32(),
        .identity = h->identity,
        .tick = wire_now(self),
        .kind = WIRE_KIND_DATAGRAM | (u32)flags << 8 | user_bytes << 16,
    };
    struct wire_keys *keys = wire_keys_of(h->node, message.tick);
    if (!keys)
        return -1;
    u64 key[2] = {keys->sending[0], keys->sending[1]};
    u64 mac = wire_hash(key, &message);
    __be32 nonce[2] = {bpf_htonl(message.sequence), bpf_htonl(message.acknowledgement)};

    __builtin_memset(t, 0, sizeof(*t));
    t->kind = WIRE_DATAGRAM_KIND;
    t->length = WIRE_TRAILER_BYTES - 2;
    t->experiment = bpf_htons(WIRE_EXPERIMENT);
    t->flags = flags;
    t->tick = message.tick;
    t->identity = bpf_htonl(h->identity);
    t->node[0] = self->node >> 16;
    t->node[1] = self->node >> 8;
    t->node[2] = self->node;
    __builtin_memcpy(t->nonce, nonce, 8);
    __builtin_memcpy(t->mac, &mac, 8);
    u16 checksum = ~wire_sum(t, bytes);
    t->checksum = checksum ? checksum : 0xffff;
    return 0;
}

/* Put a 16-bit field of an IPv4 header in place of another value, in network order. */
static INLINE void wire_put4(struct __sk_buff *skb, u32 network, u32 at, __be16 value)
{
    __be16 old = 0;

    bpf_skb_load_bytes(skb, network + at, &old, sizeof(old));
    bpf_l3_csum_replace(skb, network + IPV4_CHECKSUM, old, value, sizeof(value));
    bpf_skb_store_bytes(skb, network + at, &value, sizeof(value), 0);
}

/* The IP packet ends at `end` from now on. */
static INLINE void wire_put_length(struct __sk_buff *skb, const struct packet *p, u32 network, u32 end)
{
    if (p->family == AF_INET)
        return wire_put4(skb, network, IPV4_TOTAL_LENGTH, bpf_htons(end - network));
    __be16 length = bpf_htons(end - network - sizeof(struct ipv6_header));
    bpf_skb_store_bytes(skb, network + IPV6_PAYLOAD_LENGTH, &length, sizeof(length), 0);
}

/* Is there room behind the user data, on this device and on any path that carries IPv6? */
static INLINE int wire_has_room(struct __sk_buff *skb, const struct packet *p, u32 network, u32 bytes)
{
    u32 mtu = 0;

    if (!p->udp_bytes || p->first_fragment || skb->gso_segs || p->surplus_bytes)
        return 0;
    return skb->len + bytes - network <= WIRE_PATH_BYTES && !wire_check_mtu(skb, 0, &mtu, bytes, 0);
}

/* Append who sends it. Nothing is changed where that fails. */
static INLINE void wire_append(struct __sk_buff *skb, const struct packet *p, const struct wire_hand *h)
{
    u32 pad = p->udp_bytes & 1, bytes = pad + WIRE_TRAILER_BYTES, end = p->transport + p->udp_bytes + bytes;
    int is_partial = wire_is_partial(skb);
    struct wire_trailer trailer;

    if (wire_compose(&trailer, h, p->udp_bytes - sizeof(struct udp_header), bytes, 0) ||
        bpf_skb_change_tail(skb, end, 0))
        return;
    wire_count(WIRE_COUNT_TRAILERS);
    bpf_skb_store_bytes(skb, end - WIRE_TRAILER_BYTES, &trailer, sizeof(trailer), 0);
    wire_put_length(skb, p, h->network, end);
    if (is_partial) {
        u16 checksum = 0;
        bpf_skb_load_bytes(skb, p->transport + UDP_CHECKSUM, &checksum, sizeof(checksum));
        checksum = wire_fold((u64)checksum + bpf_htons(bytes));
        bpf_skb_store_bytes(skb, p->transport + UDP_CHECKSUM, &checksum, sizeof(checksum), 0);
    }
}

/*
 * Send a copy in front, which comes through this device again before this call returns, and is cut to a carrier then.
 * It has no socket, which is why it is known by a token that stands nowhere else.
 */
static INLINE void wire_send_carrier(struct __sk_buff *skb, struct wire_hand *h)
{
    u32 kept = skb->cb[4], token = bpf_get_prandom_u32() | 1;

    h->token = token;
    skb->cb[4] = token;
    bpf_clone_redirect(skb, skb->ifindex, 0);
    skb->cb[4] = kept;
    skb->tc_index = WIRE_PRECEDED;
    h->token = 0;
}

static INLINE int wire_is_carrier(struct __sk_buff *skb)
{
    struct wire_hand *h = wire_hand();

    return h && h->token && skb->cb[4] == h->token && !skb->sk;
}

/* The sum of the pseudo-header of a datagram of no user data. An IPv4 address is the same number as its mapped form. */
static INLINE u64 wire_pseudo_sum(const struct packet *p)
{
    u64 sum = bpf_htons(IPPROTO_UDP) + bpf_htons(sizeof(struct udp_header));

#pragma unroll
    for (int at = 0; at < 4; at++)
        sum += (u64)p->source[at] + p->destination[at];
    return sum;
}

/* Cut a copy down to what it carries. Returns 1 when it is not to leave. */
static INLINE int wire_make_carrier(struct __sk_buff *skb, const struct packet *p, struct wire_hand *h)
{
    u32 at = p->transport, behind = at + sizeof(struct udp_header), end = behind + WIRE_TRAILER_BYTES;
    int is_partial = wire_is_partial(skb);
    __be16 length = bpf_htons(sizeof(struct udp_header)), none = 0;
    u16 checksum = 0;
    struct wire_trailer trailer;

    h->token = 0;
    if (wire_compose(&trailer, h, 0, WIRE_TRAILER_BYTES, WIRE_FLAG_CARRIER) || bpf_skb_change_tail(skb, end, 0))
        return 1;
    wire_count(WIRE_COUNT_CARRIERS);
    skb->tc_index = WIRE_CARRIER;
    bpf_skb_load_bytes(skb, at + UDP_CHECKSUM, &checksum, sizeof(checksum));
    u64 sum = wire_pseudo_sum(p);
    if (is_partial) {
        checksum = wire_fold(sum + bpf_htons(WIRE_TRAILER_BYTES));
    } else if (checksum) {
        checksum = ~wire_fold(sum + p->source_port + p->destination_port + length);
        checksum = checksum ? checksum : 0xffff;
    }
    bpf_skb_store_bytes(skb, behind, &trailer, sizeof(trailer), 0);
    bpf_skb_store_bytes(skb, at + UDP_LENGTH, &length, sizeof(length), 0);
    bpf_skb_store_bytes(skb, at + UDP_CHECKSUM, &checksum, sizeof(checksum), 0);
    wire_put_length(skb, p, h->network, end);
    if (!p->first_fragment)
        return 0;
    if (p->family == AF_INET)
        wire_put4(skb, h->network, IPV4_FRAGMENT, none);
    else /* what stays is an atomic fragment, a packet of its own (RFC 6946) */
        bpf_skb_store_bytes(skb, at - sizeof(struct fragment_header) + 2, &none, sizeof(none), 0);
    return 0;
}

/* Arriving: what a surplus area says. Leaves a reason when it is ours and not as it must be; no `at` if it is not ours. */
static INLINE void wire_datagram_read(struct __sk_buff *skb, const struct control *c, const struct wire_self *self,
                                      const struct packet *p, struct wire_said *w)
{
    u32 pad = p->udp_bytes & 1, bytes = p->surplus_bytes, at = p->transport + p->udp_bytes + pad;
    struct wire_trailer t;

    wire_forget(w);
    __builtin_memset(&t, 0, sizeof(t));
    if (bytes < pad + 6 || bpf_skb_load_bytes(skb, at, &t, 6) || t.kind != WIRE_DATAGRAM_KIND ||
        t.experiment != bpf_htons(WIRE_EXPERIMENT))
        return;
    w->at = at;
    w->reason = DROP_REASON_WIRE_MALFORMED;
    if (bytes != pad + WIRE_TRAILER_BYTES || t.length != WIRE_TRAILER_BYTES - 2 ||
        bpf_skb_load_bytes(skb, at, &t, sizeof(t)) || wire_sum(&t, bytes) != 0xffff)
        return;
    u8 before = 0;
    if (pad && (bpf_skb_load_bytes(skb, at - 1, &before, 1) || before))
        return;
    u32 user_bytes = p->udp_bytes - sizeof(struct udp_header);
    if (t.flags & WIRE_FLAG_CARRIER && user_bytes)
        return;
    __be32 nonce[2];
    __builtin_memcpy(nonce, t.nonce, 8);
    w->sequence = bpf_ntohl(nonce[0]);
    w->acknowledgement = bpf_ntohl(nonce[1]);
    w->option.identity = t.identity;
    __builtin_memcpy(w->option.node, t.node, 3);
    w->option.tick = t.tick;
    __builtin_memcpy(w->option.mac, t.mac, 8);
    w->reason = DROP_REASON_NONE;
    wire_verify(c, self, w, WIRE_KIND_DATAGRAM | (u32)t.flags << 8 | user_bytes << 16);
    wire_check_host(w, p);
    if (!wire_reason(w))
        wire_guard(p, w);
    if (t.flags & WIRE_FLAG_CARRIER)
        w->action = WIRE_CARRY;
}

/* A datagram that says who sends it, in good order. Returns 1 when there is nothing else in it. */
static INLINE int wire_datagram_says(struct outcome *o, const struct control *c, struct sock_state *st, u64 peer)
{
    struct wire_said *w = o->w;

    wire_count(WIRE_COUNT_DATAGRAMS);
    if (st) {
        struct wire_flow_key key = {.socket_cookie = st->socket_cookie, .peer = peer};
        struct wire_flow flow = {
            .identity = w->identity,
            .node = w->node,
            .verified_s = account_boot_seconds(),
        };
        wire_flows.update(&key, &flow);
        u64 last = st->peer_word;
        if ((last & PEER_HASH) == peer) /* what was decided for this address was decided for who spoke before */
            __sync_val_compare_and_swap(&st->peer_word, last,
                                        (last & ~PEER_GENERATION) | ((c->generation ^ 0x8000) & PEER_GENERATION));
        u64 held = *(volatile u64 *)&st->wire_word, word = wire_word(st, peer) & ~WORD_CHECKED;
        if (w->action == WIRE_CARRY)
            word = wire_heard(st, word, peer, 1);
        if (!((held ^ peer) & WORD_TAG))
            __sync_val_compare_and_swap(&st->wire_word, held, word);
        w->held = *(volatile u64 *)&st->wire_word;
    }
    if (w->action == WIRE_CARRY) {
        o->kind = OUTCOME_CONSUMED;
        return 1;
    }
    w->action = WIRE_PROVEN;
    wire_known(w, w->identity);
    return 0;
}

/*
 * Arriving: who sends it, by what it says, by what was said before, or by its address. `current`: its verdict stands, as
 * long as its sender is the one that it was given for. Returns 1 when `o` is settled.
 */
static INLINE int wire_datagram_arrives(struct outcome *o, const struct control *c, const struct packet *p,
                                        const struct endpoint *to, u64 peer, int current)
{
    struct wire_self *self = wire_here();
    struct wire_said *w = o->w;
    struct sock_state *st = to->st;

    if (!self)
        return current;
    if (w->at) {
        if (!wire_reason(w))
            return wire_datagram_says(o, c, st, peer);
        w->action = WIRE_LEAVE;
        verdict_refuse(o, st, wire_reason(w), to->mode);
        return 1;
    }
    u64 word = st ? wire_word(st, peer) : 0;
    if (current && wire_is_checked(word, wire_unit()))
        return 1;
    if (st)
        w->held = *(volatile u64 *)&st->wire_word;
    struct wire_flow *flow = st ? wire_flow_of(st, peer) : 0;
    if (flow) {
        w->node = flow->node;
        if (!wire_flow_stands(c, self, flow)) {
            int has_keys = !!wire_keys_of(flow->node, wire_now(self));
            verdict_refuse(o, st, has_keys ? DROP_REASON_WIRE_CLAIM : DROP_REASON_WIRE_NO_KEY, to->mode);
            return 1;
        }
        w->action = WIRE_PROVEN;
        if (current && word & WORD_CHECKED && word & WORD_PROVEN)
            return 1;
        wire_known(w, flow->identity);
        return 0;
    }
    w->action = WIRE_NOTE;
    if (word & WORD_PROVEN)
        current = 0; /* the verdict was given for who said who he is, too long ago */
    struct node_entry *n = wire_node_at(p->source);
    if (!wire_speaks(n))
        return current;
    w->node = n->node;
    if (n->flags & NODE_FLAG_BY_ADDRESS)
        return current;
    w->action = WIRE_LEAVE;
    verdict_refuse(o, st, DROP_REASON_WIRE_MISSING, to->mode);
    return 1;
}

#endif

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * wire.h: identity on the wire of TCP. The SYN says who calls, the SYN-ACK who answers, each authenticated under the key
 * of its direction between the two nodes; docs/wire.md has the format byte by byte.
 *
 * sock_ops (wire.c) makes room and copies a verified SYN's option into the SYN-ACK; what is said is written here, when
 * the packet leaves, behind any address translation of this host.
 * INVARIANT: what a packet says is believed only after wire_verify(), or after wire_is_stamped() of a copy that this
 * host made of it. Addresses, ports and marks prove nothing.
 */
#ifndef BULKHEAD_WIRE_H
#define BULKHEAD_WIRE_H

#define WIRE_NOP 1
#define WIRE_FAST_OPEN 34 /* RFC 7413 */
#define WIRE_EXPERIMENTAL 254
#define WIRE_FAST_OPEN_EXPERIMENT 0xf989
#define WIRE_MPTCP 30     /* RFC 8684 */
#define WIRE_TICK(_seconds) ((u32)((_seconds) / WIRE_TICK_S))
#define WIRE_GUARD_SLOTS 8
#define WIRE_DECLINED_BYTES (WIRE_OPTION_BYTES - WIRE_PLACE_BYTES)

/* What a TCP header says of its sender. */
struct wire_said {
    struct wire_option option; /* as it is in the packet */
    u32 at;                    /* its offset in the frame; 0: there is none */
    u32 sequence;
    u32 acknowledgement;
    u64 mac;
    u32 now;                   /* our tick when it was verified */
    u32 tick;                  /* once it is verified, as are the following */
    u32 identity;
    u32 reason;                /* enum drop_reason: what is wrong with it */
    u32 room;                  /* working space of wire_guard() */
    u64 held;                  /* working space; datagrams: the receiver's wire_word on arrival */
    u32 node;                  /* that the other end is on, where that is known */
    u32 remote;                /* who the other end is, when `is_known` */
    u8 is_known;               /* by the wire; otherwise by address */
    u8 is_opening;             /* to a node: `remote` is whoever will answer */
    u8 why;                    /* enum drop_reason: why the wire could not tell, for a `remote` that is unknown */
    u8 action;                 /* enum wire_action */
};

/* What to do with the option of a packet that passes. */
enum wire_action {
    WIRE_LEAVE = 0,
    WIRE_SAY = 1,   /* say to `node` who sends this */
    WIRE_STRIP = 2, /* not for the other end to see */
    WIRE_MARK = 3,  /* verified: stamp it for the accepted socket */
    WIRE_TRAIL = 4, /* datagrams: say to `node` who sends this */
    WIRE_NOTE = 5,  /* datagrams: remember what was found out about the peer */
    WIRE_PROVEN = 6, /* datagrams: the same, and that it was not found out by address */
    WIRE_CARRY = 7, /* datagrams: there is nothing in it but what it says */
};

/* Read from memory again, so that the verifier follows one unknown value and not each that it could be. */
static INLINE u32 wire_reason(const struct wire_said *w)
{
    return *(volatile u32 *)&w->reason;
}

static INLINE u64 wire_rotate(u64 x, u32 by)
{
    return x << by | x >> (64 - by);
}

#define WIRE_SIP_ROUND                                                                                                 \
    do {                                                                                                               \
        a += b;                                                                                                        \
        c += d;                                                                                                        \
        b = wire_rotate(b, 13) ^ a;                                                                                    \
        d = wire_rotate(d, 16) ^ c;                                                                                    \
        a = wire_rotate(a, 32);                                                                                        \
        c += b;                                                                                                        \
        a += d;                                                                                                        \
        b = wire_rotate(b, 17) ^ c;                                                                                    \
        d = wire_rotate(d, 21) ^ a;                                                                                    \
        c = wire_rotate(c, 32);                                                                                        \
    } while (0)

_Static_assert(sizeof(struct wire_message) == 24, "wire_hash");

/* SipHash-2-4 of one message. */
static INLINE u64 wire_hash(const u64 *key, const struct wire_message *message)
{
    const u64 *words = (const u64 *)message;
    u64 a = key[0] ^ 0x736f6d6570736575ull, b = key[1] ^ 0x646f72616e646f6dull;
    u64 c = key[0] ^ 0x6c7967656e657261ull, d = key[1] ^ 0x7465646279746573ull;

#pragma unroll
    for (int at = 0; at < 4; at++) {
        u64 word = at < 3 ? words[at] : (u64)sizeof(*message) << 56;
        d ^= word;
        WIRE_SIP_ROUND;
        WIRE_SIP_ROUND;
        a ^= word;
    }
    c ^= 0xff;
    WIRE_SIP_ROUND;
    WIRE_SIP_ROUND;
    WIRE_SIP_ROUND;
    WIRE_SIP_ROUND;
    return a ^ b ^ c ^ d;
}

static INLINE void wire_count(u32 what)
{
    u64 *count = wire_counts.lookup(&what);
    if (count)
        __sync_fetch_and_add(count, 1);
}

/* This node, or 0 when it says and believes nothing on the wire. */
static INLINE struct wire_self *wire_here(void)
{
    u32 zero = 0;
    struct wire_self *self = wire_self.lookup(&zero);
    return self && self->node ? self : 0;
}

static INLINE u32 wire_now(const struct wire_self *self)
{
    return WIRE_TICK(bpf_ktime_get_coarse_ns() / 1000000000ull + self->clock_offset_s);
}

/* The registered node at an address; 0: none. */
static INLINE struct node_entry *wire_node_at(const __be32 *address)
{
    struct node_key key = {.prefix_bits = 128};

    __builtin_memcpy(key.address, address, 16);
    return nodes.lookup(&key);
}

/* A node that is expected to say who is talking. */
static INLINE int wire_speaks(const struct node_entry *n)
{
    return n && !(n->flags & NODE_FLAG_LEGACY);
}

static INLINE struct wire_keys *wire_keys_of(u32 node, u32 tick)
{
    struct wire_key_id id = {.node = node, .epoch = tick / WIRE_EPOCH_TICKS};
    return wire_keys.lookup(&id);
}

static INLINE u32 wire_number(const u8 *bytes)
{
    return (u32)bytes[0] << 16 | (u32)bytes[1] << 8 | bytes[2];
}

/* Identities that a node has whatever policy says: its own processes, and its proxy. */
static INLINE int wire_is_of_every_node(u32 identity)
{
    return identity == IDENTITY_HOST || identity == IDENTITY_PROXY;
}

/* May `node` speak for `identity`, as policy stands? */
static INLINE int wire_may_claim(const struct control *c, u32 identity, u32 node)
{
    if (wire_is_of_every_node(identity))
        return 1;
    if (identity <= IDENTITY_RESERVED_MAX || identity >> 31)
        return 0;
    u32 *set = slot_hosting(c->generation, &identity);
    if (!set)
        return 0;
    struct claim_key key = {.node = node, .host_set = *set};
    return !*set || claims.lookup(&key);
}

/*
 * Find the option, which is the last of the header: anywhere else it is none. Leaves a reason when it is there and not
 * as it must be. With `is_own`, what sock_ops could only reserve less room for counts as well, if what stands in front
 * of it is one that may be written over: a request for a Fast Open cookie, whose data would reach whoever answers, or
 * MP_CAPABLE, whose answer would take the room that the answerer's identity needs. Either end then does without it.
 */
static INLINE void wire_find(struct __sk_buff *skb, const struct packet *p, struct wire_said *w, int is_own)
{
    u32 start = p->transport, header = p->tcp_bytes;

    w->at = 0;
    w->reason = DROP_REASON_NONE;
    asm volatile("%0 &= 0x7f" : "+r"(start)); /* at most 14 + 60; said so that the verifier sees it */
    asm volatile("%0 &= 0x3f" : "+r"(header));
    if (header < sizeof(struct tcp_header) + WIRE_OPTION_BYTES)
        return;
    w->reason = DROP_REASON_WIRE_MALFORMED;
    if (packet_pull(skb, start + header))
        return;
    void *data = packet_data(skb), *end = packet_end(skb);
    struct tcp_header *tcp = data + start;
    u32 at = start + header - WIRE_OPTION_BYTES;
    asm volatile("%0 &= 0xff" : "+r"(at));
    struct wire_option *option = data + at;
    if ((void *)(tcp + 1) > end || (void *)(option + 1) > end)
        return;
    w->sequence = bpf_ntohl(tcp->sequence);
    w->acknowledgement = bpf_ntohl(tcp->acknowledgement);
    __builtin_memcpy(&w->option, option, sizeof(*option));
    if (option->kind == WIRE_OPTION_KIND && option->experiment == bpf_htons(WIRE_EXPERIMENT)) {
        if (option->length != WIRE_OPTION_BYTES)
            return;
        w->at = at;
    } else if (is_own) {
        struct wire_option *place = (void *)option + WIRE_DECLINED_BYTES; /* of which only the head is looked at */
        if (place->kind == WIRE_OPTION_KIND && place->length == WIRE_PLACE_BYTES &&
            place->experiment == bpf_htons(WIRE_EXPERIMENT) &&
            ((option->kind == WIRE_FAST_OPEN && option->length == 2) ||
             (option->kind == WIRE_EXPERIMENTAL && option->experiment == bpf_htons(WIRE_FAST_OPEN_EXPERIMENT)) ||
             (option->kind == WIRE_MPTCP && option->length == WIRE_DECLINED_BYTES)))
            w->at = at;
    }
    w->reason = DROP_REASON_NONE;
}

static INLINE u64 wire_mac(const struct wire_option *option)
{
    u64 mac;

    __builtin_memcpy(&mac, option->mac, sizeof(mac));
    return mac;
}

/* Was it said by the node that it names, now, in this very packet? Leaves a reason when not. */
static INLINE void wire_verify(const struct control *c, const struct wire_self *self, struct wire_said *w, u32 kind)
{
    u32 now = wire_now(self);
    int apart = (signed char)(w->option.tick - (u8)now);
    struct wire_message message = {
        .sequence = w->sequence,
        .acknowledgement = kind == WIRE_KIND_OPENING ? 0 : w->acknowledgement,
        .identity = bpf_ntohl(w->option.identity),
        .tick = now + apart,
        .kind = kind,
    };

    w->now = now;
    w->mac = wire_mac(&w->option);
    w->node = wire_number(w->option.node);
    w->identity = message.identity;
    w->tick = message.tick;
    w->reason = DROP_REASON_WIRE_CLOCK;
    if (apart > WIRE_TICKS_APART || apart < -WIRE_TICKS_APART)
        return;
    w->reason = DROP_REASON_WIRE_NO_KEY;
    struct wire_keys *keys = wire_keys_of(w->node, message.tick);
    if (!keys)
        return;
    u64 key[2] = {keys->receiving[0], keys->receiving[1]};
    w->reason = DROP_REASON_WIRE_FORGED;
    if (wire_hash(key, &message) != w->mac)
        return;
    w->reason = wire_may_claim(c, w->identity, w->node) ? DROP_REASON_NONE : DROP_REASON_WIRE_CLAIM;
}

/*
 * The host itself is judged by the address that it comes from: that must not be registered for another node. Behind a
 * translated address that is nobody's it may be.
 */
static INLINE void wire_check_host(struct wire_said *w, const struct packet *p)
{
    if (wire_reason(w) || w->identity != IDENTITY_HOST)
        return;
    struct node_entry *n = wire_node_at(p->source);
    if (n && n->node != w->node)
        w->reason = DROP_REASON_WIRE_CLAIM;
}

/* Where a conversation comes from, keyed. */
static INLINE u32 wire_caller(const __be32 *address, __be16 port)
{
    return endpoint_peer(address, port, 0) >> 32;
}

static INLINE int wire_guard_stale(u64 held, u32 now)
{
    int age = (signed char)((u8)now - (u8)(held >> 56));
    return !held || age > WIRE_TICKS_APART || age < -WIRE_TICKS_APART;
}

/*
 * Has this opening arrived before in another conversation? From the same ends it is a retransmission. What is too old to
 * be believed makes room; nothing else does. Two processors that see one opening agree: the slot is taken in one step.
 */
static INLINE void wire_guard(const struct packet *p, struct wire_said *w)
{
    u32 index = (u32)(w->mac >> 24) & (CAPACITY_GUARD - 1), now = w->now;
    u32 caller = wire_caller(p->source, p->source_port);
    u32 ends = endpoint_peer(p->destination, p->destination_port, caller) >> 17;
    u64 entry = (u64)(w->tick & 0xff) << 56 | (w->mac & 0xffffff) << 32 | (ends | 1);
    struct guard_bucket *bucket = guard.lookup(&index);

    w->reason = DROP_REASON_WIRE_GUARD;
    if (!bucket)
        return;
    /* slots are taken from the first on: mostly it is the only one */
    u64 first = *(volatile u64 *)&bucket->seen[0];
    if (first >> 32 == entry >> 32) {
        w->reason = first == entry ? DROP_REASON_NONE : DROP_REASON_WIRE_REPLAYED;
        return;
    }
    if (wire_guard_stale(first, now) && !*(volatile u64 *)&bucket->seen[1] &&
        __sync_val_compare_and_swap(&bucket->seen[0], first, entry) == first) {
        w->reason = DROP_REASON_NONE;
        return;
    }
#pragma nounroll
    for (int attempt = 0; attempt < 4; attempt++) {
        w->room = WIRE_GUARD_SLOTS;
#pragma nounroll
        for (int slot = WIRE_GUARD_SLOTS - 1; slot >= 0; slot--) {
            u64 found = *(volatile u64 *)&bucket->seen[slot];
            if (found >> 32 == entry >> 32) {
                w->reason = found == entry ? DROP_REASON_NONE : DROP_REASON_WIRE_REPLAYED;
                return;
            }
            if (wire_guard_stale(found, now)) {
                w->room = slot;
                w->held = found;
            }
        }
        u32 room = *(volatile u32 *)&w->room;
        if (room >= WIRE_GUARD_SLOTS)
            return;
        u64 held = *(volatile u64 *)&w->held;
        if (__sync_val_compare_and_swap(&bucket->seen[room], held, entry) == held) {
            w->reason = DROP_REASON_NONE;
            return;
        }
    }
}

/*
 * Whoever listens may read the stamp (TCP_SAVED_SYN), and whoever is root in a namespace of his own may put it, and the
 * mark that goes with it, on a packet: so it holds for what comes from `caller` alone.
 */
static INLINE u64 wire_stamp(const struct wire_self *self, const struct wire_option *option, u32 sequence, u32 caller)
{
    struct wire_message message = {
        .sequence = sequence,
        .identity = option->identity,
        .tick = (u32)option->node[0] << 16 | (u32)option->node[1] << 8 | option->node[2],
        .kind = WIRE_KIND_STAMP,
        .detail = caller,
    };
    u64 key[2] = {self->stamp_key[0], self->stamp_key[1]};
    return wire_hash(key, &message);
}

/* Is this a copy of an option that this host has verified, in the opening with this initial sequence number? */
static INLINE int wire_is_stamped(const struct wire_self *self, const struct wire_said *w, u32 sequence, u32 caller)
{
    return wire_stamp(self, &w->option, sequence, caller) == wire_mac(&w->option);
}

static INLINE void wire_put_mac(struct wire_option *option, u64 mac)
{
    __builtin_memcpy(option->mac, &mac, sizeof(mac));
}

/* Put `fresh` in place of the option that is there. Nothing of the packet may be read afterwards but by a helper. */
static INLINE int wire_replace(struct __sk_buff *skb, const struct packet *p, const struct wire_said *w,
                               struct wire_option *fresh)
{
    long difference = bpf_csum_diff((__be32 *)&w->option, sizeof(*fresh), (__be32 *)fresh, sizeof(*fresh), 0);

    return bpf_skb_store_bytes(skb, w->at, fresh, sizeof(*fresh), 0) ||
           bpf_l4_csum_replace(skb, p->transport + TCP_CHECKSUM, 0, difference, 0);
}

/* A verified opening goes on to the stack with a stamp for what only the sender could make. */
static INLINE int wire_mark_verified(struct __sk_buff *skb, const struct packet *p, const struct wire_self *self,
                                     const struct wire_said *w)
{
    struct wire_option fresh = w->option;

    wire_put_mac(&fresh, wire_stamp(self, &fresh, w->sequence, wire_caller(p->source, p->source_port)));
    return wire_replace(skb, p, w, &fresh);
}

/* Say to `node` who sends this opening or answer. */
static INLINE int wire_say(struct __sk_buff *skb, const struct packet *p, const struct wire_self *self,
                           const struct wire_said *w, u32 node, u32 identity, u32 kind)
{
    struct wire_message message = {
        .sequence = w->sequence,
        .acknowledgement = kind == WIRE_KIND_ANSWER ? w->acknowledgement : 0,
        .identity = identity,
        .tick = wire_now(self),
        .kind = kind,
    };
    struct wire_option fresh = {
        .kind = WIRE_OPTION_KIND,
        .length = WIRE_OPTION_BYTES,
        .experiment = bpf_htons(WIRE_EXPERIMENT),
        .identity = bpf_htonl(identity),
        .node = {self->node >> 16, self->node >> 8, self->node},
        .tick = message.tick,
    };
    struct wire_keys *keys = wire_keys_of(node, message.tick);

    if (!keys)
        return -1;
    u64 key[2] = {keys->sending[0], keys->sending[1]};
    wire_put_mac(&fresh, wire_hash(key, &message));
    return wire_replace(skb, p, w, &fresh);
}

/* An option that is not for the other end to see. What could have been written over stays. */
static INLINE int wire_strip(struct __sk_buff *skb, const struct packet *p, const struct wire_said *w)
{
    struct wire_option fresh;

    __builtin_memset(&fresh, WIRE_NOP, sizeof(fresh));
    if (w->option.kind != WIRE_OPTION_KIND)
        __builtin_memcpy(&fresh, &w->option, WIRE_DECLINED_BYTES);
    return wire_replace(skb, p, w, &fresh);
}

/* The other end cannot be told from what the wire says: no rule is about it, and that is why. */
static INLINE void wire_unknown(struct wire_said *w, u8 why)
{
    w->is_known = 1;
    w->remote = IDENTITY_UNKNOWN;
    w->why = why;
}

/* The other end is `identity`, proven. A process of its host that no workload selects goes by its address. */
static INLINE void wire_known(struct wire_said *w, u32 identity)
{
    w->is_known = identity != IDENTITY_HOST;
    w->remote = identity;
}

static INLINE void wire_forget(struct wire_said *w)
{
    w->at = 0;
    w->node = 0;
    w->remote = IDENTITY_UNKNOWN;
    w->is_known = 0;
    w->is_opening = 0;
    w->why = DROP_REASON_NONE;
    w->action = WIRE_LEAVE;
    w->reason = DROP_REASON_NONE;
}

/* Does a proof that was given when the conversation opened still stand: the node is registered, and may host it? */
static INLINE int wire_stands(const struct control *c, const struct sock_state *st)
{
    struct wire_self *self = wire_here();

    return self && wire_keys_of(st->remote_node, wire_now(self)) && wire_may_claim(c, st->remote_identity, st->remote_node);
}

#endif

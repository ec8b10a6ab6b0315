/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * dns.h: from a workload's own DNS traffic to the addresses that its names have.
 *
 * A question that policy lets out is remembered if policy knows its name; the answer is read before the socket gets it,
 * so the address can be connected to at once. Reading is spread over stages (stage_dns.c), a record each: the verifier
 * follows no more than two names at a time. All values live in `struct dns`, where the verifier does not follow them.
 * INVARIANT: an answer opens nothing unless all of it was understood, and never decides the fate of its packet.
 */
#ifndef BULKHEAD_DNS_H
#define BULKHEAD_DNS_H

#define DNS_PORT 53
#define DNS_HEADER_BYTES 12
#define DNS_MESSAGE_BYTES 4096 /* a power of two; messages are shorter */
#define DNS_RECORDS_MAX 16
#define DNS_STEPS_MAX (255 + 16) /* bytes of the longest name, and pointers within it */
#define DNS_TTL_MAX 86400
#define DNS_GRACE_S 5 /* between an answer and the connection that it was asked for */
#define DNS_QUESTION_LIFE_S 30

#define DNS_FLAG_ANSWER 0x8000
#define DNS_FLAG_TRUNCATED 0x0200
#define DNS_OPCODE 0x7800
#define DNS_ERROR 0x000f
#define DNS_CLASS_IN 1
#define DNS_A 1
#define DNS_CNAME 5
#define DNS_AAAA 28

struct dns_address {
    u8 address[16];
    u32 ttl;
};

/* Working space of one message. One per CPU and direction, as `struct scratch`. */
struct dns {
    u8 message[DNS_MESSAGE_BYTES];
    u64 name[sizeof(struct name_key) / 8]; /* a struct name_key: what was asked for, then what that is an alias of */
    struct question_key key;
    struct question_entry question;
    struct learned_key known;
    struct learned_entry entry;
    struct dns_address found[DNS_RECORDS_MAX];
    u32 found_count;
    u32 length;   /* of the message */
    u32 position; /* of the next record */
    u32 records;  /* not read yet */
    u32 ttl;      /* the least along the chain of aliases */
    u32 local_identity;
    /* the name being read; volatile, or the optimiser would keep them where the verifier follows them */
    volatile u32 at;
    volatile u32 lowest;  /* pointers lead to in front of here */
    volatile u32 written; /* bytes of the name */
    volatile u32 end;     /* what follows it in the message; 0: not known yet */
    volatile u8 left;     /* bytes of the label */
    volatile u8 differs;
    volatile s8 ended;    /* 1 behind the last byte, -1 for what is no name */
};

static INLINE void dns_count(u32 outcome)
{
    u64 *count = dns_answers.lookup(&outcome);
    if (count)
        __sync_fetch_and_add(count, 1);
}

static INLINE int dns_is_question(const struct control *c, const struct packet *p)
{
    return c->flags & CONTROL_FLAG_NAMES && p->protocol == IPPROTO_UDP && p->destination_port == bpf_htons(DNS_PORT);
}

static INLINE int dns_is_answer(const struct packet *p)
{
    return p->protocol == IPPROTO_UDP && p->source_port == bpf_htons(DNS_PORT);
}

/*
 * Tell the next stage whose datagram this is and where it starts, in skb->cb, which outlives a tail call. The low bits
 * of a peer are free for the rest.
 */
static INLINE void dns_hand(struct __sk_buff *skb, const struct packet *p, const struct sock_state *st, u64 peer,
                            u32 direction)
{
    skb->cb[0] = (u32)peer | direction << 8 | (p->transport & 0xff);
    skb->cb[1] = peer >> 32;
    skb->cb[2] = (u32)st->socket_cookie;
    skb->cb[3] = st->socket_cookie >> 32;
    skb->cb[4] = st->local_identity;
}

static INLINE u32 dns_direction(struct __sk_buff *skb)
{
    return skb->cb[0] >> 8 & 1;
}

static INLINE u16 dns_u16(const struct dns *d, u32 at)
{
    return d->message[at & (DNS_MESSAGE_BYTES - 1)] << 8 | d->message[(at + 1) & (DNS_MESSAGE_BYTES - 1)];
}

static INLINE u32 dns_u32(const struct dns *d, u32 at)
{
    return (u32)dns_u16(d, at) << 16 | dns_u16(d, at + 2);
}

/* The message into `d`, and the key of its question. Returns what is wrong with it, or 0. */
static INLINE u32 dns_load(struct __sk_buff *skb, struct dns *d)
{
    u32 word = skb->cb[0], at = (word & 0xff) + sizeof(struct udp_header);
    __be16 length = 0;

    d->key.socket_cookie = (u64)skb->cb[3] << 32 | skb->cb[2];
    d->key.peer = ((u64)skb->cb[1] << 32 | word) & PEER_HASH;
    d->local_identity = skb->cb[4];
    d->length = 0;
    if (bpf_skb_load_bytes(skb, at - 4, &length, sizeof(length)) ||
        bpf_skb_load_bytes(skb, at, d->message, DNS_HEADER_BYTES))
        return DNS_OUTCOME_MALFORMED;
    d->key.peer |= dns_u16(d, 0);
    u32 bytes = bpf_ntohs(length) - sizeof(struct udp_header);
    if (bytes >= DNS_MESSAGE_BYTES || at + bytes > skb->len)
        return DNS_OUTCOME_TOO_LONG;
    if (bytes < DNS_HEADER_BYTES)
        return DNS_OUTCOME_MALFORMED;
    d->length = bytes;
    bytes--;
    asm volatile("%0 &= 0xfff" : "+r"(bytes)); /* so that the verifier sees a length of 1 at least */
    if (bpf_skb_load_bytes(skb, at, d->message, bytes + 1))
        return DNS_OUTCOME_MALFORMED;
    return 0;
}

/* One byte of a name. Returns 1 behind the last, -1 for what is no name. */
static INLINE int dns_step(struct dns *d, int compare)
{
    u8 *name = (u8 *)d->name;
    u32 at = d->at, written = d->written;
    u8 byte = d->message[at & (DNS_MESSAGE_BYTES - 1)];
    int last = 0;

    if (at >= d->length || written >= sizeof(((struct name_key *)0)->name))
        return -1;
    if (d->left) {
        d->left--;
        if (byte >= 'A' && byte <= 'Z')
            byte |= 0x20;
    } else if (byte >= 0xc0) {
        u32 to = dns_u16(d, at) & 0x3fff;
        if (at + 1 >= d->length || to < DNS_HEADER_BYTES || to >= d->lowest)
            return -1;
        if (!d->end)
            d->end = at + 2;
        d->at = d->lowest = to;
        return 0;
    } else if (byte >= 0x40) {
        return -1;
    } else {
        d->left = byte;
        last = !byte;
    }
    if (compare)
        d->differs |= name[written] ^ byte;
    else
        name[written] = byte;
    d->written = written + 1;
    d->at = at + 1;
    if (last && !d->end)
        d->end = at + 1;
    return last;
}

/*
 * Read the name at `at` into d->name, or compare it with what is there. d->end is then what follows it. Returns -1 for
 * what is no name: pointers lead back only, each further than the one before, so there is no loop.
 */
static INLINE int dns_walk(struct dns *d, u32 at, int compare)
{
    int step = 0;

    if (!compare)
        __builtin_memset(d->name, 0, sizeof(d->name));
    d->at = d->lowest = at;
    d->written = d->end = 0;
    d->left = d->differs = 0;
#pragma nounroll
    for (int steps = 0; steps < DNS_STEPS_MAX && !step; steps++)
        step = dns_step(d, compare);
    return step > 0 ? 0 : -1;
}

/* The other side of a comparison that only has to be exact for who does not know the key. */
static INLINE u64 dns_hash(const struct dns *d)
{
    u32 zero = 0;
    struct setting *s = setting.lookup(&zero);
    u64 x = s ? s->hash_seed : 0;

#pragma nounroll
    for (u32 word = 0; word < sizeof(d->name) / 8; word++)
        x = endpoint_mix(x ^ d->name[word]);
    return x;
}

/*
 * The one question of a message: its name's hash and kind into `q`, and with `find` the id under which policy knows the
 * name, written out or by a wildcard. Returns -1 for what is no question. d->position is then what follows it.
 */
static INLINE int dns_read_question(struct dns *d, const struct control *c, struct question_entry *q, int find)
{
    u32 at = DNS_HEADER_BYTES;

    q->name_id = 0;
#pragma nounroll
    for (int wildcard = 0; wildcard < 2; wildcard++) {
        struct name_key *name = (struct name_key *)d->name;
        if (dns_walk(d, at, 0))
            return -1;
        if (!wildcard) {
            q->name_hash = dns_hash(d);
            q->kind = dns_u16(d, d->end);
            d->position = d->end + 4;
            if (d->position > d->length || dns_u16(d, d->end + 2) != DNS_CLASS_IN)
                return -1;
            if (!find)
                break;
        }
        name->is_wildcard = wildcard;
        u32 *id = slot_names(c->generation, name);
        if (id) {
            q->name_id = *id;
            break;
        }
        u32 first = d->message[DNS_HEADER_BYTES];
        if (!first)
            break;
        at = DNS_HEADER_BYTES + 1 + first;
    }
    return 0;
}

/* How many records may follow a question: the first of three counts behind that of questions. */
static INLINE u32 dns_questions(const struct dns *d)
{
    return dns_u16(d, 4);
}

static INLINE u32 dns_answered(const struct dns *d)
{
    return dns_u16(d, 6);
}

static INLINE void dns_ask(struct dns *d, const struct control *c)
{
    struct question_entry *q = &d->question;

    if (dns_u16(d, 2) & (DNS_FLAG_ANSWER | DNS_OPCODE) || dns_questions(d) != 1 || !d->key.socket_cookie)
        return;
    if (dns_read_question(d, c, q, 1) || !q->name_id || (q->kind != DNS_A && q->kind != DNS_AAAA))
        return;
    q->local_identity = d->local_identity;
    q->asked_s = account_boot_seconds();
    q->reserved = 0;
    questions.update(&d->key, q);
}

/*
 * Is this the answer to what this very socket has asked this server? Returns what is wrong with it; 0: it can be read,
 * DNS_OUTCOME_MAX: nobody needs to know.
 */
static INLINE u32 dns_answer(struct dns *d, const struct control *c, u32 bad)
{
    struct question_entry *asked = questions.lookup(&d->key), read = {};
    u16 flags = dns_u16(d, 2);

    if (bad)
        return asked ? bad : DNS_OUTCOME_MAX;
    if (!(flags & DNS_FLAG_ANSWER))
        return DNS_OUTCOME_MAX;
    int unread = dns_questions(d) != 1 || dns_read_question(d, c, &read, !asked);
    if (!asked)
        return !unread && read.name_id ? DNS_OUTCOME_UNASKED : DNS_OUTCOME_MAX;
    if (flags & DNS_FLAG_TRUNCATED)
        return DNS_OUTCOME_TRUNCATED;
    if (unread)
        return dns_questions(d) != 1 ? DNS_OUTCOME_OTHER : DNS_OUTCOME_MALFORMED;
    if (flags & DNS_OPCODE || read.name_hash != asked->name_hash || read.kind != asked->kind)
        return DNS_OUTCOME_OTHER;
    if (asked->local_identity != d->local_identity || account_boot_seconds() - asked->asked_s > DNS_QUESTION_LIFE_S)
        return DNS_OUTCOME_UNASKED;
    if (flags & DNS_ERROR || !dns_answered(d))
        return DNS_OUTCOME_EMPTY;
    if (dns_answered(d) > DNS_RECORDS_MAX)
        return DNS_OUTCOME_TOO_MANY;
    d->question = *asked;
    d->records = dns_answered(d);
    d->ttl = DNS_TTL_MAX;
    d->found_count = 0;
    return 0;
}

/* An address of the kind that was asked for, kept until the whole answer has been read. */
static INLINE void dns_find(struct dns *d, u32 at, u32 ttl)
{
    u32 count = d->found_count;
    int is6 = d->question.kind == DNS_AAAA;

    if (count >= DNS_RECORDS_MAX)
        return;
    struct dns_address *found = &d->found[count];
    __builtin_memset(found->address, 0, sizeof(found->address));
    found->address[10] = found->address[11] = 0xff;
#pragma nounroll
    for (u32 byte = 0; byte < 16; byte++) {
        if (byte >= (is6 ? 0 : 12))
            found->address[byte] = d->message[(at + byte - (is6 ? 0 : 12)) & (DNS_MESSAGE_BYTES - 1)];
    }
    found->ttl = ttl;
    /* an IPv4 address dressed as IPv6 is what no packet carries, and would pass for the IPv4 address here */
    if (is6 && packet_is_mapped((const __be32 *)found->address))
        return;
    d->found_count = count + 1;
}

/* Read one record. What is about another name, or of another kind, is skipped. Returns -1 when it is malformed. */
static INLINE int dns_read_record(struct dns *d)
{
    if (dns_walk(d, d->position, 1))
        return -1;
    u32 header = d->end, data = header + 10;
    u32 bytes = dns_u16(d, header + 8);
    if (data + bytes > d->length)
        return -1;
    d->position = data + bytes;
    if (d->differs || dns_u16(d, header + 2) != DNS_CLASS_IN)
        return 0;
    u32 ttl = dns_u32(d, header + 4), kind = dns_u16(d, header);
    if (ttl >> 31)
        ttl = 0; /* RFC 2181 */
    if (ttl > d->ttl)
        ttl = d->ttl;
    if (kind == DNS_CNAME) {
        d->ttl = ttl;
        return dns_walk(d, data, 0) || d->end != d->position ? -1 : 0;
    }
    if (kind == d->question.kind) {
        if (bytes != (kind == DNS_A ? 4 : 16))
            return -1;
        dns_find(d, data, ttl);
    }
    return 0;
}

/* Write down one address for the workload that asked. Returns -1 when there is no room. */
static INLINE int dns_learn(struct dns *d, const struct dns_address *found, u32 now)
{
    u64 word = (u64)d->question.name_id << 32 | (now + found->ttl + DNS_GRACE_S);

    d->known.local_identity = d->question.local_identity;
    __builtin_memcpy(d->known.address, found->address, 16);
    struct learned_entry *e = learned.lookup(&d->known);
    if (!e) {
        __builtin_memset(&d->entry, 0, sizeof(d->entry));
        d->entry.names[0] = word;
        if (!learned.insert(&d->known, &d->entry))
            return 0;
        e = learned.lookup(&d->known); /* another CPU was first */
        if (!e)
            return -1;
    }
    u32 place = 0, soonest = -1;
#pragma nounroll
    for (u32 at = 0; at < LEARNED_NAMES; at++) {
        u64 held = e->names[at];
        if (held >> 32 == d->question.name_id) {
            if ((u32)held < (u32)word)
                e->names[at] = word;
            return 0;
        }
        if ((u32)held < soonest) {
            soonest = (u32)held;
            place = at;
        }
    }
    /* the name that would have lapsed first makes room */
    e->names[place & (LEARNED_NAMES - 1)] = word;
    return 0;
}

#endif

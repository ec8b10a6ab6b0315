/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * stage_wire.c: a refusal that explains itself across hosts. An opening that proved who calls, and that policy refuses,
 * is turned into the RST that answers it, with an authenticated option that says why. The caller fails at once and its
 * host knows what the other one knows. Nobody else is told anything: an opening that proves nothing is dropped.
 *
 * Both stages read what stage_ingress has left in the scratch of its direction. A stage that is missing changes nothing
 * of what was judged.
 */

#define WIRE_REFUSAL_HEADER (sizeof(struct tcp_header) + WIRE_REFUSAL_BYTES)
#define TCP_HEADER_MAX 60
#define TCP_HEADER_LEAST (sizeof(struct tcp_header) + WIRE_OPTION_BYTES) /* of an opening that said who calls */

_Static_assert(sizeof(struct wire_refusal) == WIRE_REFUSAL_BYTES, "wire_refusal");

/* Working space: segments before and after, side by side for the checksum. */
struct tell {
    u8 before[TCP_HEADER_MAX + 8]; /* room for what the verifier takes to be possible */
    struct tcp_header tcp;
    struct wire_refusal refusal;
};
BPF_F_TABLE("percpu_array", u32, struct tell, tells, 1, 0);

static INLINE u64 wire_refusal_mac(const u64 *directed, const struct wire_refusal *r, u32 sequence, u32 acknowledgement,
                                   u32 tick)
{
    u64 key[2] = {directed[0], directed[1]};
    struct wire_message message = {
        .sequence = sequence,
        .acknowledgement = acknowledgement,
        .identity = bpf_ntohl(r->identity),
        .tick = tick,
        .kind = WIRE_KIND_REFUSAL | (u32)r->reason << 8,
        .detail = bpf_ntohl(r->generation),
    };
    return wire_hash(key, &message);
}

/* Swap two fields of `bytes` bytes in the packet. */
static INLINE int wire_swap(struct __sk_buff *skb, u32 first, u32 second, u32 bytes)
{
    u8 one[16], other[16];

    return bpf_skb_load_bytes(skb, first, one, bytes) || bpf_skb_load_bytes(skb, second, other, bytes) ||
           bpf_skb_store_bytes(skb, first, other, bytes, 0) || bpf_skb_store_bytes(skb, second, one, bytes, 0);
}

/* Addresses turned round and lengths put right; the sum of the addresses stays what it was. */
static INLINE int wire_turn_ip(struct __sk_buff *skb, const struct packet *p, u32 l2)
{
    __be16 before, after;

    if (p->family == AF_INET6) {
        after = bpf_htons(WIRE_REFUSAL_HEADER);
        return wire_swap(skb, l2 + __builtin_offsetof(struct ipv6_header, source),
                         l2 + __builtin_offsetof(struct ipv6_header, destination), 16) ||
               bpf_skb_store_bytes(skb, l2 + __builtin_offsetof(struct ipv6_header, payload_length), &after, 2, 0);
    }
    u32 at = l2 + __builtin_offsetof(struct ipv4_header, total_length);
    after = bpf_htons(sizeof(struct ipv4_header) + WIRE_REFUSAL_HEADER);
    return bpf_skb_load_bytes(skb, at, &before, 2) || bpf_skb_store_bytes(skb, at, &after, 2, 0) ||
           bpf_l3_csum_replace(skb, l2 + __builtin_offsetof(struct ipv4_header, checksum), before, after, 2) ||
           wire_swap(skb, l2 + __builtin_offsetof(struct ipv4_header, source),
                     l2 + __builtin_offsetof(struct ipv4_header, destination), 4);
}

/* Turn the refused opening into its answer. */
int stage_wire_tell(struct __sk_buff *skb)
{
    struct control word = trial_control();
    struct wire_self *self = wire_here();
    u32 which = DIRECTION_INGRESS, zero = 0, l2 = skb->cb[0] == LINK_BARE ? 0 : ETH_HEADER_BYTES;
    struct scratch *s = scratches.lookup(&which);
    struct tell *t = tells.lookup(&zero);

    if (!self || !s || !t)
        return DROP;
    const struct packet *p = &s->packet;
    const struct wire_said *w = &s->said;
    u32 header = p->tcp_bytes, ip = p->family == AF_INET ? sizeof(struct ipv4_header) : sizeof(struct ipv6_header);
    u32 now = wire_now(self);
    struct wire_keys *keys = wire_keys_of(w->node, now);

    /* with IP options or extension headers it is not worth the trouble */
    if (!keys || p->transport != l2 + ip || header < TCP_HEADER_LEAST || header > TCP_HEADER_MAX)
        return DROP;
    asm volatile("%0 += -40\n%0 &= 28\n%0 += 40" : "+r"(header)); /* as it was: said so that the verifier sees it */
    if (bpf_skb_load_bytes(skb, l2 + ip, t->before, header))
        return DROP;
    struct tcp_header *old = (struct tcp_header *)t->before;
    t->tcp = (struct tcp_header){
        .source = p->destination_port,
        .destination = p->source_port,
        .acknowledgement = bpf_htonl(w->sequence + 1),
        .offset = WIRE_REFUSAL_HEADER / 4 << 4,
        .flags = TCP_FLAG_RST | TCP_FLAG_ACK,
        .checksum_urgent = old->checksum_urgent,
    };
    t->refusal = (struct wire_refusal){
        .kind = WIRE_OPTION_KIND,
        .length = WIRE_REFUSAL_BYTES,
        .experiment = bpf_htons(WIRE_EXPERIMENT),
        .identity = bpf_htonl(s->judgement.local),
        .node = {self->node >> 16, self->node >> 8, self->node},
        .tick = now,
        .generation = bpf_htonl(word.generation),
        .reason = s->judgement.reason,
    };
    __builtin_memcpy(t->refusal.commit, self->commit, sizeof(t->refusal.commit));
    u64 mac = wire_refusal_mac(keys->sending, &t->refusal, 0, w->sequence + 1, now);
    __builtin_memcpy(t->refusal.mac, &mac, sizeof(mac));

    long difference = bpf_csum_diff((__be32 *)t->before, header, (__be32 *)&t->tcp, WIRE_REFUSAL_HEADER, 0);
    if (bpf_skb_change_tail(skb, l2 + ip + WIRE_REFUSAL_HEADER, 0) ||
        bpf_skb_store_bytes(skb, l2 + ip, &t->tcp, WIRE_REFUSAL_HEADER, 0) ||
        bpf_l4_csum_replace(skb, l2 + ip + TCP_CHECKSUM, 0, difference, 0) ||
        bpf_l4_csum_replace(skb, l2 + ip + TCP_CHECKSUM, bpf_htons(header), bpf_htons(WIRE_REFUSAL_HEADER),
                            BPF_F_PSEUDO_HDR | 2) ||
        wire_turn_ip(skb, p, l2) || (l2 && wire_swap(skb, 0, 6, 6)))
        return DROP;
    wire_count(WIRE_COUNT_TOLD);
    skb->tc_index = WIRE_TOLD;
    return bpf_redirect(skb->ifindex, 0);
}

/* A RST that may explain why our opening was refused. It goes on to the stack in any case. */
int stage_wire_hear(struct __sk_buff *skb)
{
    struct wire_self *self = wire_here();
    u32 which = DIRECTION_INGRESS, zero = 0;
    struct scratch *s = scratches.lookup(&which);
    struct tell *t = tells.lookup(&zero);

    if (!self || !s || !t)
        return PASS;
    struct packet *p = &s->packet;
    struct wire_refusal *r = &t->refusal;
    struct endpoint to;
    struct control word = trial_control();
    u32 at = p->transport;
    asm volatile("%0 &= 0x7f" : "+r"(at));
    if (p->tcp_bytes < WIRE_REFUSAL_HEADER || bpf_skb_load_bytes(skb, at, &t->tcp, sizeof(t->tcp)) ||
        bpf_skb_load_bytes(skb, at + p->tcp_bytes - WIRE_REFUSAL_BYTES, r, sizeof(*r)))
        return PASS;
    if (r->kind != WIRE_OPTION_KIND || r->length != WIRE_REFUSAL_BYTES || r->experiment != bpf_htons(WIRE_EXPERIMENT))
        return PASS;
    endpoint_receiver(skb, p, &word, &to);
    u32 acknowledgement = bpf_ntohl(t->tcp.acknowledgement), node = wire_number(r->node), now = wire_now(self);
    int apart = (signed char)(r->tick - (u8)now);
    if (!to.st || !(to.st->flags & SOCK_FLAG_PENDING) || to.st->remote_node != node ||
        acknowledgement != (u32)to.st->wire_word + 1 || apart > WIRE_TICKS_APART || apart < -WIRE_TICKS_APART)
        return PASS;
    struct wire_keys *keys = wire_keys_of(node, now + apart);
    u64 mac = 0;
    __builtin_memcpy(&mac, r->mac, sizeof(mac));
    if (!keys || wire_refusal_mac(keys->receiving, r, bpf_ntohl(t->tcp.sequence), acknowledgement, now + apart) != mac)
        return PASS;
    wire_count(WIRE_COUNT_HEARD);
    struct judgement j = {
        .local = to.identity,
        .remote = bpf_ntohl(r->identity),
        .direction = DIRECTION_EGRESS,
        .verdict = VERDICT_DENY,
        .reason = r->reason,
    };
    ingress_turn_round(p);
    word.generation = bpf_ntohl(r->generation);
    account_told_event(skb, &word, p, &j, to.st, node, r->commit);
    return PASS;
}

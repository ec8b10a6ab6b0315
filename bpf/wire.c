/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * wire.c: sock_ops makes room in the SYN for what wire.h says when the packet leaves, copies the stamped option of a SYN
 * into the SYN-ACK that answers it, and gives the accepted socket the identity of its caller. Once a conversation is
 * open it asks to be called no more: an established segment costs nothing.
 */

#define SOCK_OPS_FLAGS BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG
#define SOL_TCP 6
#define TCP_SAVE_SYN 27

/* An option that only holds the place. */
static INLINE void wire_place(struct wire_option *option, u32 bytes)
{
    __builtin_memset(option, 0, sizeof(*option));
    option->kind = WIRE_OPTION_KIND;
    option->length = bytes;
    option->experiment = bpf_htons(WIRE_EXPERIMENT);
}

/* The option of the SYN that is being answered or has been accepted; its length, or less than 0. */
static INLINE int wire_of_syn(struct bpf_sock_ops *ctx, struct wire_option *option)
{
    wire_place(option, 4); /* kind, the length of what to compare, and the experiment to look for */
    return bpf_load_hdr_opt(ctx, option, sizeof(*option), BPF_LOAD_HDR_OPT_TCP_SYN);
}

/*
 * The option of the SYN that is being answered, between reserving room for it and writing it, which follow each other
 * without a pause. Were it another's after all, its stamp would not be of this conversation, and nobody would be told.
 */
BPF_F_TABLE("percpu_array", u32, struct wire_option, wire_answered, 1, 0);

/* Room in a SYN, or for less where MPTCP or Fast Open takes four bytes that may be written over; see wire_find(). */
static INLINE void wire_reserve(struct bpf_sock_ops *ctx)
{
    u32 flags = ctx->skb_tcp_flags, zero = 0;

    if (!(flags & TCP_FLAG_SYN) || !wire_here())
        return;
    struct wire_option *option = wire_answered.lookup(&zero);
    if (!(flags & TCP_FLAG_ACK)) {
        if (bpf_reserve_hdr_opt(ctx, WIRE_OPTION_BYTES, 0))
            bpf_reserve_hdr_opt(ctx, WIRE_PLACE_BYTES, 0);
    } else if (ctx->args[0] != BPF_WRITE_HDR_TCP_SYNACK_COOKIE && option &&
               wire_of_syn(ctx, option) == WIRE_OPTION_BYTES) {
        /* of a cookie's SYN nothing is kept, and no socket sends its answer: there is nobody to say who it is */
        bpf_reserve_hdr_opt(ctx, WIRE_OPTION_BYTES, 0);
    }
}

static INLINE void wire_write(struct bpf_sock_ops *ctx)
{
    struct wire_option option;
    u32 flags = ctx->skb_tcp_flags, zero = 0;

    if (!(flags & TCP_FLAG_SYN))
        return;
    if (flags & TCP_FLAG_ACK) {
        struct wire_option *answered = wire_answered.lookup(&zero);
        if (answered && ctx->args[0] != BPF_WRITE_HDR_TCP_SYNACK_COOKIE)
            bpf_store_hdr_opt(ctx, answered, WIRE_OPTION_BYTES, 0);
        return;
    }
    wire_place(&option, WIRE_OPTION_BYTES);
    if (!bpf_store_hdr_opt(ctx, &option, WIRE_OPTION_BYTES, 0))
        return;
    wire_place(&option, WIRE_PLACE_BYTES);
    bpf_store_hdr_opt(ctx, &option, WIRE_PLACE_BYTES, 0);
}

/* A field, by a load that the optimiser shares with no other: see packet_data(). */
#define WIRE_FIELD(_ctx, _field)                                                                                       \
    ({                                                                                                                 \
        u64 value;                                                                                                     \
        asm volatile("%0 = *(u32 *)(%1 + %2)"                                                                          \
                     : "=r"(value)                                                                                     \
                     : "r"(_ctx), "i"(__builtin_offsetof(struct bpf_sock_ops, _field)));                               \
        (u32) value;                                                                                                   \
    })

/* As wire_caller() of the packet that opened it. */
static INLINE u32 wire_caller_of(struct bpf_sock_ops *ctx)
{
    __be32 address[4] = {0, 0, bpf_htonl(0xffff), WIRE_FIELD(ctx, remote_ip4)};

    if (WIRE_FIELD(ctx, family) == AF_INET6) {
        address[0] = WIRE_FIELD(ctx, remote_ip6[0]);
        address[1] = WIRE_FIELD(ctx, remote_ip6[1]);
        address[2] = WIRE_FIELD(ctx, remote_ip6[2]);
        address[3] = WIRE_FIELD(ctx, remote_ip6[3]);
    }
    return wire_caller(address, WIRE_FIELD(ctx, remote_port) >> 16);
}

/* The socket of a conversation that was let in takes the identity that its SYN proved. */
static INLINE void wire_accepted(struct bpf_sock_ops *ctx)
{
    struct wire_self *self = wire_here();
    struct bpf_sock *sk = ctx->sk;
    struct wire_said w = {};

    if (!self || !sk)
        return;
    struct sock_state *st = sockets.sk_storage_get(sk, 0, 0);
    if (!st)
        return;
    st->remote_node = 0;
    st->flags &= ~SOCK_FLAG_WIRE;
    if (wire_of_syn(ctx, &w.option) != WIRE_OPTION_BYTES)
        return;
    if (!wire_is_stamped(self, &w, ctx->rcv_nxt - 1, wire_caller_of(ctx)))
        return;
    u32 identity = bpf_ntohl(w.option.identity);
    st->remote_node = wire_number(w.option.node);
    if (identity == IDENTITY_HOST)
        return;
    st->remote_identity = identity;
    st->flags |= SOCK_FLAG_WIRE;
}

/*
 * A socket listens or connects, perhaps after another conversation: what was decided for that one is not decided for
 * this one, nor for what it accepts. TCP_REPAIR connects without a packet that would say so.
 */
static INLINE void wire_begins(struct bpf_sock_ops *ctx)
{
    struct bpf_sock *sk = ctx->sk;
    struct sock_state *st = sk ? sockets.sk_storage_get(sk, 0, 0) : 0;

    if (st)
        egress_forget(st);
}

/* A socket that listens is in no conversation, and hands none down to what it accepts. */
static INLINE void steering_ends(struct bpf_sock_ops *ctx)
{
    struct bpf_sock *sk = ctx->sk;
    struct sock_state *st = sk ? sockets.sk_storage_get(sk, 0, 0) : 0;

    if (st)
        st->flags &= ~SOCK_FLAG_STEERED;
}

/* The socket of a conversation with the proxy that was let in: what its opening stands for. */
static INLINE void steering_accepted(struct bpf_sock_ops *ctx)
{
    struct mesh_self *self = steering_here();
    struct bpf_sock *sk = ctx->sk;
    struct leg_key key = {
        .destination_port = bpf_htons(WIRE_FIELD(ctx, local_port)),
        .source_port = WIRE_FIELD(ctx, remote_port) >> 16,
    };

    if (!self || !sk || self->netns_cookie != bpf_get_netns_cookie(ctx))
        return;
    if (WIRE_FIELD(ctx, family) == AF_INET6) {
        __be32 source[4] = {WIRE_FIELD(ctx, remote_ip6[0]), WIRE_FIELD(ctx, remote_ip6[1]),
                            WIRE_FIELD(ctx, remote_ip6[2]), WIRE_FIELD(ctx, remote_ip6[3])};
        __be32 destination[4] = {WIRE_FIELD(ctx, local_ip6[0]), WIRE_FIELD(ctx, local_ip6[1]),
                                 WIRE_FIELD(ctx, local_ip6[2]), WIRE_FIELD(ctx, local_ip6[3])};
        __builtin_memcpy(key.source, source, 16);
        __builtin_memcpy(key.destination, destination, 16);
    } else {
        __be32 source[4] = {0, 0, bpf_htonl(0xffff), WIRE_FIELD(ctx, remote_ip4)};
        __be32 destination[4] = {0, 0, bpf_htonl(0xffff), WIRE_FIELD(ctx, local_ip4)};
        __builtin_memcpy(key.source, source, 16);
        __builtin_memcpy(key.destination, destination, 16);
    }
    struct steering *told = legs.lookup(&key);
    struct sock_state *st = told ? sockets.sk_storage_get(sk, 0, 0) : 0;
    struct steering *own = st ? steerings.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE) : 0;
    if (!own)
        return;
    __builtin_memcpy(own, told, sizeof(*own));
    st->flags |= SOCK_FLAG_STEERED;
}

int wire_sock_ops(struct bpf_sock_ops *ctx)
{
    int save = 1;

    switch (ctx->op) {
    case BPF_SOCK_OPS_TCP_LISTEN_CB:
        steering_ends(ctx);
        bpf_setsockopt(ctx, SOL_TCP, TCP_SAVE_SYN, &save, sizeof(save));
        /* fall through */
    case BPF_SOCK_OPS_TCP_CONNECT_CB:
        wire_begins(ctx);
        bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | SOCK_OPS_FLAGS);
        break;
    case BPF_SOCK_OPS_HDR_OPT_LEN_CB:
        wire_reserve(ctx);
        break;
    case BPF_SOCK_OPS_WRITE_HDR_OPT_CB:
        wire_write(ctx);
        break;
    case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
        wire_accepted(ctx);
        steering_accepted(ctx);
        /* fall through */
    case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
        bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags & ~SOCK_OPS_FLAGS);
        break;
    }
    return 1;
}

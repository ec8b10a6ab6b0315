/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * proxy.c: what the node's proxy meets. The hooks of its control group turn its socket calls into what the kernel can
 * judge: who a lane's caller asked for is told as the original destination, and a leg that is bound to its caller's
 * address, which is not of this machine, remembers it instead. What comes for the proxy from other nodes is given to
 * its listener and to nobody else's.
 */

#define SOL_IP 0
#define SOL_IPV6 41
#define SO_ORIGINAL_DST 80 /* also IP6T_SO_ORIGINAL_DST */
#define PROXY_OPTION_PAGE 4096

struct proxy_address4 {
    u16 family;
    __be16 port;
    __be32 address;
    u8 zero[8];
};

struct proxy_address6 {
    u16 family;
    __be16 port;
    u32 flow;
    __be32 address[4];
    u32 scope;
};

/* getsockopt(): the original destination of a conversation on a lane, in the family that it has. */
int proxy_getsockopt(struct bpf_sockopt *ctx)
{
    struct bpf_sock *sk = ctx->sk;

    if ((ctx->level != SOL_IP && ctx->level != SOL_IPV6) || ctx->optname != SO_ORIGINAL_DST || !sk) {
        if (ctx->optlen > PROXY_OPTION_PAGE)
            ctx->optlen = 0; /* as it is: the kernel keeps no more than a page for us to see */
        return 1;
    }
    struct steering *way = steerings.sk_storage_get(sk, 0, 0);
    if (!way || way->role != STEERING_ROLE_LANE_PROXY)
        return 1;
    const __be32 *to = (const __be32 *)way->address;
    if (packet_is_mapped(to)) {
        struct proxy_address4 *told = ctx->optval;
        if ((void *)(told + 1) > ctx->optval_end)
            return 1;
        told->family = AF_INET;
        told->port = way->port;
        told->address = to[3];
        __builtin_memset(told->zero, 0, sizeof(told->zero));
        ctx->optlen = sizeof(*told);
    } else {
        struct proxy_address6 *told = ctx->optval;
        if ((void *)(told + 1) > ctx->optval_end)
            return 1;
        told->family = AF_INET6;
        told->port = way->port;
        told->flow = 0;
        __builtin_memcpy(told->address, to, 16);
        told->scope = 0;
        ctx->optlen = sizeof(*told);
    }
    ctx->retval = 0;
    return 1;
}

/* A socket that is bound as `address`, whose packets leave from wherever this machine can. */
static INLINE int proxy_bound_as(struct bpf_sock_addr *ctx, const __be32 *address)
{
    struct bpf_sock *sk = ctx->sk;
    struct steering *way = sk ? steerings.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE) : 0;

    if (!way)
        return 0;
    way->role = STEERING_ROLE_NONE;
    __builtin_memcpy(way->address, address, 16);
    return 1;
}

/* bind() to an IPv4 address and no port. */
int proxy_bind4(struct bpf_sock_addr *ctx)
{
    __be32 address[4] = {0, 0, bpf_htonl(0xffff), ctx->user_ip4};

    if (ctx->protocol != IPPROTO_TCP || ctx->user_port || !address[3])
        return 1;
    if (!proxy_bound_as(ctx, address))
        return 0;
    ctx->user_ip4 = 0;
    return 1;
}

/* bind() to an IPv6 address and no port. */
int proxy_bind6(struct bpf_sock_addr *ctx)
{
    __be32 address[4] = {ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3]};

    if (ctx->protocol != IPPROTO_TCP || ctx->user_port || !(address[0] | address[1] | address[2] | address[3]))
        return 1;
    if (!proxy_bound_as(ctx, address))
        return 0;
    cgroup_put6(ctx, 0, 0, 0, 0);
    return 1;
}

/* Who listens for other nodes' proxies: ours, or nobody while there has to be one and is none. */
int proxy_lookup(struct bpf_sk_lookup *ctx)
{
    u32 index = ctx->family == AF_INET6;

    if (ctx->protocol != IPPROTO_TCP || ctx->local_port != LANE_INBOUND_PORT)
        return SK_PASS;
    struct bpf_sock *sk = (struct bpf_sock *)proxy_listeners.lookup(&index);
    if (!sk) {
        index = 1; /* one that takes both */
        sk = (struct bpf_sock *)proxy_listeners.lookup(&index);
    }
    if (!sk)
        return steering_here() ? SK_DROP : SK_PASS;
    long failed = bpf_sk_assign((void *)ctx, sk, 0);
    bpf_sk_release(sk);
    return failed ? SK_DROP : SK_PASS;
}

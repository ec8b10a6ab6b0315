/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * cgroup.c: the hooks that run in the process that opens a socket. They stamp who it is, and refuse early what the
 * wall (tc.c) would refuse anyway, so that a program fails at once instead of waiting for an answer.
 */

static INLINE void cgroup_stamp_new(struct bpf_sock *sk, void *ctx)
{
    /* a worker of the kernel binds for somebody else (MPTCP subflows): the wall asks the packet whose socket it is */
    if (!identity_read_pointer(bpf_get_current_task(), OFFSET_TASK_MM))
        return;
    struct sock_state *st = sockets.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
    if (!st || (st->flags & SOCK_FLAG_ORIGIN))
        return;
    identity_stamp(st, socket_cookie(ctx));
    if (sk->type == SOCK_TYPE_RAW)
        st->flags |= SOCK_FLAG_RAW;
}

/* At creation, and at bind for the listeners that the kernel makes itself (MPTCP). */
int cgroup_sock(struct bpf_sock *ctx)
{
    cgroup_stamp_new(ctx, ctx);
    return 1;
}

/*
 * Whether others share the port of `sk` (SO_REUSEPORT): then the source port decides who receives, and connect() has
 * none yet. The verifier lets nobody compute with a socket pointer, but it lets the stack word that holds one be read.
 */
static INLINE int cgroup_shares_port(struct bpf_sock *sk)
{
    struct bpf_sock *held = sk;
    u64 at = 0;
    u16 sharers = 0;

    kernel_read(&at, sizeof(at), &held);
    u64 group = identity_read_pointer(at, OFFSET_SOCK_REUSEPORT);
    if (group)
        kernel_read(&sharers, sizeof(sharers), (void *)(group + OFFSET_REUSEPORT_COUNT));
    return sharers > 1;
}

/* Find the local endpoint that would receive, or the host when nobody listens; 0 when it cannot be told yet. */
static INLINE int cgroup_receiver(struct bpf_sock_addr *ctx, const struct packet *p, const struct control *c,
                                  struct endpoint *to)
{
    struct bpf_sock_tuple tuple = {};
    u32 size = endpoint_tuple(&tuple, p);
    struct bpf_sock *sk = p->protocol == IPPROTO_TCP ? bpf_sk_lookup_tcp(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0)
                                                     : bpf_sk_lookup_udp(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);

    to->st = 0;
    to->identity = IDENTITY_HOST;
    to->mode = identity_host_mode(c);
    if (!sk)
        return 1;
    int shared = cgroup_shares_port(sk);
    to->st = sockets.sk_storage_get(sk, 0, 0);
    bpf_sk_release(sk);
    if (shared)
        return 0;
    to->identity = IDENTITY_UNKNOWN;
    if (to->st) {
        identity_derive(to->st, c);
        to->identity = to->st->local_identity;
        to->mode = to->st->local_mode;
    }
    return 1;
}

static INLINE void cgroup_event(const struct control *c, const struct packet *p, const struct judgement *j,
                                const struct sock_state *st, u32 node)
{
    struct verdict_event *event = account_event_reserve(0);
    if (!event)
        return;
    account_event_fill(event, c, j, st);
    __builtin_memset(event->source, 0, 16);
    __builtin_memcpy(event->destination, p->destination, 16);
    event->source_port = 0;
    event->destination_port = p->destination_port;
    event->protocol = p->protocol;
    event->ifindex = 0;
    event->node = node;
    event->hook = EVENT_HOOK_CALL;
    event->flags = p->family == AF_INET6 ? EVENT_FLAG_IPV6 : 0;
    bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP);
}

/*
 * Refuse only what is sure to be refused on the wire: whether an address is this machine's own is not known here, so
 * for anything but loopback both readings must refuse. A socket not attested yet is left to the wall, whose dropped
 * SYN is sent again; EPERM would be final.
 */
static INLINE int cgroup_refuses(struct bpf_sock_addr *ctx, struct packet *p)
{
    struct control c = trial_control();
    struct bpf_sock *sk = ctx->sk;
    struct judgement j = {}, near = {}, far = {};
    struct endpoint to;
    u32 node = 0;

    if (!sk || !c.generation || p->protocol == 0 || !p->destination_port)
        return 0;
    struct sock_state *st = sockets.sk_storage_get(sk, 0, 0);
    if (!st)
        return 0;
    identity_derive(st, &c);
    if (st->local_identity == IDENTITY_UNKNOWN)
        return 0;
    int loopback = packet_is_loopback(p->family, p->destination);
    if (!loopback) {
        struct node_entry *n = wire_here() ? wire_node_at(p->destination) : 0;
        u32 name = 0;
        if (wire_speaks(n)) {
            node = n->node;
            if (policy_allows_peer(&c, st->local_identity, p->protocol, p->destination_port))
                return 0;
        }
        u32 remote = IDENTITY_LEGACY;
        if (!n || wire_speaks(n))
            remote = policy_remote(&c, st->local_identity, p->family, p->destination, DIRECTION_EGRESS, p->protocol,
                                   p->destination_port, &name);
        policy_judge(&j, &c, st->local_identity, st->local_mode, DIRECTION_EGRESS, remote, p->protocol,
                     p->destination_port);
        if (j.verdict != VERDICT_DENY)
            return 0;
    }
    if (!cgroup_receiver(ctx, p, &c, &to))
        return 0;
    policy_judge(&near, &c, st->local_identity, st->local_mode, DIRECTION_EGRESS, to.identity, p->protocol,
                 p->destination_port);
    if (near.verdict == VERDICT_DENY) {
        j = loopback ? near : j;
    } else {
        policy_judge(&far, &c, to.identity, to.mode, DIRECTION_INGRESS, st->local_identity, p->protocol,
                     p->destination_port);
        if (far.verdict != VERDICT_DENY)
            return 0;
        j = loopback ? far : j;
    }
    /* a datagram may be an answer, which only the wall can tell, or one that a host cannot live without */
    if (p->protocol != IPPROTO_TCP && (st->peer_word || st->peer_tgid || to.st))
        return 0;
    p->source_port = bpf_htons(sk->src_port);
    if (st->local_identity == IDENTITY_HOST && packet_is_dhcp(p, DIRECTION_EGRESS))
        return 0;
    account_refusal(&j);
    cgroup_event(&c, p, &j, st, node);
    return 1;
}

static INLINE u8 cgroup_protocol(struct bpf_sock_addr *ctx)
{
    u32 protocol = ctx->protocol;
    if (protocol == 262) /* IPPROTO_MPTCP */
        return IPPROTO_TCP;
    return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_UDPLITE ? protocol : 0;
}

/* connect() and sendmsg() to an IPv4 address. */
int cgroup_address4(struct bpf_sock_addr *ctx)
{
    struct packet p = {
        .family = AF_INET,
        .protocol = cgroup_protocol(ctx),
        .destination_port = ctx->user_port,
    };
    p.destination[2] = bpf_htonl(0xffff);
    p.destination[3] = ctx->user_ip4;
    if (!p.destination[3])
        p.destination[3] = bpf_htonl(0x7f000001); /* connecting to 0.0.0.0 reaches this machine */
    return !cgroup_refuses(ctx, &p);
}

/* connect() and sendmsg() to an IPv6 address. */
int cgroup_address6(struct bpf_sock_addr *ctx)
{
    struct packet p = {
        .family = AF_INET6,
        .protocol = cgroup_protocol(ctx),
        .destination_port = ctx->user_port,
    };
    p.destination[0] = ctx->user_ip6[0];
    p.destination[1] = ctx->user_ip6[1];
    p.destination[2] = ctx->user_ip6[2];
    p.destination[3] = ctx->user_ip6[3];
    if (packet_is_mapped(p.destination)) {
        p.family = AF_INET;
        if (!p.destination[3])
            p.destination[3] = bpf_htonl(0x7f000001);
    } else if (!p.destination[0] && !p.destination[1] && !p.destination[2] && !p.destination[3])
        p.destination[3] = bpf_htonl(1);
    return !cgroup_refuses(ctx, &p);
}

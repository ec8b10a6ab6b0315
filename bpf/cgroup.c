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

int cgroup_sock(struct bpf_sock *ctx)
{
    cgroup_stamp_new(ctx, ctx);
    return 1;
}

/* The ports of the node's proxy are no one's but its own: whoever took one would keep the proxy from listening. */
static INLINE int cgroup_takes_from_proxy(struct bpf_sock *ctx)
{
    struct mesh_self *mesh = ctx->type == SOCK_TYPE_STREAM ? steering_here() : 0;

    if (!mesh || mesh->netns_cookie != bpf_get_netns_cookie(ctx))
        return 0;
    struct control c = trial_control();
    u64 group = bpf_get_current_cgroup_id();
    struct cgroup_entry *e = c.generation ? slot_cgroups(c.generation, &group) : 0;
    if (!e || (e->identity == IDENTITY_PROXY && !e->needs))
        return 0;
    struct judgement j = {.direction = DIRECTION_INGRESS};
    policy_refuse(&j, DROP_REASON_PROXY, MODE_ENFORCE);
    account_refusal(&j);
    return 1;
}

/* At bind. A listener that the kernel makes itself (MPTCP) is stamped here. */
int cgroup_bound(struct bpf_sock *ctx)
{
    u32 port = ctx->src_port;

    cgroup_stamp_new(ctx, ctx);
    return !((port == LANE_PORT || port == LANE_INBOUND_PORT) && cgroup_takes_from_proxy(ctx));
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

/* Find the local endpoint that would receive, or the host when nobody listens; 0 when it may be another after all. */
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
    to->identity = IDENTITY_UNKNOWN;
    if (to->st) {
        identity_derive(to->st, c);
        to->identity = to->st->local_identity;
        to->mode = to->st->local_mode;
    }
    return !shared;
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
    __builtin_memset(event->via, 0, sizeof(event->via));
    event->via_port = 0;
    bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP);
}

#define SOL_SOCKET 1
#define SO_PRIORITY 12
#define SO_MARK 36
#define LOOPBACK_INDEX 1

/* Where a call goes. */
enum call {
    CALL_ON = 0, /* where the program wants it */
    CALL_REFUSED = 1,
    CALL_STEERED = 2, /* into the node's proxy, by a lane */
};

/*
 * The proxy calls a workload of this node: by the socket's mark it says for whom, by its priority whom. Both are taken
 * off again, as other people's filters and routing rules may mean something else by them.
 */
static INLINE void cgroup_leg(struct bpf_sock_addr *ctx, struct bpf_sock *sk, struct sock_state *st)
{
    u32 caller = sk->mark, called = sk->priority;
    int none = 0;
    struct steering *way = steerings.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);

    if (!way)
        return;
    way->socket_cookie = st->socket_cookie;
    way->role = STEERING_ROLE_LEG_PROXY;
    way->caller = caller;
    way->called = called;
    st->flags |= SOCK_FLAG_STEERED;
    bpf_setsockopt(ctx, SOL_SOCKET, SO_MARK, &none, sizeof(none));
    bpf_setsockopt(ctx, SOL_SOCKET, SO_PRIORITY, &none, sizeof(none));
}

/* A lane is an IPv4 address of lo: no way there for a socket that speaks IPv6 alone, or through another device alone. */
static INLINE int cgroup_cannot_turn(struct bpf_sock *sk)
{
    struct bpf_sock *held = sk;
    u64 at = 0;
    u8 bits = 0;

    if (sk->bound_dev_if > LOOPBACK_INDEX)
        return 1;
    kernel_read(&at, sizeof(at), &held);
    kernel_read(&bits, sizeof(bits), (void *)(at + BIT_SOCK_IPV6ONLY / 8));
    return bits >> BIT_SOCK_IPV6ONLY % 8 & 1;
}

/*
 * Turn a call that policy allows through the proxy alone, by an entry with these flags, into the lane that leads to
 * `called`; the socket then knows what it stands for. What is not turned is left to the wall.
 */
static INLINE int cgroup_turn(struct bpf_sock_addr *ctx, const struct packet *p, struct sock_state *st, u32 called,
                              u32 flags, u32 *lane)
{
    struct bpf_sock *sk = ctx->sk;
    struct mesh_self *mesh = steering_here();

    *lane = flags & POLICY_FLAG_LANE;
    if (!sk || !*lane || p->protocol != IPPROTO_TCP || st->local_mode != MODE_ENFORCE || !mesh ||
        mesh->netns_cookie != bpf_get_netns_cookie(ctx))
        return CALL_ON;
    if (cgroup_cannot_turn(sk))
        return CALL_REFUSED;
    struct steering *way = steerings.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
    if (!way)
        return CALL_ON;
    way->socket_cookie = st->socket_cookie;
    __builtin_memcpy(way->address, p->destination, 16);
    way->port = p->destination_port;
    way->role = STEERING_ROLE_LANE_CALLER;
    way->caller = st->local_identity;
    way->called = called;
    st->flags |= SOCK_FLAG_STEERED;
    return CALL_STEERED;
}

/* What is known of a call before its receiver is. */
struct reading {
    struct judgement j; /* of the address, as somebody's outside this machine */
    u32 node;           /* that the address is registered for; 0: none */
    u32 called;         /* who is called through the proxy; 0: nobody */
    u32 flags;          /* enum policy_flag, of the entry that allows that */
    u32 own;            /* it is an address of this node, at which a workload may be called */
};

/*
 * The same bytes, of which the verifier knows nothing any more: it goes on once, and not once for each way that led here.
 * What these hooks work with cannot stand in a map of scratches, as packets' does: they can be preempted.
 */
#define CGROUP_BLUR(_value) kernel_read(&(_value), sizeof(_value), &(_value))

/*
 * Refuse only what is sure to be refused on the wire: whether an address is this machine's own is not known here, so
 * for anything but loopback both readings must refuse. A socket not attested yet is left to the wall, whose dropped
 * SYN is sent again; EPERM would be final. Leaves the number of the lane for CALL_STEERED in `lane`.
 */
static INLINE int cgroup_decide(struct bpf_sock_addr *ctx, struct packet *p, u32 *lane)
{
    struct control c = trial_control();
    struct bpf_sock *sk = ctx->sk;
    struct reading r = {};
    struct judgement near = {};
    struct endpoint to = {};

    if (!sk || !c.generation || p->protocol == 0 || !p->destination_port)
        return CALL_ON;
    struct sock_state *st = sockets.sk_storage_get(sk, 0, 0);
    if (!st)
        return CALL_ON;
    st->flags &= ~SOCK_FLAG_STEERED; /* of another conversation than this */
    identity_derive(st, &c);
    if (st->local_identity == IDENTITY_UNKNOWN)
        return CALL_ON;
    if (st->local_identity == IDENTITY_PROXY && sk->mark) {
        cgroup_leg(ctx, sk, st);
        return CALL_ON;
    }
    CGROUP_BLUR(*p);
    int loopback = packet_is_loopback(p->family, p->destination);
    if (!loopback) {
        struct wire_self *self = wire_here();
        struct node_entry *n = self ? wire_node_at(p->destination) : 0;
        u32 name = 0;
        if (wire_speaks(n)) {
            struct policy_entry *e = policy_allows_peer(&c, st->local_identity, p->protocol, p->destination_port);
            r.node = n->node;
            r.own = e && r.node == self->node;
            if (e && !r.own) {
                /* one that is still known by its address may have no proxy either */
                if (!(e->flags & POLICY_ANY_PROXY) || identity_is_quarantined(&c, st->local_identity) ||
                    (n->flags & NODE_FLAG_BY_ADDRESS && !wire_keys_of(r.node, wire_now(self))))
                    return CALL_ON;
                r.called = IDENTITY_PEER;
                r.flags = e->flags;
            }
        }
        if (!r.called && !r.own) {
            u32 remote = IDENTITY_LEGACY;
            if (!n || wire_speaks(n))
                remote = policy_remote(&c, st->local_identity, p->family, p->destination, DIRECTION_EGRESS, p->protocol,
                                       p->destination_port, &name);
            policy_judge(&r.j, &c, st->local_identity, st->local_mode, DIRECTION_EGRESS, remote, p->protocol,
                         p->destination_port, 0);
            if (r.j.verdict != VERDICT_DENY)
                return CALL_ON;
        }
    }
    CGROUP_BLUR(r);
    if (!r.called) {
        int sure = cgroup_receiver(ctx, p, &c, &to) && !r.own;
        policy_judge(&near, &c, st->local_identity, st->local_mode, DIRECTION_EGRESS, to.identity, p->protocol,
                     p->destination_port, 0);
        r.flags = near.flags;
        if (near.verdict != VERDICT_DENY)
            policy_judge(&near, &c, to.identity, to.mode, DIRECTION_INGRESS, st->local_identity, p->protocol,
                         p->destination_port, 0);
        if (near.verdict != VERDICT_DENY) {
            if (!(r.flags & POLICY_FLAG_REQUESTS))
                return CALL_ON;
            r.called = to.identity;
        } else if (!sure) {
            return CALL_ON;
        } else if (loopback) {
            r.j = near;
        }
    }
    CGROUP_BLUR(r);
    if (r.called) {
        int turned = cgroup_turn(ctx, p, st, r.called, r.flags, lane);
        if (turned != CALL_REFUSED)
            return turned;
        r.j.local = st->local_identity;
        r.j.remote = r.called;
        r.j.direction = DIRECTION_EGRESS;
        policy_refuse(&r.j, DROP_REASON_PROXY, MODE_ENFORCE);
    } else if (p->protocol != IPPROTO_TCP && (st->peer_word || st->peer_tgid || to.st)) {
        /* a datagram may be an answer, which only the wall can tell, or one that a host cannot live without */
        return CALL_ON;
    }
    p->source_port = bpf_htons(sk->src_port);
    if (st->local_identity == IDENTITY_HOST && packet_is_dhcp(p, DIRECTION_EGRESS))
        return CALL_ON;
    account_refusal(&r.j);
    cgroup_event(&c, p, &r.j, st, r.node);
    return CALL_REFUSED;
}

#define CGROUP_PUT(_ctx, _field, _value)                                                                               \
    asm volatile("*(u32 *)(%0 + %1) = %2" ::"r"(_ctx), "i"(__builtin_offsetof(struct bpf_sock_addr, _field)),          \
                 "r"((u64)(_value))                                                                                    \
                 : "memory")

/* Another address in place of the IPv6 one, by stores that the optimiser does not join: see packet_data(). */
static INLINE void cgroup_put6(struct bpf_sock_addr *ctx, __be32 a, __be32 b, __be32 c, __be32 d)
{
    CGROUP_PUT(ctx, user_ip6[0], a);
    CGROUP_PUT(ctx, user_ip6[1], b);
    CGROUP_PUT(ctx, user_ip6[2], c);
    CGROUP_PUT(ctx, user_ip6[3], d);
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
    u32 lane = 0;
    int call = cgroup_decide(ctx, &p, &lane);
    if (call == CALL_STEERED) {
        ctx->user_ip4 = bpf_htonl(LANE_BASE + lane);
        ctx->user_port = bpf_htons(LANE_PORT);
    }
    return call != CALL_REFUSED;
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
    u32 lane = 0;
    int call = cgroup_decide(ctx, &p, &lane);
    if (call == CALL_STEERED) {
        cgroup_put6(ctx, 0, 0, bpf_htonl(0xffff), bpf_htonl(LANE_BASE + lane));
        ctx->user_port = bpf_htons(LANE_PORT);
    }
    return call != CALL_REFUSED;
}

/* What the program is to take for the other end of its conversation, instead of the proxy; 0: the other end itself. */
static INLINE struct steering *cgroup_seen(struct bpf_sock_addr *ctx)
{
    struct bpf_sock *sk = ctx->sk;
    struct sock_state *st = sk ? sockets.sk_storage_get(sk, 0, 0) : 0;
    struct steering *way = st && st->flags & SOCK_FLAG_STEERED ? steerings.sk_storage_get(sk, 0, 0) : 0;

    if (!way || (way->role != STEERING_ROLE_LANE_CALLER && way->role != STEERING_ROLE_LEG_CALLED))
        return 0;
    const u64 *words = (const u64 *)way->address;
    return words[0] || words[1] ? way : 0;
}

/* getpeername() and accept() of an IPv4 socket. */
int cgroup_peer4(struct bpf_sock_addr *ctx)
{
    struct steering *way = cgroup_seen(ctx);
    const __be32 *address = way ? (const __be32 *)way->address : 0;

    if (!address || !packet_is_mapped(address))
        return 1;
    ctx->user_ip4 = address[3];
    if (way->role == STEERING_ROLE_LANE_CALLER)
        ctx->user_port = way->port;
    return 1;
}

/* getpeername() and accept() of an IPv6 socket. */
int cgroup_peer6(struct bpf_sock_addr *ctx)
{
    struct steering *way = cgroup_seen(ctx);
    const __be32 *address = way ? (const __be32 *)way->address : 0;

    if (!address)
        return 1;
    cgroup_put6(ctx, address[0], address[1], address[2], address[3]);
    if (way->role == STEERING_ROLE_LANE_CALLER)
        ctx->user_port = way->port;
    return 1;
}

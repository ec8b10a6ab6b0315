/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * harness.c: lets the programs of tc.c judge packets that no device carries. Compiled behind them, for tests and for
 * `bulkhead matrix --engine kernel` only; never part of what is loaded to enforce.
 *
 * BPF_PROG_TEST_RUN hands a program a packet of a dummy socket: a full one, in TCP_CLOSE, of no type. The harness gives
 * that socket the state of the sender in question and tail-calls the program, which cannot tell the difference.
 */

/* What the next packet is. */
struct harness_setup {
    struct sock_state state; /* of its sender */
    u32 program;             /* index into harness_programs */
    u32 link;                /* enum link_kind, for harness_ownerless */
    u32 is_stamped;          /* 0: its socket is one that no hook has seen */
    u32 tc_index;
};
BPF_F_TABLE(PINNED("array", "harness_setups"), u32, struct harness_setup, harness_setups, 1, 0);

/* The entry points of tc.c, in order. */
BPF_F_TABLE(PINNED("prog", "harness_programs"), u32, u32, harness_programs, 6, 0);

/* A question to policy_judge() and, after it, what it said. */
struct harness_question {
    u32 local;
    u32 remote;
    u8 direction;
    u8 protocol;
    __be16 port;
    u32 rule_id;
    u8 verdict;
    u8 reason;
    u16 reserved;
};
BPF_F_TABLE(PINNED("array", "harness_questions"), u32, struct harness_question, harness_questions, 1, 0);

/* A packet of a socket. Stamped once: over `repeat` the socket keeps what the program under test made of its state. */
int harness_packet(struct __sk_buff *skb)
{
    u32 zero = 0;
    struct harness_setup *setup = harness_setups.lookup(&zero);
    struct bpf_sock *sk = skb->sk;

    if (!setup || !sk)
        return DROP;
    if (setup->is_stamped && !sockets.sk_storage_get(sk, 0, 0)) {
        struct bpf_sock *full = bpf_sk_fullsock(sk);
        struct sock_state *st = full ? sockets.sk_storage_get(full, 0, BPF_SK_STORAGE_GET_F_CREATE) : 0;
        if (!st)
            return DROP;
        __builtin_memcpy(st, &setup->state, sizeof(*st));
    }
    skb->tc_index = setup->tc_index;
    harness_programs.call(skb, setup->program);
    return DROP;
}

/* A packet that no socket sent: forwarded, or made by the kernel. */
int harness_ownerless(struct __sk_buff *skb)
{
    u32 zero = 0;
    struct harness_setup *setup = harness_setups.lookup(&zero);

    if (!setup)
        return DROP;
    skb->cb[0] = setup->link;
    skb->tc_index = setup->tc_index;
    return egress_full(skb, 0);
}

/* One end's judgement without a packet, for conversations that a packet offline cannot stand for. */
int harness_judge(struct __sk_buff *skb)
{
    u32 zero = 0;
    struct harness_question *q = harness_questions.lookup(&zero);
    struct control word = trial_control(), *c = &word;
    struct judgement j = {};

    if (!q || !c->generation)
        return DROP;
    policy_judge(&j, c, q->local, MODE_ENFORCE, q->direction, q->remote, q->protocol, q->port, 0);
    q->rule_id = j.rule_id;
    q->verdict = j.verdict;
    q->reason = j.reason;
    return j.verdict == VERDICT_DENY ? DROP : PASS;
}

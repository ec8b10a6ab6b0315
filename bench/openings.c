/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * openings.c: hands the program under test one opening after the other. BPF_PROG_TEST_RUN repeats one packet only, and
 * what verifies an opening writes into it.
 */

#define SEQUENCE 4     /* offset in a TCP header */
#define OPTION_BYTES 20
#define FAILED 2       /* TC_ACT_SHOT */

struct opening {
    u32 at;            /* offset of the TCP header in the frame */
    u32 option_at;
    __be32 sequence;
    u8 option[OPTION_BYTES];
};
BPF_ARRAY(openings, struct opening, OPENINGS);
BPF_ARRAY(turns, u32, 1);
BPF_PROG_ARRAY(programs, 1);

int next_opening(struct __sk_buff *skb)
{
    u32 zero = 0;
    u32 *turn = turns.lookup(&zero);

    if (!turn)
        return FAILED;
    u32 index = *turn % OPENINGS;
    struct opening *one = openings.lookup(&index);
    if (!one)
        return FAILED;
    *turn = index + 1;
    bpf_skb_store_bytes(skb, one->at + SEQUENCE, &one->sequence, sizeof(one->sequence), 0);
    bpf_skb_store_bytes(skb, one->option_at, one->option, sizeof(one->option), 0);
    skb->tc_index = 0;
    programs.call(skb, 0);
    return FAILED;
}

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * stage_dns.c: what reads DNS datagrams that have been judged; see dns.h. Reached by tail call from the stages of both
 * directions. A stage that is missing ends the reading, and the packet passes, as it was judged to.
 */

BPF_F_TABLE("percpu_array", u32, struct dns, dns_scratches, 2, 0);

/* A question that policy lets a workload ask. */
int stage_dns_question(struct __sk_buff *skb)
{
    struct control word = trial_control();
    u32 direction = dns_direction(skb);
    struct dns *d = dns_scratches.lookup(&direction);

    if (d && !dns_load(skb, d))
        dns_ask(d, &word);
    return PASS;
}

/* An answer on its way to the socket that may have asked. */
int stage_dns_answer(struct __sk_buff *skb)
{
    struct control word = trial_control();
    u32 direction = dns_direction(skb);
    struct dns *d = dns_scratches.lookup(&direction);

    if (!d)
        return PASS;
    u32 bad = dns_answer(d, &word, dns_load(skb, d));
    if (!bad)
        stages.call(skb, STAGE_DNS_RECORD);
    else if (bad < DNS_OUTCOME_MAX)
        dns_count(bad);
    return PASS;
}

/* The next record of an answer. */
int stage_dns_record(struct __sk_buff *skb)
{
    u32 direction = dns_direction(skb);
    struct dns *d = dns_scratches.lookup(&direction);

    if (!d)
        return PASS;
    if (!d->records)
        stages.call(skb, STAGE_DNS_LEARN);
    d->records--;
    if (dns_read_record(d))
        dns_count(DNS_OUTCOME_MALFORMED);
    else
        stages.call(skb, STAGE_DNS_RECORD);
    return PASS;
}

/* An answer that was understood as a whole. */
int stage_dns_learn(struct __sk_buff *skb)
{
    u32 direction = dns_direction(skb), now = account_boot_seconds();
    struct dns *d = dns_scratches.lookup(&direction);
    u32 outcome = DNS_OUTCOME_LEARNED;

    if (!d)
        return PASS;
    if (!d->found_count)
        outcome = DNS_OUTCOME_EMPTY;
#pragma nounroll
    for (u32 at = 0; at < DNS_RECORDS_MAX; at++) {
        if (at < d->found_count && dns_learn(d, &d->found[at], now))
            outcome = DNS_OUTCOME_FORGOTTEN;
    }
    questions.delete(&d->key);
    dns_count(outcome);
    return PASS;
}

/* SPDX-License-Identifier: GPL-2.0-only */
/* stage_egress.c: the second stage of what leaves, one copy for every kind of device; see egress.h. */

int stage_egress(struct __sk_buff *skb)
{
    if (!skb->sk && !skb->ingress_ifindex && skb->tc_index == WIRE_CARRIER) /* made here, not forwarded */
        return PASS;
    if (!skb->sk && wire_is_carrier(skb)) {
        stages.call(skb, STAGE_CARRIER);
        return DROP;
    }
    return egress_full(skb, skb->sk);
}

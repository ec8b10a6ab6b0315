/* SPDX-License-Identifier: GPL-2.0-only */
/* stage_ingress.c: the second stage of what arrives, one copy for every kind of device; see ingress.h. */

int stage_ingress(struct __sk_buff *skb)
{
    return ingress_full(skb);
}

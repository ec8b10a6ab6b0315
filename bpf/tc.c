/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * tc.c: the entry points on devices. One pair for Ethernet framing, one for devices that carry bare IP, one for lo;
 * what they cannot settle at a glance goes to the stage of its direction.
 */

int tc_egress(struct __sk_buff *skb)
{
    return egress(skb, LINK_ETHERNET);
}

int tc_ingress(struct __sk_buff *skb)
{
    return ingress(skb, LINK_ETHERNET);
}

int tc_egress_bare(struct __sk_buff *skb)
{
    return egress(skb, LINK_BARE);
}

int tc_ingress_bare(struct __sk_buff *skb)
{
    return ingress(skb, LINK_BARE);
}

int tc_egress_loopback(struct __sk_buff *skb)
{
    return egress(skb, LINK_LOOPBACK);
}

int tc_ingress_loopback(struct __sk_buff *skb)
{
    return ingress_loopback(skb);
}

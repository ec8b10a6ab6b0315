/* SPDX-License-Identifier: GPL-2.0-only */
/* stage_datagram.c: reads what stands behind the user data of a datagram, before it is judged; see wire_datagram.h. */

int stage_datagram(struct __sk_buff *skb)
{
    struct control word = trial_control();
    struct wire_self *self = wire_here();
    u32 which = DIRECTION_INGRESS;
    struct scratch *s = scratches.lookup(&which);

    if (!s)
        return DROP;
    if (self)
        wire_datagram_read(skb, &word, self, &s->packet, &s->said);
    else
        wire_forget(&s->said);
    skb->cb[0] |= LINK_READ;
    stages.call(skb, STAGE_INGRESS);
    return DROP;
}

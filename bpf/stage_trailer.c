/* SPDX-License-Identifier: GPL-2.0-only */
/* stage_trailer.c: what says who sends a datagram that may leave; see wire_datagram.h. */

int stage_trailer(struct __sk_buff *skb)
{
    u32 which = DIRECTION_EGRESS;
    struct scratch *s = scratches.lookup(&which);
    struct wire_hand *h = wire_hand();

    if (!s || !h)
        return DROP;
    u32 then = h->then;
    if (wire_has_room(skb, &s->packet, h->network, WIRE_TRAILER_BYTES + (s->packet.udp_bytes & 1)))
        wire_append(skb, &s->packet, h);
    else
        wire_send_carrier(skb, h);
    if (then)
        stages.call(skb, then);
    return PASS;
}

/* The copy that goes in front. What it is a copy of was judged; the scratch is still about that. */
int stage_carrier(struct __sk_buff *skb)
{
    u32 which = DIRECTION_EGRESS;
    struct scratch *s = scratches.lookup(&which);
    struct wire_hand *h = wire_hand();

    return !s || !h || wire_make_carrier(skb, &s->packet, h) ? DROP : PASS;
}

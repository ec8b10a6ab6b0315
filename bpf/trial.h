/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * trial.h: a generation that ends by itself.
 *
 * `bulkhead try` switches a generation in with a deadline. The tables of the one before stay in the other slot. Whoever
 * judges a packet after the deadline writes the word that brings them back, so it happens with the agent dead and
 * however long no process gets to run. Verdicts given meanwhile end with the trial.
 * INVARIANT: while a trial runs, user space touches the other slot only to add control groups to it.
 */
#ifndef BULKHEAD_TRIAL_H
#define BULKHEAD_TRIAL_H

/* The word to judge by now. Programs that race write the same value. */
static INLINE struct control trial_control(void)
{
    struct control word = control_read();
    u32 zero = 0;

    if (!(word.flags & CONTROL_FLAG_TRIAL))
        return word;
    struct trial *t = trial.lookup(&zero);
    if (!t || account_boot_seconds() < t->deadline_s)
        return word;
    word.generation++;
    word.flags = t->flags;
    u64 *held = (u64 *)control_word.lookup(&zero);
    if (held)
        *(volatile u64 *)held = *(u64 *)&word;
    return word;
}

static INLINE u32 trial_cap(const struct control *c, u32 deadline_s)
{
    u32 zero = 0;
    struct trial *t = c->flags & CONTROL_FLAG_TRIAL ? trial.lookup(&zero) : 0;

    return t && (!deadline_s || t->deadline_s < deadline_s) ? t->deadline_s : deadline_s;
}

#endif

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * policy.h: one end's judgement of one conversation. Knows allows only; everything else was decided at compile time.
 */
#ifndef BULKHEAD_POLICY_H
#define BULKHEAD_POLICY_H

#define POLICY_EXACT_BITS 80
#define POLICY_ANY_PROXY (POLICY_FLAG_MTLS | POLICY_FLAG_REQUESTS)
#define LEARNED_NAMES 4 /* a power of two; of learned_entry.names */

static INLINE u32 policy_class4(const struct control *c, __be32 address)
{
    struct address_key4 key = {.prefix_bits = 32};
    __builtin_memcpy(key.address, &address, 4);
    u32 *class = slot_classes4(c->generation, &key);
    return class ? *class : IDENTITY_WORLD;
}

static INLINE u32 policy_class6(const struct control *c, const __be32 *address)
{
    struct address_key6 key = {.prefix_bits = 128};
    __builtin_memcpy(key.address, address, 16);
    u32 *class = slot_classes6(c->generation, &key);
    return class ? *class : IDENTITY_WORLD;
}

static INLINE u32 policy_class(const struct control *c, u8 family, const __be32 *address)
{
    return family == AF_INET ? policy_class4(c, address[3]) : policy_class6(c, address);
}

/* The entry by which policy allows `remote`, now; 0: none. As policy_judge() would find, without saying why not. */
static INLINE struct policy_entry *policy_allows(const struct control *c, struct policy_key *key, u32 remote)
{
    key->remote_identity = remote;
    struct policy_entry *e = slot_policy(c->generation, key);
    return e && (!e->deadline_s || account_boot_seconds() < e->deadline_s) ? e : 0;
}

/* By which entry does policy let `local` open a conversation on this port with any workload of another node? */
static INLINE struct policy_entry *policy_allows_peer(const struct control *c, u32 local, u8 protocol, __be16 port)
{
    struct policy_key key = {
        .prefix_bits = POLICY_EXACT_BITS + 16,
        .local_identity = local,
        .direction = DIRECTION_EGRESS,
        .protocol = protocol,
        .port = port,
    };
    return policy_allows(c, &key, IDENTITY_PEER);
}

/*
 * Who an address outside this machine is to `local`: the first of the names it was told for it under which policy
 * allows the conversation, else the class of the address itself. `held` is the name id by which a stream was allowed
 * before, which outlives the name's time to live; what is found is left there, 0 for none.
 */
static INLINE u32 policy_remote(const struct control *c, u32 local, u8 family, const __be32 *address, u8 direction,
                                u8 protocol, __be16 port, u32 *held)
{
    struct learned_key known = {.local_identity = local};
    struct policy_key key = {
        .prefix_bits = POLICY_EXACT_BITS + 16,
        .local_identity = local,
        .direction = direction,
        .protocol = protocol,
        .port = port,
    };
    u32 id = *held;

    *held = 0;
    if (!(c->flags & CONTROL_FLAG_NAMES))
        return policy_class(c, family, address);
    __builtin_memcpy(known.address, address, 16);
    struct learned_entry *found = learned.lookup(&known);
#pragma nounroll
    for (u32 at = 0; at <= LEARNED_NAMES; at++) {
        if (at) {
            if (!found)
                break;
            u64 word = *(volatile u64 *)&found->names[(at - 1) & (LEARNED_NAMES - 1)];
            id = (u32)word > account_boot_seconds() ? word >> 32 : 0;
        }
        u32 *class = id ? slot_named(c->generation, &id) : 0;
        if (class && policy_allows(c, &key, *class)) {
            *held = id;
            return *class;
        }
    }
    return policy_class(c, family, address);
}

static INLINE void policy_refuse(struct judgement *j, u8 reason, u32 mode)
{
    j->verdict = mode == MODE_ENFORCE ? VERDICT_DENY : VERDICT_WOULD_DENY;
    j->reason = reason;
    j->rule_id = 0;
    j->deadline_s = 0;
    j->flags = 0;
}

/*
 * `port` is that of the end that is being connected to, whichever end `local` is. `unmet` (enum policy_flag): what an
 * allow may ask for and this conversation is not. Counts nothing.
 */
static INLINE void policy_judge(struct judgement *j, const struct control *c, u32 local, u32 mode, u8 direction,
                                u32 remote, u8 protocol, __be16 port, u32 unmet)
{
    struct policy_key key = {
        .prefix_bits = POLICY_EXACT_BITS + 16,
        .local_identity = local,
        .remote_identity = remote,
        .direction = direction,
        .protocol = protocol,
        .port = port,
    };

    j->local = local;
    j->remote = remote;
    j->direction = direction;
    /* before everything else, and whatever the mode: isolating is not a policy */
    if (identity_is_quarantined(c, local) || identity_is_quarantined(c, remote))
        return policy_refuse(j, DROP_REASON_QUARANTINE, MODE_ENFORCE);
    if (local == IDENTITY_UNKNOWN)
        return policy_refuse(j, DROP_REASON_UNATTESTED, mode);
    if (local == IDENTITY_AMBIGUOUS)
        return policy_refuse(j, DROP_REASON_AMBIGUOUS, mode);
    if (local == IDENTITY_WITHHELD || remote == IDENTITY_WITHHELD)
        return policy_refuse(j, DROP_REASON_POSTURE, mode);
    if (remote == IDENTITY_UNKNOWN || remote == IDENTITY_AMBIGUOUS)
        return policy_refuse(j, DROP_REASON_POLICY, mode);
    struct policy_entry *e = slot_policy(c->generation, &key);
    if (!e)
        return policy_refuse(j, DROP_REASON_POLICY, mode);
    if (e->deadline_s && account_boot_seconds() >= e->deadline_s)
        return policy_refuse(j, DROP_REASON_EXPIRED, mode);
    if (e->flags & unmet)
        return policy_refuse(j, DROP_REASON_MTLS, mode);
    j->verdict = VERDICT_ALLOW;
    j->reason = DROP_REASON_NONE;
    j->rule_id = e->rule_id;
    j->hit_slot = e->hit_slot;
    j->flags = e->flags;
    j->deadline_s = trial_cap(c, e->deadline_s);
}

#endif

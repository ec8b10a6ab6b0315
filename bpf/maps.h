/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * maps.h: every map, pinned below PIN_PATH so that enforcement outlives whoever loaded it.
 *
 * The maps of one generation are arrays of two inner maps. The idle slot is filled, then `control` is written in one
 * word; a program reads that word once and uses the same slot throughout.
 */
#ifndef BULKHEAD_MAPS_H
#define BULKHEAD_MAPS_H

#define PINNED(_type, _name) _type ":" PIN_PATH "/" _name
#define NO_PREALLOC BPF_F_NO_PREALLOC

#define PINNED_RINGBUF(_name, _path, _pages)                                                                           \
    struct _name##_table_t {                                                                                           \
        int key;                                                                                                       \
        u32 leaf;                                                                                                      \
        void *(*ringbuf_reserve)(u64);                                                                                 \
        void (*ringbuf_submit)(void *, u64);                                                                           \
        u32 max_entries;                                                                                               \
    };                                                                                                                 \
    __attribute__((section("maps/ringbuf:" PIN_PATH "/" _path))) struct _name##_table_t _name = {                      \
        .max_entries = (_pages) * PAGE_SIZE,                                                                           \
    }

#define PINNED_SK_STORAGE(_name, _path, _leaf, _flags)                                                                         \
    struct _name##_table_t {                                                                                           \
        int key;                                                                                                       \
        _leaf leaf;                                                                                                    \
        void *(*sk_storage_get)(void *, void *, int);                                                                  \
        int (*sk_storage_delete)(void *);                                                                              \
        u32 flags;                                                                                                     \
    };                                                                                                                 \
    __attribute__((section("maps/sk_storage:" PIN_PATH "/" _path))) struct _name##_table_t _name = {                   \
        .flags = BPF_F_NO_PREALLOC | (_flags),                                                                         \
    };                                                                                                                 \
    BPF_ANNOTATE_KV_PAIR(_name, int, _leaf)

/* Cloned from a listener into every socket that it accepts: the child is born with its listener's identity. */
PINNED_SK_STORAGE(sockets, "sockets", struct sock_state, BPF_F_CLONE);
/* Of sockets with the node's proxy at the other end, and of the proxy's own. */
PINNED_SK_STORAGE(steerings, "steerings", struct steering, 0);

BPF_F_TABLE(PINNED("array", "control"), u32, struct control, control_word, 1, 0);
BPF_F_TABLE(PINNED("array", "trial"), u32, struct trial, trial, 1, 0);
BPF_F_TABLE(PINNED("array", "setting"), u32, struct setting, setting, 1, 0);

BPF_F_TABLE("lpm_trie", struct policy_key, struct policy_entry, policy_inner, 1, NO_PREALLOC);
BPF_F_TABLE("lpm_trie", struct address_key4, u32, classes4_inner, 1, NO_PREALLOC);
BPF_F_TABLE("lpm_trie", struct address_key6, u32, classes6_inner, 1, NO_PREALLOC);
BPF_F_TABLE("hash", u64, struct cgroup_entry, cgroups_inner, 1, NO_PREALLOC);
BPF_F_TABLE("hash", struct subject_member, u32, members_inner, 1, NO_PREALLOC);
BPF_F_TABLE("hash", struct subject_key, struct subject_entry, subjects_inner, 1, NO_PREALLOC);
BPF_F_TABLE("hash", struct name_key, u32, names_inner, 1, NO_PREALLOC);
BPF_F_TABLE("hash", u32, u32, named_inner, 1, NO_PREALLOC);
BPF_F_TABLE("hash", u32, u32, hosting_inner, 1, NO_PREALLOC);
BPF_F_TABLE(PINNED("array_of_maps$policy_inner", "policy"), int, int, policy_slots, 2, 0);
BPF_F_TABLE(PINNED("array_of_maps$classes4_inner", "classes4"), int, int, classes4_slots, 2, 0);
BPF_F_TABLE(PINNED("array_of_maps$classes6_inner", "classes6"), int, int, classes6_slots, 2, 0);
BPF_F_TABLE(PINNED("array_of_maps$cgroups_inner", "cgroups"), int, int, cgroups_slots, 2, 0);
BPF_F_TABLE(PINNED("array_of_maps$members_inner", "members"), int, int, members_slots, 2, 0);
BPF_F_TABLE(PINNED("array_of_maps$subjects_inner", "subjects"), int, int, subjects_slots, 2, 0);
/* DNS: from a name to its id, which is the same in every generation, and from the id to the class it has in this one. */
BPF_F_TABLE(PINNED("array_of_maps$names_inner", "names"), int, int, names_slots, 2, 0);
BPF_F_TABLE(PINNED("array_of_maps$named_inner", "named"), int, int, named_slots, 2, 0);
/* Which nodes may host a workload: identity -> host set, see struct claim_key. */
BPF_F_TABLE(PINNED("array_of_maps$hosting_inner", "hosting"), int, int, hosting_slots, 2, 0);

/* Identities that an operator has isolated, with when (boot clock, seconds). Outside generations: it survives them. */
BPF_F_TABLE(PINNED("hash", "quarantined"), u32, u32, quarantined, CAPACITY_QUARANTINED, NO_PREALLOC);

/* Attested facts, independent of policy: executable -> id of its name in policy, 0 when no policy names it. */
BPF_F_TABLE(PINNED("hash", "executables"), struct executable_key, u32, executables, CAPACITY_EXECUTABLES, NO_PREALLOC);

/* Conversation state outside sockets: bounded, and its loss refuses or judges again, never allows. */
BPF_F_TABLE(PINNED("lru_hash", "datagrams"), struct datagram_key, struct datagram_entry, datagrams, CAPACITY_DATAGRAMS, 0);
BPF_F_TABLE(PINNED("lru_hash", "fragments"), struct fragment_key, struct fragment_entry, fragments, CAPACITY_FRAGMENTS, 0);
BPF_F_TABLE(PINNED("lru_hash", "echoes"), struct echo_key, u32, echoes, CAPACITY_ECHOES, 0);
BPF_F_TABLE(PINNED("lru_hash", "questions"), struct question_key, struct question_entry, questions, CAPACITY_QUESTIONS, 0);
BPF_F_TABLE(PINNED("lru_hash", "learned"), struct learned_key, struct learned_entry, learned, CAPACITY_LEARNED, 0);

/* Identity on the wire. Outside generations: nodes come and go without a commit. */
BPF_F_TABLE(PINNED("array", "wire_self"), u32, struct wire_self, wire_self, 1, 0);
BPF_F_TABLE(PINNED("lpm_trie", "nodes"), struct node_key, struct node_entry, nodes, CAPACITY_NODES, NO_PREALLOC);
BPF_F_TABLE(PINNED("hash", "wire_keys"), struct wire_key_id, struct wire_keys, wire_keys, CAPACITY_WIRE_KEYS, NO_PREALLOC);
BPF_F_TABLE(PINNED("hash", "claims"), struct claim_key, u32, claims, CAPACITY_CLAIMS, NO_PREALLOC);
BPF_F_TABLE(PINNED("array", "guard"), u32, struct guard_bucket, guard, CAPACITY_GUARD, 0);
BPF_F_TABLE(PINNED("lru_hash", "wire_flows"), struct wire_flow_key, struct wire_flow, wire_flows, CAPACITY_WIRE_FLOWS, 0);

/* What goes through the node's proxy. */
BPF_F_TABLE(PINNED("array", "mesh_self"), u32, struct mesh_self, mesh_self, 1, 0);
/* What is said to the socket that accepts, and to the agent: what stands in `steerings`, by both ends. */
BPF_F_TABLE(PINNED("lru_hash", "legs"), struct leg_key, struct steering, legs, CAPACITY_LEGS, 0);
/* The proxy's listeners for other nodes, by family: 0 IPv4, 1 IPv6. */
BPF_F_TABLE(PINNED("sockmap", "proxy_listeners"), u32, u64, proxy_listeners, 2, 0);

/* Accounting. Index of `refusals`: reason * 4 + direction * 2 + (1 when only would-deny). */
BPF_F_TABLE(PINNED("percpu_array", "refusals"), u32, u64, refusals, DROP_REASON_MAX * 4, 0);
BPF_F_TABLE(PINNED("percpu_hash", "edges"), struct edge_key, u64, edges, CAPACITY_EDGES, NO_PREALLOC);
BPF_F_TABLE(PINNED("percpu_array", "hits"), u32, u64, hits, CAPACITY_HIT_SLOTS, 0);
BPF_F_TABLE(PINNED("percpu_array", "losses"), u32, u64, losses, LOSS_MAX, 0);
BPF_F_TABLE(PINNED("percpu_array", "wire_counts"), u32, u64, wire_counts, WIRE_COUNT_MAX, 0);
BPF_F_TABLE(PINNED("percpu_array", "dns_answers"), u32, u64, dns_answers, DNS_OUTCOME_MAX, 0);
BPF_F_TABLE(PINNED("percpu_array", "buckets"), u32, struct bucket, buckets, CONTROL_KIND_MAX + 1, 0);

/* Reached by tail calls: the second stage of each direction, one copy for all kinds of devices, and what few packets need. */
enum stage {
    STAGE_EGRESS = 0,
    STAGE_INGRESS = 1,
    STAGE_DNS_QUESTION = 2,
    STAGE_DNS_ANSWER = 3,
    STAGE_DNS_RECORD = 4,
    STAGE_DNS_LEARN = 5,
    STAGE_WIRE_TELL = 6,
    STAGE_WIRE_HEAR = 7,
    STAGE_TRAILER = 8,
    STAGE_CARRIER = 9,
    STAGE_DATAGRAM = 10,
    STAGE_STEERED = 11,
    STAGE_MAX = 12,
};
BPF_F_TABLE(PINNED("prog", "stages"), u32, u32, stages, STAGE_MAX, 0);

PINNED_RINGBUF(verdict_events, "verdict_events", 256);
PINNED_RINGBUF(lifecycle_events, "lifecycle_events", 64);

static INLINE struct control control_read(void)
{
    struct control word = {};
    u32 zero = 0;
    u64 *found = (u64 *)control_word.lookup(&zero);

    if (found)
        *(u64 *)&word = *(volatile u64 *)found;
    return word;
}

/* bcc rewrites map access only outside macros, so each generation's map has its lookup spelled out. */
static INLINE struct policy_entry *slot_policy(u32 generation, struct policy_key *key)
{
    int slot = generation & 1;
    void *inner = policy_slots.lookup(&slot);
    return inner ? bpf_map_lookup_elem_((uintptr_t)inner, key) : 0;
}

static INLINE u32 *slot_classes4(u32 generation, struct address_key4 *key)
{
    int slot = generation & 1;
    void *inner = classes4_slots.lookup(&slot);
    return inner ? bpf_map_lookup_elem_((uintptr_t)inner, key) : 0;
}

static INLINE u32 *slot_classes6(u32 generation, struct address_key6 *key)
{
    int slot = generation & 1;
    void *inner = classes6_slots.lookup(&slot);
    return inner ? bpf_map_lookup_elem_((uintptr_t)inner, key) : 0;
}

static INLINE struct cgroup_entry *slot_cgroups(u32 generation, u64 *key)
{
    int slot = generation & 1;
    void *inner = cgroups_slots.lookup(&slot);
    return inner ? bpf_map_lookup_elem_((uintptr_t)inner, key) : 0;
}

static INLINE u32 *slot_members(u32 generation, struct subject_member *key)
{
    int slot = generation & 1;
    void *inner = members_slots.lookup(&slot);
    return inner ? bpf_map_lookup_elem_((uintptr_t)inner, key) : 0;
}

static INLINE u32 *slot_names(u32 generation, struct name_key *key)
{
    int slot = generation & 1;
    void *inner = names_slots.lookup(&slot);
    return inner ? bpf_map_lookup_elem_((uintptr_t)inner, key) : 0;
}

static INLINE u32 *slot_named(u32 generation, u32 *name_id)
{
    int slot = generation & 1;
    void *inner = named_slots.lookup(&slot);
    return inner ? bpf_map_lookup_elem_((uintptr_t)inner, name_id) : 0;
}

static INLINE u32 *slot_hosting(u32 generation, u32 *identity)
{
    int slot = generation & 1;
    void *inner = hosting_slots.lookup(&slot);
    return inner ? bpf_map_lookup_elem_((uintptr_t)inner, identity) : 0;
}

static INLINE struct subject_entry *slot_subjects(u32 generation, struct subject_key *key)
{
    int slot = generation & 1;
    void *inner = subjects_slots.lookup(&slot);
    return inner ? bpf_map_lookup_elem_((uintptr_t)inner, key) : 0;
}

#endif

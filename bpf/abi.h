/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * abi.h: every type that crosses between the kernel programs and the agent.
 *
 * The only hand-written definition. tools/genabi.py turns this file into agent/bulkhead/abi.py, and the loader appends
 * one _Static_assert per field (offset and width) and per enum member before each compile, so that C and Python cannot
 * drift apart silently.
 *
 * Grammar kept small on purpose: enums with explicit values, structs of fixed-width scalars and arrays of them, every
 * padding byte named. No bit-fields, unions, pointers or nested structs. Byte order is in the type (__be16).
 *
 * INVARIANT: `sock_state` lives in sockets that outlive the agent. It is append-only inside its reserved bytes and its
 * size never changes; `ABI_LAYOUT` names the layout, and an agent refuses pins that carry a newer one.
 */
#ifndef BULKHEAD_ABI_H
#define BULKHEAD_ABI_H

enum abi {
    ABI_LAYOUT = 4, /* layout number of everything that is pinned; raised when a struct changes incompatibly */
};

/* Capacity of the fixed-size maps. A policy that does not fit is refused as a whole before anything is written. */
enum capacity {
    CAPACITY_HIT_SLOTS = 131072, /* rules whose hits are counted, over all live generations */
    CAPACITY_EDGES = 4096,       /* (local, remote, direction, verdict, reason) tuples counted one by one */
    CAPACITY_CGROUPS = 65536,    /* control groups attested at once */
    CAPACITY_SUBJECTS = 65536,   /* (group, executable, uid, gid) combinations */
    CAPACITY_EXECUTABLES = 65536, /* executables attested at once */
    CAPACITY_DATAGRAMS = 65536,  /* datagram conversations opened from here and remembered outside their socket */
    CAPACITY_FRAGMENTS = 16384,  /* fragmented datagrams in flight */
    CAPACITY_ECHOES = 16384,     /* echo requests waiting for their reply */
    CAPACITY_QUARANTINED = 1024, /* identities isolated at once */
    CAPACITY_QUESTIONS = 16384,  /* DNS questions waiting for their answer */
    CAPACITY_LEARNED = 32768,    /* addresses that workloads have been told a name has */
    CAPACITY_NODES = 8192,       /* prefixes at which registered nodes are reached */
    CAPACITY_WIRE_KEYS = 65536,  /* (node, key epoch) pairs with keys: 2,048 nodes for a day */
    CAPACITY_CLAIMS = 262144,    /* (node, host set) pairs */
    CAPACITY_GUARD = 131072,     /* buckets of eight verified openings each, remembered until they are too old */
    CAPACITY_LEGS = 65536,       /* conversations with the node's proxy that are remembered by their ends */
    CAPACITY_WIRE_FLOWS = 65536, /* datagram conversations whose other end said on the wire who it is */
};

/* The endpoint's view: egress leaves a local endpoint, ingress arrives at one. */
enum direction {
    DIRECTION_EGRESS = 0,
    DIRECTION_INGRESS = 1,
};

enum verdict {
    VERDICT_NONE = 0,       /* not judged yet */
    VERDICT_ALLOW = 1,      /* a rule allows it */
    VERDICT_DENY = 2,       /* refused; the packet does not pass */
    VERDICT_WOULD_DENY = 3, /* refused by policy, passed because the endpoint is in observe mode */
};

enum mode {
    MODE_OBSERVE = 0,
    MODE_ENFORCE = 1,
};

/*
 * Identities. Bit 31 clear: a local endpoint or entity. Bit 31 set: an address class (a set of externals).
 * Values up to IDENTITY_RESERVED_MAX never come out of the hash.
 */
enum identity {
    IDENTITY_UNKNOWN = 0,        /* not attested; matches nothing */
    IDENTITY_HOST = 1,           /* this machine: its kernel, and attested processes that no workload selects */
    IDENTITY_AMBIGUOUS = 2,      /* two workloads select it with equal right; matches nothing */
    IDENTITY_WORLD = 3,          /* an address outside this machine that no external names */
    IDENTITY_WITHHELD = 4,       /* a workload that is not as its policy requires (posture); matches nothing */
    IDENTITY_PEER = 5,           /* whichever workload of a registered node answers: may an opening leave at all? */
    IDENTITY_LEGACY = 6,         /* a registered node that runs no agent and so cannot say who is talking */
    IDENTITY_PROXY = 7,          /* a node's proxy, told by its control group: it speaks for workloads, and is none */
    IDENTITY_RESERVED_MAX = 255,
};

enum drop_reason {
    DROP_REASON_NONE = 0,
    DROP_REASON_POLICY = 1,            /* no rule allows it: default deny */
    DROP_REASON_EXPIRED = 2,           /* the allow that covered it has reached its deadline */
    DROP_REASON_UNATTESTED = 3,        /* the local endpoint has no identity yet */
    DROP_REASON_AMBIGUOUS = 4,         /* the local endpoint is selected by two workloads with equal right */
    DROP_REASON_NO_POLICY = 5,         /* no generation has been switched in */
    DROP_REASON_NO_STATE = 6,          /* socket storage could not be created */
    DROP_REASON_MALFORMED = 7,         /* a header is truncated, contradicts another, or carries port 0 */
    DROP_REASON_FRAGMENT = 8,          /* a later fragment whose first fragment was not allowed or not seen */
    DROP_REASON_EXTENSION_HEADER = 9,  /* IPv6 extension headers that could hide the transport header */
    DROP_REASON_MARTIAN = 10,          /* loopback, mapped or unspecified addresses where they cannot be */
    DROP_REASON_LINK_PROTOCOL = 11,    /* an ethertype other than IPv4, IPv6 or ARP, or stacked VLAN tags */
    DROP_REASON_PACKET_SOCKET = 12,    /* written to the device past the network stack (AF_PACKET) */
    DROP_REASON_RAW_SOCKET = 13,       /* a transport segment forged through a raw socket */
    DROP_REASON_OWNERLESS = 14,        /* no socket sent it, and it is no control packet of the kernel */
    DROP_REASON_FORWARDED = 15,        /* routed or bridged through this machine */
    DROP_REASON_CONTROL_RATE = 16,     /* a kernel control packet beyond its rate limit */
    DROP_REASON_UNSOLICITED = 17,      /* an answer (SYN-ACK, echo reply, ICMP error) to nothing that was asked */
    DROP_REASON_MULTICAST = 18,        /* multicast or broadcast arriving for no identity */
    DROP_REASON_LOOPBACK_BYPASS = 19,  /* arrived on lo without having been judged when it left */
    DROP_REASON_NEIGHBOUR = 20,        /* neighbour discovery from off-link or behind extension headers */
    DROP_REASON_QUARANTINE = 21,       /* an operator has isolated the workload at one of the ends */
    DROP_REASON_POSTURE = 22,          /* a workload at one of the ends is not as its policy requires */
    DROP_REASON_WIRE_MISSING = 23,     /* from a registered node, and does not say who is talking */
    DROP_REASON_WIRE_MALFORMED = 24,   /* an identity option of another length or place than the format has */
    DROP_REASON_WIRE_NO_KEY = 25,      /* no key is shared with the node: not registered, revoked, or itself */
    DROP_REASON_WIRE_FORGED = 26,      /* the code that authenticates the identity is wrong */
    DROP_REASON_WIRE_REPLAYED = 27,    /* this very opening has arrived before, in another conversation */
    DROP_REASON_WIRE_CLOCK = 28,       /* said too long ago, or not yet: the clocks differ by too much */
    DROP_REASON_WIRE_CLAIM = 29,       /* policy does not let the node host the workload that it names */
    DROP_REASON_WIRE_NO_ROOM = 30,     /* other options leave no room to say who is talking (MPTCP join, TFO, MD5) */
    DROP_REASON_WIRE_GUARD = 31,       /* more openings than can be told from replays */
    DROP_REASON_MTLS = 32,             /* policy asks for mutual TLS, and it does not go through the proxies */
    DROP_REASON_PROXY = 33,            /* the node's proxy is not at its other end, or named another than receives it */
    DROP_REASON_MAX = 34,
};

/* Packets that no socket owns and that a host cannot live without: passed under a name, counted, rate limited. */
enum control_kind {
    CONTROL_KIND_ARP = 0,            /* address resolution, IPv4 */
    CONTROL_KIND_NEIGHBOUR = 1,      /* neighbour and router discovery with hop limit 255 */
    CONTROL_KIND_TCP_RESET = 2,      /* RST sent by the kernel */
    CONTROL_KIND_TCP_ACK = 3,        /* TIME_WAIT, challenge and SYN_RECV acknowledgements and SYN-ACKs, no data */
    CONTROL_KIND_ICMP_ERROR = 4,     /* ICMP errors, sent by the kernel or quoting a live conversation */
    CONTROL_KIND_ECHO_REPLY = 5,     /* the kernel's answer to an echo request that was allowed in */
    CONTROL_KIND_GROUP = 6,          /* IGMP and MLD membership of this machine */
    CONTROL_KIND_DHCP = 7,           /* client to server, and the server's answer */
    CONTROL_KIND_MAX = 8,
};

/* What became of the answer to a question about a name that policy knows. The answer itself passes in any case. */
enum dns_outcome {
    DNS_OUTCOME_LEARNED = 0,   /* addresses were learned */
    DNS_OUTCOME_EMPTY = 1,     /* an error, or no address of the kind that was asked for */
    DNS_OUTCOME_UNASKED = 2,   /* this socket has not asked this server, or not with this id, or too long ago */
    DNS_OUTCOME_OTHER = 3,     /* not one question, or another than the one that was asked */
    DNS_OUTCOME_TRUNCATED = 4, /* the server says that there is more, over TCP */
    DNS_OUTCOME_TOO_LONG = 5,  /* more bytes than are read, or in fragments */
    DNS_OUTCOME_TOO_MANY = 6,  /* more records than are read */
    DNS_OUTCOME_MALFORMED = 7, /* names that loop, point forward or never end; lengths that contradict each other */
    DNS_OUTCOME_FORGOTTEN = 8, /* an address found no room */
    DNS_OUTCOME_STREAM = 9,    /* a connection to port 53 was opened: what is answered there is not read */
    DNS_OUTCOME_MAX = 10,
};

/* What identity on the wire has come to, exact. */
enum wire_count {
    WIRE_COUNT_SAID = 0,      /* openings and answers that left with an identity */
    WIRE_COUNT_VERIFIED = 1,  /* openings that arrived with one that holds */
    WIRE_COUNT_ANSWERED = 2,  /* answers that did */
    WIRE_COUNT_DATAGRAMS = 3, /* datagrams that did */
    WIRE_COUNT_TRAILERS = 4,  /* datagrams that left with an identity */
    WIRE_COUNT_CARRIERS = 5,  /* datagrams sent beside others that had no room for one */
    WIRE_COUNT_STRIPPED = 6,  /* options taken off because the other end is no registered node */
    WIRE_COUNT_TOLD = 7,      /* refusals explained to the node that was refused */
    WIRE_COUNT_HEARD = 8,     /* refusals that another node explained to us */
    WIRE_COUNT_MAX = 9,
};

/* What user space was not told, or what could not be remembered. Exact. */
enum loss {
    LOSS_EVENT_RING = 0,     /* verdict events that found the ring full */
    LOSS_EVENT_RATE = 1,     /* verdict events beyond the sampling rate */
    LOSS_EDGE = 2,           /* denials counted in total but not by edge: the edge map was full */
    LOSS_LIFECYCLE = 3,      /* lifecycle events that found the ring full: a rescan is due */
    LOSS_MAX = 4,
};

enum control_flag {
    CONTROL_FLAG_HOST_ENFORCE = 1, /* the host entity is in enforce mode */
    CONTROL_FLAG_ANY_ENFORCE = 2,  /* at least one workload, or the host, is in enforce mode */
    CONTROL_FLAG_WATCH_EXEC = 4,   /* policy selects executables: report every exec */
    CONTROL_FLAG_QUARANTINE = 8,   /* at least one identity is in `quarantined` */
    CONTROL_FLAG_TRIAL = 16,       /* this generation ends at the deadline in `trial`, and the one before it returns */
    CONTROL_FLAG_NAMES = 32,       /* policy names DNS names: questions and answers are read */
};

/* Which attributes beside the control group decide the workload of an endpoint. */
enum need {
    NEED_EXECUTABLE = 1,
    NEED_USER = 2,
    NEED_GROUP = 4,
};

enum sock_flag {
    SOCK_FLAG_OPENED = 1,    /* this end opened the conversation (it sent the SYN) */
    SOCK_FLAG_RAW = 2,       /* a raw socket */
    SOCK_FLAG_ADOPTED = 4,   /* older than the hooks; stamped by the agent */
    SOCK_FLAG_ORIGIN = 8,    /* the origin fields are filled in */
    SOCK_FLAG_STREAM = 16,   /* TCP: the verdict holds for the whole conversation */
    SOCK_FLAG_WIRE = 32,     /* TCP: `remote_identity` was proven on the wire by `remote_node` */
    SOCK_FLAG_PENDING = 64,  /* TCP: the opening has left for `remote_node`; nobody has answered yet */
    SOCK_FLAG_STEERED = 128, /* TCP: the node's proxy is, or is to be, at one of the ends; `steerings` says for what */
};

enum event_hook {
    EVENT_HOOK_TC = 0,       /* judged as a packet */
    EVENT_HOOK_CALL = 1,     /* refused in connect() or sendmsg(): no packet was made */
    EVENT_HOOK_PEER = 2,     /* refused at the other end, which said so: `node`, `commit` and `generation` are its own */
};

enum event_flag {
    EVENT_FLAG_CUT = 1,      /* a conversation that was allowed before is refused now */
    EVENT_FLAG_LOOPBACK = 2, /* both ends are on this machine */
    EVENT_FLAG_IPV6 = 4,
    EVENT_FLAG_STEERED = 8,  /* the node's proxy is at one end, for which `via` is what the socket has */
    EVENT_FLAG_VIA_SOURCE = 16, /* that end is the source, else the destination */
};

enum lifecycle_kind {
    LIFECYCLE_KIND_CGROUP_MADE = 1,
    LIFECYCLE_KIND_CGROUP_GONE = 2,
    LIFECYCLE_KIND_MOVED = 3, /* a process was moved to another control group */
    LIFECYCLE_KIND_EXEC = 4,  /* a process runs a new executable */
};

/* One 64-bit word, written at once: all maps of a generation change together. Slot = generation & 1. */
struct control {
    __u32 generation; /* 0: nothing has been switched in */
    __u32 flags;      /* enum control_flag */
};

/* What happens to a generation that is only tried: nobody has to be alive for it to end. */
struct trial {
    __u32 deadline_s; /* seconds since boot (CLOCK_BOOTTIME) */
    __u32 flags;      /* enum control_flag, of the generation that returns */
};

/*
 * Fields in the order in which an LPM trie compares them: everything but the port is exact, then the port as a prefix,
 * so that one lookup serves single ports and ranges. Ports are in network order for that reason. ICMP: type in the
 * high byte, code in the low.
 */
struct policy_key {
    __u32 prefix_bits;     /* 80 + bits of the port that count; 80 = any port */
    __u32 local_identity;
    __u32 remote_identity;
    __u8 direction;        /* enum direction */
    __u8 protocol;         /* IPPROTO_* */
    __be16 port;           /* of the end that is being connected to */
};

struct policy_entry {
    __u32 rule_id;    /* ordinal of the rule in its commit, from 1 */
    __u32 hit_slot;   /* where its hits are counted; stable over generations */
    __u32 deadline_s; /* seconds since boot (CLOCK_BOOTTIME) after which it lapses; 0 = never */
    __u32 flags;      /* enum policy_flag */
};

/* What an allow asks for beside the two identities, and the lane that leads there. */
enum policy_flag {
    POLICY_FLAG_LANE = 4194303,        /* mask: number of the lane; 0: none leads there */
    POLICY_FLAG_REQUESTS = 1073741824, /* judged by request: through the proxies, on one host as well */
    POLICY_FLAG_MTLS = 2147483648,     /* between nodes only through the proxies; on one host the kernel knows both */
};

struct address_key4 {
    __u32 prefix_bits;
    __u8 address[4];
};

struct address_key6 {
    __u32 prefix_bits;
    __u8 address[16];
};

/* Value under a cgroup id. `identity` is the answer when `needs` is 0, else the group to look on in `subjects`. */
struct cgroup_entry {
    __u32 identity;
    __u8 mode;  /* enum mode */
    __u8 needs; /* enum need */
    __u16 reserved;
};

/* Is `value` one that group `group` tells apart in this dimension? Absent: treated as SUBJECT_OTHER. */
struct subject_member {
    __u32 group;
    __u32 dimension; /* enum need */
    __u32 value;     /* executable id, uid or gid */
};

struct subject_key {
    __u32 group;
    __u32 executable; /* id of a named executable, or SUBJECT_OTHER */
    __u32 uid;        /* or SUBJECT_OTHER */
    __u32 gid;        /* or SUBJECT_OTHER */
};

enum subject {
    SUBJECT_OTHER = 4294967295, /* any value that the group does not name; also "does not matter" */
};

struct subject_entry {
    __u32 identity;
    __u32 mode; /* enum mode */
};

/* An executable as the kernel knows it; the inode generation guards against a reused inode number. */
struct executable_key {
    __u64 inode;
    __u32 device;     /* the superblock's dev_t in kernel encoding: major << 20 | minor */
    __u32 generation; /* of the inode */
};

/*
 * State anchored in a socket. First cache line: what a packet needs. Second: who opened the socket, so that a new
 * generation derives the identity again without user space.
 */
struct sock_state {
    __u32 generation;       /* in which `verdict` was given; compared first, written last */
    __u8 verdict;           /* enum verdict */
    __u8 flags;             /* enum sock_flag */
    __u8 direction;         /* enum direction of the conversation */
    __u8 reason;            /* enum drop_reason when refused */
    __u32 deadline_s;       /* as in policy_entry */
    __u32 rule_id;
    __u32 local_identity;
    __u32 remote_identity;
    __u32 identity_generation; /* in which local_identity was derived */
    __u32 local_mode;       /* enum mode */
    __u64 peer_word;        /* hash of the last peer (47 bits); datagrams: opened-by-us (1), generation (16) */
    __u64 socket_cookie;
    __u32 remote_name;      /* name id by which the stream's peer was allowed; 0: by its address */
    __u32 remote_node;      /* number of the node that the peer is on; 0: it is known by its address */
    __u64 wire_word;        /* TCP: initial sequence number of an opening; datagrams: see wire_datagram.h */
    __u64 cgroup_id;        /* at opening */
    __u64 opened_ns;        /* CLOCK_BOOTTIME */
    __u64 exe_inode;
    __u32 exe_device;
    __u32 exe_generation;
    __u32 uid;
    __u32 gid;
    __u32 tgid;
    __u32 peer_tgid;        /* the local peer's process when both ends are on this machine */
    char comm[16];
};

/* A peer that a datagram socket has opened a conversation with, remembered when the socket moved on to another. */
struct datagram_key {
    __u64 socket_cookie;
    __u64 peer; /* as in sock_state.peer_word, without the generation */
};

struct datagram_entry {
    __u32 generation; /* when it was displaced; the answer is judged by policy again anyway */
    __u32 reserved;
};

/*
 * A DNS name as policy has it: on the wire, in lower case, zeroes behind its end. With `is_wildcard` it stands for all
 * names of one more label in front.
 */
struct name_key {
    __u8 name[255];
    __u8 is_wildcard;
};

/* A DNS question that waits for its answer. */
struct question_key {
    __u64 socket_cookie; /* of the socket that asked */
    __u64 peer;          /* the server, as in sock_state.peer_word; the question's id in place of the generation */
};

struct question_entry {
    __u64 name_hash;      /* of the name in lower case, keyed */
    __u32 name_id;
    __u32 local_identity; /* who asked */
    __u32 asked_s;        /* seconds since boot */
    __u16 kind;           /* of record: A or AAAA */
    __u16 reserved;
};

/* An address that a workload was told. IPv4 as ::ffff:a.b.c.d. */
struct learned_key {
    __u32 local_identity;
    __u8 address[16];
};

/*
 * The names that it bears: name id << 32 | until when, in seconds since boot. 0: free. In one word each, so that a
 * reader never sees one name with another's time.
 */
struct learned_entry {
    __u64 names[4];
};

struct fragment_key {
    __u8 source[16];
    __u8 destination[16];
    __u32 identification;
    __u8 protocol;
    __u8 direction;
    __u16 reserved;
};

struct fragment_entry {
    __u64 seen_ns; /* CLOCK_MONOTONIC, coarse */
};

struct echo_key {
    __u8 local_address[16];
    __u8 remote_address[16];
    __be16 identifier;
    __u16 reserved[3];
};

struct edge_key {
    __u32 local_identity;
    __u32 remote_identity;
    __u8 direction;
    __u8 verdict;
    __u8 reason;
    __u8 reserved;
};

/* Allowance of one kind of control packet (or of verdict events, at index CONTROL_KIND_MAX), per CPU. */
struct bucket {
    __u64 window; /* jiffies >> 8: 0.26 s at HZ 1000, 1 s at HZ 250 */
    __u64 used;   /* in this window */
    __u64 passed; /* since load, exact */
};

/*
 * A lane is a loopback address of its own, at which the node's proxy takes what one workload says to one set of others:
 * LANE_BASE plus its number.
 */
enum lane {
    LANE_BASE = 2134900736,    /* 127.64.0.0 */
    LANE_PORT = 15001,
    LANE_INBOUND_PORT = 15008, /* where the proxies of other nodes call */
};

enum mesh_flag {
    MESH_FLAG_PROXY = 1, /* policy has need of the node's proxy */
};

/* This node's part in what goes through proxies. Outside generations; written by the agent. */
struct mesh_self {
    __u64 netns_cookie; /* of the network namespace that the proxy is in */
    __u32 flags;        /* enum mesh_flag; 0: nothing is steered */
    __u32 reserved;
};

/* Which of the four sockets around a proxy. An accepted one is its opener's plus one. */
enum steering_role {
    STEERING_ROLE_NONE = 0,        /* bound as somebody else, not connected yet */
    STEERING_ROLE_LANE_CALLER = 1, /* a workload's, whose connect() was turned into a lane */
    STEERING_ROLE_LANE_PROXY = 2,  /* accepted by the proxy on a lane */
    STEERING_ROLE_LEG_PROXY = 3,   /* opened by the proxy towards a workload of its node, for a caller elsewhere */
    STEERING_ROLE_LEG_CALLED = 4,  /* accepted by that workload */
};

/* Of a conversation with the node's proxy: whose it really is, and with whom. Anchored in the sockets of both ends. */
struct steering {
    __u64 socket_cookie; /* of the socket that opened it */
    __u8 address[16];    /* lanes: what the caller asked for; legs: the caller's, 0 if not told. IPv4 as ::ffff:a.b.c.d */
    __be16 port;         /* lanes: what the caller asked for; legs: 0 */
    __u8 role;           /* enum steering_role */
    __u8 reserved;
    __u32 caller;        /* identity */
    __u32 called;        /* identity; lanes to other nodes: IDENTITY_PEER */
    __u32 reserved_too;
};

/* The ends of a conversation with the proxy, as its sockets have them. The source opened it. */
struct leg_key {
    __u8 source[16];
    __u8 destination[16];
    __be16 source_port;
    __be16 destination_port;
};

/* Secrets and constants that outlive a program reload. */
struct setting {
    __u64 hash_seed; /* keys peer_word; random, never shown */
    __u32 layout;    /* ABI_LAYOUT of the pinned maps; 0 while a load is under way */
    __u32 reserved;
    char build[32];  /* digest of the sources that the pinned programs were compiled from */
};

struct verdict_event {
    __u64 time_ns;         /* CLOCK_BOOTTIME */
    __u64 socket_cookie;   /* of the local socket; 0 when there is none */
    __u64 cgroup_id;
    __u64 exe_inode;
    __u32 exe_device;
    __u32 exe_generation;
    __u32 local_identity;
    __u32 remote_identity;
    __u32 rule_id;
    __u32 generation;
    __u32 ifindex;
    __u32 tgid;
    __u32 uid;
    __u32 peer_tgid;
    __u8 source[16];       /* IPv4 as ::ffff:a.b.c.d */
    __u8 destination[16];
    __be16 source_port;
    __be16 destination_port; /* ICMP: type << 8 | code */
    __u8 direction;        /* enum direction: which end judged */
    __u8 protocol;
    __u8 verdict;          /* enum verdict */
    __u8 reason;           /* enum drop_reason */
    __u8 hook;             /* enum event_hook */
    __u8 flags;            /* enum event_flag */
    __u16 reserved;
    char comm[16];
    __u32 node;            /* number of the node at the other end, as it proved or as its address says; 0: none */
    __u8 commit[8];        /* EVENT_HOOK_PEER: the first bytes of the commit that it enforces */
    __u8 via[16];          /* EVENT_FLAG_STEERED: the proxy's end as the socket has it, where another is shown */
    __be16 via_port;
    __u16 reserved_too[3];
};

/*
 * Identity on the wire, as docs/wire.md specifies it byte by byte. In a TCP header the option is the last one; in a
 * datagram it is the surplus area of RFC 9868, behind a pad byte where that begins at an odd offset.
 */
enum wire {
    WIRE_OPTION_KIND = 253,     /* RFC 6994: experimental, told from others by `experiment` */
    WIRE_OPTION_BYTES = 20,
    WIRE_PLACE_BYTES = 16,      /* reserved where MP_CAPABLE or a cookie request leaves no more, and is written over */
    WIRE_REFUSAL_BYTES = 36,
    WIRE_DATAGRAM_KIND = 127,   /* RFC 9868: EXP */
    WIRE_TRAILER_BYTES = 32,
    WIRE_EXPERIMENT = 45180,    /* 0xB07C */
    WIRE_TICK_S = 16,           /* unit of `tick` */
    WIRE_EPOCH_TICKS = 256,     /* ticks for which a key is good: 68 minutes */
    WIRE_TICKS_APART = 2,       /* how far `tick` may be from ours: clocks may differ by 32 s, and by up to 48 s */
};

/* What a MAC is about: two that mean different things are never equal. */
enum wire_kind {
    WIRE_KIND_OPENING = 1,  /* a SYN */
    WIRE_KIND_ANSWER = 2,   /* a SYN-ACK */
    WIRE_KIND_DATAGRAM = 3,
    WIRE_KIND_REFUSAL = 4,  /* a RST */
    WIRE_KIND_STAMP = 5,    /* never leaves: what was verified on arrival */
};

/* Said by a SYN and a SYN-ACK. Every number in network order. */
struct wire_option {
    __u8 kind;
    __u8 length;
    __be16 experiment;
    __be32 identity;        /* IDENTITY_HOST: a process of the node that no workload selects */
    __u8 node[3];           /* number of the node that says so */
    __u8 tick;              /* low bits of Unix time / WIRE_TICK_S */
    __u8 mac[8];
};

/* Said by the RST that answers an opening which policy refuses at the receiver. */
struct wire_refusal {
    __u8 kind;
    __u8 length;
    __be16 experiment;
    __be32 identity;        /* of the end that refuses */
    __u8 node[3];
    __u8 tick;
    __be32 generation;      /* of the end that refuses */
    __u8 commit[8];         /* first bytes of the commit that it enforces */
    __u8 reason;            /* enum drop_reason */
    __u8 reserved[3];
    __u8 mac[8];
};

/* Behind the user data of a datagram. */
struct wire_trailer {
    __be16 checksum;        /* OCS, see RFC 9868 */
    __u8 kind;
    __u8 length;            /* from `kind` on */
    __be16 experiment;
    __u8 flags;             /* 1: carries nothing but this, for datagrams that have no room */
    __u8 tick;
    __be32 identity;
    __u8 node[3];
    __u8 reserved;
    __u8 nonce[8];
    __u8 mac[8];
};

/* What is authenticated, hashed with SipHash-2-4 under the key of (sender, receiver, key epoch). Little endian. */
struct wire_message {
    __u32 sequence;         /* of the segment; datagrams: first half of the nonce */
    __u32 acknowledgement;  /* 0 for an opening; datagrams: second half of the nonce */
    __u32 identity;
    __u32 tick;             /* all 32 bits */
    __u32 kind;             /* enum wire_kind; refusals: reason << 8; datagrams: flags << 8, user data length << 16 */
    __u32 detail;           /* refusals: generation; 0 otherwise */
};

/* This node. Outside generations; written by the agent. */
struct wire_self {
    __u64 stamp_key[2];     /* of this boot: never leaves the machine */
    __u64 clock_offset_s;   /* Unix time less CLOCK_MONOTONIC, seconds: the clock that costs a program least to read */
    __u32 node;             /* its own number; 0: there is no identity on the wire */
    __u32 reserved;
    __u8 commit[8];         /* first bytes of the commit in force */
};

enum node_flag {
    NODE_FLAG_LEGACY = 1,     /* runs no agent: it is the entity `legacy` */
    NODE_FLAG_BY_ADDRESS = 2, /* what comes from it without an identity is judged by its address */
};

/* A prefix of 128 bits; IPv4 as ::ffff:a.b.c.d. */
struct node_key {
    __u32 prefix_bits;
    __u8 address[16];
};

struct node_entry {
    __u32 node;
    __u32 flags;            /* enum node_flag */
};

struct wire_key_id {
    __u32 node;
    __u32 epoch;            /* Unix time / (WIRE_TICK_S * WIRE_EPOCH_TICKS) */
};

struct wire_keys {
    __u64 sending[2];
    __u64 receiving[2];
};

/* May this node host the workloads of that host set? */
struct claim_key {
    __u32 node;
    __u32 host_set;         /* as in the generation map `hosting`; 0 there: any node */
};

/* Verified openings: tick (8 bits) << 56 | part of the MAC (24) << 32 | hash of the conversation's ends (32). 0: free. */
struct guard_bucket {
    __u64 seen[8];
};

struct wire_flow_key {
    __u64 socket_cookie;
    __u64 peer;             /* as in sock_state.peer_word, without the generation */
};

struct wire_flow {
    __u32 identity;
    __u32 node;
    __u32 verified_s;       /* seconds since boot */
    __u32 reserved;
};

struct lifecycle_event {
    __u64 cgroup_id;
    __u64 exe_inode;
    __u32 exe_device;
    __u32 exe_generation;
    __u32 tgid;
    __u32 kind;            /* enum lifecycle_kind */
    char path[256];        /* of the control group, from the hierarchy's root; cut if longer */
};

#endif

"""Types shared with the kernel programs. GENERATED from bpf/abi.h by tools/genabi.py: DO NOT EDIT.

Byte order is in the type: `PolicyKey(port=443)` stores 01 bb, and reading `port` gives 443 back.
A misspelt field is an error, for the type checker and at run time.
"""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import Array, Structure, c_char, c_uint8, c_uint16, c_uint32, c_uint64, sizeof
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING, Final

LAYOUT: Final = "d386300636b93546fb7c01cc471a384093f3490550271b6ceba88f7424316c50"
"""SHA-256 of every definition, without comments: equal exactly when both sides mean the same bytes."""


class Abi(IntEnum):
    """`enum abi`."""

    LAYOUT = 4
    """layout number of everything that is pinned; raised when a struct changes incompatibly"""


class Capacity(IntEnum):
    """Capacity of the fixed-size maps. A policy that does not fit is refused as a whole before anything is written."""

    HIT_SLOTS = 131072
    """rules whose hits are counted, over all live generations"""
    EDGES = 4096
    """(local, remote, direction, verdict, reason) tuples counted one by one"""
    CGROUPS = 65536
    """control groups attested at once"""
    SUBJECTS = 65536
    """(group, executable, uid, gid) combinations"""
    EXECUTABLES = 65536
    """executables attested at once"""
    DATAGRAMS = 65536
    """datagram conversations opened from here and remembered outside their socket"""
    FRAGMENTS = 16384
    """fragmented datagrams in flight"""
    ECHOES = 16384
    """echo requests waiting for their reply"""
    QUARANTINED = 1024
    """identities isolated at once"""
    QUESTIONS = 16384
    """DNS questions waiting for their answer"""
    LEARNED = 32768
    """addresses that workloads have been told a name has"""
    NODES = 8192
    """prefixes at which registered nodes are reached"""
    WIRE_KEYS = 65536
    """(node, key epoch) pairs with keys: 2,048 nodes for a day"""
    CLAIMS = 262144
    """(node, host set) pairs"""
    GUARD = 131072
    """buckets of eight verified openings each, remembered until they are too old"""
    LEGS = 65536
    """conversations with the node's proxy that are remembered by their ends"""
    WIRE_FLOWS = 65536
    """datagram conversations whose other end said on the wire who it is"""


class Direction(IntEnum):
    """The endpoint's view: egress leaves a local endpoint, ingress arrives at one."""

    EGRESS = 0
    INGRESS = 1


class Verdict(IntEnum):
    """`enum verdict`."""

    NONE = 0
    """not judged yet"""
    ALLOW = 1
    """a rule allows it"""
    DENY = 2
    """refused; the packet does not pass"""
    WOULD_DENY = 3
    """refused by policy, passed because the endpoint is in observe mode"""


class Mode(IntEnum):
    """`enum mode`."""

    OBSERVE = 0
    ENFORCE = 1


class Identity(IntEnum):
    """Identities. Bit 31 clear: a local endpoint or entity. Bit 31 set: an address class (a set of externals). Values
    up to IDENTITY_RESERVED_MAX never come out of the hash.
    """

    UNKNOWN = 0
    """not attested; matches nothing"""
    HOST = 1
    """this machine: its kernel, and attested processes that no workload selects"""
    AMBIGUOUS = 2
    """two workloads select it with equal right; matches nothing"""
    WORLD = 3
    """an address outside this machine that no external names"""
    WITHHELD = 4
    """a workload that is not as its policy requires (posture); matches nothing"""
    PEER = 5
    """whichever workload of a registered node answers: may an opening leave at all?"""
    LEGACY = 6
    """a registered node that runs no agent and so cannot say who is talking"""
    PROXY = 7
    """a node's proxy, told by its control group: it speaks for workloads, and is none"""
    RESERVED_MAX = 255


class DropReason(IntEnum):
    """`enum drop_reason`."""

    NONE = 0
    POLICY = 1
    """no rule allows it: default deny"""
    EXPIRED = 2
    """the allow that covered it has reached its deadline"""
    UNATTESTED = 3
    """the local endpoint has no identity yet"""
    AMBIGUOUS = 4
    """the local endpoint is selected by two workloads with equal right"""
    NO_POLICY = 5
    """no generation has been switched in"""
    NO_STATE = 6
    """socket storage could not be created"""
    MALFORMED = 7
    """a header is truncated, contradicts another, or carries port 0"""
    FRAGMENT = 8
    """a later fragment whose first fragment was not allowed or not seen"""
    EXTENSION_HEADER = 9
    """IPv6 extension headers that could hide the transport header"""
    MARTIAN = 10
    """loopback, mapped or unspecified addresses where they cannot be"""
    LINK_PROTOCOL = 11
    """an ethertype other than IPv4, IPv6 or ARP, or stacked VLAN tags"""
    PACKET_SOCKET = 12
    """written to the device past the network stack (AF_PACKET)"""
    RAW_SOCKET = 13
    """a transport segment forged through a raw socket"""
    OWNERLESS = 14
    """no socket sent it, and it is no control packet of the kernel"""
    FORWARDED = 15
    """routed or bridged through this machine"""
    CONTROL_RATE = 16
    """a kernel control packet beyond its rate limit"""
    UNSOLICITED = 17
    """an answer (SYN-ACK, echo reply, ICMP error) to nothing that was asked"""
    MULTICAST = 18
    """multicast or broadcast arriving for no identity"""
    LOOPBACK_BYPASS = 19
    """arrived on lo without having been judged when it left"""
    NEIGHBOUR = 20
    """neighbour discovery from off-link or behind extension headers"""
    QUARANTINE = 21
    """an operator has isolated the workload at one of the ends"""
    POSTURE = 22
    """a workload at one of the ends is not as its policy requires"""
    WIRE_MISSING = 23
    """from a registered node, and does not say who is talking"""
    WIRE_MALFORMED = 24
    """an identity option of another length or place than the format has"""
    WIRE_NO_KEY = 25
    """no key is shared with the node: not registered, revoked, or itself"""
    WIRE_FORGED = 26
    """the code that authenticates the identity is wrong"""
    WIRE_REPLAYED = 27
    """this very opening has arrived before, in another conversation"""
    WIRE_CLOCK = 28
    """said too long ago, or not yet: the clocks differ by too much"""
    WIRE_CLAIM = 29
    """policy does not let the node host the workload that it names"""
    WIRE_NO_ROOM = 30
    """other options leave no room to say who is talking (MPTCP join, TFO, MD5)"""
    WIRE_GUARD = 31
    """more openings than can be told from replays"""
    MTLS = 32
    """policy asks for mutual TLS, and it does not go through the proxies"""
    PROXY = 33
    """the node's proxy is not at its other end, or named another than receives it"""
    MAX = 34


class ControlKind(IntEnum):
    """Packets that no socket owns and that a host cannot live without: passed under a name, counted, rate limited."""

    ARP = 0
    """address resolution, IPv4"""
    NEIGHBOUR = 1
    """neighbour and router discovery with hop limit 255"""
    TCP_RESET = 2
    """RST sent by the kernel"""
    TCP_ACK = 3
    """TIME_WAIT, challenge and SYN_RECV acknowledgements and SYN-ACKs, no data"""
    ICMP_ERROR = 4
    """ICMP errors, sent by the kernel or quoting a live conversation"""
    ECHO_REPLY = 5
    """the kernel's answer to an echo request that was allowed in"""
    GROUP = 6
    """IGMP and MLD membership of this machine"""
    DHCP = 7
    """client to server, and the server's answer"""
    MAX = 8


class DnsOutcome(IntEnum):
    """What became of the answer to a question about a name that policy knows. The answer itself passes in any case."""

    LEARNED = 0
    """addresses were learned"""
    EMPTY = 1
    """an error, or no address of the kind that was asked for"""
    UNASKED = 2
    """this socket has not asked this server, or not with this id, or too long ago"""
    OTHER = 3
    """not one question, or another than the one that was asked"""
    TRUNCATED = 4
    """the server says that there is more, over TCP"""
    TOO_LONG = 5
    """more bytes than are read, or in fragments"""
    TOO_MANY = 6
    """more records than are read"""
    MALFORMED = 7
    """names that loop, point forward or never end; lengths that contradict each other"""
    FORGOTTEN = 8
    """an address found no room"""
    STREAM = 9
    """a connection to port 53 was opened: what is answered there is not read"""
    MAX = 10


class WireCount(IntEnum):
    """What identity on the wire has come to, exact."""

    SAID = 0
    """openings and answers that left with an identity"""
    VERIFIED = 1
    """openings that arrived with one that holds"""
    ANSWERED = 2
    """answers that did"""
    DATAGRAMS = 3
    """datagrams that did"""
    TRAILERS = 4
    """datagrams that left with an identity"""
    CARRIERS = 5
    """datagrams sent beside others that had no room for one"""
    STRIPPED = 6
    """options taken off because the other end is no registered node"""
    TOLD = 7
    """refusals explained to the node that was refused"""
    HEARD = 8
    """refusals that another node explained to us"""
    MAX = 9


class Loss(IntEnum):
    """What user space was not told, or what could not be remembered. Exact."""

    EVENT_RING = 0
    """verdict events that found the ring full"""
    EVENT_RATE = 1
    """verdict events beyond the sampling rate"""
    EDGE = 2
    """denials counted in total but not by edge: the edge map was full"""
    LIFECYCLE = 3
    """lifecycle events that found the ring full: a rescan is due"""
    MAX = 4


class ControlFlag(IntFlag):
    """`enum control_flag`."""

    HOST_ENFORCE = 1
    """the host entity is in enforce mode"""
    ANY_ENFORCE = 2
    """at least one workload, or the host, is in enforce mode"""
    WATCH_EXEC = 4
    """policy selects executables: report every exec"""
    QUARANTINE = 8
    """at least one identity is in `quarantined`"""
    TRIAL = 16
    """this generation ends at the deadline in `trial`, and the one before it returns"""
    NAMES = 32
    """policy names DNS names: questions and answers are read"""


class Need(IntFlag):
    """Which attributes beside the control group decide the workload of an endpoint."""

    EXECUTABLE = 1
    USER = 2
    GROUP = 4


class SockFlag(IntFlag):
    """`enum sock_flag`."""

    OPENED = 1
    """this end opened the conversation (it sent the SYN)"""
    RAW = 2
    """a raw socket"""
    ADOPTED = 4
    """older than the hooks; stamped by the agent"""
    ORIGIN = 8
    """the origin fields are filled in"""
    STREAM = 16
    """TCP: the verdict holds for the whole conversation"""
    WIRE = 32
    """TCP: `remote_identity` was proven on the wire by `remote_node`"""
    PENDING = 64
    """TCP: the opening has left for `remote_node`; nobody has answered yet"""
    STEERED = 128
    """TCP: the node's proxy is, or is to be, at one of the ends; `steerings` says for what"""


class EventHook(IntEnum):
    """`enum event_hook`."""

    TC = 0
    """judged as a packet"""
    CALL = 1
    """refused in connect() or sendmsg(): no packet was made"""
    PEER = 2
    """refused at the other end, which said so: `node`, `commit` and `generation` are its own"""


class EventFlag(IntFlag):
    """`enum event_flag`."""

    CUT = 1
    """a conversation that was allowed before is refused now"""
    LOOPBACK = 2
    """both ends are on this machine"""
    IPV6 = 4
    STEERED = 8
    """the node's proxy is at one end, for which `via` is what the socket has"""
    VIA_SOURCE = 16
    """that end is the source, else the destination"""


class LifecycleKind(IntEnum):
    """`enum lifecycle_kind`."""

    CGROUP_MADE = 1
    CGROUP_GONE = 2
    MOVED = 3
    """a process was moved to another control group"""
    EXEC = 4
    """a process runs a new executable"""


class Control(Structure):
    """One 64-bit word, written at once: all maps of a generation change together. Slot = generation & 1."""

    generation: int
    """0: nothing has been switched in"""
    flags: int
    """enum control_flag"""

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            generation: int = 0,
            flags: int = 0,
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (
        ("generation", c_uint32),
        ("flags", c_uint32),
    )


class Trial(Structure):
    """What happens to a generation that is only tried: nobody has to be alive for it to end."""

    deadline_s: int
    """seconds since boot (CLOCK_BOOTTIME)"""
    flags: int
    """enum control_flag, of the generation that returns"""

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            deadline_s: int = 0,
            flags: int = 0,
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (
        ("deadline_s", c_uint32),
        ("flags", c_uint32),
    )


class PolicyKey(Structure):
    """Fields in the order in which an LPM trie compares them: everything but the port is exact, then the port as a
    prefix, so that one lookup serves single ports and ranges. Ports are in network order for that reason. ICMP: type
    in the high byte, code in the low.
    """

    prefix_bits: int
    """80 + bits of the port that count; 80 = any port"""
    local_identity: int
    remote_identity: int
    direction: int
    """enum direction"""
    protocol: int
    """IPPROTO_*"""
    port: int
    """of the end that is being connected to"""

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            prefix_bits: int = 0,
            local_identity: int = 0,
            remote_identity: int = 0,
            direction: int = 0,
            protocol: int = 0,
            port: int = 0,
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (
        ("prefix_bits", c_uint32),
        ("local_identity", c_uint32),
        ("remote_identity", c_uint32),
        ("direction", c_uint8),
        ("protocol", c_uint8),
        ("port", c_uint16.__ctype_be__),
    )


class PolicyEntry(Structure):
    """`struct policy_entry`."""

    rule_id: int
    """ordinal of the rule in its commit, from 1"""
    hit_slot: int
    """where its hits are counted; stable over generations"""
    deadline_s: int
    """seconds since boot (CLOCK_BOOTTIME) after which it lapses; 0 = never"""
    flags: int
    """enum policy_flag"""

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            rule_id: int = 0,
            hit_slot: int = 0,
            deadline_s: int = 0,
            flags: int = 0,
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (
        ("rule_id", c_uint32),
        ("hit_slot", c_uint32),
        ("deadline_s", c_uint32),
        ("flags", c_uint32),
    )


class PolicyFlag(IntEnum):
    """What an allow asks for beside the two identities, and the lane that leads there."""

    LANE = 4194303
    """mask: number of the lane; 0: none leads there"""
    REQUESTS = 1073741824
    """judged by request: through the proxies, on one host as well"""
    MTLS = 2147483648
    """between nodes only through the proxies; on one host the kernel knows both"""


class AddressKey4(Structure):
    """`struct address_key4`."""

    prefix_bits: int
    address: Array[c_uint8]

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            prefix_bits: int = 0,
            address: tuple[int, ...] | Array[c_uint8] = (),
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (
        ("prefix_bits", c_uint32),
        ("address", c_uint8 * 4),
    )


class AddressKey6(Structure):
    """`struct address_key6`."""

    prefix_bits: int
    address: Array[c_uint8]

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            prefix_bits: int = 0,
            address: tuple[int, ...] | Array[c_uint8] = (),
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (
        ("prefix_bits", c_uint32),
        ("address", c_uint8 * 16),
    )


class CgroupEntry(Structure):
    """Value under a cgroup id. `identity` is the answer when `needs` is 0, else the group to look on in `subjects`."""

    identity: int
    mode: int
    """enum mode"""
    needs: int
    """enum need"""
    reserved: int

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            identity: int = 0,
            mode: int = 0,
            needs: int = 0,
            reserved: int = 0,
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (
        ("identity", c_uint32),
        ("mode", c_uint8),
        ("needs", c_uint8),
        ("reserved", c_uint16),
    )


class SubjectMember(Structure):
    """Is `value` one that group `group` tells apart in this dimension? Absent: treated as SUBJECT_OTHER."""

    group: int
    dimension: int
    """enum need"""
    value: int
    """executable id, uid or gid"""

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            group: int = 0,
            dimension: int = 0,
            value: int = 0,
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (
        ("group", c_uint32),
        ("dimension", c_uint32),
        ("value", c_uint32),
    )


class SubjectKey(Structure):
    """`struct subject_key`."""

    group: int
    executable: int
    """id of a named executable, or SUBJECT_OTHER"""
    uid: int
    """or SUBJECT_OTHER"""
    gid: int
    """or SUBJECT_OTHER"""

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            group: int = 0,
            executable: int = 0,
            uid: int = 0,
            gid: int = 0,
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (
        ("group", c_uint32),
        ("executable", c_uint32),
        ("uid", c_uint32),
        ("gid", c_uint32),
    )


class Subject(IntEnum):
    """`enum subject`."""

    OTHER = 4294967295
    """any value that the group does not name; also "does not matter\""""


class SubjectEntry(Structure):
    """`struct subject_entry`."""

    identity: int
    mode: int
    """enum mode"""

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            identity: int = 0,
            mode: int = 0,
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (
        ("identity", c_uint32),
        ("mode", c_uint32),
    )


class ExecutableKey(Structure):
    """An executable as the kernel knows it; the inode generation guards against a reused inode number."""

    inode: int
    device: int
    """the superblock's dev_t in kernel encoding: major << 20 | minor"""
    generation: int
    """of the inode"""

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            inode: int = 0,
            device: int = 0,
            generation: int = 0,
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (
        ("inode", c_uint64),
        ("device", c_uint32),
        ("generation", c_uint32),
    )


class SockState(Structure):
    """State anchored in a socket. First cache line: what a packet needs. Second: who opened the socket, so that a new
    generation derives the identity again without user space.
    """

    generation: int
    """in which `verdict` was given; compared first, written last"""
    verdict: int
    """enum verdict"""
    flags: int
    """enum sock_flag"""
    direction: int
    """enum direction of the conversation"""
    reason: int
    """enum drop_reason when refused"""
    deadline_s: int
    """as in policy_entry"""
    rule_id: int
    local_identity: int
    remote_identity: int
    identity_generation: int
    """in which local_identity was derived"""
    local_mode: int
    """enum mode"""
    peer_word: int
    """hash of the last peer (47 bits); datagrams: opened-by-us (1), generation (16)"""
    socket_cookie: int
    remote_name: int
    """name id by which the stream's peer was allowed; 0: by its address"""
    remote_node: int
    """number of the node that the peer is on; 0: it is known by its address"""
    wire_word: int
    """TCP: initial sequence number of an opening; datagrams: see wire_datagram.h"""
    cgroup_id: int
    """at opening"""
    opened_ns: int
    """CLOCK_BOOTTIME"""
    exe_inode: int
    exe_device: int
    exe_generation: int
    uid: int
    gid: int
    tgid: int
    peer_tgid: int
    """the local peer's process when both ends are on this machine"""
    comm: bytes

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            generation: int = 0,
            verdict: int = 0,
            flags: int = 0,
            direction: int = 0,
            reason: int = 0,
            deadline_s: int = 0,
            rule_id: int = 0,
            local_identity: int = 0,
            remote_identity: int = 0,
            identity_generation: int = 0,
            local_mode: int = 0,
            peer_word: int = 0,
            socket_cookie: int = 0,
            remote_name: int = 0,
            remote_node: int = 0,
            wire_word: int = 0,
            cgroup_id: int = 0,
            opened_ns: int = 0,
            exe_inode: int = 0,
            exe_device: int = 0,
            exe_generation: int = 0,
            uid: int = 0,
            gid: int = 0,
            tgid: int = 0,
            peer_tgid: int = 0,
            comm: bytes = b"",
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (
        ("generation", c_uint32),
        ("verdict", c_uint8),
        ("flags", c_uint8),
        ("direction", c_uint8),
        ("reason", c_uint8),
        ("deadline_s", c_uint32),
        ("rule_id", c_uint32),
        ("local_identity", c_uint32),
        ("remote_identity", c_uint32),
        ("identity_generation", c_uint32),
        ("local_mode", c_uint32),
        ("peer_word", c_uint64),
        ("socket_cookie", c_uint64),
        ("remote_name", c_uint32),
        ("remote_node", c_uint32),
        ("wire_word", c_uint64),
        ("cgroup_id", c_uint64),
        ("opened_ns", c_uint64),
        ("exe_inode", c_uint64),
        ("exe_device", c_uint32),
        ("exe_generation", c_uint32),
        ("uid", c_uint32),
        ("gid", c_uint32),
        ("tgid", c_uint32),
        ("peer_tgid", c_uint32),
        ("comm", c_char * 16),
    )


class DatagramKey(Structure):
    """A peer that a datagram socket has opened a conversation with, remembered when the socket moved on to another."""

    socket_cookie: int
    peer: int
    """as in sock_state.peer_word, without the generation"""

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            socket_cookie: int = 0,
            peer: int = 0,
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (
        ("socket_cookie", c_uint64),
        ("peer", c_uint64),
    )


class DatagramEntry(Structure):
    """`struct datagram_entry`."""

    generation: int
    """when it was displaced; the answer is judged by policy again anyway"""
    reserved: int

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            generation: int = 0,
            reserved: int = 0,
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (
        ("generation", c_uint32),
        ("reserved", c_uint32),
    )


class NameKey(Structure):
    """A DNS name as policy has it: on the wire, in lower case, zeroes behind its end. With `is_wildcard` it stands for
    all names of one more label in front.
    """

    name: Array[c_uint8]
    is_wildcard: int

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            name: tuple[int, ...] | Array[c_uint8] = (),
            is_wildcard: int = 0,
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (
        ("name", c_uint8 * 255),
        ("is_wildcard", c_uint8),
    )


class QuestionKey(Structure):
    """A DNS question that waits for its answer."""

    socket_cookie: int
    """of the socket that asked"""
    peer: int
    """the server, as in sock_state.peer_word; the question's id in place of the generation"""

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            socket_cookie: int = 0,
            peer: int = 0,
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (
        ("socket_cookie", c_uint64),
        ("peer", c_uint64),
    )


class QuestionEntry(Structure):
    """`struct question_entry`."""

    name_hash: int
    """of the name in lower case, keyed"""
    name_id: int
    local_identity: int
    """who asked"""
    asked_s: int
    """seconds since boot"""
    kind: int
    """of record: A or AAAA"""
    reserved: int

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            name_hash: int = 0,
            name_id: int = 0,
            local_identity: int = 0,
            asked_s: int = 0,
            kind: int = 0,
            reserved: int = 0,
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (
        ("name_hash", c_uint64),
        ("name_id", c_uint32),
        ("local_identity", c_uint32),
        ("asked_s", c_uint32),
        ("kind", c_uint16),
        ("reserved", c_uint16),
    )


class LearnedKey(Structure):
    """An address that a workload was told. IPv4 as ::ffff:a.b.c.d."""

    local_identity: int
    address: Array[c_uint8]

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            local_identity: int = 0,
            address: tuple[int, ...] | Array[c_uint8] = (),
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (
        ("local_identity", c_uint32),
        ("address", c_uint8 * 16),
    )


class LearnedEntry(Structure):
    """The names that it bears: name id << 32 | until when, in seconds since boot. 0: free. In one word each, so that a
    reader never sees one name with another's time.
    """

    names: Array[c_uint64]

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            names: tuple[int, ...] | Array[c_uint64] = (),
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (("names", c_uint64 * 4),)


class FragmentKey(Structure):
    """`struct fragment_key`."""

    source: Array[c_uint8]
    destination: Array[c_uint8]
    identification: int
    protocol: int
    direction: int
    reserved: int

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            source: tuple[int, ...] | Array[c_uint8] = (),
            destination: tuple[int, ...] | Array[c_uint8] = (),
            identification: int = 0,
            protocol: int = 0,
            direction: int = 0,
            reserved: int = 0,
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (
        ("source", c_uint8 * 16),
        ("destination", c_uint8 * 16),
        ("identification", c_uint32),
        ("protocol", c_uint8),
        ("direction", c_uint8),
        ("reserved", c_uint16),
    )


class FragmentEntry(Structure):
    """`struct fragment_entry`."""

    seen_ns: int
    """CLOCK_MONOTONIC, coarse"""

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            seen_ns: int = 0,
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (("seen_ns", c_uint64),)


class EchoKey(Structure):
    """`struct echo_key`."""

    local_address: Array[c_uint8]
    remote_address: Array[c_uint8]
    identifier: int
    reserved: Array[c_uint16]

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            local_address: tuple[int, ...] | Array[c_uint8] = (),
            remote_address: tuple[int, ...] | Array[c_uint8] = (),
            identifier: int = 0,
            reserved: tuple[int, ...] | Array[c_uint16] = (),
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (
        ("local_address", c_uint8 * 16),
        ("remote_address", c_uint8 * 16),
        ("identifier", c_uint16.__ctype_be__),
        ("reserved", c_uint16 * 3),
    )


class EdgeKey(Structure):
    """`struct edge_key`."""

    local_identity: int
    remote_identity: int
    direction: int
    verdict: int
    reason: int
    reserved: int

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            local_identity: int = 0,
            remote_identity: int = 0,
            direction: int = 0,
            verdict: int = 0,
            reason: int = 0,
            reserved: int = 0,
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (
        ("local_identity", c_uint32),
        ("remote_identity", c_uint32),
        ("direction", c_uint8),
        ("verdict", c_uint8),
        ("reason", c_uint8),
        ("reserved", c_uint8),
    )


class Bucket(Structure):
    """Allowance of one kind of control packet (or of verdict events, at index CONTROL_KIND_MAX), per CPU."""

    window: int
    """jiffies >> 8: 0.26 s at HZ 1000, 1 s at HZ 250"""
    used: int
    """in this window"""
    passed: int
    """since load, exact"""

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            window: int = 0,
            used: int = 0,
            passed: int = 0,
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (
        ("window", c_uint64),
        ("used", c_uint64),
        ("passed", c_uint64),
    )


class Lane(IntEnum):
    """A lane is a loopback address of its own, at which the node's proxy takes what one workload says to one set of
    others: LANE_BASE plus its number.
    """

    BASE = 2134900736
    """127.64.0.0"""
    PORT = 15001
    INBOUND_PORT = 15008
    """where the proxies of other nodes call"""


class MeshFlag(IntEnum):
    """`enum mesh_flag`."""

    PROXY = 1
    """policy has need of the node's proxy"""


class MeshSelf(Structure):
    """This node's part in what goes through proxies. Outside generations; written by the agent."""

    netns_cookie: int
    """of the network namespace that the proxy is in"""
    flags: int
    """enum mesh_flag; 0: nothing is steered"""
    reserved: int

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            netns_cookie: int = 0,
            flags: int = 0,
            reserved: int = 0,
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (
        ("netns_cookie", c_uint64),
        ("flags", c_uint32),
        ("reserved", c_uint32),
    )


class SteeringRole(IntEnum):
    """Which of the four sockets around a proxy. An accepted one is its opener's plus one."""

    NONE = 0
    """bound as somebody else, not connected yet"""
    LANE_CALLER = 1
    """a workload's, whose connect() was turned into a lane"""
    LANE_PROXY = 2
    """accepted by the proxy on a lane"""
    LEG_PROXY = 3
    """opened by the proxy towards a workload of its node, for a caller elsewhere"""
    LEG_CALLED = 4
    """accepted by that workload"""


class Steering(Structure):
    """Of a conversation with the node's proxy: whose it really is, and with whom. Anchored in the sockets of both ends.
    """

    socket_cookie: int
    """of the socket that opened it"""
    address: Array[c_uint8]
    """lanes: what the caller asked for; legs: the caller's, 0 if not told. IPv4 as ::ffff:a.b.c.d"""
    port: int
    """lanes: what the caller asked for; legs: 0"""
    role: int
    """enum steering_role"""
    reserved: int
    caller: int
    """identity"""
    called: int
    """identity; lanes to other nodes: IDENTITY_PEER"""
    reserved_too: int

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            socket_cookie: int = 0,
            address: tuple[int, ...] | Array[c_uint8] = (),
            port: int = 0,
            role: int = 0,
            reserved: int = 0,
            caller: int = 0,
            called: int = 0,
            reserved_too: int = 0,
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (
        ("socket_cookie", c_uint64),
        ("address", c_uint8 * 16),
        ("port", c_uint16.__ctype_be__),
        ("role", c_uint8),
        ("reserved", c_uint8),
        ("caller", c_uint32),
        ("called", c_uint32),
        ("reserved_too", c_uint32),
    )


class LegKey(Structure):
    """The ends of a conversation with the proxy, as its sockets have them. The source opened it."""

    source: Array[c_uint8]
    destination: Array[c_uint8]
    source_port: int
    destination_port: int

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            source: tuple[int, ...] | Array[c_uint8] = (),
            destination: tuple[int, ...] | Array[c_uint8] = (),
            source_port: int = 0,
            destination_port: int = 0,
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (
        ("source", c_uint8 * 16),
        ("destination", c_uint8 * 16),
        ("source_port", c_uint16.__ctype_be__),
        ("destination_port", c_uint16.__ctype_be__),
    )


class Setting(Structure):
    """Secrets and constants that outlive a program reload."""

    hash_seed: int
    """keys peer_word; random, never shown"""
    layout: int
    """ABI_LAYOUT of the pinned maps; 0 while a load is under way"""
    reserved: int
    build: bytes
    """digest of the sources that the pinned programs were compiled from"""

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            hash_seed: int = 0,
            layout: int = 0,
            reserved: int = 0,
            build: bytes = b"",
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (
        ("hash_seed", c_uint64),
        ("layout", c_uint32),
        ("reserved", c_uint32),
        ("build", c_char * 32),
    )


class VerdictEvent(Structure):
    """`struct verdict_event`."""

    time_ns: int
    """CLOCK_BOOTTIME"""
    socket_cookie: int
    """of the local socket; 0 when there is none"""
    cgroup_id: int
    exe_inode: int
    exe_device: int
    exe_generation: int
    local_identity: int
    remote_identity: int
    rule_id: int
    generation: int
    ifindex: int
    tgid: int
    uid: int
    peer_tgid: int
    source: Array[c_uint8]
    """IPv4 as ::ffff:a.b.c.d"""
    destination: Array[c_uint8]
    source_port: int
    destination_port: int
    """ICMP: type << 8 | code"""
    direction: int
    """enum direction: which end judged"""
    protocol: int
    verdict: int
    """enum verdict"""
    reason: int
    """enum drop_reason"""
    hook: int
    """enum event_hook"""
    flags: int
    """enum event_flag"""
    reserved: int
    comm: bytes
    node: int
    """number of the node at the other end, as it proved or as its address says; 0: none"""
    commit: Array[c_uint8]
    """EVENT_HOOK_PEER: the first bytes of the commit that it enforces"""
    via: Array[c_uint8]
    """EVENT_FLAG_STEERED: the proxy's end as the socket has it, where another is shown"""
    via_port: int
    reserved_too: Array[c_uint16]

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            time_ns: int = 0,
            socket_cookie: int = 0,
            cgroup_id: int = 0,
            exe_inode: int = 0,
            exe_device: int = 0,
            exe_generation: int = 0,
            local_identity: int = 0,
            remote_identity: int = 0,
            rule_id: int = 0,
            generation: int = 0,
            ifindex: int = 0,
            tgid: int = 0,
            uid: int = 0,
            peer_tgid: int = 0,
            source: tuple[int, ...] | Array[c_uint8] = (),
            destination: tuple[int, ...] | Array[c_uint8] = (),
            source_port: int = 0,
            destination_port: int = 0,
            direction: int = 0,
            protocol: int = 0,
            verdict: int = 0,
            reason: int = 0,
            hook: int = 0,
            flags: int = 0,
            reserved: int = 0,
            comm: bytes = b"",
            node: int = 0,
            commit: tuple[int, ...] | Array[c_uint8] = (),
            via: tuple[int, ...] | Array[c_uint8] = (),
            via_port: int = 0,
            reserved_too: tuple[int, ...] | Array[c_uint16] = (),
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (
        ("time_ns", c_uint64),
        ("socket_cookie", c_uint64),
        ("cgroup_id", c_uint64),
        ("exe_inode", c_uint64),
        ("exe_device", c_uint32),
        ("exe_generation", c_uint32),
        ("local_identity", c_uint32),
        ("remote_identity", c_uint32),
        ("rule_id", c_uint32),
        ("generation", c_uint32),
        ("ifindex", c_uint32),
        ("tgid", c_uint32),
        ("uid", c_uint32),
        ("peer_tgid", c_uint32),
        ("source", c_uint8 * 16),
        ("destination", c_uint8 * 16),
        ("source_port", c_uint16.__ctype_be__),
        ("destination_port", c_uint16.__ctype_be__),
        ("direction", c_uint8),
        ("protocol", c_uint8),
        ("verdict", c_uint8),
        ("reason", c_uint8),
        ("hook", c_uint8),
        ("flags", c_uint8),
        ("reserved", c_uint16),
        ("comm", c_char * 16),
        ("node", c_uint32),
        ("commit", c_uint8 * 8),
        ("via", c_uint8 * 16),
        ("via_port", c_uint16.__ctype_be__),
        ("reserved_too", c_uint16 * 3),
    )


class Wire(IntEnum):
    """Identity on the wire, as docs/wire.md specifies it byte by byte. In a TCP header the option is the last one; in a
    datagram it is the surplus area of RFC 9868, behind a pad byte where that begins at an odd offset.
    """

    OPTION_KIND = 253
    """RFC 6994: experimental, told from others by `experiment`"""
    OPTION_BYTES = 20
    PLACE_BYTES = 16
    """reserved where MP_CAPABLE or a cookie request leaves no more, and is written over"""
    REFUSAL_BYTES = 36
    DATAGRAM_KIND = 127
    """RFC 9868: EXP"""
    TRAILER_BYTES = 32
    EXPERIMENT = 45180
    """0xB07C"""
    TICK_S = 16
    """unit of `tick`"""
    EPOCH_TICKS = 256
    """ticks for which a key is good: 68 minutes"""
    TICKS_APART = 2
    """how far `tick` may be from ours: clocks may differ by 32 s, and by up to 48 s"""


class WireKind(IntEnum):
    """What a MAC is about: two that mean different things are never equal."""

    OPENING = 1
    """a SYN"""
    ANSWER = 2
    """a SYN-ACK"""
    DATAGRAM = 3
    REFUSAL = 4
    """a RST"""
    STAMP = 5
    """never leaves: what was verified on arrival"""


class WireOption(Structure):
    """Said by a SYN and a SYN-ACK. Every number in network order."""

    kind: int
    length: int
    experiment: int
    identity: int
    """IDENTITY_HOST: a process of the node that no workload selects"""
    node: Array[c_uint8]
    """number of the node that says so"""
    tick: int
    """low bits of Unix time / WIRE_TICK_S"""
    mac: Array[c_uint8]

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            kind: int = 0,
            length: int = 0,
            experiment: int = 0,
            identity: int = 0,
            node: tuple[int, ...] | Array[c_uint8] = (),
            tick: int = 0,
            mac: tuple[int, ...] | Array[c_uint8] = (),
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (
        ("kind", c_uint8),
        ("length", c_uint8),
        ("experiment", c_uint16.__ctype_be__),
        ("identity", c_uint32.__ctype_be__),
        ("node", c_uint8 * 3),
        ("tick", c_uint8),
        ("mac", c_uint8 * 8),
    )


class WireRefusal(Structure):
    """Said by the RST that answers an opening which policy refuses at the receiver."""

    kind: int
    length: int
    experiment: int
    identity: int
    """of the end that refuses"""
    node: Array[c_uint8]
    tick: int
    generation: int
    """of the end that refuses"""
    commit: Array[c_uint8]
    """first bytes of the commit that it enforces"""
    reason: int
    """enum drop_reason"""
    reserved: Array[c_uint8]
    mac: Array[c_uint8]

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            kind: int = 0,
            length: int = 0,
            experiment: int = 0,
            identity: int = 0,
            node: tuple[int, ...] | Array[c_uint8] = (),
            tick: int = 0,
            generation: int = 0,
            commit: tuple[int, ...] | Array[c_uint8] = (),
            reason: int = 0,
            reserved: tuple[int, ...] | Array[c_uint8] = (),
            mac: tuple[int, ...] | Array[c_uint8] = (),
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (
        ("kind", c_uint8),
        ("length", c_uint8),
        ("experiment", c_uint16.__ctype_be__),
        ("identity", c_uint32.__ctype_be__),
        ("node", c_uint8 * 3),
        ("tick", c_uint8),
        ("generation", c_uint32.__ctype_be__),
        ("commit", c_uint8 * 8),
        ("reason", c_uint8),
        ("reserved", c_uint8 * 3),
        ("mac", c_uint8 * 8),
    )


class WireTrailer(Structure):
    """Behind the user data of a datagram."""

    checksum: int
    """OCS, see RFC 9868"""
    kind: int
    length: int
    """from `kind` on"""
    experiment: int
    flags: int
    """1: carries nothing but this, for datagrams that have no room"""
    tick: int
    identity: int
    node: Array[c_uint8]
    reserved: int
    nonce: Array[c_uint8]
    mac: Array[c_uint8]

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            checksum: int = 0,
            kind: int = 0,
            length: int = 0,
            experiment: int = 0,
            flags: int = 0,
            tick: int = 0,
            identity: int = 0,
            node: tuple[int, ...] | Array[c_uint8] = (),
            reserved: int = 0,
            nonce: tuple[int, ...] | Array[c_uint8] = (),
            mac: tuple[int, ...] | Array[c_uint8] = (),
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (
        ("checksum", c_uint16.__ctype_be__),
        ("kind", c_uint8),
        ("length", c_uint8),
        ("experiment", c_uint16.__ctype_be__),
        ("flags", c_uint8),
        ("tick", c_uint8),
        ("identity", c_uint32.__ctype_be__),
        ("node", c_uint8 * 3),
        ("reserved", c_uint8),
        ("nonce", c_uint8 * 8),
        ("mac", c_uint8 * 8),
    )


class WireMessage(Structure):
    """What is authenticated, hashed with SipHash-2-4 under the key of (sender, receiver, key epoch). Little endian."""

    sequence: int
    """of the segment; datagrams: first half of the nonce"""
    acknowledgement: int
    """0 for an opening; datagrams: second half of the nonce"""
    identity: int
    tick: int
    """all 32 bits"""
    kind: int
    """enum wire_kind; refusals: reason << 8; datagrams: flags << 8, user data length << 16"""
    detail: int
    """refusals: generation; 0 otherwise"""

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            sequence: int = 0,
            acknowledgement: int = 0,
            identity: int = 0,
            tick: int = 0,
            kind: int = 0,
            detail: int = 0,
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (
        ("sequence", c_uint32),
        ("acknowledgement", c_uint32),
        ("identity", c_uint32),
        ("tick", c_uint32),
        ("kind", c_uint32),
        ("detail", c_uint32),
    )


class WireSelf(Structure):
    """This node. Outside generations; written by the agent."""

    stamp_key: Array[c_uint64]
    """of this boot: never leaves the machine"""
    clock_offset_s: int
    """Unix time less CLOCK_MONOTONIC, seconds: the clock that costs a program least to read"""
    node: int
    """its own number; 0: there is no identity on the wire"""
    reserved: int
    commit: Array[c_uint8]
    """first bytes of the commit in force"""

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            stamp_key: tuple[int, ...] | Array[c_uint64] = (),
            clock_offset_s: int = 0,
            node: int = 0,
            reserved: int = 0,
            commit: tuple[int, ...] | Array[c_uint8] = (),
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (
        ("stamp_key", c_uint64 * 2),
        ("clock_offset_s", c_uint64),
        ("node", c_uint32),
        ("reserved", c_uint32),
        ("commit", c_uint8 * 8),
    )


class NodeFlag(IntEnum):
    """`enum node_flag`."""

    LEGACY = 1
    """runs no agent: it is the entity `legacy`"""
    BY_ADDRESS = 2
    """what comes from it without an identity is judged by its address"""


class NodeKey(Structure):
    """A prefix of 128 bits; IPv4 as ::ffff:a.b.c.d."""

    prefix_bits: int
    address: Array[c_uint8]

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            prefix_bits: int = 0,
            address: tuple[int, ...] | Array[c_uint8] = (),
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (
        ("prefix_bits", c_uint32),
        ("address", c_uint8 * 16),
    )


class NodeEntry(Structure):
    """`struct node_entry`."""

    node: int
    flags: int
    """enum node_flag"""

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            node: int = 0,
            flags: int = 0,
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (
        ("node", c_uint32),
        ("flags", c_uint32),
    )


class WireKeyId(Structure):
    """`struct wire_key_id`."""

    node: int
    epoch: int
    """Unix time / (WIRE_TICK_S * WIRE_EPOCH_TICKS)"""

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            node: int = 0,
            epoch: int = 0,
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (
        ("node", c_uint32),
        ("epoch", c_uint32),
    )


class WireKeys(Structure):
    """`struct wire_keys`."""

    sending: Array[c_uint64]
    receiving: Array[c_uint64]

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            sending: tuple[int, ...] | Array[c_uint64] = (),
            receiving: tuple[int, ...] | Array[c_uint64] = (),
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (
        ("sending", c_uint64 * 2),
        ("receiving", c_uint64 * 2),
    )


class ClaimKey(Structure):
    """May this node host the workloads of that host set?"""

    node: int
    host_set: int
    """as in the generation map `hosting`; 0 there: any node"""

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            node: int = 0,
            host_set: int = 0,
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (
        ("node", c_uint32),
        ("host_set", c_uint32),
    )


class GuardBucket(Structure):
    """Verified openings: tick (8 bits) << 56 | part of the MAC (24) << 32 | hash of the conversation's ends (32). 0:
    free.
    """

    seen: Array[c_uint64]

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            seen: tuple[int, ...] | Array[c_uint64] = (),
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (("seen", c_uint64 * 8),)


class WireFlowKey(Structure):
    """`struct wire_flow_key`."""

    socket_cookie: int
    peer: int
    """as in sock_state.peer_word, without the generation"""

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            socket_cookie: int = 0,
            peer: int = 0,
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (
        ("socket_cookie", c_uint64),
        ("peer", c_uint64),
    )


class WireFlow(Structure):
    """`struct wire_flow`."""

    identity: int
    node: int
    verified_s: int
    """seconds since boot"""
    reserved: int

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            identity: int = 0,
            node: int = 0,
            verified_s: int = 0,
            reserved: int = 0,
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (
        ("identity", c_uint32),
        ("node", c_uint32),
        ("verified_s", c_uint32),
        ("reserved", c_uint32),
    )


class LifecycleEvent(Structure):
    """`struct lifecycle_event`."""

    cgroup_id: int
    exe_inode: int
    exe_device: int
    exe_generation: int
    tgid: int
    kind: int
    """enum lifecycle_kind"""
    path: bytes
    """of the control group, from the hierarchy's root; cut if longer"""

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            cgroup_id: int = 0,
            exe_inode: int = 0,
            exe_device: int = 0,
            exe_generation: int = 0,
            tgid: int = 0,
            kind: int = 0,
            path: bytes = b"",
        ) -> None: ...
    else:
        __slots__ = ()

    _fields_ = (
        ("cgroup_id", c_uint64),
        ("exe_inode", c_uint64),
        ("exe_device", c_uint32),
        ("exe_generation", c_uint32),
        ("tgid", c_uint32),
        ("kind", c_uint32),
        ("path", c_char * 256),
    )


STRUCTS: Final[dict[str, type[Structure]]] = {
    "control": Control,
    "trial": Trial,
    "policy_key": PolicyKey,
    "policy_entry": PolicyEntry,
    "address_key4": AddressKey4,
    "address_key6": AddressKey6,
    "cgroup_entry": CgroupEntry,
    "subject_member": SubjectMember,
    "subject_key": SubjectKey,
    "subject_entry": SubjectEntry,
    "executable_key": ExecutableKey,
    "sock_state": SockState,
    "datagram_key": DatagramKey,
    "datagram_entry": DatagramEntry,
    "name_key": NameKey,
    "question_key": QuestionKey,
    "question_entry": QuestionEntry,
    "learned_key": LearnedKey,
    "learned_entry": LearnedEntry,
    "fragment_key": FragmentKey,
    "fragment_entry": FragmentEntry,
    "echo_key": EchoKey,
    "edge_key": EdgeKey,
    "bucket": Bucket,
    "mesh_self": MeshSelf,
    "steering": Steering,
    "leg_key": LegKey,
    "setting": Setting,
    "verdict_event": VerdictEvent,
    "wire_option": WireOption,
    "wire_refusal": WireRefusal,
    "wire_trailer": WireTrailer,
    "wire_message": WireMessage,
    "wire_self": WireSelf,
    "node_key": NodeKey,
    "node_entry": NodeEntry,
    "wire_key_id": WireKeyId,
    "wire_keys": WireKeys,
    "claim_key": ClaimKey,
    "guard_bucket": GuardBucket,
    "wire_flow_key": WireFlowKey,
    "wire_flow": WireFlow,
    "lifecycle_event": LifecycleEvent,
}
"""Every struct, by its C name."""


ENUMS: Final[dict[str, type[IntEnum | IntFlag]]] = {
    "abi": Abi,
    "capacity": Capacity,
    "direction": Direction,
    "verdict": Verdict,
    "mode": Mode,
    "identity": Identity,
    "drop_reason": DropReason,
    "control_kind": ControlKind,
    "dns_outcome": DnsOutcome,
    "wire_count": WireCount,
    "loss": Loss,
    "control_flag": ControlFlag,
    "need": Need,
    "sock_flag": SockFlag,
    "event_hook": EventHook,
    "event_flag": EventFlag,
    "lifecycle_kind": LifecycleKind,
    "policy_flag": PolicyFlag,
    "subject": Subject,
    "lane": Lane,
    "mesh_flag": MeshFlag,
    "steering_role": SteeringRole,
    "wire": Wire,
    "wire_kind": WireKind,
    "node_flag": NodeFlag,
}
"""Every enum, by its C name."""


def name_of(enum_cls: type[IntEnum | IntFlag], value: int) -> str:
    """`DropReason, 5` -> `no-policy`. Flags join by commas, no flag is `none`. Unknown values print as numbers."""
    if issubclass(enum_cls, IntFlag):
        return _names_of_flags(enum_cls, value)
    for member in enum_cls:
        if member.value == value:
            return _spoken(member.name)
    return str(value)


def _names_of_flags(enum_cls: type[IntFlag], value: int) -> str:
    names = []
    for member in enum_cls:
        if value & member.value:
            names.append(_spoken(member.name or ""))
            value &= ~member.value
    if value:
        names.append(str(value))
    return ",".join(names) or "none"


def _spoken(name: str) -> str:
    return name.lower().replace("_", "-")


def static_assertions() -> str:
    """C text that fails to compile unless the compiler lays every type out as these classes do.

    Names the size of every struct, offset and width of every field, and the value of every enum member.
    """
    return "".join(f"{line}\n" for line in _assertions())


def _assertions() -> Iterator[str]:
    for tag, struct in STRUCTS.items():
        yield _assertion(f"sizeof(struct {tag}) == {sizeof(struct)}", f"size of {tag}")
        for field in struct._fields_:
            descriptor = getattr(struct, field[0])
            place = f"{tag}.{field[0]}"
            yield _assertion(
                f"__builtin_offsetof(struct {tag}, {field[0]}) == {descriptor.offset}", f"offset of {place}"
            )
            yield _assertion(f"sizeof(((struct {tag} *)0)->{field[0]}) == {descriptor.size}", f"width of {place}")
    for tag, enum_cls in ENUMS.items():
        for name, member in enum_cls.__members__.items():
            constant = f"{tag.upper()}_{name}"
            yield _assertion(f"(long long){constant} == {member.value}LL", f"value of {constant}")


def _assertion(condition: str, what: str) -> str:
    return f'_Static_assert({condition}, "{what} differs between bpf/abi.h and bulkhead.abi");'

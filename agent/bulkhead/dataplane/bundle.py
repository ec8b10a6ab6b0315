"""A compiled commit as bytes: what the policy process hands to the agent.

    header      magic, version, ABI layout, length of each section, SHA-256 of all that follows
    meta        one JSON object
    rules       record tables: an index of (number, end of its text), then one JSON array for each number
    workloads
    classes
    policy      keys, then entries, as in bpf/abi.h, in the order of the keys' bytes; openings to nodes among them
    addresses   keys and identities for IPv4, then for IPv6, likewise
    names       a record table as above: DNS names with their classes
    hosting     identities of workloads, then the number of the `host` globs of each
    host sets   a record table: globs by their number
    nodes       a record table: the records of nodes, counted from 1
    mesh        five record tables: lanes by number, calls and authorizations by the workload that is called, issuers of
                JWTs counted from 1, SPIFFE IDs by identity
    modules     a record table: Rego modules, counted from 1
    trust       a record table: bundles of other trust domains, counted from 1

The agent is root and believes nothing: every length, number and record is checked before any is used, and equal bundles
are equal bytes. Tables stay bytes and are decoded record by record, so that a large policy costs the agent what it
weighs here and no more. Deadlines are Unix seconds in transport; the agent turns them into seconds since boot.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from itertools import pairwise
from typing import Any, Final

from bulkhead.abi import Abi, Direction, Identity
from bulkhead.dataplane.compile import ENTITY_NAMES, Compiled, PolicyEntry, PolicyKey, RuleInfo, WorkloadInfo
from bulkhead.dataplane.entries import LANE_MASK, MTLS, REQUESTS
from bulkhead.dataplane.hosting import HostSet, host_sets, hosting
from bulkhead.dataplane.mesh import HBONE_PORT, Lane, Mesh
from bulkhead.dataplane.mesh_records import MESH_SECTIONS, MeshTables, as_svid, mesh_sections
from bulkhead.dataplane.names import DnsName, name_id, wire_key
from bulkhead.dataplane.records import BundleError as BundleError
from bulkhead.dataplane.records import (
    RecordTable,
    as_flag,
    as_loc,
    as_pairs,
    as_seconds,
    as_text,
    as_texts,
    checked,
    from_json,
    json_bytes,
    loc_record,
    table_bytes,
    u32s,
)
from bulkhead.dataplane.resolve import PEER, PROXY
from bulkhead.policy.model import Match, Mode, Network, QualifiedName, Requirement, RuleId, TrustBundle
from bulkhead.policy.nodes import KEY_BYTES, NAME, NUMBER_MAX, Node, Unknown
from bulkhead.policy.ports import TCP
from bulkhead.policy.rego_modules import RegoModule

MAGIC: Final = b"BULKHEAD"
VERSION: Final = 5
SIZE_LIMIT: Final = 128 << 20
"""Bytes of the largest bundle that is written or read."""

_FIXED_BITS: Final = 80
"""Bits of a policy key before the port."""

_SECTIONS: Final = (
    "meta", "rules", "workloads", "classes",
    "policy_keys", "policy_entries", "keys4", "identities4", "keys6", "identities6", "names",
    "hosted", "hosting", "host_sets", "nodes", *MESH_SECTIONS, "modules", "trust",
)  # fmt: skip
_HEADER: Final = struct.Struct(f"<8sII{len(_SECTIONS)}I32s")
_POLICY: Final = struct.Struct("<IIIBBHI4xII")
"""Key and entry side by side; the port's bytes are swapped by hand, since it alone is big endian."""
_KEY: Final = struct.Struct("<IIIBBH")
_ENTRY: Final = struct.Struct("<IIII")
_ADDRESS4: Final = struct.Struct("<I4sI")
_ADDRESS6: Final = struct.Struct("<I16sI")
_U32_MAX: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Bundle:
    """A checked bundle, as the agent keeps it."""

    commit: str
    trust_domain: str
    host: str | None
    host_mode: Mode
    compiled_at: float
    executables: tuple[str, ...]
    policy_keys: bytes
    """16 bytes each, as `struct policy_key`."""
    policy_entries: bytes
    """16 bytes each, as `struct policy_entry`, with Unix seconds for `deadline_s` and no hit slots yet."""
    keys4: bytes
    """8 bytes each, as `struct address_key4`."""
    identities4: bytes
    """Four bytes each, little endian."""
    keys6: bytes
    """20 bytes each, as `struct address_key6`."""
    identities6: bytes
    hosted: bytes
    """Identities of all workloads of hosts, this one and others; four bytes each, little endian."""
    hosting: bytes
    """The number of the `host` globs of each, likewise."""
    digest: str
    """SHA-256 of the content, in hexadecimal."""
    _rules: RecordTable
    _workloads: RecordTable
    _classes: RecordTable
    _names: RecordTable
    _host_sets: RecordTable
    _nodes: RecordTable
    _mesh: MeshTables
    _modules: RecordTable
    _trust: RecordTable

    def rule(self, rule_id: int) -> RuleInfo | None:
        """A rule by its number."""
        record = self._rules.get(rule_id)
        return None if record is None else _rule(rule_id, record)

    def rules(self) -> Iterator[RuleInfo]:
        """All rules, by number."""
        for number in self._rules.numbers:
            yield _rule(number, self._rules.get(number) or [])

    def workload(self, identity: int) -> WorkloadInfo | None:
        """A workload by its identity."""
        record = self._workloads.get(identity)
        return None if record is None else _workload(identity, record)

    def workloads(self) -> Iterator[WorkloadInfo]:
        """All workloads, by identity."""
        for number in self._workloads.numbers:
            yield _workload(number, self._workloads.get(number) or [])

    def class_members(self, identity: int) -> tuple[QualifiedName, ...] | None:
        """The externals of an address class; None when there is no such class."""
        record = self._classes.get(identity)
        return None if record is None else _class(record)

    def name(self, number: int) -> DnsName | None:
        """A DNS name by its number."""
        record = self._names.get(number)
        return None if record is None else _name(record)

    def names(self) -> Iterator[tuple[int, DnsName]]:
        """All DNS names that externals list, by number."""
        for number in self._names.numbers:
            yield number, _name(self._names.get(number) or [])

    def host_sets(self) -> dict[int, HostSet]:
        """`host` globs of workloads by their number; that of any node, 0, is not among them."""
        return {number: _host_set(self._host_sets.get(number) or []) for number in self._host_sets.numbers}

    def nodes(self) -> Iterator[Node]:
        """The records of nodes in the commit, revoked ones included."""
        for number in self._nodes.numbers:
            yield _node(self._nodes.get(number) or [])

    def mesh(self) -> Mesh:
        """What the proxy of the host has to do."""
        return self._mesh.mesh()

    def modules(self) -> tuple[RegoModule, ...]:
        """Rego of the repository, in file order."""
        return tuple(_module(self._modules.get(number) or []) for number in self._modules.numbers)

    def trust_bundles(self) -> tuple[TrustBundle, ...]:
        """What vouches for other trust domains, in file order."""
        return tuple(_trust_bundle(self._trust.get(number) or []) for number in self._trust.numbers)

    def identity_name(self, identity: int) -> str | None:
        """What to call an identity; None when the commit does not know it."""
        if identity in ENTITY_NAMES:
            return ENTITY_NAMES[identity]
        members = self.class_members(identity)
        if members is not None:
            return " + ".join(members) or "world"
        workload = self.workload(identity)
        return workload.qualified if workload else None

    @property
    def counts(self) -> dict[str, int]:
        """How much there is of what goes into the kernel's maps, and of rules and workloads."""
        return {
            "policy_entries": len(self.policy_keys) // _KEY.size,
            "prefixes4": len(self.keys4) // 8,
            "prefixes6": len(self.keys6) // 20,
            "rules": len(self._rules),
            "workloads": len(self._workloads),
        }

    def policy(self) -> Iterator[tuple[PolicyKey, PolicyEntry]]:
        """Who may talk to whom, in the compiler's words."""
        return ((key, entry) for key, entry in self._policy() if key.remote_identity != PEER)

    def openings(self) -> Iterator[tuple[PolicyKey, PolicyEntry]]:
        """What may be opened to whichever workload a node answers with: `Compiled.openings`."""
        return ((key, entry) for key, entry in self._policy() if key.remote_identity == PEER)

    def _policy(self) -> Iterator[tuple[PolicyKey, PolicyEntry]]:
        entries = _ENTRY.iter_unpack(self.policy_entries)
        for key, entry in zip(_KEY.iter_unpack(self.policy_keys), entries, strict=True):
            bits, local, remote, direction, protocol, port = key
            rule_id, _, deadline, flags = entry
            found = PolicyKey(local, direction, remote, protocol, _swapped(port), bits - _FIXED_BITS)
            yield found, PolicyEntry(RuleId(rule_id), float(deadline) if deadline else None, flags)

    def prefixes(self, version: int) -> Iterator[tuple[Network, int]]:
        """All prefixes of one address family with their classes."""
        keys, identities, width = (
            (self.keys4, self.identities4, 8) if version == 4 else (self.keys6, self.identities6, 20)
        )
        family = IPv4Network if version == 4 else IPv6Network
        for at, identity in enumerate(u32s(identities)):
            key = keys[at * width : (at + 1) * width]
            yield family((key[4:], int.from_bytes(key[:4], "little"))), identity


# Writing


def pack(compiled: Compiled) -> bytes:
    """The bundle of a compiled commit. Equal commits give equal bytes. Raises BundleError beyond the size limit."""
    sections = [
        json_bytes(_meta(compiled)),
        table_bytes((number, _rule_record(rule)) for number, rule in compiled.rules.items()),
        table_bytes((workload.identity, _workload_record(workload)) for workload in compiled.workloads),
        table_bytes((number, list(members)) for number, members in compiled.classes.items()),
        *_halves(_policy_records(compiled), _KEY.size, _POLICY.size),
        *_halves(_address_records(compiled.classes4, _ADDRESS4), 8, _ADDRESS4.size),
        *_halves(_address_records(compiled.classes6, _ADDRESS6), 20, _ADDRESS6.size),
        table_bytes((number, list(name)) for number, name in compiled.names.items()),
        *_hosting(compiled.hosting),
        table_bytes((number, list(globs)) for number, globs in compiled.host_sets.items()),
        table_bytes((number, _node_record(node)) for number, node in enumerate(compiled.nodes, 1)),
        *mesh_sections(compiled.mesh),
        table_bytes((number, _module_record(module)) for number, module in enumerate(compiled.modules, 1)),
        table_bytes((number, _trust_record(one)) for number, one in enumerate(compiled.trust_bundles, 1)),
    ]
    body = b"".join(sections)
    if _HEADER.size + len(body) > SIZE_LIMIT:
        raise BundleError(f"{len(body):,} bytes are more than {SIZE_LIMIT:,}")
    return _HEADER.pack(MAGIC, VERSION, Abi.LAYOUT, *map(len, sections), hashlib.sha256(body).digest()) + body


def _meta(compiled: Compiled) -> dict[str, object]:
    return {
        "commit": compiled.commit,
        "trust_domain": compiled.trust_domain,
        "host": compiled.host,
        "host_mode": compiled.host_mode.value,
        "compiled_at": compiled.compiled_at,
        "executables": list(compiled.executables),
    }


def _rule_record(rule: RuleInfo) -> list[object]:
    texts: list[object] = [rule.name, rule.kind, rule.source, rule.destination, rule.ports]
    return [*texts, rule.owner, rule.ticket, rule.why, rule.l7, rule.mtls, rule.expires, loc_record(rule.loc)]


def _workload_record(workload: WorkloadInfo) -> list[object]:
    match = workload.match
    processes = (match.host, match.cgroup, match.unit, match.exe, match.user, match.group)
    keys = [list(values) for values in (*processes, match.namespace, match.service_account)]
    selector = [*keys, match.everything, match.cluster, [list(label) for label in match.labels]]
    labels = [list(label) for label in workload.labels]
    spoken: list[object] = [workload.qualified, workload.spiffe_id, workload.svid, workload.mode.value]
    posture = [[one.term, list(one.expected)] for one in workload.posture]
    return [*spoken, workload.local, labels, selector, posture, loc_record(workload.loc)]


def _node_record(node: Node) -> list[object]:
    key = None if node.key is None else base64.b64encode(node.key).decode()
    addresses = [str(network) for network in node.addresses]
    ca = [base64.b64encode(der).decode() for der in node.ca]
    return [node.name, node.number, addresses, key, node.unknown.value, node.revoked, node.origin, ca]


def _module_record(module: RegoModule) -> list[object]:
    return [module.path, module.text, loc_record(module.loc)]


def _trust_record(one: TrustBundle) -> list[object]:
    return [one.trust_domain, one.document, loc_record(one.loc)]


def _hosting(numbers: Mapping[int, int]) -> tuple[bytes, bytes]:
    layout, ordered = struct.Struct(f"<{len(numbers)}I"), sorted(numbers.items())
    return layout.pack(*(identity for identity, _ in ordered)), layout.pack(*(number for _, number in ordered))


def _policy_records(compiled: Compiled) -> list[bytes]:
    pack_one, fixed, timed = _POLICY.pack, _FIXED_BITS, _transport_deadline
    records = [
        pack_one(
            fixed + bits, local, remote, direction, protocol, port >> 8 | (port & 255) << 8,
            rule_id, 0 if deadline is None else timed(deadline), flags,
        )
        for entries in (compiled.entries, compiled.openings)
        for (local, direction, remote, protocol, port, bits), (rule_id, deadline, flags) in entries.items()
    ]  # fmt: skip
    records.sort()
    return records


def _transport_deadline(deadline: float) -> int:
    # Whole seconds, never later than what was written, and never 0, which means never.
    return min(max(int(deadline), 1), _U32_MAX)


def _address_records(classes: dict[Network, int], layout: struct.Struct) -> list[bytes]:
    return sorted(
        layout.pack(network.prefixlen, network.network_address.packed, identity)
        for network, identity in classes.items()
    )


def _halves(records: list[bytes], key_size: int, size: int) -> tuple[bytes, bytes]:
    """All keys, and all values behind them. Whole columns of words move at once, which no loop would match."""
    words = array("I", b"".join(records))
    count, width, split = len(records), size // 4, key_size // 4
    keys, values = array("I", bytes(count * key_size)), array("I", bytes(count * (size - key_size)))
    for column in range(width):
        target, at, step = (keys, column, split) if column < split else (values, column - split, width - split)
        target[at::step] = words[column::width]
    return keys.tobytes(), values.tobytes()


def _swapped(port: int) -> int:
    return (port >> 8) | (port & 255) << 8


# Reading


def read(data: bytes) -> Bundle:
    """The bundle in `data`, checked through and through. Raises BundleError for anything else."""
    sections = _split(data)
    rules = RecordTable(sections["rules"], "rules")
    workloads = RecordTable(sections["workloads"], "workloads")
    classes = RecordTable(sections["classes"], "classes")
    names = RecordTable(sections["names"], "names")
    mesh = MeshTables.read(sections)
    _check_policy(sections["policy_keys"], sections["policy_entries"], rules)
    _check_flags(sections["policy_keys"], sections["policy_entries"], mesh.lanes())
    _check_addresses(sections["keys4"], sections["identities4"], 32, classes)
    _check_addresses(sections["keys6"], sections["identities6"], 128, classes)
    meta = checked(lambda: _read_meta(from_json(sections["meta"], "meta")), "meta")
    blobs = {name: sections[name] for name in (*_SECTIONS[4:10], "hosted", "hosting")}
    digest = data[_HEADER.size - 32 : _HEADER.size].hex()
    tables = {"_rules": rules, "_workloads": workloads, "_classes": classes, "_names": names}
    tables |= {f"_{name}": RecordTable(sections[name], name) for name in ("host_sets", "nodes", "modules", "trust")}
    bundle = Bundle(**(meta | blobs | tables | {"digest": digest, "_mesh": mesh}))
    _check_records(bundle)
    return bundle


def unpack(data: bytes) -> Compiled:
    """The compiled commit in `data`, whole in memory. Raises BundleError as `read` does."""
    bundle = read(data)
    return Compiled(
        commit=bundle.commit,
        trust_domain=bundle.trust_domain,
        host=bundle.host,
        host_mode=bundle.host_mode,
        compiled_at=bundle.compiled_at,
        entries=dict(bundle.policy()),
        classes4=dict(bundle.prefixes(4)),
        classes6=dict(bundle.prefixes(6)),
        classes={number: bundle.class_members(number) or () for number in bundle._classes.numbers},
        workloads=tuple(bundle.workloads()),
        rules={rule.rule_id: rule for rule in bundle.rules()},
        executables=bundle.executables,
        names=dict(bundle.names()),
        openings=dict(bundle.openings()),
        hosting=dict(zip(u32s(bundle.hosted), u32s(bundle.hosting), strict=True)),
        host_sets=bundle.host_sets(),
        nodes=tuple(bundle.nodes()),
        mesh=bundle.mesh(),
        modules=bundle.modules(),
        trust_bundles=bundle.trust_bundles(),
    )


def _split(data: bytes) -> dict[str, bytes]:
    if len(data) > SIZE_LIMIT:
        raise BundleError(f"{len(data):,} bytes are more than {SIZE_LIMIT:,}")
    if len(data) < _HEADER.size or not data.startswith(MAGIC):
        raise BundleError("it does not begin like one")
    _, version, layout, *lengths, digest = _HEADER.unpack_from(data)
    if version != VERSION or layout != Abi.LAYOUT:
        raise BundleError(f"version {version} with layout {layout}, not version {VERSION} with layout {Abi.LAYOUT}")
    if _HEADER.size + sum(lengths) != len(data):
        raise BundleError("its sections do not add up to its length")
    if hashlib.sha256(memoryview(data)[_HEADER.size :]).digest() != digest:
        raise BundleError("its content is not what its checksum says")
    sections, at = {}, _HEADER.size
    for name, length in zip(_SECTIONS, lengths, strict=True):
        sections[name] = data[at : at + length]
        at += length
    return sections


def _check_policy(keys: bytes, entries: bytes, rules: RecordTable) -> None:
    if len(keys) % _KEY.size or len(entries) % _ENTRY.size or len(keys) != len(entries):
        raise BundleError("policy keys and entries do not match each other")
    _check_ascending(keys, _KEY.size)
    for bits, local, remote, direction, protocol, port in _KEY.iter_unpack(keys):
        free = _FIXED_BITS + 16 - bits
        if not 0 <= free <= 16 or (free and _swapped(port) & ((1 << free) - 1)) or direction > _LAST_DIRECTION:
            raise BundleError(f"the policy key for {local} and {remote} (protocol {protocol}) is malformed")
        if local in _NEVER_LOCAL or remote in _NOBODY or local > _WORKLOAD_MAX:
            raise BundleError(f"a policy entry lets {local} talk to {remote}, which nothing may")
        if remote == PEER and direction != Direction.EGRESS:
            raise BundleError(f"a policy entry lets whoever a node says talk to {local}")
        if PROXY in (local, remote) and (local, protocol, bits, _swapped(port)) != _TUNNELS:
            raise BundleError(f"a policy entry lets a proxy talk otherwise than to proxies: {local} and {remote}")
    known = set(rules.numbers)
    for rule_id, hit_slot, _, flags in _ENTRY.iter_unpack(entries):
        if rule_id not in known or hit_slot or flags & ~_FLAGS:
            raise BundleError(f"a policy entry of rule {rule_id} is malformed")


def _check_flags(keys: bytes, entries: bytes, lanes: Mapping[int, Lane]) -> None:
    """Only TCP between workloads has any, and a lane is its caller's."""
    flagged = (pair for pair in zip(_KEY.iter_unpack(keys), _ENTRY.iter_unpack(entries), strict=True) if pair[1][3])
    for (_, local, remote, direction, protocol, _), (rule_id, _, _, flags) in flagged:
        workloads = local > Identity.RESERVED_MAX and (
            remote == PEER or Identity.RESERVED_MAX < remote <= _WORKLOAD_MAX
        )
        lane = flags & LANE_MASK
        known = not lane or (lane in lanes and lanes[lane].source == local and direction == Direction.EGRESS)
        if protocol != TCP or not workloads or not known or flags == lane:
            raise BundleError(f"a policy entry of rule {rule_id} has the flags {flags:#x}, which it may not")


_NOBODY: Final = frozenset(map(int, (Identity.UNKNOWN, Identity.AMBIGUOUS, Identity.WITHHELD)))
_NEVER_LOCAL: Final = _NOBODY | {int(Identity.WORLD), int(Identity.PEER), int(Identity.LEGACY)}
_RESERVED_MAX: Final = int(Identity.RESERVED_MAX)
_WORKLOAD_MAX: Final = 0x7FFFFFFF
_FLAGS: Final = MTLS | REQUESTS | LANE_MASK
_TUNNELS: Final = (PROXY, TCP, _FIXED_BITS + 16, HBONE_PORT)
_LAST_DIRECTION: Final = int(Direction.INGRESS)


def _check_addresses(keys: bytes, identities: bytes, width: int, classes: RecordTable) -> None:
    size = 4 + width // 8
    if len(keys) % size or len(identities) % 4 or len(keys) // size != len(identities) // 4:
        raise BundleError("address keys and identities do not match each other")
    _check_ascending(keys, size)
    for at, identity in zip(range(0, len(keys), size), u32s(identities), strict=True):
        bits = int.from_bytes(keys[at : at + 4], "little")
        address = int.from_bytes(keys[at + 4 : at + size], "big")
        if bits > width or address & ((1 << (width - bits)) - 1) or identity not in classes:
            raise BundleError("an address prefix is malformed")


def _check_ascending(keys: bytes, size: int) -> None:
    """Ascending keys are keys without duplicates, and cost no memory to check."""
    if any(first >= second for first, second in pairwise(struct.iter_unpack(f"{size}s", keys))):
        raise BundleError("keys do not ascend")


def _check_records(bundle: Bundle) -> None:
    if any(rule.rule_id < 1 for rule in bundle.rules()):
        raise BundleError("a rule has the number 0, which stands for none")
    for workload in bundle.workloads():
        if not Identity.RESERVED_MAX < workload.identity <= _WORKLOAD_MAX:
            raise BundleError(f"workload `{workload.qualified}` has the reserved identity {workload.identity}")
    for identity in bundle._classes.numbers:
        bundle.class_members(identity)
        if identity <= _WORKLOAD_MAX and identity != Identity.WORLD:
            raise BundleError(f"{identity} is not an address class")
    for number, name in bundle.names():
        if number != name_id(name.pattern) or name.identity not in bundle._classes:
            raise BundleError(f"the DNS name {number} is not what its number says, or of no class")
    _check_hosting(bundle)
    _check_nodes(bundle)
    bundle.modules()
    bundle.trust_bundles()
    bundle._mesh.check({workload.identity: workload for workload in bundle.workloads()}, bundle._rules)


def _check_hosting(bundle: Bundle) -> None:
    """The selectors are in the bundle too, so that every number is known."""
    selectors = [(workload.identity, workload.match) for workload in bundle.workloads()]
    if _hosting(hosting(selectors)) != (bundle.hosted, bundle.hosting):
        raise BundleError("which nodes may host a workload is not what its selector says")
    if bundle.host_sets() != host_sets(match for _, match in selectors):
        raise BundleError("the `host` globs are not those of the selectors")


def _check_nodes(bundle: Bundle) -> None:
    if list(bundle._nodes.numbers) != list(range(1, len(bundle._nodes) + 1)):
        raise BundleError("the nodes are not counted from 1")
    for node in bundle.nodes():
        if not 1 <= node.number <= NUMBER_MAX or not node.addresses:
            raise BundleError(f"node `{node.name}` has the number {node.number}, or no address")


def _read_meta(meta: Any) -> dict[str, Any]:
    if not isinstance(meta, dict):
        raise TypeError("not an object")
    known = {
        "commit": as_text(meta.pop("commit")),
        "trust_domain": as_text(meta.pop("trust_domain")),
        "host": None if meta["host"] is None else as_text(meta["host"]),
        "host_mode": Mode(as_text(meta.pop("host_mode"))),
        "compiled_at": as_seconds(meta.pop("compiled_at")),
        "executables": as_texts(meta.pop("executables")),
    }
    if set(meta) != {"host"}:
        raise ValueError("unknown key")
    return known


def _rule(rule_id: int, record: list[Any]) -> RuleInfo:
    def build() -> RuleInfo:
        name, kind, source, destination, ports, owner, ticket, why, l7 = as_texts(record[:9])
        mtls, expires, loc = record[9:]
        deadline = None if expires is None else as_seconds(expires)
        place = as_loc(loc)
        qualified = QualifiedName(name)
        ends = source, destination, ports
        return RuleInfo(RuleId(rule_id), qualified, kind, place, *ends, deadline, owner, ticket, why, as_flag(mtls), l7)

    return checked(build, "rules")


def _workload(identity: int, record: list[Any]) -> WorkloadInfo:
    def build() -> WorkloadInfo:
        name, spiffe, svid, mode, local, labels, (*keys, everything, cluster, carried), posture, loc = record
        pairs = as_pairs(labels)
        *processes, namespace, account = map(as_texts, keys)
        host, cgroup, unit, exe, user, group = processes
        of_pods = namespace, account, as_pairs(carried), as_text(cluster)
        match = Match(host, cgroup, unit, exe, user, group, as_flag(everything), *of_pods)
        qualified, place = QualifiedName(as_text(name)), as_loc(loc)
        spoken = identity, qualified, as_text(spiffe), Mode(as_text(mode))
        return WorkloadInfo(*spoken, match, pairs, place, as_flag(local), _requirements(posture), as_svid(svid))

    return checked(build, "workloads")


def _requirements(value: Any) -> tuple[Requirement, ...]:
    return tuple(Requirement(as_text(term), as_texts(expected)) for term, expected in value)


def _class(record: list[Any]) -> tuple[QualifiedName, ...]:
    return checked(lambda: tuple(map(QualifiedName, as_texts(record))), "classes")


def _name(record: list[Any]) -> DnsName:
    def build() -> DnsName:
        pattern, identity = record
        if type(identity) is not int:
            raise TypeError("not a number")
        wire_key(as_text(pattern))
        return DnsName(pattern, identity)

    return checked(build, "names")


def _module(record: list[Any]) -> RegoModule:
    def build() -> RegoModule:
        path, text, loc = record
        return RegoModule(as_text(path), as_text(text), as_loc(loc))

    return checked(build, "modules")


def _trust_bundle(record: list[Any]) -> TrustBundle:
    def build() -> TrustBundle:
        trust_domain, document, loc = record
        return TrustBundle(as_text(trust_domain), as_text(document), as_loc(loc))

    return checked(build, "trust")


def _host_set(record: list[Any]) -> HostSet:
    return checked(lambda: as_texts(record), "host_sets")


def _node(record: list[Any]) -> Node:
    def build() -> Node:
        name, number, addresses, key, unknown, revoked, origin, ca = record
        if type(number) is not int:
            raise TypeError("not a number")
        public = None if key is None else base64.b64decode(as_text(key), validate=True)
        if public is not None and len(public) != KEY_BYTES:
            raise ValueError("not a key")
        networks = tuple(map(ip_network, as_texts(addresses)))
        if not NAME.fullmatch(as_text(name)):
            raise ValueError("not a name")
        authorities = tuple(base64.b64decode(one, validate=True) for one in as_texts(ca))
        known = Unknown(as_text(unknown))
        return Node(name, number, networks, public, known, as_flag(revoked), as_text(origin), authorities)

    return checked(build, "nodes")

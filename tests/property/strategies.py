"""Random repositories, the endpoints and openings that probe them, and the same repositories as YAML text.

Pools are small and full of near misses, so that selectors hit, prefixes nest and port ranges overlap. Everything is
drawn as model values first; `files_of` writes those as an author would, which needs each peer's and port's `text`.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from random import Random
from typing import TypeVar

from hypothesis import strategies as st

from bulkhead.abi import Direction
from bulkhead.dataplane.reference import Address, Endpoint, Identified, Pod, Remote, Standing, can_be_on
from bulkhead.errors import Loc
from bulkhead.policy.l7 import L7, HttpMatch
from bulkhead.policy.model import (
    Entity,
    External,
    Level,
    Match,
    Mode,
    Network,
    Never,
    Peer,
    Policy,
    PolicySet,
    PortSpec,
    Rule,
    RuleId,
    Scope,
    Workload,
)

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)

HOSTS = ("web-1", "web-2", "db-1", "app")
HOST_GLOBS = ("*", "web-*", "web-?", "web-1", "*-1", "app", "db-*")

CGROUPS = (
    "/",
    "/init.scope",
    "/system.slice/nginx.service",
    "/system.slice/nginx.service/worker",
    "/system.slice/nginx-debug.service",
    "/system.slice/system-postgresql.slice/postgresql@14-main.service",
    "/system.slice/dev-disk-by\\x2duuid.mount",
    "/user.slice/user-1000.slice/session-2.scope",
    "/user.slice/user-1000.slice/user@1000.service/app.slice/nginx.service",
    "/docker/c0ffee",
    "/docker/c0ffee/system.slice/nginx.service",
    "/bay/a",
    "/bay/a/b",
    "/bay/ab",
    "/bay/[a]",
)
CGROUP_GLOBS = (
    "/system.slice",
    "/system.slice/*.service",
    "/user.slice/user-*.slice",
    "/docker/*",
    "/*/nginx.service",
    "/bay",
    "/bay/?",
    "/bay/a",
    "/bay/a*",
    "/bay/[a]",
    "/bay/*/b",
)
UNIT_GLOBS = (
    "nginx.service",
    "nginx*.service",
    "*.service",
    "postgresql@*.service",
    "session-?.scope",
    "init.scope",
    "dev-disk-by\\x2duuid.mount",
    "user@1000.service",
)
EXES = ("/usr/sbin/nginx", "/usr/bin/pgbackrest", "/usr/bin/python3.11")
USERS = (("root", 0), ("eric", 1000), ("postgres", 113), ("", 4242))
GROUPS = (("root", 0), ("data", 2001), ("staff", 50))

CLUSTERS = ("prod", "lab")
NAMESPACES = ("shop", "shop-2", "billing")
NAMESPACE_GLOBS = ("shop", "shop*", "shop-?", "*", "billing")
ACCOUNTS = ("web", "web-2", "default")
ACCOUNT_GLOBS = ("web", "web*", "web-?", "*", "default")
POD_LABELS = {"app": ("web", "api"), "track": ("", "canary"), "x.example/tier": ("web",)}

CIDRS: tuple[Network, ...] = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/0",
        "128.0.0.0/1",
        "10.0.0.0/8",
        "10.9.0.0/16",
        "10.9.0.0/24",
        "10.9.0.128/25",
        "10.9.0.255/32",
        "10.10.0.0/15",
        "192.0.2.0/31",
        "203.0.113.64/26",
        "::/0",
        "8000::/1",
        "2001:db8::/32",
        "2001:db8:9::/48",
        "2001:db8:9::/64",
        "2001:db8:9::1/128",
        "fd00::/8",
    )
)
STRAY_ADDRESSES: tuple[Address, ...] = (
    IPv4Address("10.9.0.1"),
    IPv4Address("198.51.100.7"),
    IPv6Address("2001:db8:9::1"),
    IPv6Address("fd00::7"),
)

DNS_NAMES = ("s3.example.net", "*.example.net", "shop.s3.example.net", "*.s3.example.net", "api.example.org")

TCP, UDP, ICMP, ICMP6 = 6, 17, 1, 58
WITH_PORTS = (TCP, UDP)
EDGE_PORTS = (1, 2, 22, 53, 80, 443, 1023, 1024, 5432, 8000, 8100, 32767, 32768, 65534, 65535)
NAMED_PORTS: Mapping[str, tuple[tuple[int, int, int], ...]] = {
    "any": ((TCP, 0, 65535), (UDP, 0, 65535), (ICMP, 0, 65535), (ICMP6, 0, 65535)),
    "any/tcp": ((TCP, 0, 65535),),
    "any/udp": ((UDP, 0, 65535),),
    "icmp": ((ICMP, 0, 65535), (ICMP6, 0, 65535)),
    "icmp/echo": ((ICMP, 8 << 8, 8 << 8 | 255), (ICMP6, 128 << 8, 128 << 8 | 255)),
    "icmp/unreachable": ((ICMP, 3 << 8, 3 << 8 | 255), (ICMP6, 1 << 8, 1 << 8 | 255)),
    "icmp/time-exceeded": ((ICMP, 11 << 8, 11 << 8 | 255), (ICMP6, 3 << 8, 3 << 8 | 255)),
    "icmp/parameter-problem": ((ICMP, 12 << 8, 12 << 8 | 255), (ICMP6, 4 << 8, 4 << 8 | 255)),
    "proto/47": ((47, 0, 65535),),
    "proto/132": ((132, 0, 65535),),
}

LABELS = (("tier", "web"), ("tier", "data"), ("env", "prod"))
DEADLINES_S = (-86_400, -1, 0, 1, 60, 86_400)
"""Of exceptions, relative to NOW."""

ENDPOINTS = 20
OPENINGS = 40
"""Asked of every repository drawn."""


@dataclass(frozen=True, slots=True)
class Opening:
    """One question: may `local` on `host` open, or accept, this conversation?"""

    host: str
    local: Identified
    direction: Direction
    remote: Remote
    protocol: int
    port: int


@dataclass(frozen=True, slots=True)
class Case:
    """A repository, endpoints on one of its hosts, and openings there."""

    policy_set: PolicySet
    host: str
    endpoints: tuple[Endpoint, ...]
    openings: tuple[Opening, ...]


# Selectors


@cache
def _some(pool: tuple[str, ...], most: int = 2) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(st.sampled_from(pool), min_size=1, max_size=most, unique=True).map(tuple)


def _one_in(number: int) -> st.SearchStrategy[bool]:
    return st.integers(1, number).map(lambda drawn: drawn == number)


_HOST_NAMES = st.sampled_from(HOSTS)
_SEEDS = st.integers(0, 2**32 - 1)
_MODES = st.sampled_from(Mode)
_LABEL_SETS = st.lists(st.sampled_from(LABELS), max_size=2, unique_by=lambda label: label[0]).map(tuple)
_RARELY = _one_in(8)
_SELDOM = _one_in(5)


USER_NAMES = tuple(text for name, number in USERS for text in (name, str(number)) if text)
GROUP_NAMES = tuple(text for name, number in GROUPS for text in (name, str(number)) if text)
POOLS: Mapping[str, tuple[str, ...]] = {
    "unit": UNIT_GLOBS,
    "cgroup": CGROUP_GLOBS,
    "exe": EXES,
    "user": USER_NAMES,
    "group": GROUP_NAMES,
}


_KEYS = st.one_of(_some(tuple(sorted(POOLS))), _some(tuple(sorted(POOLS))), st.just(()))


_ACCOUNT_LISTS = st.one_of(st.just(()), _some(ACCOUNT_GLOBS))
_NAMESPACE_LISTS = _some(NAMESPACE_GLOBS)
_CARRIED = st.fixed_dictionaries({}, optional={key: st.sampled_from(texts) for key, texts in POD_LABELS.items()})
_SCOPES = st.builds(Scope, st.sampled_from(CLUSTERS), st.sampled_from(("", *NAMESPACES)))


@st.composite
def pod_matches(draw: st.DrawFn, scope: Scope | None = None) -> Match:
    """A selector of pods, in a policy of that scope."""
    own = (scope.namespace,) if scope and scope.namespace else draw(_NAMESPACE_LISTS)
    labels = tuple(sorted(draw(_CARRIED).items()))
    cluster = scope.cluster if scope else ""
    return Match(namespace=own, service_account=draw(_ACCOUNT_LISTS), labels=labels, cluster=cluster)


@st.composite
def pods(draw: st.DrawFn) -> Pod:
    """A pod of one of the clusters."""
    namespace, account = draw(st.sampled_from(NAMESPACES)), draw(st.sampled_from(ACCOUNTS))
    return Pod(draw(st.sampled_from(CLUSTERS)), namespace, account, draw(_CARRIED))


@st.composite
def matches(draw: st.DrawFn) -> Match:
    """A selector that an author may write."""
    match = Match(host=draw(_some(HOST_GLOBS))) if draw(_SELDOM) else Match()
    keys = draw(_KEYS)
    if not keys:
        return replace(match, everything=True)
    patterns = {key: draw(_some(POOLS[key])) if key in keys else () for key in POOLS}
    return Match(match.host, patterns["cgroup"], patterns["unit"], patterns["exe"], patterns["user"], patterns["group"])


def _shape(match: Match) -> tuple[object, ...]:
    if match.of_pods:
        return bool(match.service_account), len(match.labels), match.cluster
    return tuple(f.name for f in fields(Match) if f.name != "host" and getattr(match, f.name))


def _wildcards(pattern: str) -> int:
    return pattern.count("*") + pattern.count("?")


def _totals(match: Match) -> set[tuple[int, int]]:
    """Every (exact patterns, literal characters) that some endpoint could give this selector, and a few none could."""
    keys = ("host", *POOLS, "namespace", "service_account")
    chosen = [getattr(match, key) for key in keys if getattr(match, key)]
    return {
        (sum(not _wildcards(p) for p in combination), sum(len(p) - _wildcards(p) for p in combination))
        for combination in itertools.product(*chosen)
    }


def _apart(key: str, one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether no endpoint can match both lists, for certain. A name and a number may be one user, but no file says."""
    if not one or not other or any(_wildcards(p) for p in (*one, *other)):
        return False
    if key == "cgroup":
        return not any(a == b or f"{a}/".startswith(f"{b}/") or f"{b}/".startswith(f"{a}/") for a in one for b in other)
    return not set(one) & set(other)


def may_tie(one: Match, other: Match) -> bool:
    """Whether two selectors could select one endpoint with equal right. Says yes too often, never too seldom."""
    if _shape(one) != _shape(other) or not _totals(one) & _totals(other):
        return False
    carried = dict(other.labels)
    if any(carried.get(key, text) != text for key, text in one.labels):
        return False
    keys = ("host", *POOLS, "namespace", "service_account")
    return not any(_apart(key, getattr(one, key), getattr(other, key)) for key in keys)


_MATCHES = st.one_of(matches(), matches(), matches(), pod_matches())


@st.composite
def workloads(draw: st.DrawFn, policy: str, loc: Loc, scope: Scope | None = None) -> list[Workload]:
    """The workloads of one policy; now and then with a twin that only a live user can show to tie."""
    selectors = pod_matches(scope) if scope else _MATCHES
    made = [
        Workload(policy, name, draw(selectors), draw(_MODES), loc, draw(_LABEL_SETS))
        for name in draw(_some(("web", "api", "db", "job"), most=3))
    ]
    first = made[0]
    if not first.match.of_pods and draw(_RARELY):
        made[0] = replace(first, match=replace(first.match, user=("eric",), everything=False))
        made.append(replace(first, name="twin", match=replace(first.match, user=("1000",), everything=False)))
    return made


# Externals


def _within(networks: Iterable[Network]) -> list[Network]:
    """The pool's networks, and a few halves, inside any of these."""
    found: list[Network] = []
    for network in networks:
        if isinstance(network, IPv4Network):
            found.extend(n for n in CIDRS if isinstance(n, IPv4Network) and n != network and n.subnet_of(network))
        else:
            found.extend(n for n in CIDRS if isinstance(n, IPv6Network) and n != network and n.subnet_of(network))
        if network.prefixlen < network.max_prefixlen:
            found.extend(network.subnets())
    return list(dict.fromkeys(found))


_EXTERNAL_NAMES = st.lists(st.sampled_from(("users", "admins")), max_size=2, unique=True)
_DNS_LISTS = _some(DNS_NAMES)
_CIDR_LISTS = st.lists(st.sampled_from(CIDRS), min_size=1, max_size=3, unique=True).map(tuple)


@st.composite
def externals(draw: st.DrawFn, policy: str, loc: Loc) -> list[External]:
    """The externals of one policy: prefixes of both families with holes in them, or DNS names."""
    made = []
    for name in draw(_EXTERNAL_NAMES):
        if draw(_SELDOM):
            made.append(External(policy, name, (), (), loc, draw(_DNS_LISTS)))
            continue
        cidr = draw(_CIDR_LISTS)
        holes = _within(cidr)
        excluded = draw(st.lists(st.sampled_from(holes), max_size=2, unique=True)) if holes else []
        made.append(External(policy, name, cidr, tuple(excluded), loc))
    return made


# Rules


_PORT = st.one_of(st.sampled_from(EDGE_PORTS), st.integers(1, 65535))
_RANGES = st.tuples(_PORT, _PORT).map(sorted)
_SINGLES = _PORT.map(lambda port: [port, port])
_PORT_ENTRIES = st.one_of(
    st.sampled_from(sorted(NAMED_PORTS)).map(lambda text: _named(text)),
    st.tuples(_RANGES, st.sampled_from(WITH_PORTS)).map(lambda drawn: _numbers(*drawn)),
    st.tuples(_SINGLES, st.sampled_from(WITH_PORTS)).map(lambda drawn: _numbers(*drawn)),
)
_PORTS = st.lists(_PORT_ENTRIES, min_size=1, max_size=2, unique_by=lambda specs: specs[0].text).map(
    lambda entries: tuple(itertools.chain(*entries))
)


def _named(text: str) -> tuple[PortSpec, ...]:
    return tuple(PortSpec(*bounds, text) for bounds in NAMED_PORTS[text])


def _numbers(bounds: Sequence[int], protocol: int) -> tuple[PortSpec, ...]:
    first, last = bounds
    written = str(first) if first == last else f"{first}-{last}"
    return (PortSpec(protocol, first, last, f"{written}/udp" if protocol == UDP else written),)


@dataclass(frozen=True, slots=True)
class Names:
    """What a rule of one policy may name."""

    policy: str
    workloads: tuple[Workload, ...]
    externals: tuple[External, ...]

    def written(self, thing: Workload | External) -> str:
        return thing.name if thing.policy == self.policy else thing.qualified


@st.composite
def labelled_peers(draw: st.DrawFn, names: Names) -> Peer:
    """Every workload that carries all of some labels; at times none does."""
    wanted = draw(_LABEL_SETS) or LABELS[:1]
    members = tuple(w.qualified for w in names.workloads if set(wanted) <= set(w.labels))
    return Peer(members, text=json.dumps(dict(wanted)))


@st.composite
def peers(draw: st.DrawFn, names: Names, managed: bool) -> Peer:
    """One side of a rule; `managed` keeps addresses out of it."""
    if draw(_RARELY):
        return draw(labelled_peers(names))
    entities = (Entity.ANY, Entity.HOST) if managed else (Entity.ANY, Entity.HOST, Entity.WORLD, Entity.LEGACY)
    pool: list[Workload | External | Entity] = [*names.workloads, *names.workloads, *entities]
    if not managed:
        pool += [*names.externals, *names.externals]
    picked = draw(st.lists(st.sampled_from(pool), min_size=1, max_size=2, unique=True))
    texts = [thing.value if isinstance(thing, Entity) else names.written(thing) for thing in picked]
    return Peer(
        tuple(thing.qualified for thing in picked if isinstance(thing, Workload)),
        tuple(thing.qualified for thing in picked if isinstance(thing, External)),
        tuple(thing for thing in picked if isinstance(thing, Entity)),
        json.dumps(texts if len(texts) > 1 else texts[0]),
    )


_RULE_COUNTS = st.integers(0, 4)
_BOOLEANS = st.booleans()
_NEVER = (None, "", "")
_TIMED = st.sampled_from([(NOW + timedelta(seconds=s), "team-dba", "OPS-1") for s in DEADLINES_S])
_DEADLINES: st.SearchStrategy[tuple[datetime | None, str, str]] = st.one_of(st.just(_NEVER), _TIMED)


_THIRD = _one_in(3)


@st.composite
def demands(draw: st.DrawFn, rule: Rule) -> Rule:
    """The rule with what it may ask of conversations: plaintext permitted, or requests judged."""
    if draw(_THIRD):
        return replace(rule, mtls_off=True, mtls=False)
    ends = (rule.source, rule.destination)
    inside = not any(peer.externals or set(peer.entities) - {Entity.ANY} for peer in ends)
    if inside and all(spec.protocol == TCP for spec in rule.ports) and draw(_BOOLEANS):
        return replace(rule, l7=L7(rule.loc, (HttpMatch(rule.loc, ("GET",)),), text="GET"))
    return rule


@st.composite
def rules(draw: st.DrawFn, names: Names, loc: Loc, demanding: bool = False) -> list[Rule]:
    """The rules of one policy, allows before exceptions; identifiers are given later."""
    made = []
    for number in range(draw(_RULE_COUNTS)):
        managed_source = draw(_BOOLEANS)
        source = draw(peers(names, managed_source))
        destination = draw(peers(names, managed=not managed_source))
        name = f"r{number}"
        rule = Rule(RuleId(0), names.policy, name, source, destination, draw(_PORTS), loc, *draw(_DEADLINES))
        made.append(draw(demands(rule)) if demanding else rule)
    made.sort(key=lambda rule: rule.expires is not None)
    return [replace(rule, kind="exception" if rule.expires else "allow") for rule in made]


_LIFELINE_COUNTS = st.sampled_from((0, 0, 1, 2))
_LIFELINE_PORTS = st.sampled_from((22, 443, 65535))


@st.composite
def lifelines(draw: st.DrawFn, named: Sequence[Workload | External], loc: Loc) -> list[Rule]:
    made = []
    for number in range(1, draw(_LIFELINE_COUNTS) + 1):
        thing = draw(st.sampled_from(named))
        port = draw(_LIFELINE_PORTS)
        source = Peer(
            (thing.qualified,) if isinstance(thing, Workload) else (),
            (thing.qualified,) if isinstance(thing, External) else (),
            text=json.dumps(thing.qualified),
        )
        destination = Peer(entities=(Entity.HOST,), text=json.dumps(f"host:{port}"))
        spec = PortSpec(TCP, port, port, str(port))
        name = f"lifeline-{number}"
        made.append(Rule(RuleId(0), "hosts", name, source, destination, (spec,), loc, kind="lifeline"))
    return made


# Repositories

ROOT_FILE = "bulkhead.yaml"
_FILES = st.sampled_from(("apps/a.yaml", "Zoo.yml", "z.yaml"))
_LEVELS = st.sampled_from(Level)
_POLICY_NAMES = _some(("shop", "ops", "lab"))


@st.composite
def policy_sets(draw: st.DrawFn, demanding: bool = False) -> PolicySet:
    """A whole repository as the values its text would parse into, but for lines and columns.

    With `demanding`, some rules permit plaintext and some are about requests.
    """
    homes = {name: Loc(draw(_FILES), 1) for name in draw(_POLICY_NAMES)}
    scopes = {name: draw(_SCOPES) if draw(_RARELY) else None for name in homes}
    kept = _without_ties(w for name, loc in homes.items() for w in draw(workloads(name, loc, scopes[name])))
    outside = tuple(e for name, loc in homes.items() for e in draw(externals(name, loc)))
    named: list[Workload | External] = [*kept, *outside]
    made = draw(lifelines(named, Loc(ROOT_FILE, 1))) if named else []
    for name, loc in homes.items():
        made += draw(rules(Names(name, kept, outside), loc, demanding))
    return PolicySet(
        commit="",
        trust_domain="example.org",
        host_mode=draw(_MODES),
        policies=tuple(Policy(name, draw(_LEVELS), "", loc, scopes[name]) for name, loc in homes.items()),
        workloads=kept,
        externals=outside,
        rules=_numbered(made),
        files=tuple(sorted({ROOT_FILE, *(loc.file for loc in homes.values())})),
    )


def _without_ties(drawn: Iterable[Workload]) -> tuple[Workload, ...]:
    kept: list[Workload] = []
    for workload in drawn:
        if not any(may_tie(workload.match, other.match) for other in kept):
            kept.append(workload)
    return tuple(kept)


def _numbered(made: Iterable[Rule]) -> tuple[Rule, ...]:
    """Rule identifiers by byte order of files, then as the documents stand there. Each gets a line of its own."""
    ordered = sorted(made, key=lambda rule: rule.loc.file.encode())
    return tuple(
        replace(rule, rule_id=RuleId(number), loc=replace(rule.loc, line=number))
        for number, rule in enumerate(ordered, 1)
    )


@st.composite
def forbidding_sets(draw: st.DrawFn) -> PolicySet:
    """A repository with a few `never`, which it may or may not break."""
    policy_set = draw(policy_sets())
    nevers = []
    for number, policy in enumerate(policy_set.policies, 1):
        names = Names(policy.name, policy_set.workloads, policy_set.externals)
        source, destination = draw(peers(names, managed=False)), draw(peers(names, managed=True))
        if draw(_BOOLEANS):
            source, destination = destination, source
        loc = Loc(policy.loc.file, 1000 + number)
        ports = draw(_PORTS) if draw(_BOOLEANS) else ()
        nevers.append(Never(policy.name, f"n{number}", source, destination, ports, "", loc))
    return replace(policy_set, nevers=tuple(nevers))


# Probes: not drawn but derived from a drawn seed, so that one repository is asked many questions


def endpoints_of(policy_set: PolicySet, rng: Random, count: int) -> tuple[Endpoint, ...]:
    """Endpoints of which half are built to satisfy one of the selectors."""
    return tuple(_endpoint(policy_set, rng) for _ in range(count))


def _endpoint(policy_set: PolicySet, rng: Random) -> Endpoint:
    aim = rng.choice(policy_set.workloads).match if policy_set.workloads and rng.random() < 0.5 else Match()
    user, uid = _account(USERS, aim.user) or rng.choice(USERS)
    group, gid = _account(GROUPS, aim.group) or rng.choice(GROUPS)
    exe = rng.choice(aim.exe or (*EXES, "/bin/sh"))
    cgroup = _grown(aim, rng) or rng.choice(CGROUPS)
    return Endpoint(cgroup, exe, user, uid, group, gid, attested=rng.random() < 0.95)


def _account(pool: Sequence[tuple[str, int]], wanted: Sequence[str]) -> tuple[str, int] | None:
    return next(((name, number) for name, number in pool if name in wanted or str(number) in wanted), None)


def _grown(match: Match, rng: Random) -> str:
    """A control group that a selector of a unit or a control group points at."""
    if match.cgroup:
        return rng.choice(match.cgroup).replace("*", "x").replace("?", "y") + rng.choice(("", "/deeper"))
    if match.unit:
        return "/system.slice/" + rng.choice(match.unit).replace("*", "x").replace("?", "y")
    return ""


def dns_names(policy_set: PolicySet) -> list[str]:
    """Every DNS name that was written, one below each `*`, and one that nobody wrote."""
    written = {name for external in policy_set.externals for name in external.fqdn}
    return sorted({name.replace("*", "some") for name in written} | {"elsewhere.example"})


def boundary_addresses(policy_set: PolicySet) -> list[Address]:
    """First and last address of every written prefix, and their neighbours outside."""
    found: list[Address] = list(STRAY_ADDRESSES)
    for external in policy_set.externals:
        for network in (*external.cidr, *external.excluded):
            ends = (network[0], network[-1])
            found.extend(ends)
            outside = [(ends[0], -1), (ends[1], 1)]
            found.extend(end + step for end, step in outside if _inside(end, step))
    return list(dict.fromkeys(found))


def _inside(address: Address, step: int) -> bool:
    return 0 <= int(address) + step <= (1 << address.max_prefixlen) - 1


End = TypeVar("End", Identified, Remote)

HOST = Identified(Standing.HOST)
LEGACY = Identified(Standing.LEGACY)
UNKNOWN = Identified(Standing.UNKNOWN)


def _as_end(workload: Workload) -> Identified:
    return Identified(Standing.WORKLOAD, (workload.qualified,))


@dataclass(frozen=True, slots=True)
class Probes:
    """What to ask of one repository at one host, listed once for many openings."""

    policy_set: PolicySet
    host: str
    local: list[Identified]
    remote: list[Remote]

    @classmethod
    def of(cls, policy_set: PolicySet, host: str) -> Probes:
        """Every end that can be asked about at `host`."""
        everyone = [_as_end(w) for w in policy_set.workloads]
        here = [_as_end(w) for w in policy_set.workloads if can_be_on(w, host)]
        ambiguous = Identified(Standing.AMBIGUOUS, tuple(name for who in here[:2] for name in who.workloads))
        nobody = [UNKNOWN, ambiguous] if len(here) > 1 else [UNKNOWN]
        remote = [HOST, LEGACY, *everyone, *nobody, *boundary_addresses(policy_set)]
        return cls(policy_set, host, [HOST, *here, *nobody], remote)

    def members(self, peer: Peer, ends: list[End]) -> list[End]:
        """Those of some ends that one side of a rule speaks of, holes included."""
        named = [e for e in self.policy_set.externals if e.qualified in peer.externals]
        return [end for end in ends if _spoken_of(peer, named, end)]

    def opening(self, rng: Random) -> Opening:
        """An opening near the edges of one of the rules, most of the time inside them."""
        direction = rng.choice(tuple(Direction))
        if not self.policy_set.rules or rng.random() < 0.1:
            protocol, port = rng.choice((TCP, UDP, ICMP6, 47)), rng.choice(EDGE_PORTS)
            return self._put(rng.choice(self.local), direction, rng.choice(self.remote), protocol, port)
        rule = rng.choice(self.policy_set.rules)
        near, far = (rule.source, rule.destination)[:: 1 if direction is Direction.EGRESS else -1]
        local = self.members(near, self.local) if rng.random() < 0.9 else self.local
        remote = self.members(far, self.remote) if rng.random() < 0.9 else self.remote
        protocol, port = _edge(rng.choice(rule.ports), rng)
        return self._put(rng.choice(local or self.local), direction, rng.choice(remote or self.remote), protocol, port)

    def _put(self, local: Identified, direction: Direction, remote: Remote, protocol: int, port: int) -> Opening:
        """Port 0 exists for ICMP only, and is the only one where there are no ports."""
        if protocol in WITH_PORTS:
            port = max(port, 1)
        elif protocol not in (ICMP, ICMP6):
            port = 0
        return Opening(self.host, local, direction, remote, protocol, port)


_ENTITIES = {Standing.HOST: Entity.HOST, Standing.LEGACY: Entity.LEGACY}


def _spoken_of(peer: Peer, named: Sequence[External], end: Remote) -> bool:
    if not isinstance(end, Identified):
        return Entity.WORLD in peer.entities or any(end in network for e in named for network in (*e.cidr, *e.excluded))
    if end.standing is Standing.WORKLOAD:
        return Entity.ANY in peer.entities or end.workloads[0] in peer.workloads
    return end.standing in _ENTITIES and _ENTITIES[end.standing] in peer.entities


def _edge(spec: PortSpec, rng: Random) -> tuple[int, int]:
    """Protocol and port at, inside or just outside the bounds of an entry."""
    port = rng.choice((spec.first, spec.last, rng.randint(spec.first, spec.last), spec.first - 1, spec.last + 1))
    protocol = spec.protocol if rng.random() < 0.95 else rng.choice((TCP, UDP, ICMP, ICMP6))
    return protocol, min(max(port, 0), 65535)


@st.composite
def crowds(draw: st.DrawFn) -> Case:
    """Workloads without a single rule, and endpoints to tell apart on one of their hosts."""
    kept = _without_ties(w for name in draw(_POLICY_NAMES) for w in draw(workloads(name, Loc("p.yaml", 1))))
    policy_set = PolicySet("", "example.org", Mode.OBSERVE, workloads=kept)
    host, rng = draw(_HOST_NAMES), Random(draw(_SEEDS))
    return Case(policy_set, host, endpoints_of(policy_set, rng, ENDPOINTS), ())


@st.composite
def cases(draw: st.DrawFn, demanding: bool = False) -> Case:
    """A repository with endpoints and openings at one of its hosts."""
    policy_set = draw(policy_sets(demanding))
    host, rng = draw(_HOST_NAMES), Random(draw(_SEEDS))
    probes = Probes.of(policy_set, host)
    return Case(
        policy_set,
        host,
        endpoints_of(policy_set, rng, ENDPOINTS // 4),
        tuple(probes.opening(rng) for _ in range(OPENINGS)),
    )


# The same as text

_PLAIN = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_NOT_WORDS = {"true", "false", "null", "on", "off", "yes", "no", "y", "n"}


@dataclass(frozen=True, slots=True)
class _Raw:
    """YAML to be written as it is."""

    text: str


def policy_texts() -> st.SearchStrategy[tuple[Case, dict[str, str]]]:
    """A case, and its repository as files by path."""
    return cases(demanding=True).map(lambda case: (case, files_of(case.policy_set)))


def files_of(policy_set: PolicySet) -> dict[str, str]:
    """The repository that says what a drawn PolicySet says."""
    documents: dict[str, list[str]] = defaultdict(list)
    documents[ROOT_FILE].append(_repository_text(policy_set))
    in_order = {rule.policy: rule.rule_id for rule in reversed(policy_set.rules)}
    for policy in sorted(policy_set.policies, key=lambda policy: in_order.get(policy.name, 0)):
        documents[policy.loc.file].append(_policy_text(policy_set, policy))
    return {path: "---\n".join(texts) for path, texts in documents.items()}


def _repository_text(policy_set: PolicySet) -> str:
    lines = [
        "apiVersion: bulkhead/v1alpha1",
        "kind: Repository",
        f"trustDomain: {policy_set.trust_domain}",
        "hosts:",
        f"  mode: {policy_set.host_mode.value}",
    ]
    lifeline = [rule for rule in policy_set.rules if rule.kind == "lifeline"]
    if lifeline:
        lines.append("  lifeline:")
        lines += [f"    - {{from: {rule.source.text}, to: {rule.destination.text}}}" for rule in lifeline]
    return "\n".join(lines) + "\n"


def _policy_text(policy_set: PolicySet, policy: Policy) -> str:
    own_rules = [rule for rule in policy_set.rules if rule.policy == policy.name]
    lines = [
        "apiVersion: bulkhead/v1alpha1",
        "kind: Policy",
        "metadata: " + _flow({"name": policy.name, "level": policy.level.value}),
    ]
    if policy.scope is not None:
        lines.append("scope: " + _flow({key: text for key, text in asdict(policy.scope).items() if text}))
    own = [workload for workload in policy_set.workloads if workload.policy == policy.name]
    lines += _block("workloads", {w.name: _workload_value(w, policy.scope) for w in own})
    lines += _block("externals", {e.name: _external_value(e) for e in policy_set.externals if e.policy == policy.name})
    lines += _sequence("allow", [_rule_value(rule) for rule in own_rules if rule.kind == "allow"])
    lines += _sequence("exceptions", [_rule_value(rule) for rule in own_rules if rule.kind == "exception"])
    return "\n".join(lines) + "\n"


def _block(key: str, items: Mapping[str, object]) -> list[str]:
    return [f"{key}:", *(f"  {name}: {_flow(value)}" for name, value in items.items())] if items else []


def _sequence(key: str, items: Sequence[object]) -> list[str]:
    return [f"{key}:", *(f"  - {_flow(value)}" for value in items)] if items else []


def _workload_value(workload: Workload, scope: Scope | None) -> dict[str, object]:
    match = _pods_value(workload.match, scope) if workload.match.of_pods else _processes_value(workload.match)
    value: dict[str, object] = {"match": match, "mode": workload.mode.value}
    return {**value, "labels": dict(workload.labels)} if workload.labels else value


def _processes_value(match: Match) -> dict[str, object]:
    written = ((key, getattr(match, key)) for key in ("host", *POOLS))
    keys: dict[str, object] = {key: _one_or_many(patterns) for key, patterns in written if patterns}
    return {**keys, "all": _Raw("true")} if match.everything else keys


def _pods_value(match: Match, scope: Scope | None) -> dict[str, object]:
    """The namespace of a scope goes without saying, unless there is nothing else to say."""
    said = scope is not None and scope.namespace and (match.service_account or match.labels)
    keys: dict[str, object] = {} if said else {"namespace": _one_or_many(match.namespace)}
    if match.service_account:
        keys["serviceAccount"] = _one_or_many(match.service_account)
    return {**keys, "labels": dict(match.labels)} if match.labels else keys


def _external_value(external: External) -> dict[str, object]:
    if external.fqdn:
        return {"fqdn": list(external.fqdn)}
    value: dict[str, object] = {"cidr": [str(network) for network in external.cidr]}
    return {**value, "except": [str(n) for n in external.excluded]} if external.excluded else value


def _rule_value(rule: Rule) -> dict[str, object]:
    texts = dict.fromkeys(spec.text for spec in rule.ports)
    value: dict[str, object] = {
        "name": rule.name,
        "from": _Raw(rule.source.text),
        "to": _Raw(rule.destination.text),
        "ports": [_Raw(text) if text.isdigit() else text for text in texts],
    }
    if rule.mtls_off:
        value["mtls"] = "off"
    if rule.l7 is not None:
        value["l7"] = {"http": [{"methods": list(entry.methods)} for entry in rule.l7.http]}
    if rule.expires is None:
        return value
    expires = _Raw(rule.expires.strftime("%Y-%m-%dT%H:%M:%SZ"))
    return {**value, "expires": expires, "owner": rule.owner, "ticket": rule.ticket}


def _one_or_many(patterns: Sequence[str]) -> object:
    written = [_Raw(p) if p.isdigit() else p for p in patterns]
    return written[0] if len(written) == 1 else written


def _flow(value: object) -> str:
    if isinstance(value, _Raw):
        return value.text
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_flow(item) for item in value) + "]"
    text = str(value)
    return text if _PLAIN.fullmatch(text) and text not in _NOT_WORDS else json.dumps(text)

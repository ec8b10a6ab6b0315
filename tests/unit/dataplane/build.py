"""Policy sets written in a few words: `shop("web -> api 443")`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from ipaddress import ip_network

from bulkhead.errors import Loc
from bulkhead.policy.model import (
    Entity,
    Expectation,
    External,
    Match,
    Mode,
    Never,
    Peer,
    PolicySet,
    PolicyTest,
    QualifiedName,
    Rule,
    RuleId,
    Workload,
)
from bulkhead.policy.ports import parse_port

NOW = datetime(2026, 7, 1, tzinfo=UTC)
TRUST_DOMAIN = "example.org"


def loc(line: int) -> Loc:
    return Loc("shop.yaml", line, 3, "3f2c1ab")


def workload(name: str, match: Match | None = None, line: int = 1, policy: str = "shop") -> Workload:
    return Workload(policy, name, match or Match(unit=(f"{name}.service",)), Mode.ENFORCE, loc(line), (("tier", name),))


def external(name: str, cidr: Sequence[str], excluded: Sequence[str] = (), line: int = 1) -> External:
    return External("shop", name, tuple(map(ip_network, cidr)), tuple(map(ip_network, excluded)), loc(line))


def peer(text: str, externals: Iterable[str] = ()) -> Peer:
    """`web`, `host`, or several joined by `+`; names in `externals` are externals."""
    names = text.split("+") if text else []
    entities = tuple(Entity(name) for name in names if name in set(Entity))
    outside = tuple(QualifiedName(f"shop/{name}") for name in names if name in set(externals))
    inside = (name for name in names if name not in set(Entity) and name not in set(externals))
    return Peer(tuple(QualifiedName(f"shop/{name}") for name in inside), outside, entities, text)


def ports(text: str) -> tuple:
    return tuple(spec for item in text.split(",") for spec in parse_port(item))


def rule(number: int, text: str, externals: Iterable[str] = (), expires: datetime | None = None) -> Rule:
    """`web -> api 443,53/udp`, and `off` behind it for `mtls: off`."""
    source, _, destination, wanted, *off = text.split(" ")
    return Rule(
        RuleId(number),
        "shop",
        f"rule-{number}",
        peer(source, externals),
        peer(destination, externals),
        ports(wanted),
        loc(100 + number),
        expires,
        kind="exception" if expires else "allow",
        mtls_off=bool(off),
        mtls=not off,
    )


def never(text: str, externals: Iterable[str] = ()) -> Never:
    source, _, destination, *wanted = text.split(" ")
    ends = peer(source, externals), peer(destination, externals)
    return Never("shop", "not-that", *ends, ports(wanted[0]) if wanted else (), "card data", loc(50))


def policy_test(
    source: str, accept: Sequence[str] = (), deny: Sequence[str] = (), externals: Iterable[str] = ()
) -> PolicyTest:
    def expect(text: str) -> list[Expectation]:
        name, _, port = text.partition(":")
        return [Expectation(peer(name, externals), spec, text, loc(60)) for spec in parse_port(port)]

    accepted = tuple(e for text in accept for e in expect(text))
    denied = tuple(e for text in deny for e in expect(text))
    return PolicyTest("shop", peer(source, externals), accepted, denied, loc(59))


def shop(
    *rules: str | tuple[str, datetime],
    workloads: Iterable[Workload | str] = ("web", "api", "db"),
    externals: Iterable[External] = (),
    nevers: Iterable[str] = (),
    tests: Iterable[PolicyTest] = (),
) -> PolicySet:
    """A policy set with rules numbered from 1; a rule with a time is an exception until then."""
    outside = tuple(externals)
    names = [e.name for e in outside]
    written = [(text, None) if isinstance(text, str) else text for text in rules]
    return PolicySet(
        "3f2c1ab",
        TRUST_DOMAIN,
        Mode.OBSERVE,
        workloads=tuple(workload(w, line=n) if isinstance(w, str) else w for n, w in enumerate(workloads, 1)),
        externals=outside,
        rules=tuple(rule(number, text, names, expires) for number, (text, expires) in enumerate(written, 1)),
        nevers=tuple(never(text, names) for text in nevers),
        tests=tuple(tests),
    )

"""A suggestion, added to its policy, allows every edge that it was made from, and nothing else that is new.

Who an end is afterwards is asked of the selectors, and what is allowed of the compiled tables: neither knows anything
of suggestions.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import product

from hypothesis import event, given, settings
from hypothesis import strategies as st

from bulkhead.abi import Direction
from bulkhead.dataplane.compile import Compiled, class_of, compile_commit, lookup
from bulkhead.dataplane.lint import lint
from bulkhead.dataplane.resolve import HOST as HOST_IDENTITY
from bulkhead.identity.selectors import Endpoint, Identified, classify
from bulkhead.observe.evidence import recorded
from bulkhead.observe.flows import FlowRecord
from bulkhead.observe.suggest import Wish, no_timers, suggest
from bulkhead.policy.model import PolicySet
from bulkhead.policy.parse import parse
from bulkhead.policy.source import SourceFile, Sources
from unit.observe.flow_records import HOST, NOW, answer, flow, service

AT = datetime.fromtimestamp(NOW, UTC)
REPOSITORY = (
    "apiVersion: bulkhead/v1alpha1\nkind: Repository\ntrustDomain: example.org\n"
    'hosts: {lifeline: [{from: admins, to: "host:22"}]}\n'
)
SHOP = """
apiVersion: bulkhead/v1alpha1
kind: Policy
metadata: {name: shop}
workloads:
  web: {match: {unit: web.service}}
  db: {match: {host: "web-*", cgroup: /data, exe: /usr/bin/db}}
externals:
  admins: {cidr: [10.9.0.1/32]}
  office: {cidr: [192.0.2.0/30]}
allow:
  - {name: web-db, from: web, to: db, ports: [5432]}
  - {name: office-web, from: office, to: web, ports: [443]}
"""
PROGRAMS = ("@nginx", "@backup", "@/data|/usr/bin/dump", "@/data/deep|/usr/bin/dump", "@/|/usr/bin/init", "host")
WORKLOADS = ("shop/web", "shop/db")
ADDRESSES = ("10.9.0.1", "192.0.2.1", "192.0.2.2", "198.51.100.7", "2001:db8::7")
UNSEEN = ("192.0.2.3", "198.51.100.8", "2001:db8::8")
PORTS = ((6, "tcp", 22), (6, "tcp", 443), (6, "tcp", 5432), (17, "udp", 443), (17, "udp", 53))

EVERYBODY = (*PROGRAMS, *WORKLOADS, *ADDRESSES, *UNSEEN)

INSIDE = st.sampled_from([*PROGRAMS, *WORKLOADS])
ENDS = st.one_of(
    st.tuples(INSIDE, INSIDE),
    st.tuples(INSIDE, st.sampled_from(ADDRESSES)),
    st.tuples(st.sampled_from(ADDRESSES), INSIDE),
)
EDGES = st.lists(st.tuples(ENDS, st.sampled_from(PORTS)), min_size=1, max_size=12, unique=True)


def sources(*policies: str) -> Sources:
    texts = {"bulkhead.yaml": REPOSITORY} | {f"p{number}.yaml": text for number, text in enumerate(policies)}
    return Sources("", tuple(SourceFile(path, "1" * 40, text.encode()) for path, text in sorted(texts.items())))


def identity(policy_set: PolicySet, compiled: Compiled, end: str) -> int:
    """Who an end is under a commit, by what is known of it."""
    numbers = {str(one.qualified): one.identity for one in compiled.workloads}
    if end in numbers:
        return numbers[end]
    if end == "host":
        return HOST_IDENTITY
    if not end.startswith("@"):
        return class_of(compiled, end)
    cgroup, bar, exe = end[1:].partition("|")
    if not bar:
        cgroup, exe = service(end[1:])
    found = classify(policy_set.workloads, Endpoint(HOST, cgroup, exe))
    return numbers[found.workload.qualified] if isinstance(found, Identified) else HOST_IDENTITY


def is_outside(end: str) -> bool:
    return end in ADDRESSES or end in UNSEEN


class Judge:
    """A commit that says who reaches whom."""

    def __init__(self, policy_set: PolicySet) -> None:
        self.compiled = compile_commit(policy_set, HOST, AT)
        self._who = {end: identity(policy_set, self.compiled, end) for end in EVERYBODY}
        self._asked: dict[tuple[int, ...], bool] = {}

    def key(self, end: str) -> object:
        """What of an end a rule can tell apart."""
        return end if is_outside(end) else self._who[end]

    def allows(self, source: str, destination: str, protocol: int, port: int) -> bool:
        here, there = self._who[source], self._who[destination]
        ends = ((source, here, Direction.EGRESS, there), (destination, there, Direction.INGRESS, here))
        return all(self._opens(*asked, protocol, port) for end, *asked in ends if not is_outside(end))

    def _opens(self, *asked: int) -> bool:
        if asked not in self._asked:
            self._asked[asked] = lookup(self.compiled, *asked) is not None
        return self._asked[asked]


def records_of(edges: Iterable[tuple[tuple[str, str], tuple[int, str, int]]]) -> list[FlowRecord]:
    return [flow(*ends, port, protocol=name) for ends, (_, name, port) in edges]


OLD = Judge(parse(sources(SHOP)))
QUESTIONS = [
    asked for asked in product(EVERYBODY, EVERYBODY, PORTS) if not (is_outside(asked[0]) and is_outside(asked[1]))
]


@settings(max_examples=100)
@given(EDGES)
def test_a_suggestion_allows_exactly_what_was_recorded(edges) -> None:
    records = records_of(edges)
    wish = Wish(HOST, (), recorded(answer(records), 86400.0, "").coverage, no_timers, AT)
    found = suggest(sources(SHOP), records, wish)
    assert found.left_out == ()
    event(f"{len(found.rules)} rules")
    after = parse(sources(SHOP, found.text) if found.text else sources(SHOP))
    assert not [one for one in lint(after, AT) if one.severity == "error"]
    new = Judge(after)
    for ends, (protocol, _, port) in edges:
        assert new.allows(*ends, protocol, port), (ends, port, found.text)
    seen = {(*map(new.key, ends), protocol, port) for ends, (protocol, _, port) in edges}
    for source, destination, (protocol, _, port) in QUESTIONS:
        if (new.key(source), new.key(destination), protocol, port) not in seen:
            was_allowed = OLD.allows(source, destination, protocol, port)
            assert was_allowed or not new.allows(source, destination, protocol, port), (source, destination, found.text)

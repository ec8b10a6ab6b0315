"""The mesh of a host as record tables of a bundle."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from bulkhead.dataplane.compile import WorkloadInfo
from bulkhead.dataplane.mesh import LANE_BITS, Call, Lane, Mesh
from bulkhead.dataplane.ports import Ports
from bulkhead.dataplane.records import (
    BundleError,
    RecordTable,
    as_flag,
    as_number,
    as_seconds,
    as_text,
    as_texts,
    checked,
    table_bytes,
)
from bulkhead.dataplane.requests import Authorization, Clause, Effect, JwtIssuer, condition_of, condition_record
from bulkhead.policy.model import RuleId

MESH_SECTIONS: Final = ("lanes", "calls", "authorizations", "issuers", "svids")
_LANE_MAX: Final = (1 << LANE_BITS) - 2
_U32_MAX: Final = 0xFFFFFFFF
_PORT_MAX: Final = 0xFFFF
_SVID: Final = re.compile(r"spiffe://[a-z0-9._-]{1,255}(/([a-zA-Z0-9._-]|\{host\})+)+")


def mesh_sections(mesh: Mesh) -> list[bytes]:
    """The sections of a mesh, in the order of MESH_SECTIONS."""
    calls: dict[int, dict[Ports, list[int]]] = {}
    for call in mesh.calls:
        calls.setdefault(call.destination, {}).setdefault(call.ports, []).append(call.source)
    issuers = enumerate(mesh.issuers, 1)
    return [
        table_bytes((lane.number, [lane.source, list(lane.peers)]) for lane in mesh.lanes),
        table_bytes(
            (called, [[list(ports), who] for ports, who in sorted(found.items())]) for called, found in calls.items()
        ),
        table_bytes((one.destination, _authorization_record(one)) for one in mesh.authorizations),
        table_bytes((number, [one.name, one.issuer, list(one.audiences), one.jwks]) for number, one in issuers),
        table_bytes((identity, [template]) for identity, template in mesh.svids.items()),
    ]


def _authorization_record(one: Authorization) -> list[object]:
    return [one.open, [list(ports) for ports in one.ports], [_clause_record(clause) for clause in one.clauses]]


def _clause_record(clause: Clause) -> list[object]:
    judged = [clause.effect.value, condition_record(clause.condition)]
    return [clause.rule_id, *judged, clause.provider, clause.dry_run, clause.deadline]


@dataclass(frozen=True, slots=True)
class MeshTables:
    """The tables as they came; decoded when they are asked for."""

    _lanes: RecordTable
    _calls: RecordTable
    _authorizations: RecordTable
    _issuers: RecordTable
    _svids: RecordTable

    @classmethod
    def read(cls, sections: Mapping[str, bytes]) -> MeshTables:
        """The tables in the sections of a bundle. Raises BundleError for what are none."""
        return cls(*(RecordTable(sections[name], name) for name in MESH_SECTIONS))

    def lanes(self) -> dict[int, Lane]:
        """All lanes by their number."""
        return {number: _lane(number, self._lanes.get(number) or []) for number in self._lanes.numbers}

    def mesh(self) -> Mesh:
        """Everything, decoded. Raises BundleError for a record of another shape."""
        calls = [call for number in self._calls.numbers for call in _calls(number, self._calls.get(number) or [])]
        judged = ((number, self._authorizations.get(number) or []) for number in self._authorizations.numbers)
        return Mesh(
            lanes=tuple(self.lanes().values()),
            calls=tuple(sorted(calls)),
            authorizations=tuple(_authorization(number, record) for number, record in judged),
            issuers=tuple(_issuer(self._issuers.get(number) or []) for number in self._issuers.numbers),
            svids={number: _svid(self._svids.get(number) or []) for number in self._svids.numbers},
        )

    def check(self, workloads: Mapping[int, WorkloadInfo], rules: RecordTable) -> None:
        """Raises BundleError unless it speaks of workloads and rules that there are, of local ones where it must."""
        mesh = self.mesh()
        local = {identity for identity, one in workloads.items() if one.local}
        here = {lane.source for lane in mesh.lanes} | {call.destination for call in mesh.calls}
        here |= {one.destination for one in mesh.authorizations}
        others = {peer for lane in mesh.lanes for peer in lane.peers} | {call.source for call in mesh.calls}
        if not here <= local or not others <= workloads.keys():
            raise BundleError("the mesh speaks of workloads that are not here, or not at all")
        if not here | others <= mesh.svids.keys() <= workloads.keys():
            raise BundleError("not every workload of the mesh has a SPIFFE ID, or another has")
        if any(workloads[identity].svid != template for identity, template in mesh.svids.items()):
            raise BundleError("a workload has another SPIFFE ID in the mesh")
        clauses = (clause for one in mesh.authorizations for clause in one.clauses)
        if any(clause.rule_id not in rules for clause in clauses):
            raise BundleError("an authorization is of a rule that is not there")


def _lane(number: int, record: list[Any]) -> Lane:
    def build() -> Lane:
        source, peers = record
        numbers = tuple(as_number(peer, 1, _U32_MAX) for peer in peers)
        if not numbers or any(one >= other for one, other in pairwise(numbers)):
            raise ValueError("not ascending")
        return Lane(as_number(number, 1, _LANE_MAX), as_number(source, 1, _U32_MAX), numbers)

    return checked(build, "lanes")


def _calls(destination: int, record: list[Any]) -> list[Call]:
    def build() -> list[Call]:
        found = [
            Call(destination, as_number(who, 1, _U32_MAX), _ports(ports))
            for ports, sources in record
            for who in sources
        ]
        if len({call.source for call in found}) < len(found):
            raise ValueError("a caller twice")
        return found

    return checked(build, "calls")


def _ports(value: Any) -> Ports:
    found = tuple((as_number(first, 0, _PORT_MAX), as_number(last, 0, _PORT_MAX)) for first, last in value)
    bounds = [bound for interval in found for bound in interval]
    if not found or any(last < first for first, last in found) or any(a > b for a, b in pairwise(bounds)):
        raise ValueError("not ascending")
    if any(one[1] >= other[0] for one, other in pairwise(found)):
        raise ValueError("not disjoint")
    return found


def _authorization(destination: int, record: list[Any]) -> Authorization:
    def build() -> Authorization:
        is_open, ports, clauses = record
        return Authorization(destination, _ports(ports), tuple(map(_clause, clauses)), as_flag(is_open))

    return checked(build, "authorizations")


def _clause(value: Any) -> Clause:
    rule_id, effect, condition, provider, dry_run, deadline = value
    return Clause(
        RuleId(as_number(rule_id, 1, _U32_MAX)),
        Effect(as_text(effect)),
        condition_of(condition),
        as_text(provider),
        as_flag(dry_run),
        None if deadline is None else as_seconds(deadline),
    )


def _issuer(record: list[Any]) -> JwtIssuer:
    def build() -> JwtIssuer:
        name, issuer, audiences, jwks = record
        return JwtIssuer(as_text(name), as_text(issuer), as_texts(audiences), as_text(jwks))

    return checked(build, "issuers")


def _svid(record: list[Any]) -> str:
    def build() -> str:
        (template,) = record
        return as_svid(template)

    return checked(build, "svids")


def as_svid(value: Any) -> str:
    """The template of a SPIFFE ID."""
    if not _SVID.fullmatch(as_text(value)):
        raise ValueError("not a SPIFFE ID")
    return str(value)

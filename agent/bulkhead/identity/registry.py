"""The numbers that stand for identities in the kernel, and the SPIFFE IDs behind them.

Numbers are hashes, so that every host and every commit gives the same workload the same one without anybody keeping a
list. Thirty-one bits collide now and then: a commit in which two names would share a number is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from bulkhead.abi import Identity
from bulkhead.errors import Diagnostic, Loc, PolicyError
from bulkhead.policy.codes import presentable
from bulkhead.policy.model import QualifiedName, Workload

CLASS_BIT = 1 << 31
"""Set in the identity of an address class, clear in that of a workload or entity."""

Members = frozenset[QualifiedName]
"""The externals that contain an address; the class of that address. Empty: the class is the world."""


def spiffe_id(trust_domain: str, qualified: QualifiedName) -> str:
    """`spiffe://TRUST/POLICY/WORKLOAD`."""
    return f"spiffe://{trust_domain}/{qualified}"


def svid_template(trust_domain: str, workload: Workload) -> str:
    """The SPIFFE ID of a workload's SVIDs, in which `{host}` stands for the name of the node that it runs on."""
    return f"spiffe://{trust_domain}{workload.spiffe or '/' + workload.qualified}"


def workload_identity(trust_domain: str, qualified: QualifiedName) -> int:
    """The number of a workload; may be a reserved one, which `assign_workloads` refuses."""
    return _hash(spiffe_id(trust_domain, qualified)) & ~CLASS_BIT


def class_identity(members: Members) -> int:
    """The number of an address class."""
    if not members:
        return int(Identity.WORLD)
    return _hash("\n".join(sorted(members))) | CLASS_BIT


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def assign_workloads(trust_domain: str, workloads: Sequence[Workload]) -> dict[QualifiedName, int]:
    """The number of every workload.

    Raises PolicyError (BH0602), with all findings, when two share a number or one has a reserved number.
    """
    owners: dict[int, Workload] = {}
    findings: list[Diagnostic] = []
    for workload in workloads:
        number = workload_identity(trust_domain, workload.qualified)
        other = owners.setdefault(number, workload)
        if number <= Identity.RESERVED_MAX:
            findings.append(_reserved(workload, number))
        elif other is not workload:
            findings.append(_collision(workload.qualified, other.qualified, workload.loc, other.loc))
    if findings:
        raise PolicyError(findings)
    return {workload.qualified: number for number, workload in owners.items()}


def assign_classes(classes: Iterable[Members], locs: Mapping[QualifiedName, Loc]) -> dict[Members, int]:
    """The number of every address class. `locs` places the externals. Raises PolicyError (BH0602) on a collision."""
    owners: dict[int, Members] = {}
    findings: list[Diagnostic] = []
    for members in sorted(set(classes), key=sorted):
        number = class_identity(members)
        other = owners.setdefault(number, members)
        if other != members:
            text, rival = ", ".join(sorted(members)), ", ".join(sorted(other))
            findings.append(_collision(text, rival, locs[min(members)], locs[min(other)]))
    if findings:
        raise PolicyError(findings)
    return {members: number for number, members in owners.items()}


def assign_parties(descriptions: Iterable[str], loc: Loc) -> dict[str, int]:
    """The number of everything that is told apart in a cluster, by its description.

    Raises PolicyError (BH0602), placed at `loc`, when two share a number or one has a reserved number.
    """
    owners: dict[int, str] = {}
    for text in sorted(descriptions):
        number = _hash(text) & ~CLASS_BIT
        if number <= Identity.RESERVED_MAX or number in owners:
            message = "two groups of pods or nodes hash to the same identity, or one to a reserved one"
            hint = "change a selector in a way that does not change its meaning"
            raise PolicyError([Diagnostic("BH0602", message, loc, hint=hint)])
        owners[number] = text
    return {text: number for number, text in owners.items()}


def _reserved(workload: Workload, number: int) -> Diagnostic:
    message = f"`{workload.qualified}` hashes to the identity {number}, which is reserved"
    return Diagnostic("BH0602", message, workload.loc, hint="rename it")


def _collision(name: str, other: str, loc: Loc, other_loc: Loc) -> Diagnostic:
    name, other = presentable(name), presentable(other)
    message = f"`{name}` and `{other}` hash to the same identity"
    return Diagnostic("BH0602", message, loc, hint="rename one of them", related=((other_loc, f"`{other}` is here"),))

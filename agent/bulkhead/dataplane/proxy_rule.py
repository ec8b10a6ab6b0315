"""What the nodes' proxies may say to each other: the one rule that nobody writes.

It is there whenever a host's proxy has anything to do, on the port of the tunnels alone. Who calls whom through them is
judged at their ends: by the proxies' certificates, and by the kernel where a tunnel's conversation reaches its
workload.
"""

from __future__ import annotations

from bulkhead.abi import Direction
from bulkhead.dataplane.entries import PolicyEntry, PolicyKey
from bulkhead.dataplane.mesh import HBONE_PORT
from bulkhead.dataplane.ports import PORT_BITS
from bulkhead.dataplane.resolve import LEGACY, PEER, PROXY
from bulkhead.errors import Loc
from bulkhead.policy.model import PolicySet, QualifiedName, RuleId
from bulkhead.policy.ports import TCP
from bulkhead.policy.source import HOSTS, REPOSITORY_FILE

KIND = "proxy"
NAME = QualifiedName(f"{HOSTS}/proxy")
_EGRESS, _INGRESS = int(Direction.EGRESS), int(Direction.INGRESS)
_ENDS = ((_EGRESS, PEER), (_EGRESS, PROXY), (_EGRESS, LEGACY), (_INGRESS, PROXY), (_INGRESS, LEGACY))


def proxy_rule(policy_set: PolicySet) -> RuleId:
    """Its number: behind all others of the commit."""
    return RuleId(policy_set.last_rule + 1)


def proxy_entries(rule_id: RuleId) -> dict[PolicyKey, PolicyEntry]:
    """What it opens."""
    entry = PolicyEntry(rule_id, None)
    return {PolicyKey(PROXY, way, remote, TCP, HBONE_PORT, PORT_BITS): entry for way, remote in _ENDS}


def proxy_place(policy_set: PolicySet) -> Loc:
    """Where it is said to stand."""
    return Loc(REPOSITORY_FILE, 1, commit=policy_set.sources.abbreviated if policy_set.sources else "")

"""The operator's lifeline: ways in that no commit can cut, from the agent's own settings.

It is the one allow that does not come from git: written where only root writes, shown with all other rules, and judged
by no invariant or test of the repository.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_network

from bulkhead.config import Lifeline
from bulkhead.errors import Loc
from bulkhead.policy.model import Entity, External, Peer, PolicySet, PortSpec, Rule, RuleId

OPERATOR = "operator"
"""Kind of such a rule."""
_PLACE = "agent.toml"
"""The policy that it belongs to: no name that an author can give."""
_TCP = 6


def with_lifeline(policy_set: PolicySet, lifeline: Sequence[Lifeline]) -> PolicySet:
    """The policy with the operator's rules behind its own.

    A rule opens its port of the host and of every workload, whichever of them the server that answers there is said to
    be: a commit that declares it a workload must not cut the way in.
    """
    first = policy_set.last_rule + 1
    externals, rules = [], []
    for number, one in enumerate(lifeline, start=1):
        name, loc = f"lifeline-{number}", Loc(_PLACE, 1)
        external = External(_PLACE, name, (ip_network(one.source),), (), loc)
        externals.append(external)
        rules.append(
            Rule(
                RuleId(first + number - 1),
                _PLACE,
                name,
                Peer(externals=(external.qualified,), text=one.source),
                Peer(entities=(Entity.HOST, Entity.ANY), text="host, any"),
                (PortSpec(_TCP, one.port, one.port, str(one.port)),),
                loc,
                why="the operator's lifeline",
                kind=OPERATOR,
            )
        )
    return replace(policy_set, externals=(*policy_set.externals, *externals), rules=(*policy_set.rules, *rules))

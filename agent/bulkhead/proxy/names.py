"""SPIFFE IDs of this node's workloads, and patterns of other nodes'."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from bulkhead.proxy.node import ProxyNode
from bulkhead.proxy.terms import Message

_HOST: Final = "{host}"
_ONE_SEGMENT: Final = "[^/,]+"


def own_id(template: str, node: ProxyNode) -> str:
    """The SPIFFE ID of a workload of this node."""
    return _absolute(template, node).replace(_HOST, node.host)


def id_pattern(template: str, node: ProxyNode) -> Message:
    """What the SPIFFE ID of that workload is on any node. It never matches two names, which a comma would join."""
    text = _absolute(template, node)
    if _HOST not in text:
        return {"exact": text}
    return {"safe_regex": {"regex": _ONE_SEGMENT.join(re.escape(part) for part in text.split(_HOST))}}


def authority_pattern(addresses: Sequence[str], ports: Sequence[tuple[int, int]]) -> str:
    """A regular expression for `ADDRESS:PORT` of any of them."""
    hosts = "|".join(re.escape(f"[{one}]" if ":" in one else one) for one in addresses)
    return f"(?:{hosts}):(?:{port_pattern(ports)})"


def port_pattern(ports: Sequence[tuple[int, int]]) -> str:
    """A regular expression for the decimal numbers in those intervals; a port has no leading zeros."""
    return "|".join(part for first, last in ports for part in _decimals(first, last))


def _absolute(template: str, node: ProxyNode) -> str:
    return template if template.startswith("spiffe://") else f"spiffe://{node.trust_domain}{template}"


def _decimals(first: int, last: int) -> list[str]:
    """Patterns that together match the numbers of one interval: each some digits, a class of one, and any digits."""
    patterns = []
    first = max(first, 1)
    while first <= last:
        size = 1
        while first % (size * 10) == 0 and first + size * 10 - 1 <= last:
            size *= 10
        head, digit = divmod(first // size, 10)
        steps = min((last - first + 1) // size, 10 - digit)
        patterns.append(f"{head or ''}[{digit}-{digit + steps - 1}]" + "[0-9]" * (len(str(size)) - 1))
        first += steps * size
    return patterns

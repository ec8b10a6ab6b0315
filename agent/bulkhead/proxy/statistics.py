"""What Envoy has counted, in our words."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote

from bulkhead.errors import UnreachableError

_RULE: Final = re.compile(r"http\.requests\.rbac\.(deny|allow|audit)_\.policy\.(.{1,128})\.(shadow_)?(allowed|denied)")
_HANDSHAKE: Final = re.compile(
    r"(?:listener\.inbound|cluster\.lane)\.ssl\.(handshake|connection_error|fail_verify_\w+)"
)
_UNCHOSEN: Final = "listener.inbound.no_filter_chain_match"
_REJECTED: Final = re.compile(r".+\.update_rejected")
_PATTERNS: Final = (_RULE, _HANDSHAKE, _REJECTED, re.compile(re.escape(_UNCHOSEN)))
STATISTICS_PATH: Final = "/stats?format=json&usedonly&filter=" + quote(
    "|".join(f"^{one.pattern}$" for one in _PATTERNS)
)
"""What to ask Envoy's administration for."""

_REASONS: Final = {
    "connection_error": "protocol",
    "fail_verify_no_cert": "no-certificate",
    "fail_verify_error": "untrusted",
    "fail_verify_san": "wrong-peer",
    "fail_verify_cert_hash": "untrusted",
}


@dataclass(frozen=True, slots=True)
class ProxyStatistics:
    """Counted since Envoy started, or since the first of a chain of hot restarts."""

    handshakes: int = 0
    """TLS handshakes that succeeded."""
    failures: Counter[str] = field(default_factory=Counter)
    """Handshakes that failed, by reason: `untrusted`, `no-certificate`, `wrong-peer`, `no-workload`, `protocol`."""
    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Requests by policy (`rule-N`) and what it did: `allow`, `deny`, `audit`, `would-allow`, `would-deny`."""
    rejected: int = 0
    """Configurations that Envoy refused; the one before stayed in force."""


def statistics(answer: bytes) -> ProxyStatistics:
    """The answer to STATISTICS_PATH. Raises UnreachableError for one that is none."""
    try:
        entries = [(one["name"], one["value"]) for one in json.loads(answer)["stats"] if "name" in one]
    except (ValueError, KeyError, TypeError) as error:
        raise UnreachableError("the proxy's counters cannot be read") from error
    handshakes = rejected = 0
    failures: Counter[str] = Counter()
    requests: Counter[tuple[str, str]] = Counter()
    for name, value in entries:
        if rule := _RULE.fullmatch(name):
            requests[rule[2], _outcome(rule)] += value
        elif handshake := _HANDSHAKE.fullmatch(name):
            if handshake[1] == "handshake":
                handshakes += value
            else:
                failures[_REASONS.get(handshake[1], "untrusted")] += value
        elif name == _UNCHOSEN:
            failures["no-workload"] += value
        elif _REJECTED.fullmatch(name):
            rejected += value
    return ProxyStatistics(handshakes, +failures, +requests, rejected)


def _outcome(rule: re.Match[str]) -> str:
    if rule[1] == "audit":
        return "audit"
    return f"would-{rule[1]}" if rule[3] else rule[1]

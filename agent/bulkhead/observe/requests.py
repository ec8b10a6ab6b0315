"""Access records of the node's proxy: what a line of them says, and what is believed of it.

Every conversation through the proxies leaves one on the caller's node (`lane`), one on the called node (`inbound`), and
one for each request where requests are judged (`request`). The proxy is not trusted with more than its own words: a
line is bounded, and what does not fit is counted, not guessed at.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Final

CALLER_HEADER: Final = "x-bulkhead-caller"
"""In a request as the workload, and Rego, get it: the SPIFFE ID that its caller proved."""
LINE_BYTES_MAX: Final = 16384
RATE_MAX: Final = 500
"""Records a second."""
_ALLOWED: Final = (b'"status":200', b'"status":204', b'"status":206', b'"status":301', b'"status":302', b'"status":304')
"""In a line of what nobody will ask about."""
_TEXT_MAX: Final = 2048
_PATH_MAX: Final = 256


class Kind(StrEnum):
    """Where a record was made."""

    LANE = "lane"
    """On the caller's node, at the end of a conversation."""
    INBOUND = "inbound"
    """On the called node, at the end of a conversation: one stream of a tunnel."""
    CONNECTION = "connection"
    """On the called node, at the end of a tunnel, or of what failed to become one."""
    REQUEST = "request"
    """On the called node, at the end of a request, or of a conversation that was judged by its server name."""


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One access record. Texts are empty and numbers 0 where there is nothing to say."""

    kind: Kind
    time: str
    """When it began, RFC 3339 in UTC, to the millisecond."""
    reference: str = ""
    """`bulkhead why REFERENCE`; only requests have one."""
    caller: str = ""
    """SPIFFE ID that the caller proved (`lane`: has to prove)."""
    called: str = ""
    """SPIFFE ID that the called workload proved, or has to prove."""
    denied: str = ""
    """Name in the proxy of the deny that decided, `rule-N` of a rule."""
    allowed: str = ""
    """Name of the allow that decided."""
    audited: str = ""
    """Name of the first audit that matched."""
    would_deny: str = ""
    """Name of the first deny on trial that matched."""
    would_allow: str = ""
    """Name of the first allow on trial that matched."""
    method: str = ""
    path: str = ""
    """Without the query, which may hold secrets; its first 256 bytes."""
    host: str = ""
    server_name: str = ""
    """`inbound`: of the tunnel; `request`: of the conversation inside."""
    protocol: str = ""
    status: int = 0
    flags: str = ""
    """Envoy's response flags."""
    details: str = ""
    """Envoy's response code details."""
    failure: str = ""
    """Why the TLS handshake failed, or the connection to the next hop."""
    remote: str = ""
    """`ADDRESS:PORT` of who called the proxy (`request`: the caller's address as policy sees it)."""
    local: str = ""
    """`ADDRESS:PORT` that was called (`lane`: before the kernel steered it)."""
    upstream_local: str = ""
    """`ADDRESS:PORT` of the proxy's own socket towards the next hop: the key of the leg in the kernel."""
    upstream_remote: str = ""
    duration_ms: int = 0
    received: int = 0
    """Bytes from the caller."""
    sent: int = 0
    """Bytes to the caller."""


_RBAC: Final = "%DYNAMIC_METADATA(envoy.filters.{0}.rbac:{1})%"
_COMMON: Final = {
    "time": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
    "flags": "%RESPONSE_FLAGS%",
    "details": "%RESPONSE_CODE_DETAILS%",
    "remote": "%DOWNSTREAM_REMOTE_ADDRESS%",
    "local": "%DOWNSTREAM_LOCAL_ADDRESS%",
    "upstream_local": "%UPSTREAM_LOCAL_ADDRESS%",
    "upstream_remote": "%UPSTREAM_REMOTE_ADDRESS%",
    "caller": "%FILTER_STATE(bulkhead.caller:PLAIN)%",
    "duration_ms": "%DURATION%",
    "received": "%BYTES_RECEIVED%",
    "sent": "%BYTES_SENT%",
}
_OF_KIND: Final[dict[Kind, dict[str, str]]] = {
    Kind.LANE: {
        "called": "%UPSTREAM_PEER_URI_SAN%",
        "failure": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
    },
    Kind.CONNECTION: {
        "called": "%DOWNSTREAM_LOCAL_URI_SAN%",
        "caller": "%DOWNSTREAM_PEER_URI_SAN%",
        "failure": "%DOWNSTREAM_TRANSPORT_FAILURE_REASON%",
        "server_name": "%REQUESTED_SERVER_NAME%",
        "details": "%CONNECTION_TERMINATION_DETAILS%",
    },
    Kind.INBOUND: {
        "called": "%DOWNSTREAM_LOCAL_URI_SAN%",
        "caller": "%DOWNSTREAM_PEER_URI_SAN%",
        "failure": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
        "server_name": "%REQUESTED_SERVER_NAME%",
        "method": "%REQ(:METHOD):16%",
        "host": "%REQ(:AUTHORITY):256%",
        "status": "%RESPONSE_CODE%",
    },
    Kind.REQUEST: {
        "reference": "%FILTER_STATE(bulkhead.reference:PLAIN)%",
        "called": "%FILTER_STATE(bulkhead.called:PLAIN)%",
        "failure": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
        "server_name": "%REQUESTED_SERVER_NAME%",
        "protocol": "%PROTOCOL%",
        "method": "%REQ(:METHOD):32%",
        "path": f"%PATH(NQ:PATH):{_PATH_MAX}%",
        "host": "%REQ(:AUTHORITY):256%",
        "status": "%RESPONSE_CODE%",
    },
}
_DECIDED: Final = {
    "denied": "deny_enforced_effective_policy_id",
    "allowed": "allow_enforced_effective_policy_id",
    "audited": "audit_shadow_effective_policy_id",
    "would_deny": "deny_shadow_effective_policy_id",
    "would_allow": "allow_shadow_effective_policy_id",
}
_DECIDED_BY_SERVER_NAME: Final = {"allowed": "allow_shadow_effective_policy_id"}


def log_fields(kind: Kind, *, by_server_name: bool = False) -> dict[str, str]:
    """Envoy's format of a record of that kind, field by field."""
    layer, decided = ("network", _DECIDED_BY_SERVER_NAME) if by_server_name else ("http", _DECIDED)
    verdicts = {name: _RBAC.format(layer, key) for name, key in decided.items()} if kind is Kind.REQUEST else {}
    return {"kind": kind.value, **_COMMON, **_OF_KIND[kind], **verdicts}


class MalformedError(ValueError):
    """A line is no access record; says why in a few words."""


_NUMBERS: Final = frozenset(one.name for one in fields(RequestRecord) if one.type in ("int", int))
_NAMES: Final = frozenset(one.name for one in fields(RequestRecord))


def parse(line: bytes) -> RequestRecord:
    """The record of one line. Raises MalformedError."""
    if len(line) > LINE_BYTES_MAX:
        raise MalformedError("longer than a record may be")
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise MalformedError("no JSON") from error
    if not isinstance(value, dict) or not value.keys() <= _NAMES:
        raise MalformedError("not the fields of a record")
    if value.get("kind") not in tuple(Kind) or not isinstance(value.get("time"), str):
        raise MalformedError("without a kind and a time")
    kept: dict[str, Any] = {name: _field(name, one) for name, one in value.items() if name != "kind"}
    return RequestRecord(Kind(value["kind"]), **kept)


def _field(name: str, value: object) -> str | int:
    """Envoy says `-`, or null, where it has nothing to say."""
    if name in _NUMBERS:
        if value is None or value == "-":
            return 0
        if type(value) is not int or value < 0:
            raise MalformedError(f"`{name}` is no number")
        return value
    if value is None or value == "-":
        return ""
    if not isinstance(value, str):
        raise MalformedError(f"`{name}` is no text")
    return value[:_TEXT_MAX]


class RecordReader:
    """Makes records of the bytes of a FIFO, however they are cut into pieces.

    At most RATE_MAX a second are read in full: beyond that only refusals are, and the others counted. A busy proxy
    writes more lines than are worth a processor; what it counts itself is exact.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.records = 0
        self.malformed = 0
        """Lines that were no records."""
        self.passed_over = 0
        """Lines of what was allowed, beyond the rate."""
        self._rest = b""
        self._skipping = False
        self._clock = clock
        self._second = 0
        self._read = 0

    def feed(self, chunk: bytes) -> list[RequestRecord]:
        """The records that `chunk` completes."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        found = []
        for line in lines:
            if self._skipping:
                self._skipping = False
                continue
            if not self._is_worth(line):
                self.passed_over += 1
                continue
            try:
                found.append(parse(line))
            except MalformedError:
                self.malformed += 1
        if len(self._rest) > LINE_BYTES_MAX:
            self.malformed += not self._skipping
            self._skipping = True
            self._rest = b""
        self.records += len(found)
        return found

    def _is_worth(self, line: bytes) -> bool:
        second = int(self._clock())
        if second != self._second:
            self._second, self._read = second, 0
        self._read += 1
        return self._read <= RATE_MAX or not any(good in line for good in _ALLOWED)

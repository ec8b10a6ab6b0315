"""What went through the node's proxy: its access records, each joined with who the kernel says was at the local end.

The proxy knows certificates and requests, the kernel knows processes and rules. Both know the sockets between them, and
by those one record tells of process, SVID, rule and verdict.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from typing import Any, Final

from bulkhead.abi import VerdictEvent
from bulkhead.dataplane.bundle import Bundle
from bulkhead.dataplane.compile import RuleInfo
from bulkhead.kernel.steering import End, socket_ends
from bulkhead.observe.flows import FlowRecord
from bulkhead.observe.requests import Kind, RequestRecord
from bulkhead.policy.model import RuleId

RECORDS_MAX: Final = 5_000
_SEEN_MAX: Final = 8_192
_DENIED_BY_PROXY: Final = 403

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class LocalEnd:
    """The process of this machine at one end of a conversation through the proxy, as the kernel told it."""

    pid: int = 0
    comm: str = ""
    exe: str = ""
    unit: str = ""
    cgroup: str = ""


_UNSEEN: Final = (LocalEnd(), "", "")


@dataclass(frozen=True, slots=True)
class Request:
    """One access record, with what else is known."""

    record: RequestRecord
    verdict: str
    """`allow`, `deny`, or `fail`: no rule decided, the conversation itself did not come about."""
    rules: tuple[str, ...]
    """Names of the rules that decided, would have, or asked to hear of it."""
    places: tuple[str, ...]
    """`file:line@commit` of each."""
    process: LocalEnd
    at: float
    """When the record came, in Unix seconds."""

    def to_json(self) -> Json:
        """As the control socket and `-o json` show it."""
        return asdict(self)


class RequestLog:
    """The latest requests and conversations, and how many there were."""

    def __init__(self, catch_up: Callable[[], None] = lambda: None) -> None:
        """`catch_up` hears what the kernel has told and nobody has read yet: it comes before the proxy's word."""
        self._catch_up = catch_up
        self.on_request: Callable[[Request], None] = lambda _: None
        """Told of each, as it comes."""
        self._latest: deque[Request] = deque(maxlen=RECORDS_MAX)
        self._ends: OrderedDict[End, tuple[LocalEnd, str, str]] = OrderedDict()
        """By the end that opened a conversation, as its socket has it: its process here, and the kernel's rule."""
        self._rule: Callable[[RuleId], RuleInfo | None] = lambda _: None
        self._counts: Counter[tuple[str, str]] = Counter()
        self._conversations: Counter[tuple[str, str]] = Counter()

    def name(self, bundle: Bundle) -> None:
        """From now on rules are those of this commit."""
        self._rule = bundle.rule

    def saw(self, event: VerdictEvent, record: FlowRecord | None) -> None:
        """The kernel has judged a conversation with the proxy; `record` is the one that the event belongs to."""
        if record is None:
            return
        source, _ = socket_ends(event)
        process = LocalEnd(record.pid, record.comm, record.exe, record.unit, record.cgroup)
        self._ends[source] = process, record.rule, record.rule_place
        self._ends.move_to_end(source)
        while len(self._ends) > _SEEN_MAX:
            self._ends.popitem(last=False)

    def take(self, record: RequestRecord) -> None:
        """The proxy tells of a request, or of a conversation's end."""
        self._catch_up()
        socket = record.remote if record.kind is Kind.LANE else record.upstream_local
        end = _end(socket)
        process, rule, place = self._ends.get(end, _UNSEEN) if end is not None else _UNSEEN
        found = [self._named(name) for name in _decided(record)]
        names = tuple(dict.fromkeys(name for name, _ in found)) or ((rule,) if rule else ())
        places = tuple(dict.fromkeys(where for _, where in found if where)) or ((place,) if place else ())
        request = Request(record, _verdict(record), names, places, process, time.time())
        self._latest.append(request)
        self._counts[record.kind.value, request.verdict] += 1
        self.on_request(request)

    def _named(self, policy: str) -> tuple[str, str]:
        """A rule by its name in the proxy."""
        number = policy.removeprefix("rule-").partition("-")[0]
        info = self._rule(RuleId(int(number))) if number.isdecimal() else None
        return (str(info.name), info.loc.short) if info is not None else (policy, "")

    def decided(self, request: Request) -> RuleInfo | None:
        """The rule that decided a request, of the policy in force; None: none did, or it is no rule's."""
        record = request.record
        for policy in (record.denied, record.allowed):
            number = policy.removeprefix("rule-").partition("-")[0]
            if number.isdecimal() and (info := self._rule(RuleId(int(number)))) is not None:
                return info
        return None

    def find(self, reference: str) -> Request | None:
        """The request of a reference."""
        return next((one for one in reversed(self._latest) if one.record.reference == reference), None)

    def latest(self, limit: int) -> Iterator[Request]:
        """The latest first."""
        for at, one in enumerate(reversed(self._latest)):
            if at >= limit:
                return
            yield one

    def name_of(self, policy: str) -> str:
        """What a rule is called, by its name in the proxy."""
        return self._named(policy)[0]

    def heard(self, transport: str, verdict: str) -> None:
        """A conversation with a workload of another node was judged: by `mtls`, or in `plaintext`."""
        self._conversations[transport, verdict] += 1

    def conversations(self) -> dict[tuple[str, str], int]:
        """How many were heard of, by transport and verdict."""
        return dict(self._conversations)

    def counted(self) -> dict[tuple[str, str], int]:
        """How many access records there were, by kind and verdict."""
        return dict(self._counts)

    def counts(self) -> dict[str, int]:
        """How many there were, by `KIND VERDICT`."""
        return {f"{kind} {verdict}": count for (kind, verdict), count in sorted(self._counts.items())}


def _decided(record: RequestRecord) -> Iterator[str]:
    for name in (record.denied, record.allowed, record.would_deny, record.audited):
        if name and name != "none":
            yield name


def _verdict(record: RequestRecord) -> str:
    if record.denied or (record.kind is Kind.REQUEST and "rbac_access_denied" in record.details):
        return "deny"
    if record.status == _DENIED_BY_PROXY and not record.upstream_remote:
        return "deny"
    return "fail" if record.failure or record.flags else "allow"


def _end(text: str) -> End | None:
    address, _, port = text.rpartition(":")
    try:
        return ip_address(address.strip("[]")), int(port)
    except ValueError:
        return None

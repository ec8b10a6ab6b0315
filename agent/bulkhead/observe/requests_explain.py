"""Why a request was let through or refused: the rule that decided, or those that speak of its caller and did not."""

from __future__ import annotations

from dataclasses import dataclass

from bulkhead.dataplane.bundle import Bundle
from bulkhead.dataplane.compile import RuleInfo
from bulkhead.dataplane.requests import Authorization, Effect
from bulkhead.dataplane.requests_reference import concerns
from bulkhead.observe.requests import RequestRecord

_NEAREST_MAX = 3


@dataclass(frozen=True, slots=True)
class RequestExplanation:
    """Every field is one line, or some; empty ones have nothing to say."""

    request: str
    """What was asked."""
    source: str
    destination: str
    because: str
    rule: str
    """Name and place of the rule that decided."""
    nearest: tuple[str, ...]
    """Rules that let this caller ask something here: name, place, and what they let it ask."""
    since: str
    """The commit in force."""


def explain_request(
    record: RequestRecord, verdict: str, decided: RuleInfo | None, bundle: Bundle
) -> RequestExplanation:
    """In words, by the policy in force."""
    is_refused = verdict == "deny"
    nearest = tuple(_nearest(record, bundle)) if is_refused and decided is None else ()
    return RequestExplanation(
        request=" ".join(filter(None, (record.method, record.path, record.host and f"at {record.host}"))),
        source=f"{record.caller}  {record.remote}",
        destination=f"{record.called}  {record.local}",
        because=_because(record, is_refused, decided),
        rule=f"{decided.name}  {decided.loc.short}" if decided is not None else "",
        nearest=nearest,
        since=bundle.commit[:7],
    )


def _because(record: RequestRecord, is_refused: bool, decided: RuleInfo | None) -> str:
    if not is_refused:
        return f"allowed by {decided.name}" if decided is not None else "no rule of requests refused it"
    if decided is not None:
        return f"{decided.name} refuses it"
    if record.denied:
        return f"the proxy refuses such requests: {record.denied}"
    return "default deny: no rule lets this caller ask that"


def _nearest(record: RequestRecord, bundle: Bundle) -> list[str]:
    found: list[str] = []
    for rule_id in _speaking(record, bundle):
        info = bundle.rule(rule_id)
        if info is not None:
            found.append(f"{info.name}  {info.loc.short}   {info.l7 or 'any request'}")
    return found[:_NEAREST_MAX]


def _speaking(record: RequestRecord, bundle: Bundle) -> list[int]:
    """Rules that let the caller ask something of the called, in the order of their numbers."""
    names = {info.identity: info.svid for info in bundle.workloads()}
    found: set[int] = set()
    for one in bundle.mesh().authorizations:
        if _is_same(names.get(one.destination, ""), record.called):
            found |= _allows_of(one, record.caller)
    return sorted(found)


def _is_same(template: str, spiffe_id: str) -> bool:
    head, _, tail = template.partition("{host}")
    return spiffe_id == template or (bool(tail) and spiffe_id.startswith(head) and spiffe_id.endswith(tail))


def _allows_of(authorization: Authorization, caller: str) -> set[int]:
    allows = (clause for clause in authorization.clauses if clause.effect is Effect.ALLOW and not clause.dry_run)
    return {int(clause.rule_id) for clause in allows if concerns(clause.condition, caller)}

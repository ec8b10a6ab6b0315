"""The words of a catalogue, the same in all of its forms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Final, TypeVar

from bulkhead.dataplane.catalog import Catalogue, Grant, Party
from bulkhead.dataplane.usage import Observed, State, Usage
from bulkhead.policy.model import External, Match, Rule, Workload

T = TypeVar("T")

SHOWN: Final = 12
"""Members of a peer, addresses or processes that a line writes out."""

SHOWN_BRIEFLY: Final = 4
"""Members of a peer that a line about somebody else writes out; the rule that it links to has more."""

UNDECLARED_SHOWN: Final = 200
"""Undeclared conversations that a page shows; JSON has all of them."""

_KEYS: Final = ("host", "cgroup", "unit", "exe", "user", "group", "namespace")


def stamp(when: float | datetime) -> str:
    """A time to the second: `2027-01-31T18:00:00Z`."""
    moment = when if isinstance(when, datetime) else datetime.fromtimestamp(when, UTC)
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def ports(rule: Rule) -> str:
    """The ports of a rule as written."""
    return ", ".join(dict.fromkeys(spec.text for spec in rule.ports))


def selectors(match: Match) -> dict[str, tuple[str, ...]]:
    """What a workload selects by: values of a key are alternatives, keys must all hold."""
    found = {key: values for key in _KEYS if (values := getattr(match, key))}
    if match.service_account:
        found["serviceAccount"] = match.service_account
    if match.labels:
        found["labels"] = tuple(f"{key}={value}" for key, value in match.labels)
    if match.everything:
        found["all"] = ("true",)
    return found


def addresses(external: External) -> tuple[str, ...]:
    """What an external stands for."""
    outside = [str(network) for network in external.cidr] + list(external.fqdn)
    return (*outside, *(f"except {network}" for network in external.excluded))


def labels(workload: Workload) -> tuple[str, ...]:
    return tuple(f"{key}={value}" for key, value in workload.labels)


def few(names: Sequence[T], shown: int = SHOWN) -> tuple[tuple[T, ...], int]:
    """Those to write out, and how many are left: never a single one."""
    return (tuple(names), 0) if len(names) <= shown + 1 else (tuple(names[:shown]), len(names) - shown)


def members(party: Party, *, briefly: bool = False) -> tuple[tuple[str, ...], str]:
    """The members to write out, and what to say of the rest."""
    if not party.members:
        return (), "nobody"
    shown, left = few(party.members, SHOWN_BRIEFLY if briefly else SHOWN)
    return shown, f"and {left:,} more" if left else ""


def deadline(grant: Grant) -> str:
    """Until when an exception holds; empty for what holds for ever."""
    if grant.rule.expires is None:
        return ""
    return f"{'expired' if grant.expired else 'until'} {stamp(grant.rule.expires)}"


def usage(found: Usage) -> str:
    """`used: 41 times, last 2026-07-01T12:00:00Z`; `unused`; `unknown: not seen, but the data is incomplete`."""
    return ": ".join(filter(None, (str(found.state), usage_details(found))))


def usage_details(found: Usage) -> str:
    """How often and when, or why it is not known."""
    if found.state is not State.USED:
        return found.note
    often = f"{found.hits:,} times" if found.hits is not None else f"{found.seen:,} seen"
    return f"{often}, last {stamp(found.last_seen)}" if found.last_seen else f"{often}, not recorded"


def period(observed: Observed) -> str:
    """What time the records cover."""
    if observed.since is None or observed.until is None:
        return "no records"
    return f"{stamp(observed.since)} to {stamp(observed.until)}"


def completeness(observed: Observed) -> str:
    """Whether every conversation that a rule allowed has a record."""
    return "no event is known to be lost" if observed.complete else "the data is incomplete"


def summary(found: Catalogue) -> str:
    """One line for all of it."""
    parts = [_counted(len(found.services), "workload"), _counted(len(found.grants), "rule")]
    if found.observed:
        states = [grant.usage.state for grant in found.grants if grant.usage]
        parts += [f"{states.count(State.UNUSED)} of them unused", f"{states.count(State.UNKNOWN)} unknown"]
        parts.append(_counted(len(found.undeclared), "undeclared conversation"))
    return ", ".join(parts)


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def limits(found: Catalogue) -> Iterator[str]:
    """What the catalogue does not show."""
    if found.left_out:
        yield f"Policies written as Kubernetes objects are not shown: there are {found.left_out:,}."
    if found.only:
        yield f"Only what concerns the policy {found.only} is shown."


def cited(grants: Iterable[Grant]) -> list[str]:
    """Rules by name."""
    return [grant.name for grant in grants]

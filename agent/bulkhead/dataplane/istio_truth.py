"""What the kernel can say of a condition, which knows who calls and which port, and nothing of requests.

True and False are certain for everything between such a caller and such a port; None is for the proxy to find out,
which sees the request and the name of the node that the caller runs on.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from itertools import pairwise
from typing import Final, Generic, NamedTuple, TypeVar

from bulkhead.dataplane.requests import All, Always, AnyOf, Caller, CallerAddress, Condition, How, Not, Port, Text
from bulkhead.policy.model import Network
from bulkhead.policy.ports import PORT_MAX

Truth = bool | None

Key = TypeVar("Key")

HOST: Final = "{host}"
"""Stands for the name of a node in the template of an SVID."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a caller."""

    svid: str = ""
    """Template of its SPIFFE ID. Empty: it has none, and calls without one."""
    networks: tuple[Network, ...] = ()
    """Where an address class lies; empty: that is not known."""


class Span(NamedTuple):
    """Ports of which one answer holds."""

    first: int
    last: int
    truth: Truth


@dataclass(frozen=True, slots=True)
class Answers(Generic[Key]):
    """The answers of one condition. Most callers share one."""

    kinds: tuple[tuple[Span, ...], ...]
    """For every port, 0 to 65535, in order; neighbours differ."""
    of: Mapping[Key, int]
    """Which of them is a caller's; the first, for those that are missing."""

    def for_caller(self, caller: Key) -> tuple[Span, ...]:
        """Those of one caller."""
        return self.kinds[self.of.get(caller, 0)]


class Callers(Generic[Key]):
    """Everybody who may call, ready to be asked who is meant."""

    def __init__(self, known: Mapping[Key, Known]) -> None:
        self._known = known
        self._by_svid: dict[str, list[Key]] = {}
        for key, caller in known.items():
            if caller.svid:
                self._by_svid.setdefault(caller.svid, []).append(key)
        self._certain = sorted(svid for svid in self._by_svid if HOST not in svid)
        self._templates = [svid for svid in self._by_svid if HOST in svid]
        self._strangers = [key for key, caller in known.items() if not caller.svid]
        self._meant: dict[Text, dict[Key, Truth]] = {}

    def answers(self, condition: Condition) -> Answers[Key]:
        """What can be said of each of them."""
        parts = tuple(part for part in dict.fromkeys(_leaves(condition)) if isinstance(part, Caller | CallerAddress))
        common = tuple(False if isinstance(part, Caller) else _address_truth(part, ()) for part in parts)
        said = [self._said(part) for part in parts]
        kinds = {common: 0}
        found: dict[Key, int] = {}
        for key in frozenset[Key]().union(*said):
            traits = tuple(of.get(key, usual) for of, usual in zip(said, common, strict=True))
            found[key] = kinds.setdefault(traits, len(kinds))
        spans = (_spans(condition, dict(zip(parts, traits, strict=True))) for traits in kinds)
        return Answers(tuple(spans), found)

    def _said(self, part: Caller | CallerAddress) -> dict[Key, Truth]:
        """What a part says of those of whom more is to be said than of everybody."""
        if isinstance(part, Caller):
            return self._matching(part.spiffe_id)
        return {key: _address_truth(part, self._known[key].networks) for key in self._strangers}

    def _matching(self, text: Text) -> dict[Key, Truth]:
        """Those whom a pattern may mean, and whether it does for sure."""
        if text not in self._meant:
            answers = ((svid, _matches(text, svid)) for svid in (*self._candidates(text), *self._templates))
            self._meant[text] = {
                key: answer for svid, answer in answers if answer is not False for key in self._by_svid[svid]
            }
        return self._meant[text]

    def _candidates(self, text: Text) -> Sequence[str]:
        if text.how is How.EXACT:
            return [text.value] if text.value in self._by_svid and HOST not in text.value else []
        if text.how is How.PREFIX:
            after = text.value[:-1] + chr(ord(text.value[-1]) + 1)
            return self._certain[bisect_left(self._certain, text.value) : bisect_left(self._certain, after)]
        return self._certain


def possible_ports(condition: Condition) -> Iterator[tuple[int, int]]:
    """Ports on which it may hold for somebody, as intervals in order."""
    callers = (part for part in _leaves(condition) if isinstance(part, Caller | CallerAddress))
    return ((span.first, span.last) for span in _spans(condition, dict.fromkeys(callers)) if span.truth is not False)


def answers_about_strangers(condition: Condition) -> tuple[Span, ...]:
    """What can be said of a caller without an SVID, of whom nothing is known."""
    return Callers({None: Known()}).answers(condition).for_caller(None)


def asks_requests(condition: Condition) -> bool:
    """Whether there is something in it that only a proxy sees."""
    return any(not isinstance(part, Always | Caller | Port) for part in _leaves(condition))


def names_ports(condition: Condition) -> bool:
    """Whether it is about some ports rather than others."""
    return any(isinstance(part, Port) for part in _leaves(condition))


def _leaves(condition: Condition) -> Iterator[Condition]:
    if isinstance(condition, All | AnyOf):
        for part in condition.parts:
            yield from _leaves(part)
    elif isinstance(condition, Not):
        yield from _leaves(condition.part)
    else:
        yield condition


def _boundaries(condition: Condition) -> Iterator[int]:
    """Ports at which the answer may change."""
    for part in _leaves(condition):
        if isinstance(part, Port):
            yield from (part.first, part.last + 1)


def _spans(condition: Condition, facts: Mapping[Condition, Truth]) -> tuple[Span, ...]:
    begins = sorted({0, PORT_MAX + 1, *_boundaries(condition)})
    found: list[Span] = []
    for first, after in pairwise(begins):
        answer = _truth(condition, facts, first)
        if found and found[-1].truth is answer:
            found[-1] = found[-1]._replace(last=after - 1)
        else:
            found.append(Span(first, after - 1, answer))
    return tuple(found)


def _truth(condition: Condition, facts: Mapping[Condition, Truth], port: int) -> Truth:
    match condition:
        case Always():
            return True
        case All(parts):
            return _least(_truth(part, facts, port) for part in parts)
        case AnyOf(parts):
            return _negated(_least(_negated(_truth(part, facts, port)) for part in parts))
        case Not(part):
            return _negated(_truth(part, facts, port))
        case Port(first, last):
            return first <= port <= last
        case Caller() | CallerAddress():
            return facts[condition]
        case _:
            return None


def _least(truths: Iterable[Truth]) -> Truth:
    """False if one is, else unknown if one is."""
    found = set(truths)
    return False if False in found else None if None in found else True


def _negated(truth: Truth) -> Truth:
    return None if truth is None else not truth


# Addresses


def _address_truth(part: CallerAddress, held: tuple[Network, ...]) -> Truth:
    return None if part.forwarded else _lies_in(part.networks, held)


def _lies_in(networks: tuple[Network, ...], held: tuple[Network, ...]) -> Truth:
    if all(any(_within(one, other) for other in networks) for one in held or _EVERYWHERE):
        return True
    meets = any(one.overlaps(other) for one in held for other in networks if one.version == other.version)
    return False if held and not meets else None


_EVERYWHERE: Final = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))


def _within(inner: Network, outer: Network) -> bool:
    if isinstance(inner, IPv4Network) and isinstance(outer, IPv4Network):
        return inner.subnet_of(outer)
    return isinstance(inner, IPv6Network) and isinstance(outer, IPv6Network) and inner.subnet_of(outer)


# SPIFFE IDs


_A_HOST: Final = "\0"
"""In place of a node's name: what no text of a policy holds, and every wildcard does."""
_PART: Final = "[^/]+"
_WORDS: Final = ("ns", "sa")
"""Segments that patterns look for, and that a node could be called like."""


def _matches(text: Text, template: str) -> Truth:
    if HOST not in template:
        return _holds(text, template)
    if _holds(text, template.replace(HOST, _A_HOST)):
        return True
    begin, end = template.partition(HOST)[0], template.rpartition(HOST)[2]
    match text.how:
        case How.EXACT:
            possible = re.fullmatch(_PART.join(map(re.escape, template.split(HOST))), text.value) is not None
        case How.PREFIX:
            possible = text.value.startswith(begin)
        case How.SUFFIX:
            possible = text.value.endswith(end)
        case _:
            possible = _may_match(text, template)
    return None if possible else False


def _may_match(text: Text, template: str) -> bool:
    """Whether an expression that looks for segments, and for names behind them, may match for the name of some node."""
    segments = template.split("/")
    for place, segment in enumerate(segments):
        if HOST in segment and (segment != HOST or not set(_WORDS).isdisjoint(segments[:place])):
            return True
    return any(_holds(text, template.replace(HOST, word)) for word in _WORDS)


def _holds(text: Text, value: str) -> bool:
    match text.how:
        case How.EXACT:
            return value == text.value
        case How.PREFIX:
            return value.startswith(text.value)
        case How.SUFFIX:
            return value.endswith(text.value)
        case How.PRESENT:
            return value != ""
        case How.REGEX:
            return re.fullmatch(text.value, value, re.DOTALL) is not None

"""Choosing records: values of one kind are alternatives, kinds must all hold."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from bulkhead.errors import UsageError
from bulkhead.observe.flows import FlowRecord
from bulkhead.observe.names import short
from bulkhead.observe.tables import parse_address

VERDICTS: Final = ("allow", "deny", "would-deny")
REFUSALS: Final = ("deny", "would-deny")

_AGE: Final = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)([smhd])")
_UNIT_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, slots=True)
class Filter:
    """Which records are wanted; an empty field wants all. Names are qualified, short, or addresses."""

    sources: tuple[str, ...] = ()
    destinations: tuple[str, ...] = ()
    verdicts: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    protocols: tuple[str, ...] = ()
    since: float = 0.0
    """Unix seconds."""

    def __call__(self, record: FlowRecord) -> bool:
        return (
            record.last_seen >= self.since
            and (not self.verdicts or record.verdict in self.verdicts)
            and (not self.ports or record.port in self.ports)
            and (not self.protocols or record.protocol in self.protocols)
            and is_one_of(self.sources, record.source, record.source_address)
            and is_one_of(self.destinations, record.destination, record.destination_address)
        )

    def __str__(self) -> str:
        """As it is told back to the one who asked: `from=web AND (verdict=deny OR would-deny)`."""
        kinds = (
            ("from", self.sources),
            ("to", self.destinations),
            ("verdict", self.verdicts),
            ("port", tuple(map(str, self.ports))),
            ("protocol", self.protocols),
        )
        parts = [_alternatives(kind, values) for kind, values in kinds if values]
        return " AND ".join(parts) or "none"


def _alternatives(kind: str, values: tuple[str, ...]) -> str:
    text = f"{kind}={' OR '.join(values)}"
    return f"({text})" if len(values) > 1 else text


def is_one_of(wanted: tuple[str, ...], name: str, address: str) -> bool:
    """Whether an end is one of those that are wanted; none wanted: all are."""
    return not wanted or any(_is_called(text, name, address) for text in wanted)


def _is_called(wanted: str, name: str, address: str) -> bool:
    if wanted in (name, short(name), address):
        return True
    members = name.split(" + ")
    return any(wanted in (member, short(member)) for member in members)


def filter_from_json(args: Mapping[str, Any]) -> Filter:
    """The filter in the arguments of a request. Raises UsageError for what is none."""
    verdicts = _texts(args, "verdict")
    for verdict in verdicts:
        if verdict not in VERDICTS:
            raise UsageError(f"`{verdict}` is no verdict: they are {', '.join(VERDICTS)}")
    ports = args.get("port", [])
    if not isinstance(ports, list) or not all(type(port) is int and 0 <= port <= 65535 for port in ports):
        raise UsageError("`port` is a list of numbers from 0 to 65535")
    since = args.get("since", 0)
    if type(since) not in (int, float):
        raise UsageError("`since` is a time in Unix seconds")
    sources, destinations = (tuple(_plain(text) for text in _texts(args, key)) for key in ("from", "to"))
    return Filter(sources, destinations, verdicts, tuple(ports), _texts(args, "protocol"), float(since))


def filter_to_json(wanted: Filter) -> dict[str, Any]:
    """A filter as arguments of a request."""
    return {
        "from": list(wanted.sources),
        "to": list(wanted.destinations),
        "verdict": list(wanted.verdicts),
        "port": list(wanted.ports),
        "protocol": list(wanted.protocols),
        "since": wanted.since,
    }


def _plain(text: str) -> str:
    """An address in the one way in which records write it; a name as it is."""
    address = parse_address(text)
    return text if address is None else str(address)


def _texts(args: Mapping[str, Any], key: str) -> tuple[str, ...]:
    values = args.get(key, [])
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise UsageError(f"`{key}` is a list of texts")
    return tuple(values)


def parse_age(text: str) -> float:
    """Seconds in `90s`, `5m`, `2h`, `7d`. Raises UsageError for anything else."""
    found = _AGE.fullmatch(text)
    if not found:
        raise UsageError(f"`{text}` is no age: write it as `90s`, `5m`, `2h` or `7d`")
    return float(found[1]) * _UNIT_S[found[2]]

"""Recorded flows as a catalogue takes them: from the running agent, or from what `bulkhead flows` wrote to a file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from bulkhead.control import client
from bulkhead.dataplane.usage import Flow, Observed
from bulkhead.errors import UnreachableError, UsageError
from bulkhead.observe.explain import completeness, port_text
from bulkhead.observe.flows import FlowRecord, record_from_json
from bulkhead.observe.reasons import reason_named

FILE_BYTES_MAX: Final = 64 << 20

SAMPLES: Final = "Records are samples: a rule or edge may have been used more often than it was seen."
ONE_HOST: Final = "The records are those of one host, {host}: what happened on others is not in them."

Json = Mapping[str, Any]


def from_agent(socket: Path, commit: str, now: float) -> Observed:
    """What the agent recorded, with its exact counters. Without an agent: nothing, which the result says.

    `commit` is the one that the catalogue shows; empty for files that are not committed. `now` is in Unix seconds.
    """
    try:
        recorded = client.call(socket, "flows")
        rules = client.call(socket, "rules")
        status = client.call(socket, "status")
    except UnreachableError as error:
        nothing = f"No agent answered, so that nothing is known of what was used: {error}."
        return Observed("the running agent", complete=False, missing=(nothing,))
    records = [record_from_json(one) for one in recorded["records"]]
    since = min((record.first_seen for record in records), default=status["started"])
    complete, data = completeness(recorded["lost"])
    missing = [
        *([] if complete else [_sentence(f"the data is {data}")]),
        *_other_commits({status["commit"]}, commit),
        "Counters are exact; records are samples, and their processes and times those of samples.",
        ONE_HOST.format(host=status["host"]),
    ]
    if since < status["started"]:
        missing.append("The agent has been restarted in that time: what passed while it was away is counted only.")
    return Observed(
        origin=f"the agent on {status['host']}",
        flows=tuple(map(_flow, records)),
        host=status["host"],
        since=min(since, status["started"]),
        until=now,
        hits={rule["name"]: rule["hits"] for rule in rules["rules"]},
        complete=complete,
        missing=tuple(missing),
    )


def from_file(path: Path, commit: str) -> Observed:
    """What `bulkhead flows` wrote with `-o json`: one answer, or with `--follow` a record on each line.

    Raises UsageError for anything else, UnreachableError when the file cannot be read.
    """
    records: dict[tuple[object, ...], FlowRecord] = {}
    kinds: set[str] = set()
    lost: dict[str, int] = {}
    for place, kind, data in _answers(_text(path), path):
        kinds.add(kind)
        answer = kind in ("Flows", "Drops")
        try:
            found = [record_from_json(one) for one in (_listed(data) if answer else [data])]
        except UsageError as error:
            raise UsageError(f"{place}: {error}") from error
        if answer:
            lost = data.get("lost") or {}
        # Who follows is told of a conversation again and again, each time with all that was seen of it.
        records.update((_identity(record), record) for record in found)
    complete, data = completeness(lost)
    followed, only_refusals = bool(kinds & {"Flow", "Drop"}), bool(kinds & {"Drop", "Drops"})
    doubts = _doubts(empty=not records, lost="" if complete else data, followed=followed, only_refusals=only_refusals)
    commits = {record.commit for record in records.values()}
    return Observed(
        origin=f"the file {path.name}",
        flows=tuple(map(_flow, records.values())),
        since=min((record.first_seen for record in records.values()), default=None),
        until=max((record.last_seen for record in records.values()), default=None),
        complete=complete and bool(records) and not followed and not only_refusals,
        missing=(*doubts, *_other_commits(commits, commit)),
    )


def _doubts(*, empty: bool, lost: str, followed: bool, only_refusals: bool) -> Iterator[str]:
    if empty:
        yield "The file holds no record at all."
    if lost:
        yield _sentence(f"the data is {lost}")
    if only_refusals:
        yield "The file holds refusals only: it cannot tell which rules were used."
    if followed:
        yield "Followed records come without a count of lost events: some may be missing."
    yield SAMPLES
    yield ONE_HOST.format(host="which the file does not name")
    yield "The period is that of the first and the last record; a filter that was in force is not known from the file."


def _other_commits(found: set[str], commit: str) -> Iterator[str]:
    """Rules are told by name; a name can have meant something else in another commit."""
    others = sorted({one[:12] for one in found if one} - ({commit[:12]} if commit else set()))
    if others:
        shown = f"commit {commit[:12]}" if commit else "files that are not committed"
        many = f" and {len(others) - 3} more" if len(others) > 3 else ""
        yield f"Judged by {', '.join(others[:3])}{many}, while this shows {shown}: rules are matched by their names."


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise UnreachableError(f"cannot read `{path}`: {error.strerror}") from error
    if len(raw) > FILE_BYTES_MAX:
        raise UsageError(f"`{path}` is larger than {FILE_BYTES_MAX >> 20} MiB: save fewer flows, such as `--since 7d`")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"`{path}` is not UTF-8") from error


def _answers(text: str, path: Path) -> Iterator[tuple[str, str, Any]]:
    """Place, kind and data of each envelope."""
    try:
        yield str(path), *_opened(json.loads(text), str(path))
        return
    except (ValueError, RecursionError):
        pass
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            place = f"{path}:{number}"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UsageError(f"{place}: not JSON: save flows with `bulkhead flows -o json`") from error
            yield place, *_opened(value, place)


def _opened(value: object, place: str) -> tuple[str, Any]:
    kind = value.get("kind") if isinstance(value, dict) else None
    if not isinstance(value, dict) or kind not in ("Flows", "Flow", "Drops", "Drop") or "data" not in value:
        raise UsageError(f"{place}: not what `bulkhead flows -o json` writes")
    return str(kind), value["data"]


def _listed(data: object) -> Iterable[object]:
    if not isinstance(data, dict) or not isinstance(data.get("records"), list):
        raise UsageError("the answer has no records")
    return list(data["records"])


def _identity(record: FlowRecord) -> tuple[object, ...]:
    """What stays the same of a conversation while it is told of again."""
    return (record.verdict, record.reason, record.direction, record.source, record.destination, record.protocol,
            record.port, record.remote_address, record.exe, record.cgroup, record.first_seen)  # fmt: skip


def _flow(record: FlowRecord) -> Flow:
    place = record.unit or record.cgroup
    return Flow(
        verdict=record.verdict,
        because=reason_named(record.reason).because if record.verdict != "allow" else "",
        direction=record.direction,
        source=record.source,
        destination=record.destination,
        port=port_text(record.protocol, record.port),
        count=record.count,
        last_seen=record.last_seen,
        rule=record.rule,
        process=" in ".join(filter(None, (record.exe or record.comm, place))),
    )

"""`bulkhead workloads -o wide`: what enforcing each workload would refuse."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bulkhead.cli.output import cell
from bulkhead.cli.render import age, count, table

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

Json = dict[str, Any]


def wide(answer: Json, now: float) -> tuple[RenderableType, ...]:
    """A line for each workload. Refusals are exact; allows are events seen, so at least as many."""
    numbers = ("ALLOW", "WOULD-DENY", "EDGES", "DENY")
    made = table("WORKLOAD", "MODE", *numbers, "SINCE", "READY TO ENFORCE", numbers=numbers)
    for one in answer["workloads"]:
        verdicts = one["verdicts"]
        made.add_row(
            cell(one["name"]),
            cell(one["mode"], "" if one["mode"] == "enforce" else "yellow"),
            cell(f"≥{count(verdicts['allow_seen'])}"),
            cell(count(verdicts["would_deny"]), "yellow" if verdicts["would_deny"] else ""),
            cell(count(verdicts["would_deny_edges"])),
            cell(count(verdicts["deny"]), "red" if verdicts["deny"] else ""),
            cell(f"{age(verdicts['counted_since'], now)} ago"),
            _ready(one["mode"], verdicts, now),
        )
    return (made,)


def _ready(mode: str, verdicts: Json, now: float) -> Text:
    if mode == "enforce":
        return cell("is enforced")
    quiet = age(now - verdicts["quiet_s"], now)
    last = verdicts["last_would_deny"]
    if last is not None:
        return cell(f"would-deny {age(last, now)} ago", "yellow")
    if not verdicts["complete"]:
        return cell(f"no would-deny heard of for {quiet}, events were lost", "yellow")
    return cell(f"no would-deny for {quiet}", "green")

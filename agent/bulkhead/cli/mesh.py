"""How `status` shows mutual TLS."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from rich.text import Text

from bulkhead.cli.output import cell

Json = Mapping[str, Any]

_SOON_S: Final = 600.0
_SHOWN_MAX: Final = 5


def mesh(answer: Json, now: float) -> Text:
    """One line of how it is; on further lines who opted out, and what somebody should look at."""
    said, svids = answer.get("mesh", {}), answer.get("svids", {})
    lines = [*_state(said), *_opt_outs(answer.get("plaintext", [])), *_warnings(said, svids, now)]
    return Text("\n").join(lines)


def _state(said: Json) -> Iterator[Text]:
    if not said.get("wanted"):
        return
    proxy, heard = said["proxy"], said["conversations"]
    share = _share(heard)
    text = (
        f"proxy pid {proxy['pid']}, {said['lanes']} lanes out, {said['calls']} calls in" if proxy["pid"] else "NO PROXY"
    )
    if said["judged_by_request"]:
        text += f", {said['judged_by_request']} workloads judged by request"
    yield cell(f"{text}{share}", "" if proxy["pid"] else "red")


def _share(heard: Json) -> str:
    """Of what was heard of, how much went through the proxy."""
    through, plain = heard.get("mtls allow", 0), heard.get("plaintext allow", 0)
    return f"; {through} of {through + plain} conversations with other nodes" if through + plain else ""


def _opt_outs(rules: list[Json]) -> Iterator[Text]:
    for one in rules[:_SHOWN_MAX]:
        yield cell(f"plaintext by {one['name']} ({one['source']}), owner {one['owner'] or 'unknown'}", "yellow")
    if len(rules) > _SHOWN_MAX:
        yield cell(f"and {len(rules) - _SHOWN_MAX} more rules in plaintext", "yellow")


def _warnings(said: Json, svids: Json, now: float) -> Iterator[Text]:
    if said.get("problem"):
        yield cell(said["problem"], "red")
    if said.get("rego", {}).get("error"):
        yield cell(f"Rego: {said['rego']['error']}", "red")
    if svids.get("problem"):
        yield cell(svids["problem"], "red")
    late = [one["name"] for one in svids.get("svids", []) if one["expires_at"] < now + _SOON_S]
    if late:
        yield cell(f"SVIDs end within ten minutes: {', '.join(late[:_SHOWN_MAX])}", "red")

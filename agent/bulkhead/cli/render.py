"""Answers of the agent as tables: functions of JSON and of the time at which it is looked at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from bulkhead.cli.mesh import mesh
from bulkhead.cli.output import cell, safe, safe_lines
from bulkhead.observe.explain import port_text
from bulkhead.observe.names import short

Json = Mapping[str, Any]

INTERNET: Final = "internet"
_INTERNET_SHOWN: Final = 10
STYLES: Final = {"deny": "red", "would-deny": "yellow", "allow": "green"}
_STEPS: Final = ((60, 1, "s"), (3600, 60, "m"), (86400, 3600, "h"), (float("inf"), 86400, "d"))


def table(*headers: str, numbers: Sequence[str] = ()) -> Table:
    """An empty table in house style: no lines, columns of `numbers` to the right."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for header in headers:
        right = header in numbers
        made.add_column(header, justify="right" if right else "left", no_wrap=right, overflow="fold")
    return made


def age(then: float | None, now: float) -> str:
    """How long ago, in one unit: `2s`, `5m`, `3h`, `61d`; `-` for never."""
    if then is None:
        return "-"
    seconds = max(0.0, now - then)
    return next(f"{int(seconds // size)}{unit}" for limit, size, unit in _STEPS if seconds < limit)


def count(number: int) -> str:
    """A count in five characters at most: `91k`, `4.2M`."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= 10 * size:
            return f"{number // size}{unit}"
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)


def verdict(word: str) -> Text:
    """A verdict in its colour; the word is always there."""
    return cell(word, STYLES.get(word, ""))


# Records


def records(found: Iterable[Json], now: float) -> Table:
    """`drops` and `flows`."""
    made = table("COUNT", "LAST", "FROM", "TO", "VERDICT", "BECAUSE", numbers=("COUNT", "LAST"))
    for one in found:
        made.add_row(*record_cells(one, now))
    return made


def record_cells(record: Json, now: float) -> tuple[Text, ...]:
    """One record as cells."""
    return (
        cell(count(record["count"])),
        cell(age(record["last_seen"], now)),
        cell(source(record)),
        cell(destination(record)),
        verdict(record["verdict"]),
        cell(_because(record)),
    )


def record_line(record: Json, now: float) -> Text:
    """One record on a line of its own, for those who follow."""
    counted, last, source_cell, target, word, because = record_cells(record, now)
    word.pad_right(max(0, 10 - len(word)))
    parts = (Text(f"{counted.plain:>5}"), Text(f"{last.plain:>4}"), source_cell + Text(" ->"), target, word, because)
    return Text("  ").join(parts)


def source(record: Json) -> str:
    """Who opened it: the workload, and its program when that end judged or its call was refused."""
    name = short(record["source"])
    if record["direction"] == "egress" or record["hook"] == "call":
        return _with(name, record["comm"])
    return _with(name, "" if record["source_spiffe_id"] else record["source_address"]) + _on_node(record)


def destination(record: Json) -> str:
    """Whom it wanted to reach, with the port."""
    port = port_text(record["protocol"], record["port"])
    name = short(record["destination"])
    if record["destination_spiffe_id"] or name == "host":
        target = name
    else:
        address = record["destination_address"]
        target = f"{name} [{address}]" if ":" in address else f"{name} {address}"
    text = f"{target} {port}" if record["protocol"] == "icmp" else f"{target}:{port}"
    return text + _on_node(record) if record["direction"] == "egress" else text


def _on_node(record: Json) -> str:
    """Where the other end is, when that is a registered node."""
    return f" on {record['node']}" if record.get("node") else ""


def _with(name: str, more: str) -> str:
    return f"{name} {more}" if more and more != name else name


def _because(record: Json) -> str:
    if record["verdict"] == "allow":
        return short(record["rule"]) if record["rule"] else f"rule {record['rule_id']}"
    text = "default deny" if record["reason"] == "policy" else str(record["reason"])
    if record.get("told_by"):
        text += f", says {record['told_by']}"
    return f"{text}, cut" if record["cut"] else text


def by_address(answer: Json, now: float) -> tuple[RenderableType, ...]:
    """`flows --by-address`: what is to be burned down, and the internet behind it."""
    shown = [one for one in answer["paths"] if one["kind"] != INTERNET]
    outside = [one for one in answer["paths"] if one["kind"] == INTERNET]
    rest = len(outside) - _INTERNET_SHOWN
    more = [cell(f"and {rest} more with the internet; `-o json` has all", "dim")] if rest > 0 else []
    nothing = cell(f"nothing rests on an address but what goes to the internet, in {age(answer['since'], now)}")
    made = _paths_by_address([*shown, *outside[:_INTERNET_SHOWN]], now)
    silent = cell("this host says nothing on the wire, so all of it rests on addresses", "yellow")
    tables = [made] if answer["paths"] else []
    return *tables, *more, *([] if shown else [nothing]), *([] if answer["speaking"] else [silent])


def _paths_by_address(paths: Iterable[Json], now: float) -> Table:
    made = table("COUNT", "LAST", "WHY", "FROM", "TO", "KNOWN AS", numbers=("COUNT", "LAST"))
    for one in paths:
        peer, local = str(one["peer"]), short(one["local"])
        port = port_text(one["protocol"], one["port"])
        ends = (local, f"{peer}:{port}") if one["direction"] == "egress" else (peer, f"{local}:{port}")
        style = "dim" if one["kind"] == INTERNET else ""
        texts = (count(one["count"]), age(one["last_seen"], now), one["kind"], *ends, short(one["name"]))
        made.add_row(*(cell(text, style) for text in texts))
    return made


def lost(losses: Json) -> str:
    """What is missing from records; empty when nothing is."""
    missing = {name: number for name, number in losses.items() if number}
    if not missing:
        return ""
    named = ", ".join(f"{number} {name}" for name, number in missing.items())
    return f"data incomplete: {named} lost; counters are exact all the same"


# Rules and workloads


def rules(answer: Json, now: float) -> tuple[RenderableType, ...]:
    """`rules ls`."""
    made = table("RULE", "FROM", "TO", "PORTS", "HITS", "LAST", "SOURCE", numbers=("HITS", "LAST"))
    for rule in answer["rules"]:
        over = rule["expires"] is not None and rule["expires"] <= now
        style = "dim" if over or not rule["hits"] else ""
        texts = (rule["name"], rule["from"], rule["to"], rule["ports"], count(rule["hits"]), age(rule["last_hit"], now))
        place = f"{rule['source']}{' (expired)' if over else ''}"
        made.add_row(*(cell(text, style) for text in (*texts, place)))
    return made, Text(), read_back(answer)


def read_back(answer: Json) -> Text:
    """Whether the kernel holds what the commit says."""
    found = answer["read_back"]
    name = _revision(answer)
    if found["match"]:
        return cell(f"kernel read-back: {found['kernel']}/{found['expected']} entries match {name}", "green")
    return cell(f"kernel read-back: {found['kernel']} entries where {name} has {found['expected']}", "red")


def _revision(answer: Json) -> str:
    commit = str(answer["commit"] or "")[:7]
    return f"{commit or 'no commit'} (generation {answer['generation']})"


def workloads(answer: Json) -> tuple[RenderableType, ...]:
    """`workloads`."""
    made = table("WORKLOAD", "MODE", "ENDPOINTS", "PROCS", "SPIFFE ID", "SOURCE", numbers=("PROCS",))
    lost_identity: list[Text] = []
    for one in answer["workloads"]:
        endpoints = one["endpoints"]
        places = ", ".join(end["unit"] or end["cgroup"] for end in endpoints[:3])
        more = f" and {len(endpoints) - 3} more" if len(endpoints) > 3 else ""
        processes = sum(end["processes"] for end in endpoints)
        mode_style = "" if one["mode"] == "enforce" else "yellow"
        failures = (one.get("posture") or {}).get("failures", [])
        lost_identity += [cell(f"withheld: {one['name']}: {_failure(each)}", "red") for each in failures]
        made.add_row(
            cell(one["name"]),
            cell(one["mode"], mode_style),
            cell(places + more or "-", "" if endpoints else "dim"),
            cell(processes),
            cell(one["spiffe_id"]),
            cell(one["source"]),
        )
    hosted = cell(f"host: {answer['host']['endpoints']} control groups that no workload selects")
    return made, Text(), hosted, *lost_identity, *(ambiguous(one) for one in answer["ambiguous"])


def ambiguous(tie: Json) -> Text:
    """An endpoint that matches nothing because two workloads want it."""
    names = ", ".join(tie["workloads"])
    return cell(f"ambiguous: {tie['cgroup']} is selected by {names} with equal right and matches nothing", "red")


# Status


def pairs(rows: Iterable[tuple[str, str | Text]]) -> Table:
    """Labels with a value each; rows without a value are left out."""
    made = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column(no_wrap=True)
    made.add_column(overflow="fold")
    for label, value in rows:
        if str(value):
            made.add_row(cell(label, "bold"), value if isinstance(value, Text) else cell(value))
    return made


def status(answer: Json, now: float) -> tuple[RenderableType, ...]:
    """`status`, on one screen."""
    kernel, totals = answer["kernel"], answer["totals"]
    modes = answer["workloads"]
    rows: list[tuple[str, str | Text]] = [
        ("agent", f"{answer['version']} on {answer['host']}, pid {answer['pid']}, up {age(answer['started'], now)}"),
        ("policy", f"{_revision(answer)}  {answer['repository']} {answer['ref']}, loaded {_ago(answer, now)}"),
        ("", _policy_error(answer["policy"], now)),
        ("source", _source(answer, now)),
        ("kernel", _kernel(answer, now)),
        ("", _differences(answer)),
        ("trial", _trial(answer.get("trial"), now)),
        ("isolated", _isolated(answer.get("quarantine", []), now)),
        ("withheld", withheld(answer.get("withheld", []), now)),
        ("hooks", f"{kernel['mechanism']} on {_devices(kernel['devices'])}; {kernel['cgroup']}"),
        ("", _hook_errors(kernel)),
        ("workloads", f"{modes['enforce']} enforce, {modes['observe']} observe; host in {answer['host_mode']}"),
        ("", cell("observe only: nothing is dropped", "yellow") if answer.get("observe_only") else ""),
        ("attested", _attested(answer["attested"])),
        ("verdicts", _totals(totals)),
        ("adopted", str(answer["adoption"])),
        ("dns", _dns(answer.get("dns", {}))),
        ("wire", _wire(answer.get("wire", {}), now)),
        ("", _by_address(answer)),
        ("mtls", mesh(answer, now)),
        ("lost", lost(answer["lost"]) or "nothing"),
        ("maps", _maps(answer["maps"])),
    ]
    ties = [ambiguous(one) for one in answer["attested"]["ambiguous"]]
    return pairs(rows), *ties


def _source(answer: Json, now: float) -> Text:
    """Only what is not as usual: the repository does not answer, or its tip was rolled back."""
    source = answer.get("source", {})
    if source.get("error"):
        seen = source["last_success"]
        fetched = f"fetched {age(seen, now)} ago" if seen else "kept from an earlier run"
        text = f"unreachable for {age(source['error_since'], now)}, enforcing {_revision(answer)}, {fetched}"
        return Text(safe_lines(f"{text}\n{source['error']}"), style="red")
    if source.get("held_off"):
        text = f"the reference names {source['held_off'][:7]}, which is held off until it moves on"
        return cell(text, "yellow")
    return Text()


def _ago(answer: Json, now: float) -> str:
    loaded = answer["policy"]["loaded"]
    return f"{age(loaded, now)} ago" if loaded else "never"


def _policy_error(policy: Json, now: float) -> Text:
    if policy["ok"]:
        return Text()
    since = f" since {age(policy['error_since'], now)}" if policy["error_since"] else ""
    # A refusal is several lines, with the author's line and a caret below it.
    return Text(safe_lines(f"REFUSED{since}, the last good one stays in force\n{policy['error']}"), style="red")


def _kernel(answer: Json, now: float) -> Text:
    equal, drift = bool(answer["git_equals_kernel"]), answer.get("drift", {})
    text = cell("equals git" if equal else "DIFFERS from git", "green" if equal else "red")
    if drift.get("looked"):
        text += cell(f", compared {max(0.0, now - drift['looked']):.1f} s ago")
    if drift.get("found"):
        last = drift["recent"][-1]
        text += cell(f"; found to differ {drift['found']}x, last {age(last['at'], now)} ago: {last['what']}", "red")
    return text


def _differences(answer: Json) -> Text:
    return Text(safe_lines("\n".join(answer.get("differences", ()))), style="red")


def _trial(trial: Json | None, now: float) -> Text:
    if not trial:
        return Text()
    left = max(0, round(trial["until"] - now))
    text = f"{trial['commit'][:7]} is tried, reverts to {trial['before'][:7]} in {left} s unless confirmed"
    return cell(text, "yellow")


def _isolated(isolated: Sequence[Json], now: float) -> Text:
    texts = [f"{one['workload']} for {age(one['since'], now)}: {one['reason']}" for one in isolated]
    return Text(safe_lines("\n".join(texts)), style="yellow")


def withheld(found: Sequence[Json], now: float) -> Text:
    """Workloads that are not as their posture requires, a line for each requirement that fails."""
    texts = [
        f"{one['workload']} for {age(one['since'], now)}: {_failure(each)}" for one in found for each in one["failures"]
    ]
    return Text(safe_lines("\n".join(texts)), style="red")


def _failure(failure: Json) -> str:
    return f"{failure['term']} has to be {failure['expected']}, found: {failure['found']}"


def _hook_errors(kernel: Json) -> Text:
    errors = kernel.get("errors", {})
    return cell("; ".join(f"{name}: {error}" for name, error in errors.items()), "red")


def _devices(devices: Sequence[Json]) -> str:
    names = []
    for device in devices:
        missing = [side for side in ("ingress", "egress") if not device[side]]
        names.append(f"{device['name']} (NO {' and '.join(missing)})" if missing else device["name"])
    return ", ".join(names) or "no device"


def _attested(attested: Json) -> str:
    return f"{attested['cgroups']} control groups, {attested['executables']} executables"


def _totals(totals: Json) -> Text:
    parts = [cell(f"{totals[word]} {word}", STYLES[word]) for word in ("allow", "deny", "would-deny")]
    return Text(", ").join(parts)


def _dns(outcomes: Json) -> str:
    """What became of answers about names that policy knows; empty when there was none."""
    counted = [f"{number} {outcome.replace('-', ' ')}" for outcome, number in outcomes.items() if number]
    return f"answers about names: {', '.join(counted)}" if counted else ""


def _wire(wire: Json, now: float) -> Text:
    """Who this node is on the wire; on further lines what somebody should look at."""
    if not wire or not (wire["wanted"] or wire["registry"]["nodes"]):
        return Text()
    registry, keys = wire["registry"], wire["keys"]
    others = f"{registry['nodes']} nodes in {registry['kind']}, {registry['nodes'] - registry['keyed']} without agent"
    own = f"node {wire['node']} ({wire['number']})" if wire["speaking"] else "silent"
    until = f", keys for {max(0.0, keys['until'] - now) / 3600:.0f} h" if keys["until"] else ""
    text = cell(f"{own}; {others}{until}", "" if wire["speaking"] else "yellow")
    return Text("\n").join([text, *(cell(line, "yellow") for line in _wire_warnings(wire, now))])


def _by_address(answer: Json) -> str:
    """How much still rests on addresses, where identity on the wire is wanted at all."""
    wire, kinds = answer.get("wire", {}), answer.get("by_address", {})
    if not kinds or not (wire["wanted"] or wire["registry"]["nodes"]):
        return ""
    text = ", ".join(f"{number} {kind}" for kind, number in kinds.items() if number and kind != INTERNET)
    rest = f"paths that rest on addresses: {text or 'none'}; {kinds[INTERNET]} to or from the internet"
    return f"{rest} (`bulkhead flows --by-address`)" if text else rest


def _wire_warnings(wire: Json, now: float) -> Iterator[str]:
    registry, keys = wire["registry"], wire["keys"]
    if wire["mute"]:
        yield f"says nothing: {wire['mute']}"
    if keys["error"] and keys["error"] != wire["mute"]:
        yield f"the key process does not run, keys stay in force: {keys['error']}"
    if wire["problem"]:
        yield str(wire["problem"])
    if registry["problem"]:
        heard = f"heard {age(registry['last_heard'], now)} ago" if registry["last_heard"] else "never heard"
        yield f"the registry is stale, {heard}: {registry['problem']}"
    if registry["own"]:
        yield str(registry["own"])
    yield from (f"record refused: {one['detail']}" for one in registry["refused"])
    if wire["clock"]["synchronised"] is False:
        yield "clock unsynchronised: beyond 32 s of difference other nodes refuse this one"


def _maps(maps: Json) -> str:
    """The fullest maps, those above 80 % by name."""
    shares = sorted(((one["entries"] / one["max"], name) for name, one in maps.items() if one["max"]), reverse=True)
    if not shares:
        return ""
    full = [f"{name} {share:.0%}" for share, name in shares if share > 0.8]
    return f"nearly full: {', '.join(full)}" if full else f"fullest {shares[0][1]} at {shares[0][0]:.0%}"


# Answers and explanations


def answer(found: Json) -> tuple[RenderableType, ...]:
    """`can`."""
    port = port_text(found["protocol"], found["port"]) if found["protocol"] in ("tcp", "udp") else found["protocol"]
    separator = " " if found["protocol"].startswith("icmp") else ":"
    head = verdict(found["verdict"].upper())
    head.stylize(STYLES[found["verdict"]])
    head += cell(f"  {short(found['from'])} -> {short(found['to'])}{separator}{port}")
    made = table("END", "AT", "MODE", "VERDICT", "BECAUSE")
    for end in found["ends"]:
        made.add_row(
            cell(end["direction"]),
            cell(short(end["name"])),
            cell(end["mode"] or "-"),
            verdict(end["verdict"] or "-"),
            cell(_end_because(end)),
        )
    return head, made, pairs(_nearest_rows(found["ends"])), cell(_judged_by(found), "dim")


def _end_because(end: Json) -> str:
    rule = end["rule"]
    text = f"{end['because']}  {rule['source']}" if rule else str(end["because"])
    return f"{text} ({end['note']})" if end["note"] and end["note"] != end["because"] else text


def _nearest_rows(ends: Sequence[Json]) -> list[tuple[str, str | Text]]:
    rows: dict[tuple[str, str], None] = {}
    for end in ends:
        if end["nearest"]:
            rule = end["nearest"]["rule"]
            rows["nearest", f"{rule['name']}  {rule['source']}  {'; '.join(end['nearest']['failed'])}"] = None
        if end["advice"]:
            rows["next", end["advice"]] = None
    return list(rows)


def _judged_by(found: Json) -> str:
    commit = found["commit"][:7] if found["commit"] else "files, not committed"
    return f"policy {commit}" + (f" as on {found['host']}" if found["host"] else ", any host")


def explanation(found: Json, now: float) -> tuple[RenderableType, ...]:
    """`why`, of a recorded verdict."""
    words = {"deny": "DENIED", "would-deny": "WOULD BE DENIED", "allow": "ALLOWED"}
    head = cell(words[found["verdict"]], STYLES[found["verdict"]])
    since, last = age(found["first_seen"], now), age(found["last_seen"], now)
    head += cell(f"  {found['count']}x since {since} ago, last {last} ago")
    labels = (
        ("from", "source"),
        ("to", "destination"),
        ("where", "where"),
        ("because", "because"),
        ("rule", "rule"),
        ("nearest", "nearest"),
        ("since", "since"),
        ("note", "note"),
        ("next", "advice"),
        ("data", "data"),
    )
    return head, pairs([(label, safe(found.get(key, ""))) for label, key in labels])


# Offline


def matrix(found: Json) -> Table:
    """`matrix`, a line for each cell."""
    made = table("FROM", "TO", "PORT", "FAMILY", "VERDICT", "RULE")
    for one in found["cells"]:
        port = f"{one['port']}/{one['protocol']}"
        texts = (one["from"], one["to"], port, f"IPv{one['family']}")
        made.add_row(*map(cell, texts), verdict(one["verdict"]), cell(one["rule"] or "-"))
    return made

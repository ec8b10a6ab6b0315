"""Commands that ask the agent: what it enforces, what it saw."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import click

from bulkhead.cli.options import View, view_options
from bulkhead.cli.output import note, show, show_json, write_json_line
from bulkhead.control import client
from bulkhead.errors import ExitCode, UsageError


@click.command()
@view_options()
def status(view: View) -> ExitCode:
    """Show what is enforced, and whether all is well. Exits with 1 when it is not."""
    answer = client.call(view.socket, "status")
    if view.as_json:
        show_json("Status", answer)
    else:
        from bulkhead.cli import render

        show(view, *render.status(answer, time.time()))
    well = answer["policy"]["ok"] and answer["git_equals_kernel"] and answer.get("source", {}).get("ok", True)
    return ExitCode.OK if well else ExitCode.NO


# Records


def _filter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("-f", "--follow", is_flag=True, help="Wait for more, a line each."),
        click.option("--since", metavar="AGE", help="Only what was seen in the last AGE, such as 5m."),
        click.option("--port", type=click.IntRange(0, 65535), multiple=True, help="Only to this port."),
        click.option("--verdict", "verdicts", multiple=True, help="Only this verdict: allow, deny or would-deny."),
        click.option("--to", "destinations", metavar="NAME", multiple=True, help="Only to this workload or address."),
        click.option("--from", "sources", metavar="NAME", multiple=True, help="Only from this workload or address."),
    ):
        command = option(command)
    return command


@click.command()
@_filter_options
@view_options()
def drops(view: View, **options: Any) -> ExitCode:
    """Show what was refused, or would be in enforce mode.

    The same filter given twice means either; different filters must all hold.
    """
    return _records(view, "drops", "Drops", options, ("deny", "would-deny"))


@click.command()
@_filter_options
@click.option("--by-address", is_flag=True, help="Only what passed and rests on the other end's address.")
@view_options()
def flows(view: View, by_address: bool, **options: Any) -> ExitCode:
    """Show all recorded verdicts. Filters as in `drops`.

    With --by-address the list that a migration to identity on the wire burns down, of the last hour unless --since
    says otherwise; no other filter goes with it.
    """
    if not by_address:
        return _records(view, "flows", "Flows", options, ())
    if any(value for name, value in options.items() if name != "since"):
        raise UsageError("`--by-address` goes with `--since` alone")
    return _by_address(view, options["since"])


def _by_address(view: View, age: str | None) -> ExitCode:
    from bulkhead.observe.explain import completeness
    from bulkhead.observe.filters import parse_age

    answer = client.call(view.socket, "by-address", {"since": time.time() - parse_age(age)} if age else {})
    if view.as_json:
        show_json("ByAddress", answer)
    else:
        from bulkhead.cli import render

        show(view, *render.by_address(answer, time.time()))
        if missing := render.lost(answer["lost"]):
            note(missing)
    return ExitCode.OK if completeness(answer["lost"])[0] else ExitCode.INCOMPLETE


def _records(view: View, op: str, kind: str, options: dict[str, Any], verdicts: tuple[str, ...]) -> ExitCode:
    from bulkhead.observe.filters import VERDICTS, Filter, filter_from_json, filter_to_json, parse_age

    since = time.time() - parse_age(options["since"]) if options["since"] else 0.0
    given = tuple(options["verdicts"])
    if verdicts and set(given) - set(verdicts):
        raise UsageError(f"`{op}` shows {' and '.join(verdicts)}: for others ask `flows`")
    chosen = Filter(tuple(options["sources"]), tuple(options["destinations"]), given, options["port"], (), since)
    wanted = filter_from_json(filter_to_json(chosen))
    if str(wanted) != "none":
        note(f"filter: {wanted}")
    args = filter_to_json(wanted)
    if options["follow"]:
        args["verdict"] = list(given or verdicts or VERDICTS)
        return _follow(view, kind, args)
    answer = client.call(view.socket, op, args)
    return _show_records(view, kind, answer)


def _show_records(view: View, kind: str, answer: dict[str, Any]) -> ExitCode:
    from bulkhead.observe.explain import completeness

    complete, _ = completeness(answer["lost"])
    if view.as_json:
        show_json(kind, answer)
    else:
        from bulkhead.cli import render

        if answer["records"]:
            show(view, render.records(answer["records"], time.time()))
        else:
            note("nothing recorded")
        if missing := render.lost(answer["lost"]):
            note(missing)
    return ExitCode.OK if complete else ExitCode.INCOMPLETE


def _follow(view: View, kind: str, args: dict[str, Any]) -> ExitCode:
    for record in client.stream(view.socket, "watch", args):
        if view.as_json:
            write_json_line(kind.removesuffix("s"), record)
            continue
        from bulkhead.cli import render

        show(view, render.record_line(record, time.time()))
    return ExitCode.OK


# Rules


@click.group()
def rules() -> None:
    """Show the rules in force, as read back from the kernel."""


@rules.command("ls")
@view_options()
def rules_ls(view: View) -> ExitCode:
    """List them with their hits. Exits with 1 when the kernel differs from the commit."""
    answer = client.call(view.socket, "rules")
    if view.as_json:
        show_json("Rules", answer)
    else:
        from bulkhead.cli import render

        show(view, *render.rules(answer, time.time()))
    return ExitCode.OK if answer["read_back"]["match"] else ExitCode.NO


@rules.command("get")
@click.argument("name")
@view_options()
def rules_get(view: View, name: str) -> ExitCode:
    """Show one rule, by `POLICY/NAME` or NAME."""
    answer = client.call(view.socket, "rules")
    rule = _rule_named(answer["rules"], name)
    if view.as_json:
        show_json("Rule", rule)
        return ExitCode.OK
    from bulkhead.cli import render

    show(view, render.pairs((key.replace("_", " "), _rule_value(key, value)) for key, value in rule.items()))
    return ExitCode.OK


def _rule_named(found: list[dict[str, Any]], name: str) -> dict[str, Any]:
    matching = [rule for rule in found if name in (rule["name"], rule["name"].rpartition("/")[2])]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise UsageError(f"`{name}` is more than one rule: {', '.join(rule['name'] for rule in matching)}")
    from difflib import get_close_matches

    close = get_close_matches(name, [rule["name"] for rule in found], n=1, cutoff=0.4)
    raise UsageError(f"no rule is called `{name}`" + (f": did you mean `{close[0]}`?" if close else ""))


def _rule_value(key: str, value: Any) -> str:
    if value is None:
        return "never"
    if key in ("expires", "last_hit"):
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(value))
    return str(value)


# Why


@click.command()
@click.argument("source", metavar="SRC|REFERENCE")
@click.argument("target", metavar="[DST:PORT]", required=False)
@view_options()
def why(view: View, source: str, target: str | None) -> ExitCode:
    """Explain the recorded verdict on what went from SRC to DST:PORT, or the refused request of a REFERENCE.

    Without a record, what policy says. Exits with 1 when it is refused.
    """
    from bulkhead.observe.question import parse_question, question_to_json

    if target is None:
        from bulkhead.cli.requests import why_request

        return why_request(view, source)

    answer = client.call(view.socket, "why", question_to_json(parse_question(source, target)))
    explanation = answer["explanation"]
    if view.as_json:
        show_json("Why", answer)
    else:
        from bulkhead.cli import render

        if explanation:
            show(view, *render.explanation(explanation, time.time()))
        else:
            note("nothing recorded; this is what policy says:")
            show(view, *render.answer(answer["answer"]))
        if answer.get("withheld"):
            show(view, render.pairs([("withheld", render.withheld(answer["withheld"], time.time()))]))
        if answer.get("mismatch"):
            note(answer["mismatch"])
    verdict = (explanation or answer["answer"])["verdict"]
    if verdict != "allow":
        return ExitCode.NO
    return ExitCode.OK if answer["complete"] else ExitCode.INCOMPLETE


# Workloads


@click.command()
@view_options(("table", "wide", "json", "inventory"))
def workloads(view: View) -> ExitCode:
    """Show who is on this host; `-o wide` what enforcing each would refuse, `-o inventory` what `matrix` reads."""
    if view.output == "inventory":
        answer = client.call(view.socket, "workloads", {"inventory": True})
        for line in _inventory(answer["endpoints"]):
            click.echo(line)
        return ExitCode.OK
    answer = client.call(view.socket, "workloads")
    if view.as_json:
        show_json("Workloads", answer)
        return ExitCode.OK
    from bulkhead.cli import readiness, render

    show(view, *(readiness.wide(answer, time.time()) if view.output == "wide" else render.workloads(answer)))
    return ExitCode.OK


def _inventory(endpoints: list[dict[str, Any]]) -> Iterator[str]:
    """YAML whose texts are quoted as JSON does, so that none of them means anything else."""
    yield "endpoints:" if endpoints else "endpoints: []"
    for one in endpoints:
        known = {key: value for key, value in one.items() if value not in (None, "", [])}
        yield "  - {" + ", ".join(f"{key}: {_quoted(value)}" for key, value in known.items()) + "}"


def _quoted(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_quoted(item) for item in value) + "]"
    return json.dumps(str(value), ensure_ascii=False)

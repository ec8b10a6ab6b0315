"""A plan as JUnit's XML: a case for each change, which fails where it breaks something that was recorded."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from bulkhead.cli.output import safe
from bulkhead.cli.plan import words
from bulkhead.cli.plan.plan import Plan
from bulkhead.cli.plan.rows import rows
from bulkhead.dataplane.compile import RuleInfo
from bulkhead.dataplane.replay import Edge, Effect


def junit(plan: Plan) -> str:
    """The document: one suite for recorded edges that change, one for the reach that does."""
    root = Element("testsuites", name="bulkhead plan")
    suites = {"recorded": list(_recorded(plan)), "reach": list(_reach(plan))}
    for name, cases in suites.items():
        suite = SubElement(root, "testsuite", {"name": name, **_counts(cases)})
        suite.extend(cases)
        if name == "recorded" and plan.replay is not None:
            SubElement(suite, "system-out").text = safe(words.data_text(plan))
    root.attrib.update(_counts([case for cases in suites.values() for case in cases]))
    indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(root, encoding="unicode") + "\n"


def _counts(cases: list[Element]) -> dict[str, str]:
    failures = sum(case.find("failure") is not None for case in cases)
    return {"tests": str(len(cases)), "failures": str(failures), "errors": "0", "skipped": "0"}


def _recorded(plan: Plan) -> Iterator[Element]:
    for edge in plan.replay.edges if plan.replay else ():
        source, destination = words.edge_ends(edge)
        port = words.port_text(edge.protocol, edge.port, edge.port)
        one = _case("recorded", f"{source} -> {destination}:{port}", edge.rule)
        text = words.traffic_text([edge])
        if edge.effect is Effect.BREAKS and edge.enforced:
            SubElement(one, "failure", message=safe(text)).text = "\n".join(map(safe, _particulars(plan, edge)))
        else:
            SubElement(one, "system-out").text = safe(text)
        yield one


def _particulars(plan: Plan, edge: Edge) -> Iterator[str]:
    if edge.rule is not None:
        yield f"allowed by {', '.join(words.edge_rule(plan, edge))}"
    if edge.last_seen:
        yield f"last seen {words.time_text(edge.last_seen)}"
    yield from (f"live socket of {talk.process} with {talk.peer}" for talk in edge.talks)


def _reach(plan: Plan) -> Iterator[Element]:
    for row in rows(plan):
        name = f"{row.kind.value}: {words.few(row.sources)} -> {words.few(row.destinations)}:{row.ports}"
        yield _case("reach", name, row.rules[0] if row.rules else None)


def _case(group: str, name: str, rule: RuleInfo | None) -> Element:
    place = {"file": safe(rule.loc.file), "line": str(rule.loc.line)} if rule else {}
    return Element("testcase", {"classname": group, "name": safe(name), **place})

"""A catalogue as Markdown with Mermaid. What an author wrote is in code spans, and can be no markup."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from bulkhead.cli.catalog import words
from bulkhead.cli.catalog.mermaid import Diagram, diagrams
from bulkhead.cli.markup import code, codes, prose, rows
from bulkhead.dataplane.catalog import Catalogue, Grant, Invariant, Outside, Party, Service, Ties
from bulkhead.dataplane.usage import Observed, Undeclared


def markdown(found: Catalogue) -> str:
    """The whole page."""
    parts = [
        ["# What talks to what", *_paragraph(_introduction(found))],
        _data(found.observed) if found.observed else [],
        *(_diagram(one) for one in diagrams(found)),
        ["## Workloads"] if found.services else [],
        *(_service(one) for one in found.services),
        _outsides(found.outsides),
        _rules(found.grants, observed=found.observed is not None),
        _invariants(found.invariants),
        _undeclared(found.undeclared) if found.observed else [],
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _introduction(found: Catalogue) -> str:
    commit = f"commit {code(found.commit)}" if found.commit else "files that are not committed"
    limits = "".join(f" {prose(one)}" for one in words.limits(found))
    return f"Trust domain {code(found.trust_domain)}, {commit}: {words.summary(found)}.{limits}"


def _paragraph(text: str) -> list[str]:
    return ["", text]


def _data(observed: Observed) -> list[str]:
    head = f"From {prose(observed.origin)}, {words.period(observed)}; **{words.completeness(observed)}**."
    return ["## Observed flows", *_paragraph(head), "", *(f"- {prose(one)}" for one in observed.missing)]


def _diagram(one: Diagram) -> list[str]:
    lines = [f"## {f'Chart of {code(one.policy)}' if one.policy else 'Chart'}"]
    lines += ["", "```mermaid", *one.text.rstrip("\n").split("\n"), "```"]
    if one.left_out:
        lines += _paragraph(f"{one.left_out:,} more edges found no room: the tables below have them.")
    return lines


def _service(one: Service) -> list[str]:
    workload, policy = one.workload, one.policy
    match = (f"{key}: {', '.join(values)}" for key, values in words.selectors(workload.match).items())
    facts = (
        ("SPIFFE ID", code(one.spiffe_id)),
        ("Owner", code(policy.owner)),
        ("Level", code(policy.level)),
        ("Mode", code(workload.mode)),
        ("Labels", codes(words.labels(workload))),
        ("Selected by", codes(match)),
        ("Declared", code(workload.loc.short)),
    )
    return [
        f"### {code(one.name)}",
        "",
        *rows(("", ""), ((name, value) for name, value in facts if value)),
        *_ties(one.ties),
    ]


def _ties(ties: Ties) -> Iterator[str]:
    yield from _grants("May be called by", ties.callers, "nobody", callers=True)
    yield from _grants("May call", ties.calls, "nobody", callers=False)
    for title, invariants in (("Protected by", ties.protected_by), ("Restrained by", ties.restrained_by)):
        if invariants:
            yield from _paragraph(f"{title} {', '.join(map(_invariant, invariants))}.")
    if ties.tests:
        tests = (f"{one.source} {one.verb} {one.target} {one.loc.short}" for one in ties.tests)
        yield from _paragraph(f"Tested: {codes(tests)}.")


def _grants(title: str, grants: Sequence[Grant], nobody: str, *, callers: bool) -> list[str]:
    if not grants:
        return _paragraph(f"**{title}** {nobody}.")
    end = (_party(one.source if callers else one.destination, briefly=True) for one in grants)
    cells = ([who, code(words.ports(one.rule)), *_by(one)] for who, one in zip(end, grants, strict=True))
    heads = ["from" if callers else "to", "ports", "rule", "declared", "notes"]
    return ["", f"**{title}**", "", *rows(heads, cells)]


def _party(party: Party, *, briefly: bool = False) -> str:
    shown, rest = words.members(party, briefly=briefly)
    listed = " ".join(filter(None, (codes(shown), rest)))
    return f"{code(party.text)}: {listed}" if party.selector else listed


def _by(one: Grant) -> tuple[str, str, str]:
    return code(one.name), code(one.rule.loc.short), _notes(one)


def _notes(one: Grant) -> str:
    rule = one.rule
    named = (("owner", rule.owner), ("ticket", rule.ticket), ("why", rule.why))
    kind = "" if rule.kind == "allow" else f"{rule.kind} {words.deadline(one)}".strip()
    usage = words.usage(one.usage) if one.usage else ""
    texts = [kind, *(f"{name} {code(value)}" for name, value in named if value), f"**{prose(usage)}**" if usage else ""]
    return "; ".join(filter(None, texts))


def _invariant(one: Invariant) -> str:
    return f"{code(one.name)} ({code(one.never.loc.short)})"


def _outsides(outsides: Sequence[Outside]) -> list[str]:
    if not outsides:
        return []
    cells = (
        (
            code(one.name),
            _addresses(one),
            codes(words.cited(one.ties.callers)),
            codes(words.cited(one.ties.calls)),
            codes(invariant.name for invariant in (*one.ties.protected_by, *one.ties.restrained_by)),
            code(one.external.loc.short) if one.external else "",
        )
        for one in outsides
    )
    heads = ("name", "addresses", "reached by", "reaches by", "invariants", "declared")
    return ["## Externals and entities", "", *rows(heads, cells)]


def _addresses(one: Outside) -> str:
    if one.external is None:
        return "entity"
    shown, left = words.few(words.addresses(one.external))
    return codes(shown) + (f" and {left:,} more" if left else "")


def _rules(grants: Iterable[Grant], *, observed: bool) -> list[str]:
    heads = ["rule", "from", "to", "ports", "declared", "notes, use" if observed else "notes"]
    cells = [
        (
            code(one.name),
            _party(one.source),
            _party(one.destination),
            code(words.ports(one.rule)),
            code(one.rule.loc.short),
            _notes(one),
        )
        for one in grants
    ]
    return ["## Rules", "", *rows(heads, cells)] if cells else []


def _invariants(invariants: Iterable[Invariant]) -> list[str]:
    cells = [
        (
            code(one.name),
            _party(one.source),
            _party(one.destination),
            code(", ".join(dict.fromkeys(spec.text for spec in one.never.ports)) or "any"),
            code(one.never.loc.short),
            code(one.never.why),
        )
        for one in invariants
    ]
    return ["## Never", "", *rows(("invariant", "from", "to", "ports", "declared", "why"), cells)] if cells else []


def _undeclared(found: Sequence[Undeclared]) -> list[str]:
    title = "## Undeclared flows"
    if not found:
        return [title, *_paragraph("None recorded.")]
    cells = (
        (
            f"**{one.verdict}**",
            code(one.source),
            code(one.destination),
            code(one.port),
            f"{one.count:,}",
            words.stamp(one.last_seen),
            codes(words.few(one.processes)[0]),
            prose(one.because),
        )
        for one in found[: words.UNDECLARED_SHOWN]
    )
    heads = ("verdict", "from", "to", "port", "seen", "last", "processes", "because")
    lines = [title, "", *rows(heads, cells)]
    left = len(found) - words.UNDECLARED_SHOWN
    return [*lines, *_paragraph(f"And {left:,} more: `-o json` has all.")] if left > 0 else lines

"""Verdicts on a policy as JUnit's XML, which continuous integration shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape, quoteattr

from bulkhead.cli.output import safe, safe_lines

if TYPE_CHECKING:
    from bulkhead.cli.testing import Case


def junit(cases: Sequence[Case], engine: str) -> str:
    """The document. One suite for each group of cases, in their order; each says which engine judged it."""
    groups = dict.fromkeys(case.group for case in cases)
    suites = (_suite(group, [case for case in cases if case.group == group], engine) for group in groups)
    head = f"<testsuites name={_attribute('bulkhead test')} {_counts(cases)}>"
    return "\n".join(['<?xml version="1.0" encoding="UTF-8"?>', head, *suites, "</testsuites>"]) + "\n"


def _suite(group: str, cases: Sequence[Case], engine: str) -> str:
    head = f"  <testsuite name={_attribute(group)} {_counts(cases)}>"
    judge = f'    <properties><property name="engine" value={_attribute(engine)}/></properties>'
    return "\n".join([head, judge, *map(_case, cases), "  </testsuite>"])


def _counts(cases: Iterable[Case]) -> str:
    listed = list(cases)
    failures = sum(bool(case.failures) for case in listed)
    skipped = sum(not case.failures and not case.judged for case in listed)
    return f'tests="{len(listed)}" failures="{failures}" errors="0" skipped="{skipped}"'


def _case(case: Case) -> str:
    place = f'file={_attribute(case.loc.file)} line="{case.loc.line}"'
    head = f"    <testcase classname={_attribute(case.group)} name={_attribute(case.name)} {place}"
    if case.failures:
        text = "\n\n".join(one.render() for one in case.failures)
        first = _attribute(case.failures[0].message)
        return f"{head}>\n      <failure message={first}>{escape(safe_lines(text))}</failure>\n    </testcase>"
    if not case.judged:
        return f'{head}>\n      <skipped message="the policy cannot be judged"/>\n    </testcase>'
    return f"{head}/>"


def _attribute(text: str) -> str:
    return quoteattr(safe(text))

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bulkhead.dataplane.lint import lint
from bulkhead.errors import Diagnostic, PolicyError
from bulkhead.policy.codes import CODES, GROUPS, Code, document, message, presentable
from bulkhead.policy.parse import parse

ROOT = Path(__file__).parents[3]
NOW = datetime(2026, 1, 1, tzinfo=UTC)
COMPILED = {"BH0601", "BH0605"}
"""Codes whose example only compiling refuses."""

EXAMPLES = [entry for entry in CODES.values() if entry.example.endswith("\n") and entry.number not in COMPILED]


def findings_of(entry: Code, sources_of) -> list[Diagnostic]:
    is_repository = "kind: Repository" in entry.example and entry.number != "BH0202"
    sources = sources_of({"bulkhead.yaml" if is_repository else "shop.yaml": entry.example})
    try:
        return list(lint(parse(sources), NOW))
    except PolicyError as error:
        return list(error.diagnostics)


@pytest.mark.parametrize("entry", EXAMPLES, ids=lambda entry: entry.number)
def test_example_of_each_code_gives_that_code(entry, sources_of):
    found = findings_of(entry, sources_of)
    assert entry.number in {each.code for each in found}
    if entry.severity == "error" and entry.number < "BH1000":
        assert {each.code for each in found} == {entry.number}
    assert all(each.severity == CODES[each.code].severity for each in found)


@pytest.mark.parametrize("entry", CODES.values(), ids=lambda entry: entry.number)
def test_messages_are_lower_case_without_a_final_period(entry):
    assert re.fullmatch(r"BH\d{4}", entry.number)
    assert entry.number[2:4] in GROUPS
    assert not entry.template.endswith(".")
    assert not entry.template[0].isupper()
    assert entry.explanation.endswith(".")


def test_codes_are_registered_once():
    numbers = re.findall(r'"(BH\d{4})",\n', (ROOT / "agent/bulkhead/policy/codes.py").read_text())
    assert len(numbers) == len(set(numbers)) == len(CODES)


def test_every_code_in_the_sources_is_registered():
    texts = [path.read_text() for path in (ROOT / "agent/bulkhead").rglob("*.py")]
    used = {number for text in texts for number in re.findall(r'"(BH\d{4})"', text)}
    assert used <= CODES.keys()


def test_errors_page_is_fresh():
    assert (ROOT / "docs/errors.md").read_text() == document()


def test_author_text_reaches_a_message_without_terminal_controls():
    text = message("BH0301", text="\x1b[2J" + "x" * 500)
    assert "\x1b" not in text
    assert len(text) < 150
    assert presentable("shop\n") == "shop\\u{a}"

"""The published schema in yaml-language-server: what it offers, explains and refuses while a policy is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from bulkhead.policy import match, read
from bulkhead.policy.codes import CODES
from editor.conftest import ROOT, Open
from editor.language_server import LanguageServer

VERSION = "apiVersion: bulkhead/v1alpha1\n"
POLICY = f"{VERSION}kind: Policy\nmetadata: {{name: shop}}\n"


def position(text: str) -> tuple[str, int, int]:
    """The text without its `|`, and where that stood, the modeline above it counted."""
    before, _, after = text.partition("|")
    return before + after, before.count("\n") + 1, len(before) - before.rfind("\n") - 1


@pytest.mark.parametrize(
    ("text", "offered"),
    [
        ("|", {"apiVersion", "kind"}),
        (f"{VERSION}kind: |", {"Policy", "Repository"}),
        (f"{VERSION}kind: Repository\n|", {*read.KEYS_REPOSITORY.known()} - {"apiVersion", "kind"}),
        (f"{POLICY}|", {*read.KEYS_POLICY.known()} - {"apiVersion", "kind", "metadata"}),
        (f"{VERSION}kind: Policy\nmetadata:\n  name: shop\n  level: |", {*read.LEVELS}),
        (f"{POLICY}workloads:\n  web:\n    |", {*read.KEYS_WORKLOAD.known()}),
        (f"{POLICY}workloads:\n  web:\n    match:\n      |", {*match.MATCH.known()}),
        (f"{POLICY}workloads:\n  web:\n    match: {{all: true}}\n    mode: |", {*read.MODES}),
        (f"{POLICY}workloads:\n  web: {{mode: |}}\n", {*read.MODES}),
        (f"{POLICY}allow:\n  - |", {*read.KEYS_ALLOW.known()}),
        (f"{POLICY}allow:\n  - name: a\n    |", {*read.KEYS_ALLOW.known()} - {"name"}),
        (f"{POLICY}allow:\n  - {{name: a, f|}}\n", {*read.KEYS_ALLOW.known()} - {"name"}),
        (f"{POLICY}exceptions:\n  - name: a\n    |", {*read.KEYS_EXCEPTION.known()} - {"name"}),
        (f"{POLICY}never:\n  - name: a\n    |", {*read.KEYS_NEVER.known()} - {"name"}),
        (f"{POLICY}tests:\n  - from: a\n    |", {"accept", "deny"}),
    ],
)
def test_what_may_stand_at_a_place_is_offered(
    server: LanguageServer, open_policy: Open, text: str, offered: set[str]
) -> None:
    whole, line, character = position(text)
    assert offered <= {*server.completions(open_policy(whole), line, character)}


def test_a_word_that_yaml_would_take_for_a_boolean_is_offered_in_quotes(
    server: LanguageServer, open_policy: Open
) -> None:
    whole, line, character = position(f"{POLICY}allow:\n  - name: a\n    mtls: |")
    assert {*server.completions(open_policy(whole), line, character)} == {"required", '"off"'}


def test_keys_of_another_place_are_not_offered(server: LanguageServer, open_policy: Open) -> None:
    whole, line, character = position(f"{POLICY}allow:\n  - name: a\n    |")
    assert not {"expires", "match", "workloads", "trustDomain"} & {
        *server.completions(open_policy(whole), line, character)
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("wor|kloads: {}\n", "Named sets of endpoints"),
        ("workloads:\n  web:\n    match:\n      un|it: x.service\n", "Glob over the systemd unit"),
        ("workloads:\n  web: {match: {all: true}, mo|de: enforce}\n", "drop packets"),
        ("allow:\n  - {name: a, from: b, to: c, por|ts: [443]}\n", "What may be connected to"),
        ("exceptions:\n  - name: x\n    exp|ires: x\n", "When it lapses"),
    ],
)
def test_a_key_is_explained(server: LanguageServer, open_policy: Open, text: str, said: str) -> None:
    whole, line, character = position(POLICY + text)
    assert said in server.hover(open_policy(whole), line, character)


@pytest.mark.parametrize(
    ("text", "said", "marked"),
    [
        ("colour: red\n", "Property colour is not allowed", "colour"),
        ("workloads:\n  web: {match: {all: true}, mode: enforced}\n", "Valid values", "enforced"),
        ("workloads:\n  web: {match: {unti: x.service}}\n", "Property unti is not allowed", "unti"),
        ("allow:\n  - {name: a, from: b, to: c, ports: [443], port: 1}\n", "Property port is not allowed", "port"),
        ("allow:\n  - {name: a, from: b, to: c}\n", 'Missing property "ports"', "{"),
    ],
)
def test_a_mistake_is_marked_where_it_stands(
    server: LanguageServer, open_policy: Open, text: str, said: str, marked: str
) -> None:
    found = server.diagnostics(open_policy(POLICY + text))
    lines = ["", *(POLICY + text).split("\n")]
    spots = [(one["message"], one["range"]["start"], one["range"]["end"]) for one in found]
    assert any(said in message for message, _, _ in spots)
    assert marked in [lines[start["line"]][start["character"] : end["character"]] for _, start, end in spots]


@pytest.mark.parametrize("path", sorted((ROOT / "policies").rglob("*.yaml")), ids=lambda path: path.name)
def test_the_example_policies_have_no_mistakes(server: LanguageServer, open_policy: Open, path: Path) -> None:
    assert server.diagnostics(open_policy(path.read_text())) == []


def test_what_lint_only_warns_of_has_no_mistakes_either(server: LanguageServer, open_policy: Open) -> None:
    examples = [code.example for code in CODES.values() if code.severity == "warning" and code.example.endswith("\n")]
    found = {text: server.diagnostics(open_policy(text)) for text in examples if text.startswith(VERSION)}
    assert found
    assert {text: mistakes for text, mistakes in found.items() if mistakes} == {}

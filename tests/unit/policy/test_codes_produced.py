"""Every code is produced for real: by its example (test_codes.py), by a producer here, or by a test that is named here.

A new code whose example is prose needs a line in PRODUCERS, or in TESTS when what produces it is too large for this
page (signatures, remotes): the test named there must name the code.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bulkhead.dataplane import bundle
from bulkhead.dataplane.compile import compile_commit
from bulkhead.dataplane.lint import lint
from bulkhead.dataplane.resolve import Limits
from bulkhead.dataplane.trials import dispute
from bulkhead.errors import Diagnostic, Loc, PolicyError
from bulkhead.policy import parse as parsing
from bulkhead.policy import source
from bulkhead.policy.codes import CODES
from bulkhead.policy.parse import parse
from bulkhead.policy.source import SourceFile, Sources, read_commit, read_directory
from lab.hostile import HONEST, HOSTILE, REPOSITORY, WORKLOADS, Store

ROOT = Path(__file__).parents[3]
NOW = datetime(2026, 1, 1, tzinfo=UTC)
Producer = Callable[[Path, pytest.MonkeyPatch], Iterable[Diagnostic]]


def of_text(text: bytes, repository: bytes | None = REPOSITORY, **more: bytes) -> Producer:
    """What is said of a repository of these files."""
    contents = {"t.yaml": text, **{f"{name}.yaml": content for name, content in more.items()}}
    if repository is not None:
        contents["bulkhead.yaml"] = repository
    sources = Sources("", tuple(SourceFile(path, path, content) for path, content in sorted(contents.items())))

    def produce(_: Path, __: pytest.MonkeyPatch) -> Iterable[Diagnostic]:
        policy_set = parse(sources)
        compile_commit(policy_set, None, NOW)
        return lint(policy_set, NOW)

    return produce


def of_commit(what: str) -> Producer:
    """What is said of a hostile commit."""

    def produce(directory: Path, _: pytest.MonkeyPatch) -> Iterable[Diagnostic]:
        store = Store(directory / "repository")
        HOSTILE[what].build(store)
        parse(read_commit(store.path, "main"))
        return ()

    return produce


def colliding(_: Path, monkeypatch: pytest.MonkeyPatch) -> Iterable[Diagnostic]:
    """A collision of 31 bits takes long to find: here the hash is made short."""
    monkeypatch.setattr("bulkhead.identity.registry.workload_identity", lambda *_: 4096)
    return of_text(HONEST)(_, monkeypatch)


def too_large(_: Path, __: pytest.MonkeyPatch) -> Iterable[Diagnostic]:
    files = (SourceFile("bulkhead.yaml", "", REPOSITORY), SourceFile("t.yaml", "", HONEST))
    compile_commit(parse(Sources("", files)), None, NOW, replace(Limits(), policy_entries=1))
    return ()


def too_many_rules(_: Path, monkeypatch: pytest.MonkeyPatch) -> Iterable[Diagnostic]:
    monkeypatch.setattr(parsing, "RULES_MAX", 0)
    return of_text(HONEST)(_, monkeypatch)


def too_many_files(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterable[Diagnostic]:
    monkeypatch.setattr(source, "FILES_MAX", 1)
    for name in ("a.yaml", "b.yaml"):
        (directory / name).write_bytes(HONEST)
    read_directory(directory)
    return ()


def cut_short(_: Path, __: pytest.MonkeyPatch) -> Iterable[Diagnostic]:
    bundle.read(b"")
    return ()


def disagreeing(_: Path, __: pytest.MonkeyPatch) -> Iterable[Diagnostic]:
    return [dispute(Loc("t.yaml", 1), "the model", "refused", "the kernel", "allowed", "web to api")]


ADMINS = b"externals: {admins: {cidr: [192.0.2.0/24]}}\n"
OTHER = HONEST.replace(b"name: t", b"name: other")
EXCEPTION = (
    b"exceptions:\n  - {name: e, from: api, to: web, ports: [1], expires: 2026-01-04T00:00:00Z, owner: a, ticket: b}\n"
)

OWN_BUNDLE = b"""apiVersion: bulkhead/v1alpha1
kind: TrustBundle
metadata: {name: example.org}
bundle: '{"keys": []}'
"""

PRODUCERS: dict[str, Producer] = {
    "BH0100": of_text(WORKLOADS + b"".join(b"k%d: {}\n" % number for number in range(30))),
    "BH0102": of_text(HONEST + b"# \xff\n"),
    "BH0201": of_text(HONEST, repository=None),
    "BH0411": of_text(
        HONEST + ADMINS,
        REPOSITORY + b'hosts: {lifeline: [{from: admins, to: "host:22"}]}\n',
        other=OTHER.replace(b"web.service", b"a.service").replace(b"api.service", b"b.service") + ADMINS,
    ),
    "BH0346": of_text(HONEST, REPOSITORY + b"jwt: {corp: {issuer: a, jwks: '{}'}}\n"),
    "BH0348": of_text(
        WORKLOADS
        + b"allow:\n  - name: a\n    from: web\n    to: api\n    ports: [443]\n    l7:\n      http:\n"
        + b"        - {methods: [GET]}\n" * 65
    ),
    "BH0413": of_text(OWN_BUNDLE),
    "BH0501": of_text(HONEST + b"never:\n  - {name: never, from: web, to: api, why: apart}\n"),
    "BH0502": of_text(HONEST + b'tests:\n  - {from: web, deny: ["api:443"]}\n'),
    "BH0601": of_text(CODES["BH0601"].example.encode()),
    "BH0605": of_text(CODES["BH0605"].example.encode()),
    "BH0602": colliding,
    "BH0603": of_text(
        HONEST.replace(b"{unit: web.service}", b"{host: web-4e7c, unit: web.service}").replace(
            b"{unit: api.service}", b"{host: web-6dcf, unit: api.service}"
        )
    ),
    "BH0701": too_large,
    "BH0702": too_many_rules,
    "BH0801": of_commit("a symbolic link"),
    "BH0802": of_commit("a climbing path"),
    "BH0803": of_commit("a file of 100 MB"),
    "BH0804": too_many_files,
    "BH0805": of_commit("a file in another case"),
    "BH0806": of_commit("a forged blob"),
    "BH0901": cut_short,
    "BH0911": disagreeing,
    "BH1007": of_text(HONEST, REPOSITORY + b"hosts: {mode: enforce}\n"),
    "BH1014": of_text(HONEST + EXCEPTION),
}

_HISTORY = "tests/unit/policy/test_history.py"
_REMOTE = "tests/unit/policy/test_remote.py"
_REGO = "tests/unit/rego/test_examine.py"
TESTS: dict[str, str] = {
    "BH1308": "tests/unit/dataplane/test_istio.py::"
    "test_refuse_what_would_have_to_be_judged_of_callers_that_come_through_no_proxy",
    "BH1401": f"{_REGO}::test_refuse_rego_where_there_is_no_engine",
    "BH1402": f"{_REGO}::test_refuse_what_the_engine_does_not_know",
    "BH1403": f"{_REGO}::test_refuse_what_the_engine_does_not_know",
    "BH1404": f"{_REGO}::test_refuse_a_package_that_no_module_has_or_that_has_no_allow",
    "BH1405": f"{_REGO}::test_guardrails_speak_at_the_line_of_the_thing_they_name",
    "BH1406": f"{_REGO}::test_guardrails_speak_at_the_line_of_the_thing_they_name",
    "BH1407": f"{_REGO}::test_guardrails_that_name_nothing_or_cannot_be_judged_speak_at_their_own_module",
    "BH1101": f"{_HISTORY}::test_refuse_a_commit_that_is_not_signed",
    "BH1102": f"{_HISTORY}::test_refuse_an_unknown_signer",
    "BH1103": f"{_HISTORY}::test_refuse_an_expired_signer_whatever_date_he_gives_his_commit",
    "BH1104": f"{_HISTORY}::test_refuse_a_revoked_key",
    "BH1105": f"{_HISTORY}::test_refuse_a_signature_taken_from_another_commit",
    "BH1106": f"{_HISTORY}::test_a_change_needs_a_signer_of_its_level_and_no_more",
    "BH1107": f"{_HISTORY}::test_refuse_an_older_commit_and_a_rewritten_one",
    "BH1108": f"{_HISTORY}::test_refuse_more_commits_than_are_judged_in_one_go",
    "BH1110": f"{_REMOTE}::test_a_repository_or_host_that_is_not_there_is_unreachable",
    "BH1111": f"{_REMOTE}::test_more_than_the_limit_is_refused_and_leaves_nothing",
    "BH1112": f"{_REMOTE}::test_a_reference_that_is_not_there_and_an_empty_repository_are_findings",
    "BH1113": f"{_REMOTE}::test_a_path_that_leads_out_is_refused_as_it_arrives",
}
"""Tests that produce a code, as `file::function`."""

PROSE = [number for number, entry in sorted(CODES.items()) if not entry.example.endswith("\n")]


@pytest.mark.parametrize("number", PRODUCERS)
def test_the_code_is_produced(number: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        found = list(PRODUCERS[number](tmp_path, monkeypatch))
    except PolicyError as error:
        found = list(error.diagnostics)
    assert number in {one.code for one in found}
    assert all(one.message and one.loc.line for one in found)


@pytest.mark.parametrize("number", TESTS)
def test_the_test_that_produces_the_code_names_it(number: str) -> None:
    path, _, name = TESTS[number].partition("::")
    text = (ROOT / path).read_text()
    (function,) = [
        node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef) and node.name == name
    ]
    assert number in ast.get_source_segment(text, function)


@pytest.mark.parametrize("number", PROSE)
def test_a_code_without_an_example_has_a_producer(number: str) -> None:
    assert number in PRODUCERS.keys() | TESTS.keys()

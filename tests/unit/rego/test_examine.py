"""What is said of the Rego of a repository before anything of it is taken."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from bulkhead.errors import Diagnostic, Loc, PolicyError
from bulkhead.policy import source
from bulkhead.policy.levels import needed
from bulkhead.policy.model import Level, PolicySet
from bulkhead.policy.parse import parse
from bulkhead.policy.rego_modules import RegoModule
from bulkhead.policy.source import SourceFile, Sources, blob_id, read_directory
from bulkhead.rego import examine as examining
from bulkhead.rego.child import ChildError, in_child
from bulkhead.rego.engine import Engine, RegoError, UndefinedError
from bulkhead.rego.examine import examine
from bulkhead.rego.repository import repository_document

REPOSITORY = "apiVersion: bulkhead/v1alpha1\nkind: Repository\ntrustDomain: example.org\n"
SHOP = """apiVersion: bulkhead/v1alpha1
kind: Policy
metadata: {name: shop, owner: team-shop}
workloads:
  web: {match: {unit: nginx.service}}
  api: {match: {unit: api.service}}
allow:
  - {name: call, from: web, to: api, ports: [8080/tcp]}
  - name: log
    from: web
    to: api
    ports: [514/tcp]
"""
ORDERS = 'package shop.orders\nallow if input.attributes.request.http.method == "GET"\n'


def policy_set(*modules: str, authz: str = "") -> PolicySet:
    """A small repository with these modules, `m0.rego` and so on; one rule asks the package `authz`."""
    texts = {"bulkhead.yaml": REPOSITORY, "shop.yaml": SHOP}
    files = [SourceFile(path, blob_id(text.encode()), text.encode()) for path, text in sorted(texts.items())]
    rego = [SourceFile(f"m{number}.rego", f"{number}", text.encode()) for number, text in enumerate(modules)]
    parsed = parse(Sources("", tuple(files), tuple(rego)))
    first, *others = parsed.rules
    return replace(parsed, rules=(replace(first, authz=authz), *others))


def said(found: tuple[Diagnostic, ...]) -> list[tuple[str, str, str]]:
    return [(one.code, str(one.loc), one.message) for one in found]


def test_repository_without_rego_has_nothing_to_be_said_of_it() -> None:
    assert examine(policy_set()) == ()


def test_sound_modules_pass_and_the_package_that_is_asked_is_found() -> None:
    helper = "package lib.text\nimport rego.v1\nis_long(x) if count(x) > 9\n"
    user = (
        "package shop.orders\nimport data.lib.text as words\nimport data.lib\n"
        'allow if { words.is_long(input.a)\n lib.text.is_long("b")\n data.lib.text.is_long("c")\n own(3)\n print(1) }\n'
        "own(x) := x\n"
    )
    assert examine(policy_set(helper, user, authz="shop.orders")) == ()


@pytest.mark.parametrize(
    "module, expected",
    [
        ("package p\nallow if {", ("BH1402", "m0.rego:2:11", "this is not Rego: expecting expression")),
        ("package p\n" + "#\n" * 30_000, ("BH1402", "m0.rego:1", "exceeds maximum allowed line count")),
        ("package p\nallow { true }", ("BH1402", "m0.rego:2:7", "`if` keyword is required before rule body")),
        ("package p\n\nallow if x == 1", ("BH1402", "m0.rego:3:10", "use of undefined variable `x` is unsafe")),
        ("package p\nallow if net.nope(1)", ("BH1403", "m0.rego:2:10", "there is no function `net.nope`")),
        ("package p\nallow if { input.x\n  not f(1) }", ("BH1403", "m0.rego:3:7", "there is no function `f`")),
        ("package p\nallow if not http.send({}).error", ("BH1403", "m0.rego:2:14", "there is no function `http.send`")),
        ("package p\nallow if opa.runtime().env", ("BH1403", "m0.rego:2:10", "there is no function `opa.runtime`")),
        ("package p\nallow if count([1 | data.q.f(2)]) > 0", ("BH1403", "m0.rego:2:21", "no function `data.q.f`")),
    ],
)  # fmt: skip
def test_refuse_what_the_engine_does_not_know(module: str, expected: tuple[str, str, str]) -> None:
    """BH1402: no Rego; BH1403: no such function."""
    ((code, place, message),) = said(examine(policy_set(module)))
    assert (code, place) == expected[:2]
    assert expected[2] in message


def test_refuse_a_package_that_no_module_has_or_that_has_no_allow() -> None:
    for name in ("shop.other", "shop", "shop.orders.allow", "shop.orders\nx"):
        (found,) = examine(policy_set(ORDERS, authz=name))
        assert (found.code, found.loc.short) == ("BH1404", "shop.yaml:8")
    (found,) = examine(policy_set("package shop.orders\npermit := true", authz="shop.orders"))
    assert found.code == "BH1404"
    assert examine(policy_set(authz="shop.orders"))[0].code == "BH1404"


def test_refuse_rego_where_there_is_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examining, "is_installed", lambda: False)
    (found,) = examine(policy_set(ORDERS))
    assert (found.code, found.loc.file) == ("BH1401", "m0.rego")
    assert "bulkhead[rego]" in found.message
    assert examine(policy_set()) == ()


GUARDRAIL = """package bulkhead.lint
import rego.v1

deny contains {"msg": sprintf("%s needs an owner", [rule.name]), "rule": rule.name} if {
    some rule in input.rules
    rule.owner == ""
    rule.ports[_].first == 514
}

deny contains "only one workload" if count(input.workloads) < 2

warn contains {"msg": "web is a busy name", "workload": "shop/web"} if input.workloads[_].name == "shop/web"
"""


def test_guardrails_speak_at_the_line_of_the_thing_they_name() -> None:
    found = examine(policy_set(GUARDRAIL))
    assert said(found) == [
        ("BH1406", "shop.yaml:5:3", "web is a busy name"),
        ("BH1405", "shop.yaml:9:5", "shop/log needs an owner"),
    ]
    assert [one.severity for one in found] == ["warning", "error"]
    assert all(one.source_line for one in found)


@pytest.mark.parametrize(
    "body, expected",
    [
        ('deny contains "no"', ("BH1405", "no")),
        ('warn contains {"msg": "careful", "rule": "shop/nowhere"}', ("BH1406", "careful")),
        ("deny contains 3", ("BH1407", "holds what is no message")),
        ("deny := true", ("BH1407", "holds what is no message")),
        ('deny contains "x" if 1 / count(input.nodes) > 0', ("BH1407", "divide by zero")),
        (
            'deny contains "x" if { some i in numbers.range(1, 30000)\n some j in numbers.range(1, i)\n i * j < 0 }',
            ("BH1407", "took longer than 2 s"),
        ),
        ('deny contains "x" if f(1)\nf(x) := f(x)', ("BH1407", "crashed the engine")),
        ('deny contains "x" if count(numbers.range(1, 1000000000)) > 3', ("BH1407", "took more memory")),
    ],
)
def test_guardrails_that_name_nothing_or_cannot_be_judged_speak_at_their_own_module(
    body: str, expected: tuple[str, str]
) -> None:
    """BH1407: they cannot be judged."""
    (found,) = examine(policy_set(f"package bulkhead.lint\n{body}\n"))
    assert (found.code, found.loc.file) == (expected[0], "m0.rego")
    assert expected[1] in found.message


def test_modules_that_take_forever_to_read_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examining, "_READ_S", 0.5)
    (found,) = examine(policy_set("package p\nallow := " + "[" * 60 + "]" * 60))
    assert (found.code, found.message.endswith("took longer than 0.5 s")) == ("BH1407", True)


def test_document_of_a_repository_uses_the_words_of_the_language() -> None:
    document = json.loads(repository_document(policy_set(ORDERS, authz="shop.orders")))
    assert document["rules"][0] == {
        "name": "shop/call",
        "policy": "shop",
        "from": {"workloads": ["shop/web"], "externals": [], "entities": [], "text": "web"},
        "to": {"workloads": ["shop/api"], "externals": [], "entities": [], "text": "api"},
        "ports": [{"protocol": 6, "first": 8080, "last": 8080, "text": "8080/tcp"}],
        "kind": "allow",
        "expires": None,
        "owner": "",
        "ticket": "",
        "why": "",
        "mtls": "required",
        "l7": None,
        "authz": {"rego": "shop.orders"},
        "file": "shop.yaml",
        "line": 8,
    }
    assert document["policies"] == [
        {"name": "shop", "level": "app", "owner": "team-shop", "file": "shop.yaml", "line": 1}
    ]


# The engine


@pytest.mark.parametrize("rule", ["p.missing", "p.guarded", "p.negated"])
def test_a_function_that_is_not_there_is_an_error_and_never_undefined(rule: str) -> None:
    text = "package p\nmissing if nope.f(1)\nguarded if { true\n nope.f(1) }\nnegated if not nope.f(1)\n"
    engine = Engine([RegoModule("p.rego", text, Loc("p.rego", 1))])
    with pytest.raises(RegoError, match="could not find function nope"):
        engine.value(rule, "{}")


def test_an_error_does_not_outlast_its_question() -> None:
    text = "package p\nallow if input.x == 1\nloop if other\nother if loop\n"
    engine = Engine([RegoModule("p.rego", text, Loc("p.rego", 1))])
    for _ in range(3):
        with pytest.raises(RegoError, match="recursion"):
            engine.value("p.loop", "{}")
        assert engine.value("p.allow", '{"x": 1}') is True
        with pytest.raises(UndefinedError):
            engine.value("p.allow", '{"x": 2}')


# Reading


def test_rego_is_read_beside_policies_and_nothing_else_is(tmp_path: Path) -> None:
    files = ("bulkhead.yaml", "a/x.rego", "a/Y.REGO", ".hidden/z.rego", "a/.z.rego", "notes.txt")
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(REPOSITORY if name == "bulkhead.yaml" else "package p\n")
    sources = read_directory(tmp_path)
    assert [one.path for one in sources.files] == ["bulkhead.yaml"]
    assert [one.path for one in sources.modules] == ["a/Y.REGO", "a/x.rego"]
    assert [one.loc for one in parse(sources).modules] == [Loc("a/Y.REGO", 1), Loc("a/x.rego", 1)]


def refused(directory: Path) -> list[str]:
    with pytest.raises(PolicyError) as error:
        parse(read_directory(directory))
    return [one.code for one in error.value.diagnostics]


def test_refuse_rego_that_is_a_link_too_large_too_many_or_no_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bulkhead.yaml").write_text(REPOSITORY)
    module = tmp_path / "m.rego"
    module.write_bytes(b"package p\n# \xff\n")
    assert refused(tmp_path) == ["BH0102"]
    module.write_bytes(b"#" * (source.FILE_BYTES_MAX + 1))
    assert refused(tmp_path) == ["BH0803"]
    module.unlink()
    os.symlink("/etc/hostname", module)
    assert refused(tmp_path) == ["BH0801"]
    module.unlink()
    monkeypatch.setattr(source, "MODULES_MAX", 1)
    for name in "mn":
        (tmp_path / f"{name}.rego").write_text("package p\n")
    assert refused(tmp_path) == ["BH0804"]


def test_a_change_of_rego_needs_a_signer_who_may_write_anything() -> None:
    need = needed({"shop/m.rego": b"package p\n"}, {})
    assert (need.level, need.path) == (Level.GUARDRAIL, "shop/m.rego")


def test_work_in_a_child_ends_with_its_time_and_its_result_is_bounded() -> None:
    assert in_child(lambda: b"x" * 200_000, 5.0) == b"x" * 200_000
    assert in_child(lambda: b"", 5.0) == b""
    with pytest.raises(ChildError, match="more than can be taken"):
        in_child(lambda: b"x" * (17 << 20), 5.0)
    with pytest.raises(ChildError, match="crashed"):
        in_child(lambda: bytes(2 << 30), 5.0)

"""The mode of a workload changes at its place, and nothing else does."""

from __future__ import annotations

import pytest

from bulkhead.errors import UsageError
from bulkhead.policy.model import Mode
from bulkhead.policy.modes import set_mode
from bulkhead.policy.parse import parse
from bulkhead.policy.source import SourceFile, Sources

HEAD = "apiVersion: bulkhead/v1alpha1\nkind: Policy\nmetadata: {name: shop}\nworkloads:\n"
MATCH = "match: {unit: a.service}"
"""Written `M` below."""
BLOCK = "  web:\n    match:\n      unit:\n        - a.service  # one\n"
NEXT = "\n  # the next\n  db: {match: {unit: b.service}}\n"
REPOSITORY = b"apiVersion: bulkhead/v1alpha1\nkind: Repository\ntrustDomain: example.org\n"


def changed(body: str, remark: str = "", mode: Mode = Mode.ENFORCE) -> str:
    after = set_mode((HEAD + body.replace("M", MATCH)).encode(), "shop", "web", mode, remark)
    files = (SourceFile("bulkhead.yaml", "1" * 40, REPOSITORY), SourceFile("shop.yaml", "1" * 40, after))
    (web,) = [one for one in parse(Sources("", files)).workloads if one.name == "web"]
    assert web.mode is mode
    assert after.decode().startswith(HEAD)
    return after.decode().removeprefix(HEAD).replace(MATCH, "M")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("  web: {M, mode: observe}  # ours\n", "  web: {M, mode: enforce}  # ours\n"),
        ("  web: {mode: 'observe', M}\n", "  web: {mode: enforce, M}\n"),
        ("  web: {M} # x\n", "  web: {M, mode: enforce} # x\n"),
        ("  web: { match: {unit: [a.service]}, }\n", "  web: { match: {unit: [a.service]}, mode: enforce, }\n"),
        (
            "  web: {M,\n    labels: {t: a} # last\n  }\n",
            "  web: {M,\n    labels: {t: a}, mode: enforce # last\n  }\n",
        ),
        (f"{BLOCK}{NEXT}", f"{BLOCK}    mode: enforce\n{NEXT}"),
        ("  web:\n    mode: observe # old\n    M\n", "  web:\n    mode: enforce # old\n    M\n"),
        ("  web:\n    M", "  web:\n    M\n    mode: enforce"),
        ("  web:\r\n    M\r\n", "  web:\r\n    M\r\n    mode: enforce\r\n"),
        ("  web: {match: {cgroup: /ä}}\n", "  web: {match: {cgroup: /ä}, mode: enforce}\n"),
    ],
)
def test_the_mode_is_written_where_it_belongs(before: str, after: str) -> None:
    assert changed(before) == after


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("  web: {M, mode: observe}\n", "  # why\n  web: {M, mode: enforce}\n"),
        ("  web:\n    M\n    mode: observe\n", "  web:\n    M\n    # why\n    mode: enforce\n"),
        ("  web:\n    M\n", "  web:\n    M\n    # why\n    mode: enforce\n"),
    ],
)
def test_a_remark_stands_above(before: str, after: str) -> None:
    assert changed(before, "why") == after


def test_a_policy_of_another_document_with_such_a_workload_is_left_alone() -> None:
    other = HEAD.replace("shop", "other") + "  web: {match: {unit: o.service}}\n---\n"
    content = other + HEAD + "  web: {match: {unit: a.service}}\n"
    after = set_mode(content.encode(), "shop", "web", Mode.ENFORCE).decode()
    assert after == other + HEAD + "  web: {match: {unit: a.service}, mode: enforce}\n"


def test_a_file_without_the_workload_is_refused() -> None:
    with pytest.raises(UsageError, match="`shop/db` is not in this file"):
        set_mode((HEAD + "  web: {match: {unit: a.service}}\n").encode(), "shop", "db", Mode.ENFORCE)

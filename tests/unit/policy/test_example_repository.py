"""The repository in policies/, which people read first."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from bulkhead.dataplane.lint import lint
from bulkhead.policy.model import Mode, PolicySet
from bulkhead.policy.parse import parse
from bulkhead.policy.source import read_commit, read_directory

EXAMPLE = Path(__file__).parents[3] / "policies"


@pytest.fixture(scope="module")
def example() -> PolicySet:
    return parse(read_directory(EXAMPLE))


def test_the_example_says_who_may_talk_to_whom(example):
    rules = [(each.qualified, each.source.text, each.destination.text, each.ports[0].first) for each in example.rules]
    assert rules == [
        ("hosts/lifeline-1", "admins", "host", 22),
        ("shop/users-web", "users", "web", 8080),
        ("shop/host-web", "host", "web", 8080),
        ("shop/web-api", "web", "api", 9000),
        ("shop/api-cache", "api", "cache", 6379),
    ]
    assert {each.mode for each in example.workloads} == {Mode.ENFORCE}
    assert example.host_mode is Mode.OBSERVE


def test_the_example_has_no_findings(example):
    assert lint(example, datetime.now(UTC)) == ()


def test_the_example_reads_alike_as_a_commit(example, repository):
    commit = repository.commit({path.name: path.read_bytes() for path in EXAMPLE.iterdir()})
    committed = parse(read_commit(repository.path, commit))
    assert [each.qualified for each in committed.rules] == [each.qualified for each in example.rules]
    assert str(committed.rules[1].loc) == f"shop.yaml:16:5@{commit[:7]}"

"""No two workloads have one SPIFFE ID."""

from __future__ import annotations

import pytest

from bulkhead.errors import Loc
from bulkhead.identity.svids import FINDINGS_LIMIT, find_shared_ids
from bulkhead.policy.model import Match, Mode, Workload


def workload(name: str, spiffe: str = "", *hosts: str) -> Workload:
    return Workload("shop", name, Match(host=hosts, unit=(name,)), Mode.ENFORCE, Loc("a.yaml", 1), spiffe=spiffe)


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        (workload("web"), workload("api"), False),
        (workload("web", "/a"), workload("api", "/a"), True),
        (workload("web", "/a"), workload("api", "/a/b"), False),
        (workload("web", "/shop/api"), workload("api"), True),
        (workload("web", "/h/{host}"), workload("api", "/h/{host}"), True),
        (workload("web", "/h/{host}", "web-*"), workload("api", "/h/{host}", "db-*"), False),
        (workload("web", "/h/{host}", "web-*"), workload("api", "/h/{host}", "*-1"), True),
        (workload("web", "/h/{host}", "a", "b"), workload("api", "/h/{host}", "b", "a"), True),
        (workload("web", "/h/{host}", "a"), workload("api", "/h/{host}", "b"), False),
        (workload("web", "/h/{host}", "a"), workload("api", "/h/{host}", "?"), True),
        (workload("web", "/h/{host}"), workload("api", "/h/x"), True),
        (workload("web", "/h/{host}", "web-*"), workload("api", "/h/x"), False),
        (workload("web", "/h/{host}", "web-*"), workload("api", "/h/web-1"), True),
        (workload("web", "/{host}/a"), workload("api", "/a/{host}"), True),
        (workload("web", "/{host}/a", "b"), workload("api", "/a/{host}"), False),
        (workload("web", "/{host}/a/x"), workload("api", "/a/{host}/y"), False),
        (workload("web", "/{host}/web"), workload("web2", "/shop/web"), True),
    ],
)
def test_templates_that_some_nodes_make_equal_are_refused(one: Workload, other: Workload, shared: bool) -> None:
    assert [finding.code for finding in find_shared_ids([one, other])] == (["BH0605"] if shared else [])


def test_thousands_of_templates_are_compared_at_once_and_few_findings_shown() -> None:
    apart = [workload(f"w{n}", f"/host/{{host}}/unit/w{n}") for n in range(5_000)]
    assert find_shared_ids([*apart, *(workload(f"x{n}") for n in range(5_000))]) == []
    assert find_shared_ids([workload(f"w{n}", "/host/{host}", f"h{n}") for n in range(5_000)]) == []
    assert len(find_shared_ids([workload(f"w{n}", "/same") for n in range(100)])) == FINDINGS_LIMIT

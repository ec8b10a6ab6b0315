"""How a generation sees control groups, and what of a bundle's entries reaches the kernel."""

from __future__ import annotations

from array import array
from dataclasses import replace
from pathlib import Path

import pytest

from bulkhead.abi import CgroupEntry, Identity, Mode, PolicyFlag
from bulkhead.dataplane.bundle import Bundle
from bulkhead.identity.users import Users
from bulkhead.kernel.attestation import make_plan
from bulkhead.kernel.generation import policy_table
from lab.verdict import bundle_of

POLICY = """
apiVersion: bulkhead/v1alpha1
kind: Policy
metadata: {name: shop}
workloads:
  web: {match: {unit: bulkhead.service}}
  db: {match: {cgroup: /db}}
allow:
  - {name: web-db, from: web, to: db, ports: [5432]}
"""
FLAGS = 3


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return bundle_of(tmp_path, POLICY)


@pytest.mark.parametrize(
    ("path", "is_proxy"),
    [
        ("/system.slice/bulkhead.service/proxy", True),
        ("/system.slice/bulkhead.service/proxy/epoch-2", True),
        ("/system.slice/bulkhead.service/proxy2", False),
        ("/system.slice/bulkhead.service", False),
        ("/elsewhere/system.slice/bulkhead.service/proxy", False),
    ],
)
@pytest.mark.parametrize("observe_only", [False, True])
def test_the_control_group_of_the_proxy_is_the_proxys_whatever_selectors_say(
    bundle: Bundle, path: str, is_proxy: bool, observe_only: bool
) -> None:
    plan = make_plan(bundle, "near-1", Users(), observe_only, proxy="/system.slice/bulkhead.service/proxy")
    entry = CgroupEntry.from_buffer_copy(plan.entries(path)[0].entry)
    assert (entry.identity == Identity.PROXY) is is_proxy
    if is_proxy:
        assert (entry.mode, entry.needs) == (Mode.OBSERVE if observe_only else Mode.ENFORCE, 0)


def test_the_proxy_is_where_the_agent_says(bundle: Bundle) -> None:
    plan = make_plan(bundle, "near-1", Users(), False, proxy="agent.slice/envoy")
    entry = CgroupEntry.from_buffer_copy(plan.entries("/agent.slice/envoy")[0].entry)
    assert entry.identity == Identity.PROXY
    assert not plan.is_of_proxy("/system.slice/bulkhead.service/proxy")


def test_what_an_entry_asks_for_reaches_the_kernel(bundle: Bundle) -> None:
    asked = int(PolicyFlag.MTLS) | 5
    words = array("I", bundle.policy_entries)
    words[FLAGS::4] = array("I", [asked] * (len(words) // 4))
    table = policy_table(replace(bundle, policy_entries=words.tobytes()), {info.name: 1 for info in bundle.rules()})
    assert table.count
    assert set(array("I", table.values)[FLAGS::4]) == {asked}

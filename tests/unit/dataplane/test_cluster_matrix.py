"""Matrices of clusters: who is one party, what native policies say of pods, and how much is written how fast."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

import pytest

from bulkhead.abi import Direction
from bulkhead.dataplane import bundle
from bulkhead.dataplane.cluster import ResolvedCluster, resolve_cluster
from bulkhead.dataplane.cluster_checks import judged_cluster
from bulkhead.dataplane.cluster_inventory import parse_cluster
from bulkhead.dataplane.cluster_matrix import cluster_matrix, tables
from bulkhead.dataplane.cluster_tables import compile_cluster
from bulkhead.dataplane.compile import lookup
from bulkhead.dataplane.matrix import parse_ports
from bulkhead.dataplane.resolve import HOST, Limits
from bulkhead.errors import Loc, PolicyError
from bulkhead.identity.registry import assign_parties
from bulkhead.policy.parse import parse
from bulkhead.policy.source import SourceFile, Sources

NOW = datetime(2026, 7, 1, tzinfo=UTC)
REPOSITORY = "apiVersion: bulkhead/v1alpha1\nkind: Repository\ntrustDomain: example.org\n"
ISOLATED = (
    "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\n"
    "spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/31}}], ports: [{port: 80}]}]}\n"
)
ACCEPTED = (
    "---\napiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: c}\n"
    "spec: {tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: "
    "[{name: in, action: Accept, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}}]}]}\n"
)
NATIVE = (
    "apiVersion: bulkhead/v1alpha1\nkind: Policy\nmetadata: {name: shop}\nworkloads:\n"
    "  web: {match: {namespace: shop, labels: {app: web}}}\n  db: {match: {namespace: shop, labels: {app: db}}}\n"
    "externals:\n  office: {cidr: [192.0.2.0/24]}\n"
    "allow:\n  - {name: web-db, from: web, to: db, ports: [5432]}\n"
    "  - {name: in, from: office, to: web, ports: [443]}\n"
)


def pod(name: str, app: str, *addresses: str, **spec: object) -> dict[str, object]:
    return {
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": app}},
        "spec": spec,
        "status": {"podIPs": [{"ip": address} for address in addresses]},
    }


PODS = (
    pod("web-1", "web", "10.0.0.1", "fd00::1", nodeName="one"),
    pod("web-2", "web", "10.0.0.2", "fd00::2", nodeName="one"),
    pod("db", "db", "10.0.0.3"),
    pod("other", "other", "10.0.0.4"),
    pod("agent", "web", "172.16.0.1", nodeName="one", hostNetwork=True),
)


def resolved(*texts: str, pods: tuple[dict[str, object], ...] = PODS) -> ResolvedCluster:
    files = [SourceFile("bulkhead.yaml", "0", REPOSITORY.encode())]
    files += [SourceFile(f"{number}.yaml", str(number), text.encode()) for number, text in enumerate(texts, 1)]
    cluster = parse_cluster(json.dumps({"kind": "List", "items": pods}).encode(), "cluster.json")
    return judged_cluster(parse(Sources("3f2c1ab", tuple(files))), cluster, NOW)


def rules(cluster: ResolvedCluster, ports: str) -> dict[tuple[object, ...], object]:
    addresses = {"desk": ip_address("192.0.2.9")}
    cells = cluster_matrix(cluster, parse_ports(ports), addresses).cells()
    return {(cell["from"], cell["to"], cell["port"], cell["family"]): cell["rule"] for cell in cells}


# Parties


def test_pods_that_no_policy_tells_apart_are_one_party_in_each_family_of_their_own() -> None:
    parties = resolved(ISOLATED).parties.pods
    assert parties["shop/web-1", 6] is parties["shop/web-2", 6]
    assert parties["shop/web-1", 4] is not parties["shop/web-2", 4]
    assert parties["shop/web-1", 4] is not parties["shop/web-1", 6]
    assert parties["shop/web-2", 4] is parties["shop/db", 4]


def test_without_policies_all_pods_are_one_party() -> None:
    assert len({party.identity for party in resolved().parties.pods.values()}) == 1


def test_a_pod_has_the_same_identity_whatever_else_a_commit_says_of_others() -> None:
    more = ISOLATED.replace("name: p,", "name: q,").replace("namespace: shop", "namespace: bank")
    one, other = resolved(ISOLATED), resolved(ISOLATED + "---\n" + more)
    assert one.parties.pods["shop/web-1", 6].identity == other.parties.pods["shop/web-1", 6].identity


def test_a_pod_on_its_nodes_network_is_the_node_to_every_policy() -> None:
    found = rules(resolved(ISOLATED), "80")
    assert found["shop/agent", "node:one", 80, 4] == "kubernetes/node"
    assert found["shop/agent", "shop/web-1", 80, 4] == "kubernetes/same-node"
    assert found["shop/agent", "shop/db", 80, 4] is None
    assert found["shop/db", "shop/agent", 80, 4] == "kubernetes/not-selected"


def test_parties_that_would_share_an_identity_are_refused() -> None:
    with pytest.raises(PolicyError) as caught:
        assign_parties(["pods of x", "pods of x"], Loc("k8s.yaml", 3))
    assert [(finding.code, str(finding.loc)) for finding in caught.value.diagnostics] == [("BH0602", "k8s.yaml:3")]


# Native policies and pods


def test_native_rules_reach_pods_by_their_workloads_and_nothing_else_does() -> None:
    found = rules(resolved(NATIVE), "5432,443")
    assert found["shop/web-1", "shop/db", 5432, 4] == "shop/web-db"
    assert found["shop/web-1", "shop/db", 443, 4] is None
    assert found["shop/other", "shop/db", 5432, 4] is None
    assert found["address:desk", "shop/web-2", 443, 4] == "shop/in"
    assert found["shop/web-2", "address:desk", 443, 4] is None
    assert found["shop/other", "address:desk", 443, 4] == "kubernetes/not-selected"


def test_native_rules_and_network_policies_add_up() -> None:
    found = rules(resolved(NATIVE, ISOLATED), "5432,80")
    assert found["shop/web-1", "shop/db", 5432, 4] == "shop/web-db"
    assert found["shop/web-1", "shop/other", 80, 4] is None
    assert found["shop/other", "shop/db", 80, 4] is None


def test_an_invariant_holds_against_what_dialects_open() -> None:
    never = 'never:\n  - {name: web-not-db, from: web, to: db, ports: ["6379"]}\n'
    opened = ACCEPTED + ACCEPTED.replace("name: c}", "name: out}").replace("ingress", "egress").replace("from:", "to:")
    opened = opened.replace("matchLabels: {app: web}", "matchExpressions: [{key: app, operator: Exists}]")
    resolved(NATIVE + never, ACCEPTED)
    with pytest.raises(PolicyError) as caught:
        resolved(NATIVE + never, opened)
    (finding,) = caught.value.diagnostics
    assert (finding.code, finding.loc.file) == ("BH0501", "2.yaml")
    assert "rule `cnp/c/in` lets `shop/web-1` reach `shop/db`, which `shop/web-not-db` forbids" in finding.message


@pytest.mark.parametrize(
    ("test", "dialect", "problem"),
    [
        ('{from: web, accept: ["db:5432"]}', ACCEPTED.replace("Accept", "Deny"), "`shop/web-1` does not reach"),
        ('{from: office, deny: ["web:80"]}', ACCEPTED.replace("app: web", "app: nobody"), ""),
        ('{from: world, deny: ["db:80"]}', ACCEPTED.replace("app: web", "app: other"), "`shop/other` reaches"),
    ],
)
def test_tests_are_held_against_what_dialects_decide(test: str, dialect: str, problem: str) -> None:
    native = f"{NATIVE}tests:\n  - {test}\n"
    if not problem:
        resolved(native, dialect)
        return
    with pytest.raises(PolicyError) as caught:
        resolved(native, dialect)
    assert [finding.code for finding in caught.value.diagnostics] == ["BH0502"]
    assert problem in str(caught.value)


def test_a_pod_that_two_workloads_select_with_equal_right_reaches_nothing() -> None:
    tied = NATIVE.replace("  db: {match", "  both: {match: {namespace: shop, labels: {tier: x}}}\n  db: {match")
    sources = Sources(
        "", (SourceFile("bulkhead.yaml", "0", REPOSITORY.encode()), SourceFile("a.yaml", "1", tied.encode()))
    )
    torn = pod("torn", "web")
    torn["metadata"] = {"name": "torn", "namespace": "shop", "labels": {"app": "web", "tier": "x"}}
    cluster = parse_cluster(json.dumps({"kind": "List", "items": [*PODS, torn]}).encode(), "cluster.json")
    found = rules(resolve_cluster(parse(sources), cluster, NOW), "5432")
    assert found["shop/web-1", "shop/db", 5432, 4] == "shop/web-db"
    assert found["shop/torn", "shop/db", 5432, 4] is found["shop/torn", "shop/other", 5432, 4] is None


# Tables


def test_tables_say_what_the_model_says_and_survive_the_bundle() -> None:
    cluster = resolved(ISOLATED, NATIVE)
    compiled, listed = tables(cluster, parse_ports("80,proto/47"))
    again = bundle.unpack(bundle.pack(compiled))
    assert again.entries == compiled.entries
    web, db = cluster.parties.pods["shop/web-1", 4], cluster.parties.pods["shop/db", 4]
    for protocol, port in ((6, 80), (6, 5432), (132, 3868), (47, 0)):
        entry = lookup(again, db.identity, Direction.INGRESS, web.identity, protocol, port)
        grant = cluster.allowance(db, Direction.INGRESS, web).at(protocol, port)
        assert (entry and entry.rule_id) == (grant and grant.rule_id)
    own_node = lookup(again, web.identity, Direction.EGRESS, HOST, 47, 0)
    assert own_node is not None and again.rules[own_node.rule_id].name == "kubernetes/same-node"
    assert len(listed) == len(again.workloads)


def test_tables_beyond_the_limits_are_refused() -> None:
    with pytest.raises(PolicyError, match="more than the 10 entries that fit"):
        compile_cluster(resolved(ISOLATED), limits=Limits(policy_entries=10))


# Output


def test_the_text_of_a_matrix_is_its_cells() -> None:
    cluster, ports = resolved(ISOLATED), parse_ports("80,3868/sctp,icmp/echo,proto/132")
    desk = {'a "desk"': ip_address("192.0.2.9")}
    written = json.loads("".join(cluster_matrix(cluster, ports, desk).json()))
    assert written["cells"] == [*cluster_matrix(cluster, ports, desk).cells()]
    assert written["endpoints"] == ["shop/web-1", "shop/web-2", "shop/db", "shop/other", "shop/agent", "node:one"]
    assert {(cell["port"], cell["protocol"]) for cell in written["cells"]} == {
        (80, "tcp"), (3868, "sctp"), ("echo", "icmp"), ("132", "proto/132")
    }  # fmt: skip
    lines = "".join(cluster_matrix(cluster, ports, desk).lines()).splitlines()
    assert len(lines) == len(written["cells"]) + 1


def test_an_empty_cluster_has_an_empty_matrix() -> None:
    found = cluster_matrix(resolved(pods=()), parse_ports("80"))
    assert json.loads("".join(found.json())) == {"endpoints": [], "cells": []}


def test_the_command_takes_a_cluster_for_its_inventory(tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "bulkhead.yaml").write_text(REPOSITORY)
    (tmp_path / "policy" / "shop.yaml").write_text(ISOLATED)
    (tmp_path / "cluster.json").write_text(json.dumps({"kind": "List", "items": [*PODS, {"kind": "ConfigMap"}]}))
    command = ["matrix", "--policy", str(tmp_path / "policy"), "--inventory", str(tmp_path / "cluster.json")]
    command += ["--ports", "80", "--address", "desk=192.0.2.9", "-o", "json"]
    program = [sys.executable, "-m", "bulkhead.cli.main", *command]
    answered = subprocess.run(program, capture_output=True, text=True, check=True)
    cells = json.loads(answered.stdout)["cells"]
    wanted = {"from": "shop/web-1", "to": "shop/db", "port": 80, "protocol": "tcp", "family": 4}
    assert {**wanted, "verdict": "allow", "rule": "netpol/shop/p/ingress-1"} in cells
    assert "1 of kind ConfigMap in the inventory are of no matter here" in answered.stderr

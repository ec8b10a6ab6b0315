"""What a commit changes between pods: who is grouped with whom, which rule is named, and which interval of ports."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta

import pytest

from bulkhead.dataplane.cluster import resolve_cluster
from bulkhead.dataplane.cluster_difference import ClusterReach, cluster_difference
from bulkhead.dataplane.cluster_inventory import parse_cluster
from bulkhead.policy.parse import parse
from bulkhead.policy.source import SourceFile, Sources

NOW = datetime(2026, 7, 1, tzinfo=UTC)
REPOSITORY = "apiVersion: bulkhead/v1alpha1\nkind: Repository\ntrustDomain: example.org\n"
NATIVE = (
    "apiVersion: bulkhead/v1alpha1\nkind: Policy\nmetadata: {name: shop}\nworkloads:\n"
    "  web: {match: {namespace: shop, labels: {app: web}}}\n  db: {match: {namespace: shop, labels: {app: db}}}\n"
)

SECONDS_MAX = 5.0
"""For 200 pods and 100 policies before and after, reading them included."""

Told = tuple[str, list[str], list[str], list[tuple[int, int]], list[str]]


def pod(namespace: str, name: str, app: str, *addresses: str, node: str = "", **labels: str) -> dict[str, object]:
    return {
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": app, **labels}},
        "spec": {"nodeName": node},
        "status": {"podIPs": [{"ip": address} for address in addresses]},
    }


WEB = [pod("shop", f"web-7d9f8b6c5-{suffix}", "web", "10.0.0.1") for suffix in ("bcdfg", "hjklm", "npqrs")]
DB = [pod("shop", "db-0", "db", "10.0.0.9")]


def netpol(spec: str, name: str = "p", namespace: str = "shop") -> str:
    return (
        f"---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n"
        f"metadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )


def admin(spec: str, name: str = "a") -> str:
    return (
        f"---\napiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: {name}}}\n"
        f"spec: {{tier: Admin, priority: 1, subject: {{namespaces: {{}}}}, {spec}}}\n"
    )


def ingress(app: str, source: str, *ports: str) -> str:
    listed = ", ".join(f"{{port: {port}}}" for port in ports)
    rule = f"{{from: [{{podSelector: {{matchLabels: {{app: {source}}}}}}}], ports: [{listed}]}}"
    return f"{{podSelector: {{matchLabels: {{app: {app}}}}}, ingress: [{rule if ports else ''}]}}"


def changes(before: str, after: str, pods: list[dict[str, object]] | None = None) -> tuple[ClusterReach, ...]:
    listed = {"kind": "List", "items": [*WEB, *DB] if pods is None else pods}
    cluster = parse_cluster(json.dumps(listed).encode(), "cluster.json")
    sides = []
    for commit, text in (("0ld", before), ("e44", after)):
        files = (SourceFile("bulkhead.yaml", "0", REPOSITORY.encode()), SourceFile("k.yaml", commit, text.encode()))
        sides.append(resolve_cluster(parse(Sources(commit, files)), cluster, NOW))
    return cluster_difference(*sides)


def told(one: ClusterReach) -> Told:
    return (
        one.kind.value,
        [end.name for end in one.sources],
        [end.name for end in one.destinations],
        [(span.first - (6 << 16), span.last - (6 << 16)) for span in one.ports],
        [str(rule.name) for rule in one.rules],
    )


def test_a_commit_changes_nothing_about_itself() -> None:
    text = netpol(ingress("db", "web", "5432"))
    assert changes(text, text) == ()


def test_a_policy_written_in_another_way_changes_nothing() -> None:
    expressions = "{matchExpressions: [{key: app, operator: In, values: [db]}]}"
    before = ingress("db", "web", "80, endPort: 82")
    after = ingress("db", "web", "80", "81", "82").replace("{matchLabels: {app: db}}", expressions)
    assert changes(netpol(before), netpol(after, name="other")) == ()


def test_ports_gained_and_lost_are_intervals_with_the_rule_of_their_commit() -> None:
    before = netpol(ingress("db", "web", "8000, endPort: 8100"))
    after = netpol(ingress("db", "web", "8050, endPort: 8200"))
    gained, lost = changes(before, after)
    name = "netpol/shop/p/ingress-1"
    assert told(gained) == ("gained", ["shop/web (3 pods)"], ["shop/db (1 pod)"], [(8101, 8200)], [name])
    assert told(lost)[:4] == ("lost", ["shop/web (3 pods)"], ["shop/db (1 pod)"], [(8000, 8049)])
    assert [rule.loc.commit for rule in (*gained.rules, *lost.rules)] == ["e44", "0ld", "e44"]
    assert [(rule.kind, str(rule.name)) for rule in lost.rules] == [("accept", name), ("selects", "netpol/shop/p")]


def test_what_a_rule_denies_now_names_what_allowed_it_and_the_deny() -> None:
    before = netpol(ingress("db", "web", "5432"))
    deny = admin("ingress: [{name: shut, action: Deny, from: [{namespaces: {}}], ports: [{portNumber: {port: 5432}}]}]")
    found = {one.destinations[0].name: told(one) for one in changes(before, before + deny)}
    assert found["shop/db (1 pod)"][3:] == ([(5432, 5432)], ["netpol/shop/p/ingress-1", "cnp/a/shut"])
    # The pods of the web had no policy: what everybody's default allowed is denied as well.
    assert found["shop/web (3 pods)"][4] == ["kubernetes/not-selected", "cnp/a/shut"]


def test_what_nobody_allows_and_nothing_refuses_any_more_names_what_refused_it() -> None:
    (gained,) = changes(netpol(ingress("db", "web")), "")
    assert told(gained)[4] == ["kubernetes/not-selected", "netpol/shop/p"]
    assert [rule.loc.commit for rule in gained.rules[1:]] == ["0ld"]
    assert len(gained.ports) == 1
    assert (gained.ports[0].first, gained.ports[0].last) == (0, (1 << 24) - 1)


def test_a_pod_that_a_new_selector_moves_out_of_its_group_is_told_apart() -> None:
    pods = [*WEB[:2], pod("shop", "web-7d9f8b6c5-npqrs", "web", track="canary"), *DB]
    before = netpol(ingress("db", "web", "5432"))
    after = before.replace("from: [{podSelector: {matchLabels: {app: web}}}]",
                           "from: [{podSelector: {matchLabels: {app: web, track: canary}}}]")  # fmt: skip
    (lost,) = changes(before, after, pods)
    assert told(lost)[1:3] == (["shop/web (2 of 3 pods)"], ["shop/db (1 pod)"])
    assert lost.sources[0].members == ("shop/web-7d9f8b6c5-bcdfg", "shop/web-7d9f8b6c5-hjklm")


def test_a_whole_namespace_and_the_world_are_one_end_each() -> None:
    pods = [pod("shop", "web", "web"), pod("shop", "api", "api", tier="x"), pod("bank", "db", "db")]
    by_tier = netpol("{podSelector: {matchLabels: {tier: x}}, policyTypes: [Egress], egress: [{}]}", "tier")
    closed = netpol("{podSelector: {}}", namespace="bank")
    (lost,) = changes(by_tier, by_tier + closed, pods)
    assert [end.name for end in lost.sources] == ["shop/* (2 pods)", "world"]


def test_a_family_is_named_where_the_other_differs() -> None:
    pods = [pod("shop", "web", "web", "10.0.0.1", "fd00::1"), pod("shop", "db", "db", "10.0.0.2", "fd00::2")]
    closed = "{podSelector: {matchLabels: {app: db}}, ingress: [RULE]}"
    rule = "{from: [{ipBlock: {cidr: 10.0.0.1/32}}], ports: [{port: 80}]}"
    (gained,) = (
        one
        for one in changes(netpol(closed.replace("RULE", "")), netpol(closed.replace("RULE", rule)), pods)
        if one.sources[0].members
    )
    assert (gained.family, told(gained)[3]) == (4, [(80, 80)])


def test_a_longer_exception_is_neither_gained_nor_lost() -> None:
    def exception(until: datetime) -> str:
        rule = "from: web, to: db, ports: [5432], owner: a, ticket: T-1"
        return f"{NATIVE}exceptions:\n  - {{name: debug, {rule}, expires: {until.isoformat()}}}\n"

    (found,) = changes(exception(NOW + timedelta(hours=1)), exception(NOW + timedelta(hours=2)))
    assert told(found)[:4] == ("retimed", ["shop/web (3 pods)"], ["shop/db (1 pod)"], [(5432, 5432)])
    assert told(found)[4] == ["shop/debug"]


def test_a_workload_that_selects_pods_closes_them() -> None:
    found = changes("", NATIVE)
    assert {str(rule.name) for one in found for rule in one.rules if rule.kind == "selects"} == {"shop/web", "shop/db"}


def test_a_pod_and_its_node_are_never_said_to_change() -> None:
    node = {"kind": "Node", "metadata": {"name": "one"}, "status": {"addresses": []}}
    found = changes("", netpol("{podSelector: {}}"), [pod("shop", "web", "web", node="one"), node])
    assert all(end.name != "node:one" for one in found for end in one.sources)


def test_alike_changes_of_many_pods_are_one_row() -> None:
    pods = [pod("shop", name, "web", tier=name) for name in ("a", "b", "c")]
    apart = "".join(
        netpol(f"{{podSelector: {{matchLabels: {{tier: {one}}}}}, policyTypes: [Egress], egress: [{{}}]}}", one)
        for one in ("a", "b", "c")
    )
    deny = admin("ingress: [{name: shut, action: Deny, from: [{namespaces: {}}], ports: [{portNumber: {port: 22}}]}]")
    found = [one for one in changes(apart, apart + deny, pods) if one.sources[0].members]
    assert [[rule.name for rule in one.rules] for one in found] == [["kubernetes/not-selected", "cnp/a/shut"]]
    assert [end.name for end in found[0].sources] == ["shop/* (3 pods)"]


@pytest.mark.parametrize(
    ("names", "label"),
    [
        (("db-0", "db-1"), "shop/db (2 pods)"),
        (("exporter-bcdfg", "exporter-x7k2p"), "shop/exporter (2 pods)"),
        (("backup-29384756-x7k2p",), "shop/backup (1 pod)"),
        (("alone",), "shop/alone"),
    ],
)
def test_pods_are_called_by_what_made_them(names: tuple[str, ...], label: str) -> None:
    pods = [pod("shop", name, "app") for name in names] + [pod("bank", "other", "other")]
    found = changes("", netpol("{podSelector: {}}"), pods)
    assert {end.name for one in found for end in one.destinations} == {label}


def test_a_large_cluster_is_compared_within_seconds() -> None:
    pods = [
        pod(f"ns{number % 10}", f"app{number // 10}-0", f"app{number // 10}", f"10.0.0.{number}", f"fd00::{number}")
        for number in range(200)
    ]
    before, after = (
        "".join(
            netpol(
                ingress(f"app{number % 20}", f"app{(number + step) % 20}", str(8000 + number)),
                f"p{number}",
                f"ns{number % 10}",
            )
            for number in range(100)
        )
        for step in (1, 2)
    )
    began = time.process_time()
    found = changes(before, after, pods)
    assert time.process_time() - began < SECONDS_MAX
    assert {one.kind.value for one in found} == {"gained", "lost"}

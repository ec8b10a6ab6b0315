"""What the specifications of the Kubernetes policies promise, example by example, on three namespaces of three pods."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from ipaddress import ip_address

import pytest

from bulkhead.dataplane.cluster_checks import judged_cluster
from bulkhead.dataplane.cluster_inventory import Cluster, parse_cluster
from bulkhead.dataplane.cluster_matrix import cluster_matrix
from bulkhead.dataplane.matrix import parse_ports
from bulkhead.policy.parse import parse
from bulkhead.policy.source import SourceFile, Sources

NOW = datetime(2026, 7, 1, tzinfo=UTC)
REPOSITORY = "apiVersion: bulkhead/v1alpha1\nkind: Repository\ntrustDomain: example.org\n"
PORTS = "80,81,443,53/udp,80/udp,3868/sctp,icmp/echo,proto/47"
NODES = ("one", "two")
ADDRESSES = {"ext": ip_address("192.0.2.7"), "six": ip_address("2001:db8::7")}


def three_by_three() -> Cluster:
    """Pods `a`, `b`, `c` in `x`, `y`, `z`, of both families, with `x/a` on the node `one` and all others on `two`."""
    items: list[dict[str, object]] = []
    for row, namespace in enumerate("xyz"):
        items.append({"kind": "Namespace", "metadata": {"name": namespace, "labels": {"ns": namespace}}})
        for column, name in enumerate("abc"):
            number = row * 3 + column
            ports = [{"name": "web", "containerPort": 80 + (name == "b")}]
            ports += [{"name": "dns", "containerPort": 53, "protocol": "UDP"}] if name == "c" else []
            items.append(
                {
                    "kind": "Pod",
                    "metadata": {"name": name, "namespace": namespace, "labels": {"pod": name}},
                    "spec": {"nodeName": NODES[number > 0], "containers": [{"name": "c", "ports": ports}]},
                    "status": {"podIPs": [{"ip": f"10.0.0.{number}"}, {"ip": f"fd00::{number}"}]},
                }
            )
    for number, name in enumerate(NODES):
        addresses = [{"type": "InternalIP", "address": f"172.16.0.{number}"}]
        labels = {"zone": name}
        items.append({"kind": "Node", "metadata": {"name": name, "labels": labels}, "status": {"addresses": addresses}})
    return parse_cluster(json.dumps({"kind": "List", "items": items}).encode(), "cluster.json")


def drawn(text: str) -> dict[str, str | None]:
    """By `FROM -> TO PORT` (with `v6` behind it for IPv6) the rule that allows it; None: it is refused."""
    files = (SourceFile("bulkhead.yaml", "1", REPOSITORY.encode()), SourceFile("k8s.yaml", "2", text.encode()))
    resolved = judged_cluster(parse(Sources("3f2c1ab", files)), three_by_three(), NOW)
    found = cluster_matrix(resolved, parse_ports(PORTS), ADDRESSES)
    return {
        f"{row.source} -> {row.destination} {one.port}/{one.protocol}{' v6' if one.family == 6 else ''}": one.rule
        for row in found.rows
        for one in row.answers
    }


def policy(spec: str, name: str = "p", namespace: str = "x") -> str:
    return (
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n"
        f"metadata: {{name: {name}, namespace: '{namespace}'}}\nspec: {spec}\n"
    )


def cluster_policy(tier: str, priority: int, spec: str, name: str = "c") -> str:
    head = "---\napiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\n"
    return head + f"metadata: {{name: {name}}}\nspec: {{tier: {tier}, priority: {priority}, {spec}}}\n"


def admin(priority: int, spec: str, name: str = "admin") -> str:
    head = "---\napiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\n"
    return head + f"metadata: {{name: {name}}}\nspec: {{priority: {priority}, {spec}}}\n"


def baseline(spec: str) -> str:
    head = "---\napiVersion: policy.networking.k8s.io/v1alpha1\nkind: BaselineAdminNetworkPolicy\n"
    return head + f"metadata: {{name: default}}\nspec: {{{spec}}}\n"


IN_X = "subject: {namespaces: {matchLabels: {ns: x}}}"
DENY_ALL_IN = "{podSelector: {}, policyTypes: [Ingress]}"
DENY_ALL_OUT = "{podSelector: {}, policyTypes: [Egress]}"
ALLOW_ALL_IN = "{podSelector: {}, ingress: [{}]}"
FROM_Y = "{action: %s, from: [{namespaces: {matchLabels: {ns: 'y'}}}]}"
FROM_ALL = "{action: %s, from: [{namespaces: {}}]}"

EXAMPLES = {
    "without any policy everything is allowed": (
        "",
        ["x/a -> y/b 80/tcp", "address:ext -> x/a 53/udp", "x/a -> address:six 80/tcp v6", "x/a -> z/c 47/proto/47"],
        [],
    ),
    "deny all ingress isolates the namespace, and only it": (
        policy(DENY_ALL_IN),
        ["x/a -> y/a 80/tcp", "y/a -> z/a 80/tcp", "x/a -> address:ext 443/tcp"],
        ["x/a -> x/b 80/tcp", "y/a -> x/a 80/tcp", "address:ext -> x/a 80/tcp", "y/a -> x/a echo/icmp",
         "y/a -> x/a 47/proto/47", "y/a -> x/a 3868/sctp", "y/a -> x/a 80/tcp v6", "node:two -> x/a 80/tcp"],
    ),
    "deny all egress": (
        policy(DENY_ALL_OUT),
        ["y/a -> x/a 80/tcp"],
        ["x/a -> x/b 80/tcp", "x/a -> y/a 80/tcp", "x/a -> address:ext 80/tcp", "x/a -> node:two 80/tcp"],
    ),
    "a pod reaches itself and its node whatever is denied": (
        policy("{podSelector: {}, policyTypes: [Ingress, Egress]}"),
        ["x/a -> x/a 80/tcp", "x/a -> node:one 80/tcp", "node:one -> x/a echo/icmp", "node:two -> x/b 443/tcp"],
        ["x/b -> node:one 80/tcp", "node:one -> x/b 443/tcp"],
    ),
    "allow all beats deny all, since allows add up": (
        policy(DENY_ALL_IN) + policy(ALLOW_ALL_IN, name="q"),
        ["y/a -> x/a 80/tcp", "address:ext -> x/a 3868/sctp", "y/a -> x/a 47/proto/47", "node:two -> x/a 80/tcp"],
        [],
    ),
    "an empty list of rules allows nothing": (
        policy("{podSelector: {matchLabels: {pod: a}}, ingress: [], egress: []}"),
        ["y/a -> x/b 80/tcp"],
        ["y/a -> x/a 80/tcp"],
    ),
    "policyTypes default to Ingress, and to Egress where there are egress rules": (
        policy("{podSelector: {}, egress: [{to: [{podSelector: {}}]}]}"),
        [],
        ["y/a -> x/a 80/tcp", "x/a -> x/b 80/tcp", "x/a -> y/a 80/tcp"],
    ),
    "egress alone when policyTypes says so": (
        policy("{podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}]}]}"),
        ["y/a -> x/a 80/tcp", "x/a -> x/b 80/tcp"],
        ["x/a -> y/a 80/tcp"],
    ),
    "podSelector alone means the policy's own namespace": (
        policy("{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]}"),
        ["x/b -> x/a 80/tcp"],
        ["y/b -> x/a 80/tcp", "x/c -> x/a 80/tcp"],
    ),
    "namespaceSelector alone means all pods of those namespaces": (
        policy("{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: 'y'}}}]}]}"),
        ["y/a -> x/a 80/tcp", "y/c -> x/b 443/tcp"],
        ["x/b -> x/a 80/tcp", "z/b -> x/a 80/tcp", "address:ext -> x/a 80/tcp"],
    ),
    "both selectors in one peer must match": (
        policy("{podSelector: {}, ingress: [{from: "
               "[{namespaceSelector: {matchLabels: {ns: 'y'}}, podSelector: {matchLabels: {pod: b}}}]}]}"),
        ["y/b -> x/a 80/tcp"],
        ["y/a -> x/a 80/tcp", "x/b -> x/a 80/tcp"],
    ),
    "two peers of a list add up": (
        policy("{podSelector: {}, ingress: [{from: "
               "[{namespaceSelector: {matchLabels: {ns: 'y'}}}, {podSelector: {matchLabels: {pod: b}}}]}]}"),
        ["y/a -> x/a 80/tcp", "x/b -> x/a 80/tcp"],
        ["z/b -> x/a 80/tcp"],
    ),
    "a namespace is selected by its name too": (
        policy("{podSelector: {}, ingress: [{from: "
               "[{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: z}}}]}]}"),
        ["z/a -> x/a 80/tcp"],
        ["y/a -> x/a 80/tcp"],
    ),
    "matchExpressions": (
        policy("{podSelector: {matchExpressions: [{key: pod, operator: NotIn, values: [b]}]}, ingress: [{from: "
               "[{namespaceSelector: {matchExpressions: [{key: ns, operator: In, values: ['x', z]}]}, "
               "podSelector: {matchExpressions: "
               "[{key: pod, operator: Exists}, {key: other, operator: DoesNotExist}]}}]}]}"),
        ["z/a -> x/a 80/tcp", "x/c -> x/a 80/tcp", "y/a -> x/b 80/tcp"],
        ["y/a -> x/a 80/tcp"],
    ),
    "ipBlock less except, by the address of whoever has it": (
        policy("{podSelector: {matchLabels: {pod: c}}, ingress: "
               "[{from: [{ipBlock: {cidr: 10.0.0.0/29, except: [10.0.0.4/30]}}, {ipBlock: {cidr: 192.0.2.0/24}}]}]}"),
        ["x/a -> x/c 80/tcp", "y/a -> x/c 80/tcp", "address:ext -> x/c 80/tcp"],
        ["y/b -> x/c 80/tcp", "z/c -> x/c 80/tcp", "x/a -> x/c 80/tcp v6"],
    ),
    "ports, ranges and protocols": (
        policy("{podSelector: {}, ingress: [{ports: "
               "[{port: 80, endPort: 90}, {protocol: UDP, port: 53}, {protocol: SCTP}]}]}"),
        ["y/a -> x/a 80/tcp", "y/a -> x/a 81/tcp", "y/a -> x/a 53/udp", "address:ext -> x/a 3868/sctp"],
        ["y/a -> x/a 443/tcp", "y/a -> x/a 80/udp", "y/a -> x/a echo/icmp", "y/a -> x/a 47/proto/47"],
    ),
    "a named port is what the receiving pod calls so": (
        policy("{podSelector: {}, ingress: [{ports: [{port: web}, {port: dns, protocol: UDP}]}]}"),
        ["y/a -> x/a 80/tcp", "y/a -> x/b 81/tcp", "y/a -> x/c 53/udp"],
        ["y/a -> x/b 80/tcp", "y/a -> x/a 81/tcp", "y/a -> x/a 53/udp"],
    ),
    "a named port in egress is the destination's": (
        policy("{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: web}]}]}"),
        ["x/a -> y/a 80/tcp", "x/a -> y/b 81/tcp"],
        ["x/a -> y/b 80/tcp", "x/a -> address:ext 80/tcp", "x/a -> node:two 80/tcp"],
    ),
    "both ends must allow": (
        policy("{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}}]}]}")
        + policy("{podSelector: {matchLabels: {pod: a}}, ingress: []}", namespace="y"),
        ["x/a -> y/b 80/tcp", "z/a -> y/b 80/tcp"],
        ["x/a -> y/a 80/tcp", "x/a -> address:ext 80/tcp"],
    ),
    "Deny of the admin tier beats NetworkPolicy": (
        cluster_policy("Admin", 10, f"{IN_X}, ingress: [{FROM_Y % 'Deny'}]") + policy(ALLOW_ALL_IN),
        ["z/a -> x/a 80/tcp"],
        ["y/a -> x/a 80/tcp", "y/a -> x/a 47/proto/47"],
    ),
    "Accept of the admin tier beats NetworkPolicy": (
        cluster_policy("Admin", 10, f"{IN_X}, ingress: [{FROM_Y % 'Accept'}]") + policy(DENY_ALL_IN),
        ["y/a -> x/a 80/tcp"],
        ["z/a -> x/a 80/tcp"],
    ),
    "lower priorities are asked first, whatever the order of files": (
        cluster_policy("Admin", 20, f"{IN_X}, ingress: [{FROM_ALL % 'Deny'}]", name="late")
        + cluster_policy("Admin", 10, f"{IN_X}, ingress: [{FROM_Y % 'Accept'}]", name="early"),
        ["y/a -> x/a 80/tcp", "address:ext -> x/a 80/tcp"],
        ["z/a -> x/a 80/tcp"],
    ),
    "the first rule of a policy that matches decides": (
        cluster_policy("Admin", 10, f"{IN_X}, ingress: [{FROM_Y % 'Accept'}, {FROM_ALL % 'Deny'}]"),
        ["y/a -> x/a 80/tcp"],
        ["z/a -> x/a 80/tcp"],
    ),
    "Pass leaves it to NetworkPolicy, past what would deny": (
        cluster_policy("Admin", 10, f"{IN_X}, ingress: [{FROM_Y % 'Pass'}, {FROM_ALL % 'Deny'}]")
        + policy("{podSelector: {matchLabels: {pod: a}}, ingress: []}"),
        ["y/a -> x/b 80/tcp"],
        ["y/a -> x/a 80/tcp", "z/a -> x/b 80/tcp"],
    ),
    "Baseline is asked where no NetworkPolicy selects the pod": (
        cluster_policy("Baseline", 10, f"{IN_X}, ingress: [{FROM_ALL % 'Deny'}]")
        + policy("{podSelector: {matchLabels: {pod: a}}, ingress: [{}]}"),
        ["y/a -> x/a 80/tcp", "address:ext -> x/b 80/tcp"],
        ["y/a -> x/b 80/tcp"],
    ),
    "Pass skips Baseline when NetworkPolicy decides, and not when none does": (
        cluster_policy("Admin", 10, f"{IN_X}, ingress: [{FROM_Y % 'Pass'}]")
        + cluster_policy("Baseline", 10, f"{IN_X}, ingress: [{FROM_ALL % 'Deny'}]", name="d")
        + policy("{podSelector: {matchLabels: {pod: a}}, ingress: [{}]}"),
        ["y/a -> x/a 80/tcp"],
        ["y/a -> x/b 80/tcp"],
    ),
    "a rule of the admin tier decides for its ports alone": (
        cluster_policy("Admin", 10, f"{IN_X}, ingress: [{{action: Deny, from: [{{namespaces: {{}}}}], "
                       "protocols: [{tcp: {destinationPort: {number: 80}}}]}]"),
        ["y/a -> x/a 81/tcp", "y/a -> x/a 80/udp"],
        ["y/a -> x/a 80/tcp"],
    ),
    "nodes and networks as peers of egress": (
        cluster_policy("Admin", 10, f"{IN_X}, egress: ["
                       "{action: Accept, to: [{nodes: {matchLabels: {zone: two}}}]}, "
                       "{action: Deny, to: [{networks: [0.0.0.0/0]}]}]"),
        ["x/a -> node:two 80/tcp", "x/a -> node:one 80/tcp", "x/a -> address:six 80/tcp v6", "x/a -> y/a 80/tcp v6"],
        ["x/b -> node:one 80/tcp", "x/a -> address:ext 80/tcp", "x/a -> y/a 80/tcp"],
    ),
    "AdminNetworkPolicy and BaselineAdminNetworkPolicy": (
        admin(5, f"{IN_X}, ingress: [{FROM_Y % 'Allow'}, "
              "{action: Deny, from: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {pod: b}}}}]}]")
        + baseline(f"{IN_X}, ingress: [{FROM_ALL % 'Deny'}]")
        + policy("{podSelector: {matchLabels: {pod: c}}, ingress: [{}]}"),
        ["y/b -> x/a 80/tcp", "z/a -> x/c 80/tcp"],
        ["z/b -> x/c 80/tcp", "z/a -> x/a 80/tcp"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "allowed", "refused"), EXAMPLES.values(), ids=EXAMPLES.keys())
def test_the_specification(text: str, allowed: list[str], refused: list[str]) -> None:
    found = drawn(text)
    assert [cell for cell in allowed if found[cell] is None] == []
    assert [(cell, found[cell]) for cell in refused if found[cell] is not None] == []


def test_a_cell_names_the_rule_that_allows_it_at_the_destination() -> None:
    found = drawn(
        policy("{podSelector: {}, ingress: [{from: [{podSelector: {}}]}, {ports: [{port: 80}]}]}")
        + policy("{podSelector: {}, policyTypes: [Egress], egress: [{}]}", name="out", namespace="z")
    )
    assert found["x/b -> x/a 80/tcp"] == "netpol/x/p/ingress-1"
    assert found["y/a -> x/a 80/tcp"] == "netpol/x/p/ingress-2"
    assert found["y/a -> x/a 81/tcp"] is None
    assert found["x/a -> y/a 80/tcp"] == found["z/a -> y/a 80/tcp"] == "kubernetes/not-selected"
    assert found["z/a -> address:ext 80/tcp"] == found["z/a -> node:one 80/tcp"] == "netpol/z/out/egress-1"
    assert found["x/a -> x/a 80/tcp"] == "kubernetes/self"
    assert found["node:one -> x/a 81/tcp"] == "kubernetes/same-node"
    assert found["node:one -> node:two 80/tcp"] == "kubernetes/node"


def test_of_equal_priorities_the_policy_that_comes_first_is_asked_first() -> None:
    denies = cluster_policy("Admin", 10, f"{IN_X}, ingress: [{FROM_ALL % 'Deny'}]", name="z")
    accepts = cluster_policy("Admin", 10, f"{IN_X}, ingress: [{FROM_ALL % 'Accept'}]", name="a")
    assert drawn(denies + accepts)["y/a -> x/a 80/tcp"] is None
    assert drawn(accepts + denies)["y/a -> x/a 80/tcp"] is not None

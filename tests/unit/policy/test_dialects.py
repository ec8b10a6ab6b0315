"""What the Kubernetes dialects say, defaults above all."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest
import yaml

from bulkhead.policy.cluster import (
    Action,
    ClusterPolicy,
    ClusterPort,
    LabelSelector,
    NetworkPeer,
    NodePeer,
    Operator,
    PodPeer,
    Requirement,
    Tier,
    level_of,
)
from bulkhead.policy.model import Level
from bulkhead.policy.parse import parse
from bulkhead.policy.read import read_file

NETPOL = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: web}\nspec: "
ANP = (
    "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\nmetadata: {name: base}\n"
    "spec: {priority: 10, subject: {namespaces: {}}, "
)
CNP = (
    "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: base}\n"
    "spec: {tier: Admin, priority: 10, subject: {namespaces: {}}, "
)

ALL = LabelSelector()
TCP, UDP, SCTP = 6, 17, 132


def labels(**pairs: str) -> LabelSelector:
    return LabelSelector(tuple(Requirement(key, Operator.IN, (value,)) for key, value in pairs.items()))


@pytest.fixture
def policies(parsed):
    """The policies of one file."""

    def read(text: str) -> tuple[ClusterPolicy, ...]:
        return parsed(files={"cluster.yaml": text}).cluster_policies

    return read


@pytest.fixture
def policy(policies):
    """The one policy of a file."""

    def read(text: str) -> ClusterPolicy:
        (only,) = policies(text)
        return only

    return read


# --- NetworkPolicy


@pytest.mark.parametrize(
    ("spec", "ingress", "egress"),
    [
        ("{}", 0, None),
        ("{podSelector: {}}", 0, None),
        ("{ingress: []}", 0, None),
        ("{egress: []}", 0, None),
        ("{podSelector: , ingress: , egress: null}", 0, None),
        ("{policyTypes: [Ingress, Egress], ingress: ~, egress: }", 0, 0),
        ("{policyTypes: []}", 0, None),
        ("{policyTypes: [], egress: [{}]}", 0, 1),
        ("{ingress: [{}]}", 1, None),
        ("{egress: [{}]}", 0, 1),
        ("{ingress: [{}], egress: [{}, {}]}", 1, 2),
        ("{policyTypes: [Ingress]}", 0, None),
        ("{policyTypes: [Egress]}", None, 0),
        ("{policyTypes: [Ingress, Egress]}", 0, 0),
        ("{policyTypes: [Egress], egress: [{}]}", None, 1),
        ("{policyTypes: [Ingress], ingress: [{}], egress: [{}]}", 1, None),
        ("{policyTypes: [Egress], ingress: [{}], egress: []}", None, 0),
    ],
)
def test_directions_that_a_networkpolicy_is_about(spec, ingress, egress, policy):
    read = policy(NETPOL + spec)
    assert (read.ingress is None, read.egress is None) == (ingress is None, egress is None)
    assert (len(read.ingress or ()), len(read.egress or ())) == (ingress or 0, egress or 0)


@pytest.mark.parametrize(
    ("selector", "requirements"),
    [
        ("{}", ()),
        ("{matchLabels: {}, matchExpressions: []}", ()),
        ("{matchLabels: {app.kubernetes.io/name: web}}", [("app.kubernetes.io/name", "In", ("web",))]),
        ('{matchLabels: {"node-role": ""}}', [("node-role", "In", ("",))]),
        ("{matchLabels: {a: b, c: d}}", [("a", "In", ("b",)), ("c", "In", ("d",))]),
        ("{matchExpressions: [{key: a, operator: In, values: [b, c]}]}", [("a", "In", ("b", "c"))]),
        ("{matchExpressions: [{key: a, operator: NotIn, values: [b]}]}", [("a", "NotIn", ("b",))]),
        ("{matchExpressions: [{key: a, operator: Exists}]}", [("a", "Exists", ())]),
        ("{matchExpressions: [{key: a, operator: Exists, values: []}]}", [("a", "Exists", ())]),
        ("{matchExpressions: [{key: a, operator: DoesNotExist}]}", [("a", "DoesNotExist", ())]),
        (
            "{matchLabels: {a: b}, matchExpressions: [{key: c, operator: Exists}]}",
            [("a", "In", ("b",)), ("c", "Exists", ())],
        ),
    ],
)
def test_label_selectors(selector, requirements, policy):
    expected = tuple(Requirement(key, Operator(operator), values) for key, operator, values in requirements)
    assert policy(f"{NETPOL}{{podSelector: {selector}}}").subject == PodPeer(None, LabelSelector(expected))


@pytest.mark.parametrize(
    ("rule", "peers"),
    [
        ("{}", None),
        ("{from: []}", None),
        ("{ports: [{port: 80}]}", None),
        ("{from: [{podSelector: {}}]}", [PodPeer(None, ALL)]),
        ("{from: [{podSelector: {matchLabels: {a: b}}}]}", [PodPeer(None, labels(a="b"))]),
        ("{from: [{namespaceSelector: {}}]}", [PodPeer(ALL, ALL)]),
        ("{from: [{namespaceSelector: {matchLabels: {a: b}}}]}", [PodPeer(labels(a="b"), ALL)]),
        (
            "{from: [{namespaceSelector: {matchLabels: {a: b}}, podSelector: {matchLabels: {c: d}}}]}",
            [PodPeer(labels(a="b"), labels(c="d"))],
        ),
        (
            "{from: [{namespaceSelector: {}}, {podSelector: {}}]}",
            [PodPeer(ALL, ALL), PodPeer(None, ALL)],
        ),
        ("{from: [{ipBlock: {cidr: 10.0.0.0/8}}]}", [NetworkPeer(ip_network("10.0.0.0/8"))]),
        (
            "{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 10.2.0.0/16]}}]}",
            [NetworkPeer(ip_network("10.0.0.0/8"), (ip_network("10.1.0.0/16"), ip_network("10.2.0.0/16")))],
        ),
        (
            '{from: [{ipBlock: {cidr: "fd00::/8", except: ["fd01::/16"]}}]}',
            [NetworkPeer(ip_network("fd00::/8"), (ip_network("fd01::/16"),))],
        ),
    ],
)
def test_peers_of_a_networkpolicy(rule, peers, policy):
    (read,) = policy(f"{NETPOL}{{ingress: [{rule}]}}").ingress
    assert read.peers == (None if peers is None else tuple(peers))


@pytest.mark.parametrize(
    ("ports", "expected"),
    [
        ("[]", None),
        ("[{}]", [ClusterPort(TCP)]),
        ("[{protocol: UDP}]", [ClusterPort(UDP)]),
        ("[{port: 80}]", [ClusterPort(TCP, 80, 80)]),
        ("[{port: 80, protocol: SCTP}]", [ClusterPort(SCTP, 80, 80)]),
        ("[{port: 8000, endPort: 8100}]", [ClusterPort(TCP, 8000, 8100)]),
        ("[{port: 8000, endPort: 8000, protocol: UDP}]", [ClusterPort(UDP, 8000, 8000)]),
        ("[{port: http}]", [ClusterPort(TCP, 0, 0, "http")]),
        ("[{port: dns-1, protocol: UDP}, {port: 1}]", [ClusterPort(UDP, 0, 0, "dns-1"), ClusterPort(TCP, 1, 1)]),
    ],
)
def test_ports_of_a_networkpolicy(ports, expected, policy):
    (read,) = policy(f"{NETPOL}{{egress: [{{ports: {ports}}}]}}").egress
    assert read.ports == (None if expected is None else tuple(expected))


def test_networkpolicy_without_a_namespace_is_of_the_default_one(policy):
    assert policy(NETPOL + "{}").namespace == "default"
    assert policy((NETPOL + "{}").replace("web}", "web, namespace: shop}")).qualified == "netpol/shop/web"


@pytest.mark.parametrize("name", ["a", "web.example.org", "1.2.3", "a" * 253])
def test_names_that_the_api_takes(name, policy):
    assert policy((NETPOL + "{}").replace("web}", f'"{name}"}}')).name == name


def test_networkpolicy_is_of_its_own_tier_and_accepts(policy):
    read = policy(NETPOL + "{ingress: [{}], egress: [{}]}")
    assert (read.tier, read.priority) == (Tier.NAMESPACE, 0)
    assert [(rule.name, rule.action) for rule in (*read.ingress, *read.egress)] == [
        ("ingress-1", Action.ACCEPT),
        ("egress-1", Action.ACCEPT),
    ]


# --- policies of the whole cluster


@pytest.mark.parametrize("priority", [0, 10, 1000])
def test_adminnetworkpolicy_has_a_priority(priority, policy):
    read = policy(ANP.replace("10", str(priority)) + "}")
    assert (read.tier, read.priority, read.namespace) == (Tier.ADMIN, priority, "")


def test_baselineadminnetworkpolicy_is_asked_last(policy):
    read = policy(
        "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: BaselineAdminNetworkPolicy\nmetadata: {name: default}\n"
        "spec: {subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}\n"
    )
    assert (read.tier, read.priority, read.qualified) == (Tier.BASELINE, 0, "banp/default")
    assert [rule.action for rule in read.ingress] == [Action.DENY]


@pytest.mark.parametrize("version", ["v1alpha2", "v1beta1"])
@pytest.mark.parametrize(("word", "tier"), [("Admin", Tier.ADMIN), ("Baseline", Tier.BASELINE)])
def test_clusternetworkpolicy_says_its_tier(version, word, tier, policy):
    read = policy(CNP.replace("v1alpha2", version).replace("Admin", word) + "}")
    assert (read.tier, read.qualified) == (tier, "cnp/base")


@pytest.mark.parametrize("head", [ANP, CNP])
@pytest.mark.parametrize("rules", ["", "ingress: [], egress: []"])
def test_a_direction_without_rules_is_none_of_a_cluster_policys_business(head, rules, policy):
    read = policy(head + rules + "}")
    assert (read.ingress, read.egress) == (None, None)


@pytest.mark.parametrize(
    ("head", "words"), [(ANP, ["Allow", "Deny", "Pass"]), (CNP, ["Accept", "Deny", "Pass"])], ids=["anp", "cnp"]
)
def test_actions_keep_their_order(head, words, policy):
    rules = ", ".join(f"{{action: {word}, from: [{{namespaces: {{}}}}]}}" for word in words)
    read = policy(f"{head}ingress: [{rules}]}}")
    assert [rule.action for rule in read.ingress] == [Action.ACCEPT, Action.DENY, Action.PASS]
    assert [rule.name for rule in read.ingress] == ["ingress-1", "ingress-2", "ingress-3"]


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        ("namespaces: {}", PodPeer(ALL, ALL)),
        ("namespaces: {matchLabels: {a: b}}", PodPeer(labels(a="b"), ALL)),
        ("pods: {namespaceSelector: {}, podSelector: {}}", PodPeer(ALL, ALL)),
        (
            "pods: {namespaceSelector: {matchLabels: {a: b}}, podSelector: {matchLabels: {c: d}}}",
            PodPeer(labels(a="b"), labels(c="d")),
        ),
    ],
)
@pytest.mark.parametrize("head", [ANP, CNP])
def test_subjects_of_cluster_policies(head, subject, expected, policy):
    read = policy(head.replace("subject: {namespaces: {}}", f"subject: {{{subject}}}") + "}")
    assert read.subject == expected


def test_clusternetworkpolicy_takes_pods_of_all_namespaces_when_it_names_none(policy):
    read = policy(CNP.replace("namespaces: {}", "pods: {podSelector: {matchLabels: {a: b}}}") + "}")
    assert read.subject == PodPeer(ALL, labels(a="b"))


@pytest.mark.parametrize(
    ("peers", "expected"),
    [
        ("{namespaces: {}}", [PodPeer(ALL, ALL)]),
        ("{pods: {namespaceSelector: {}, podSelector: {matchLabels: {a: b}}}}", [PodPeer(ALL, labels(a="b"))]),
        ("{nodes: {}}", [NodePeer(ALL)]),
        ("{nodes: {matchLabels: {a: b}}}", [NodePeer(labels(a="b"))]),
        (
            '{networks: [10.0.0.0/8, "fd00::/8"]}',
            [NetworkPeer(ip_network("10.0.0.0/8")), NetworkPeer(ip_network("fd00::/8"))],
        ),
        ("{nodes: {}}, {namespaces: {}}", [NodePeer(ALL), PodPeer(ALL, ALL)]),
    ],
)
@pytest.mark.parametrize("head", [ANP, CNP])
def test_peers_of_cluster_policies(head, peers, expected, policy):
    (rule,) = policy(f"{head}egress: [{{action: Deny, to: [{peers}]}}]}}").egress
    assert rule.peers == tuple(expected)
    assert rule.ports is None


RULE = "ingress: [{action: Deny, from: [{namespaces: {}}], "
ADMIN_PORTS = [
    ("{portNumber: {port: 80}}", ClusterPort(TCP, 80, 80)),
    ("{portNumber: {port: 53, protocol: UDP}}", ClusterPort(UDP, 53, 53)),
    ("{portRange: {start: 1, end: 65535}}", ClusterPort(TCP, 1, 65535)),
    ("{portRange: {start: 80, end: 90, protocol: SCTP}}", ClusterPort(SCTP, 80, 90)),
    ("{namedPort: http}", ClusterPort(None, 0, 0, "http")),
]


@pytest.mark.parametrize(("port", "expected"), ADMIN_PORTS)
@pytest.mark.parametrize("head", [ANP, CNP], ids=["anp", "cnp"])
def test_ports_of_cluster_policies(head, port, expected, policy):
    (rule,) = policy(f"{head}{RULE}ports: [{port}]}}]}}").ingress
    assert rule.ports == (expected,)


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        ("{tcp: {destinationPort: {number: 80}}}", ClusterPort(TCP, 80, 80)),
        ("{udp: {destinationPort: {number: 53}}}", ClusterPort(UDP, 53, 53)),
        ("{sctp: {destinationPort: {range: {start: 80, end: 90}}}}", ClusterPort(SCTP, 80, 90)),
        ("{destinationNamedPort: http}", ClusterPort(None, 0, 0, "http")),
    ],
)
def test_protocols_of_a_clusternetworkpolicy(protocol, expected, policy):
    (rule,) = policy(f"{CNP}{RULE}protocols: [{protocol}]}}]}}").ingress
    assert rule.ports == (expected,)


# --- all together


def test_rules_are_numbered_behind_the_native_ones_in_file_order(parsed):
    policy_set = parsed(
        "workloads:\n  web: {match: {unit: nginx.service}}\n"
        "allow:\n  - {name: in, from: any, to: web, ports: [443]}\n  - {name: out, from: web, to: any, ports: [443]}\n",
        {
            "b.yaml": NETPOL + "{egress: [{}], ingress: [{}, {}]}\n",
            "a.yaml": ANP + RULE.replace("Deny, from", "Deny, name: ssh, from") + "}]}\n",
        },
    )
    rules = [
        rule for policy in policy_set.cluster_policies for rule in (*(policy.ingress or ()), *(policy.egress or ()))
    ]
    assert [rule.rule_id for rule in policy_set.rules] == [1, 2]
    assert [(rule.rule_id, rule.name) for rule in rules] == [
        (3, "ssh"),
        (4, "ingress-1"),
        (5, "ingress-2"),
        (6, "egress-1"),
    ]


def test_places_are_those_of_name_and_rule_at_the_commit(sources_of):
    text = NETPOL.replace("spec: ", "spec:\n") + "  ingress:\n    - from:\n        - podSelector: {}\n"
    sources = replace(sources_of({"cluster.yaml": text}), commit="0123456789abcdef0123456789abcdef01234567")
    (policy,) = parse(sources).cluster_policies
    assert str(policy.loc).startswith("cluster.yaml:3:18@0123")
    assert str(policy.ingress[0].loc).startswith("cluster.yaml:6:7@0123")


def test_kinds_of_different_objects_may_share_a_name(policies):
    text = (
        NETPOL
        + "{}\n---\n"
        + NETPOL.replace("web}", "web, namespace: shop}")
        + "{}\n---\n"
        + ANP
        + "}\n---\n"
        + CNP
        + "}\n"
    )
    assert [each.qualified for each in policies(text)] == [
        "netpol/default/web",
        "netpol/shop/web",
        "anp/base",
        "cnp/base",
    ]


def test_level_of_a_kind_follows_whom_it_binds(policy):
    assert policy(NETPOL + "{}").level is Level.APP
    assert policy(CNP + "}").level is Level.GUARDRAIL
    assert level_of("BaselineAdminNetworkPolicy") is level_of("AdminNetworkPolicy") is Level.GUARDRAIL


@pytest.mark.parametrize(
    ("rule", "peers", "ports"),
    [
        ("{}", "everybody", "any"),
        ("{from: [{podSelector: {}}]}", "all pods", "any"),
        (
            "{from: [{podSelector: {matchLabels: {app: web}}, namespaceSelector: {matchLabels: {team: a}}}]}",
            "pods app=web in namespaces team=a",
            "any",
        ),
        (
            "{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}, {namespaceSelector: {}}]}",
            "10.0.0.0/8 except 10.1.0.0/16; all pods in all namespaces",
            "any",
        ),
        (
            "{ports: [{port: 80}, {port: 443, endPort: 445, protocol: UDP}, {port: http}, {protocol: SCTP}]}",
            "everybody",
            "80, 443-445/udp, http, any/sctp",
        ),
        (
            "{from: [{podSelector: {matchExpressions: [{key: a, operator: NotIn, values: [b, c, d, e]}]}}]}",
            "pods a notin (b, c, d, 1 more)",
            "any",
        ),
        (
            "{from: [{podSelector: {matchExpressions: [{key: f, operator: DoesNotExist}]}}]}",
            "pods !f",
            "any",
        ),
        (
            "{from: [{podSelector: {matchExpressions: [{key: g, operator: Exists}], matchLabels: {a: b}}}]}",
            "pods a=b,g",
            "any",
        ),
        (
            "{from: [{podSelector: {matchExpressions: [{key: h, operator: NotIn, values: [i]}]}}]}",
            "pods h!=i",
            "any",
        ),
        ("{from: [" + "{podSelector: {}}, " * 5 + "]}", "all pods; all pods; all pods; 2 more", "any"),
        (
            "{ports: [" + ", ".join(f"{{port: {n}}}" for n in range(1, 9)) + "]}",
            "everybody",
            "1, 2, 3, 4, 5, 6, 2 more",
        ),
    ],
)
def test_rules_are_shown_in_a_few_words(rule, peers, ports, policy):
    (read,) = policy(f"{NETPOL}{{ingress: [{rule}]}}").ingress
    assert (read.peers_text, read.ports_text) == (peers, ports)


def test_nodes_and_ports_of_any_protocol_are_shown(policy):
    (read,) = policy(f"{ANP}egress: [{{action: Deny, to: [{{nodes: {{matchLabels: {{a: b}}}}}}]}}]}}").egress
    assert read.peers_text == "nodes a=b"
    (read,) = policy(f"{ANP}{RULE}ports: [{{namedPort: http}}]}}]}}").ingress
    assert read.ports_text == "http/any"


# --- as kubectl prints them

EXPORT = """\
apiVersion: v1
items:
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata:
    annotations:
      kubectl.kubernetes.io/last-applied-configuration: |
        {"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"annotations":{},"name":"db"},FILLER}
    creationTimestamp: 2024-01-01T00:00:00Z
    generation: 1
    labels:
      enabled: "true"
    managedFields:
    - apiVersion: networking.k8s.io/v1
      fieldsType: FieldsV1
      fieldsV1:
        f:metadata:
          f:annotations:
            .: {}
            f:kubectl.kubernetes.io/last-applied-configuration: {}
        f:spec:
          f:ingress: {}
      manager: kubectl-client-side-apply
      operation: Update
      time: "2024-01-01T00:00:00Z"
    name: db
    namespace: shop
    resourceVersion: "4711"
    uid: 0f9a6c1e-2b7a-4c3d-9e8f-001122334455
  spec:
    ingress:
    - from:
      - podSelector:
          matchLabels:
            app: api
      ports:
      - port: 5432
        protocol: TCP
    podSelector:
      matchLabels:
        app: db
    policyTypes:
    - Ingress
  status: {}
- apiVersion: policy.networking.k8s.io/v1alpha2
  kind: ClusterNetworkPolicy
  metadata:
    creationTimestamp: null
    name: cluster-default
  spec:
    priority: 500
    subject:
      namespaces: {}
    tier: Baseline
    ingress:
    - action: Deny
      from:
      - namespaces: {}
      name: nobody else
  status:
    conditions: []
kind: List
metadata:
  resourceVersion: ""
""".replace("FILLER", '"spec":"' + "x" * 5000 + '"')


def test_export_of_kubectl_is_read_as_it_is(policies):
    db, default = policies(EXPORT)
    assert (db.qualified, db.subject, db.egress) == ("netpol/shop/db", PodPeer(None, labels(app="db")), None)
    assert [(rule.peers_text, rule.ports_text) for rule in db.ingress] == [("pods app=api", "5432")]
    assert (default.qualified, default.tier, default.priority) == ("cnp/cluster-default", Tier.BASELINE, 500)
    assert [(rule.name, rule.action) for rule in default.ingress] == [("nobody else", Action.DENY)]


def test_typed_list_needs_not_repeat_what_its_items_are(policies):
    text = (
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicyList\nmetadata: {resourceVersion: '1'}\nitems:\n"
        "  - {metadata: {name: a}, spec: {}}\n"
        "  - {apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: b}, spec: {}}\n"
    )
    assert [each.name for each in policies(text)] == ["a", "b"]


def test_json_is_yaml_too(policy):
    text = (
        '{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "web"}, '
        '"spec": {"ingress": [{"ports": [{"port": 80, "protocol": "TCP"}]}], "policyTypes": ["Ingress"]}}'
    )
    assert policy(text).ingress[0].ports == (ClusterPort(TCP, 80, 80),)


FULL = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: api
  namespace: shop
spec:
  podSelector:
    matchExpressions:
      - key: app
        operator: In
        values: [api]
  policyTypes: [Ingress, Egress]
  ingress:
    - from:
        - namespaceSelector:
            matchLabels: {}
          podSelector: {}
      ports:
        - port: 8080
          endPort: 8090
          protocol: TCP
  egress:
    - to:
        - ipBlock:
            cidr: 192.0.2.0/24
            except: [192.0.2.128/25]
---
apiVersion: policy.networking.k8s.io/v1alpha1
kind: AdminNetworkPolicy
metadata:
  name: guard
spec:
  priority: 10
  subject:
    pods:
      namespaceSelector: {}
      podSelector: {}
  ingress:
    - name: no-ssh
      action: Deny
      from:
        - namespaces: {}
      ports:
        - portNumber:
            port: 22
        - portRange:
            start: 5000
            end: 6000
            protocol: UDP
  egress:
    - action: Pass
      to:
        - nodes: {}
        - networks: [192.0.2.0/24]
---
apiVersion: policy.networking.k8s.io/v1beta1
kind: ClusterNetworkPolicy
metadata:
  name: guard
spec:
  tier: Admin
  priority: 10
  subject:
    namespaces: {}
  egress:
    - name: dns
      action: Accept
      to:
        - pods:
            podSelector: {}
      protocols:
        - udp:
            destinationPort:
              number: 53
        - tcp:
            destinationPort:
              range:
                start: 53
                end: 54
        - destinationNamedPort: dns
"""


def test_full_example_is_read_whole(policies):
    api, guard, lockdown = policies(FULL)
    assert api.ingress[0].peers_text == "all pods in all namespaces"
    assert api.egress[0].peers_text == "192.0.2.0/24 except 192.0.2.128/25"
    assert [rule.name for rule in (*guard.ingress, *guard.egress)] == ["no-ssh", "egress-1"]
    assert guard.ingress[0].ports_text == "22, 5000-6000/udp"
    assert lockdown.egress[0].ports_text == "53/udp, 53-54, dns/any"


KEYS = [match.span(1) for match in re.finditer(r"(?m)^[ -]*((?!kind:)[A-Za-z]+):", FULL)]


@pytest.mark.parametrize("span", KEYS, ids=lambda span: f"{FULL.count(chr(10), 0, span[0]) + 1}-{FULL[slice(*span)]}")
def test_no_misspelt_key_is_passed_over(span, refused):
    found = refused(files={"cluster.yaml": FULL[: span[1]] + "X" + FULL[span[1] :]})
    line = FULL.count("\n", 0, span[0]) + 1
    assert any(each.loc.file == "cluster.yaml" and each.loc.line == line for each in found)


ODD = [None, True, 5, -1, "", "x", "a/b", [], {}, [[]], [{}], [None], {"a": "b"}, {"": {}}]


def with_one_replaced(value: Any, odd: object) -> Iterator[Any]:
    """The value as often as it has parts, each time with another part replaced."""
    yield odd
    if isinstance(value, dict):
        for key, part in value.items():
            yield from ({**value, key: changed} for changed in with_one_replaced(part, odd))
    if isinstance(value, list):
        for place, part in enumerate(value):
            yield from ([*value[:place], changed, *value[place + 1 :]] for changed in with_one_replaced(part, odd))


@pytest.mark.parametrize("odd", ODD, ids=repr)
@pytest.mark.parametrize("document", list(yaml.safe_load_all(FULL)), ids=lambda document: document["kind"])
def test_odd_values_are_refused_or_read_and_never_lost(document, odd):
    for spec in with_one_replaced(document["spec"], odd):
        text = json.dumps({**document, "spec": spec})
        draft = read_file("cluster.yaml", text.encode())
        assert draft.diagnostics or len(draft.cluster_policies) == 1, text

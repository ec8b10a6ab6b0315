"""What is refused in Kubernetes policies, and where the finger points."""

from __future__ import annotations

import pytest

NETPOL = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: web}\n"
ANP = (
    "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\nmetadata: {name: base}\nspec:\n"
    "  priority: 10\n  subject: {namespaces: {}}\n"
)
BANP = ANP.replace("  priority: 10\n", "").replace("Admin", "BaselineAdmin").replace("base}", "default}")
CNP = (
    "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: base}\nspec:\n"
    "  tier: Admin\n  priority: 10\n  subject: {namespaces: {}}\n"
)
SELECT = NETPOL + "spec: {podSelector: "
FROM = NETPOL + "spec: {ingress: [{from: ["
PORTS = NETPOL + "spec: {ingress: [{ports: ["
ANP_IN = ANP + "  ingress:\n    - {action: Deny, from: [{namespaces: {}}], "
CNP_IN = CNP + "  ingress:\n    - {action: Deny, from: [{namespaces: {}}], "
CNP_OUT = CNP + "  egress:\n    - {action: Accept, to: "

REFUSALS = [
    # what it is
    ("apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n", "BH0203", 1, 13),
    ("apiVersion: extensions/v1beta1\nkind: NetworkPolicy\nmetadata: {name: web}\n", "BH0203", 1, 13),
    ("apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: web}\n", "BH0203", 1, 13),
    ("apiVersion: networking.k8s.io/v1\nmetadata: {name: web}\nspec: {}\n", "BH0206", 1, 1),
    ("apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: web}\n", "BH1201", 2, 7),
    ("apiVersion: networking.k8s.io/v1\nkind: NetworkPolcy\nmetadata: {name: web}\n", "BH1201", 2, 7),
    ("apiVersion: networking.k8s.io/v1beta1\nkind: NetworkPolicy\nmetadata: {name: web}\n", "BH1201", 1, 13),
    (ANP.replace("v1alpha1", "v1alpha2"), "BH1201", 1, 13),
    (CNP.replace("v1alpha2", "v1alpha1"), "BH1201", 1, 13),
    ("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: web}\n", "BH1201", 2, 7),
    ("apiVersion: v1\nkind: List\nitems:\n  - {apiVersion: v1, kind: List, items: []}\n", "BH1201", 4, 28),
    ("apiVersion: v1\nkind: List\nitems:\n  - {apiVersion: apps/v1, kind: Deployment}\n", "BH1201", 4, 33),
    ("apiVersion: v1\nkind: List\nitems:\n  - {kind: NetworkPolicy, metadata: {name: web}}\n", "BH0206", 4, 5),
    ("apiVersion: v1\nkind: List\n", "BH0206", 1, 1),
    ("apiVersion: v1\nkind: List\nmetadata: {continue: abc}\nitems: []\n", "BH0205", 3, 12),
    (
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicyList\nitems:\n  - {apiVersion: v1, kind: Pod}\n",
        "BH1201",
        4,
        28,
    ),
    # around the specification
    (NETPOL, "BH0206", 1, 1),
    (NETPOL + "spec:\n", "BH0207", 4, 6),
    (NETPOL + "spec: {}\nstatu: {}\n", "BH0205", 5, 1),
    (NETPOL.replace("web}", "web, label: {}}") + "spec: {}\n", "BH0205", 3, 23),
    (NETPOL.replace("name: web", "generateName: web-, name: web") + "spec: {}\n", "BH0205", 3, 12),
    (NETPOL.replace("web", "Web") + "spec: {}\n", "BH1202", 3, 18),
    (NETPOL.replace("web", "web..db") + "spec: {}\n", "BH1202", 3, 18),
    (NETPOL.replace("web", "a" * 254) + "spec: {}\n", "BH1202", 3, 18),
    (NETPOL.replace("web", "123") + "spec: {}\n", "BH0111", 3, 18),
    (NETPOL.replace("web}", "web, namespace: a.b}") + "spec: {}\n", "BH1202", 3, 34),
    (ANP.replace("base}", "base, namespace: shop}"), "BH1216", 3, 35),
    (BANP.replace("default}", "base}"), "BH1212", 3, 18),
    # YAML
    (NETPOL + "spec: &all {}\n", "BH0104", 4, 7),
    (NETPOL + "spec: {}\nstatus: *all\n", "BH0103", 5, 9),
    (NETPOL + "spec: {}\nspec: {}\n", "BH0107", 5, 1),
    (SELECT + "{matchLabels: {tier: yes}}}\n", "BH0111", 4, 42),
    (SELECT + "{matchLabels: {tier: 1}}}\n", "BH0111", 4, 42),
    (SELECT + "{matchLabels: {tier: }}}\n", "BH0209", 4, 42),
    # selectors
    (SELECT + "{app: web}}\n", "BH0205", 4, 22),
    (SELECT + "{matchLabels: {-app: web}}}\n", "BH1206", 4, 36),
    (SELECT + "{matchLabels: {a/b/c: web}}}\n", "BH1206", 4, 36),
    (SELECT + "{matchLabels: {/app: web}}}\n", "BH1206", 4, 36),
    (SELECT + "{matchLabels: {app: web/api}}}\n", "BH1206", 4, 41),
    (SELECT + "{matchLabels: {app: " + "a" * 64 + "}}}\n", "BH1206", 4, 41),
    (SELECT + "{matchExpressions: [{key: app}]}}\n", "BH0206", 4, 42),
    (SELECT + "{matchExpressions: [{key: app, operator: in, values: [a]}]}}\n", "BH0306", 4, 62),
    (SELECT + "{matchExpressions: [{key: app, operator: In}]}}\n", "BH1207", 4, 62),
    (SELECT + "{matchExpressions: [{key: app, operator: NotIn, values: []}]}}\n", "BH1207", 4, 77),
    (SELECT + "{matchExpressions: [{key: app, operator: Exists, values: [a]}]}}\n", "BH1207", 4, 78),
    (SELECT + "{matchExpressions: [{key: app, operator: DoesNotExist, values: [a]}]}}\n", "BH1207", 4, 84),
    # the specification of a NetworkPolicy
    (NETPOL + "spec: {podSelectors: {}}\n", "BH0205", 4, 8),
    (NETPOL + "spec: {policyTypes: [ingress]}\n", "BH0306", 4, 22),
    (NETPOL + "spec: {policyTypes: [Ingress, Egress, Ingress]}\n", "BH1204", 4, 39),
    (NETPOL + "spec: {ingress: {}}\n", "BH0207", 4, 17),
    (NETPOL + "spec:\n  policyTypes:\n", "BH0207", 5, 15),
    (NETPOL + "spec: {ingress: [{from: }]}\n", "BH0207", 4, 25),
    (NETPOL + "spec: {ingress: [{ports: }]}\n", "BH0207", 4, 26),
    (ANP + "  ingress:\n", "BH0207", 7, 11),
    (NETPOL + "spec:\n  ingress:\n    -\n", "BH0207", 6, 6),
    (NETPOL + "spec: {ingress: [{to: []}]}\n", "BH0205", 4, 19),
    (NETPOL + "spec: {egress: [{from: []}]}\n", "BH0205", 4, 18),
    (NETPOL + "spec: {ingress: [{action: Deny}]}\n", "BH0205", 4, 19),
    (FROM + "{}]}]}\n", "BH1203", 4, 26),
    (FROM + "{podSelectors: {}}]}]}\n", "BH0205", 4, 27),
    (FROM + "{podSelector: }]}]}\n", "BH0207", 4, 40),
    (FROM + "{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}]}\n", "BH1203", 4, 56),
    (FROM + "{ipBlock: {}}]}]}\n", "BH0206", 4, 36),
    (FROM + "{ipBlock: {cidr: 10.0.0.1}}]}]}\n", "BH0303", 4, 43),
    (FROM + "{ipBlock: {cidr: 10.0.0.300/8}}]}]}\n", "BH0303", 4, 43),
    (FROM + "{ipBlock: {cidr: 10.0.0.1/8}}]}]}\n", "BH0304", 4, 43),
    (FROM + '{ipBlock: {cidr: "::ffff:10.0.0.0/104"}}]}]}\n', "BH0305", 4, 43),
    (FROM + "{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]}]}\n", "BH1210", 4, 64),
    (FROM + "{ipBlock: {cidr: 10.0.0.0/8, except: [0.0.0.0/0]}}]}]}\n", "BH1210", 4, 64),
    (FROM + "{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]}]}\n", "BH1210", 4, 64),
    (FROM + '{ipBlock: {cidr: 10.0.0.0/8, except: ["fd00::/64"]}}]}]}\n', "BH1210", 4, 64),
    (PORTS + "80]}]}\n", "BH0207", 4, 27),
    (PORTS + "{protocol: tcp}]}]}\n", "BH0306", 4, 38),
    (PORTS + "{protocol: ICMP}]}]}\n", "BH0306", 4, 38),
    (PORTS + "{port: 0}]}]}\n", "BH1205", 4, 34),
    (PORTS + "{port: 65536}]}]}\n", "BH1205", 4, 34),
    (PORTS + "{port: " + "9" * 5000 + "}]}]}\n", "BH1205", 4, 34),
    (PORTS + "{port: 0x50}]}]}\n", "BH0111", 4, 34),
    (PORTS + "{port: 080}]}]}\n", "BH1205", 4, 34),
    (PORTS + '{port: "80"}]}]}\n', "BH1208", 4, 34),
    (PORTS + "{port: HTTP}]}]}\n", "BH1208", 4, 34),
    (PORTS + "{port: a--b}]}]}\n", "BH1208", 4, 34),
    (PORTS + "{port: abcdefghijklmnop}]}]}\n", "BH1208", 4, 34),
    (PORTS + "{endPort: 80}]}]}\n", "BH1211", 4, 37),
    (PORTS + "{port: http, endPort: 80}]}]}\n", "BH1211", 4, 49),
    (PORTS + "{port: 90, endPort: 80}]}]}\n", "BH1209", 4, 47),
    (PORTS + '{port: 80, endPort: "90"}]}]}\n', "BH1205", 4, 47),
    # policies of the whole cluster
    (ANP.replace("priority: 10", "priority: 1001"), "BH1205", 5, 13),
    (ANP.replace("priority: 10", "priority: -1"), "BH1205", 5, 13),
    (ANP.replace("priority: 10", 'priority: "10"'), "BH1205", 5, 13),
    (ANP.replace("priority: 10", "priority: [10]"), "BH0207", 5, 13),
    (ANP.replace("  priority: 10\n", ""), "BH0206", 5, 3),
    (BANP.replace("spec:\n", "spec:\n  priority: 10\n"), "BH0205", 5, 3),
    (CNP.replace("  tier: Admin\n", ""), "BH0206", 5, 3),
    (CNP.replace("tier: Admin", "tier: NetworkPolicy"), "BH0306", 5, 9),
    (CNP.replace("  subject: {namespaces: {}}\n", ""), "BH0206", 5, 3),
    (CNP.replace("{namespaces: {}}", "{}"), "BH1203", 7, 12),
    (CNP.replace("{namespaces: {}}", "{namespaces: {}, pods: {podSelector: {}}}"), "BH1203", 7, 29),
    (CNP.replace("{namespaces: {}}", "{pods: {namespaceSelector: {}}}"), "BH0206", 7, 20),
    (ANP.replace("{namespaces: {}}", "{pods: {podSelector: {}}}"), "BH0206", 6, 20),
    (ANP + "  ingress:\n    - {action: Accept, from: [{namespaces: {}}]}\n", "BH0306", 8, 16),
    (BANP + "  ingress:\n    - {action: Pass, from: [{namespaces: {}}]}\n", "BH0306", 7, 16),
    (CNP + "  ingress:\n    - {action: Allow, from: [{namespaces: {}}]}\n", "BH0306", 9, 16),
    (CNP + "  ingress:\n    - {action: Deny}\n", "BH0206", 9, 8),
    (CNP + "  ingress:\n    - {from: [{namespaces: {}}]}\n", "BH0206", 9, 8),
    (CNP + "  ingress:\n    - {action: Deny, from: []}\n", "BH0209", 9, 28),
    (CNP + "  ingress:\n    - {action: Deny, from: [{}]}\n", "BH1203", 9, 29),
    (CNP + "  ingress:\n    - {action: Deny, from: [{nodes: {}}]}\n", "BH0205", 9, 30),
    (CNP + "  ingress:\n    - {action: Deny, from: [{networks: [10.0.0.0/8]}]}\n", "BH0205", 9, 30),
    (CNP + "  ingress:\n    - {action: Deny, from: [" + "{namespaces: {}}, " * 26 + "]}\n", "BH1204", 9, 29 + 25 * 18),
    (CNP + "  ingress:\n" + "    - {action: Deny, from: [{namespaces: {}}]}\n" * 26, "BH1204", 34, 7),
    (ANP + "  ingress:\n" + "    - {action: Deny, from: [{namespaces: {}}]}\n" * 101, "BH1204", 108, 7),
    (CNP_IN + "name: " + "a" * 101 + "}\n", "BH1213", 9, 54),
    (CNP_OUT + "[{domainNames: [www.example.org]}]}\n", "BH1214", 9, 30),
    (ANP + "  egress:\n    - {action: Allow, to: [{domainNames: [www.example.org]}]}\n", "BH1214", 8, 29),
    (CNP_OUT + "[{networks: []}]}\n", "BH0209", 9, 40),
    (CNP_OUT + "[{networks: [10.0.0.1]}]}\n", "BH0303", 9, 41),
    (CNP_OUT + "[{nodes: {}, namespaces: {}}]}\n", "BH1203", 9, 41),
    (CNP_OUT + "[{nodes: {}}], protocols: [{destinationNamedPort: a}]}\n", "BH1215", 9, 55),
    (CNP_OUT + "[{namespaces: {}}, {networks: [10.0.0.0/8]}], ports: [{namedPort: a}]}\n", "BH1215", 9, 82),
    (CNP_IN + "protocols: []}\n", "BH0209", 9, 59),
    (CNP_IN + "protocols: [{icmp: {}}]}\n", "BH0205", 9, 61),
    (CNP_IN + "protocols: [{tcp: {}}]}\n", "BH0206", 9, 66),
    (CNP_IN + "protocols: [{tcp: {destinationPort: {}}}]}\n", "BH1203", 9, 84),
    (CNP_IN + "protocols: [{tcp: {destinationPort: {number: 0}}}]}\n", "BH1205", 9, 93),
    (CNP_IN + "protocols: [{tcp: {destinationPort: {range: {start: 5, end: 5}}}}]}\n", "BH1209", 9, 108),
    (CNP_IN + "protocols: [{tcp: {destinationPort: {range: {start: 5, end: 6, protocol: UDP}}}}]}\n", "BH0205", 9, 111),
    (CNP_IN + "protocols: [{destinationNamedPort: a}], ports: [{namedPort: a}]}\n", "BH1203", 9, 95),
    (ANP_IN + "protocols: []}\n", "BH0205", 8, 48),
    (ANP_IN + "ports: []}\n", "BH0209", 8, 55),
    (ANP_IN + "ports: [{port: 80}]}\n", "BH0205", 8, 57),
    (ANP_IN + "ports: [{portNumber: {protocol: TCP}}]}\n", "BH0206", 8, 70),
    (ANP_IN + "ports: [{portNumber: {port: 80}, namedPort: a}]}\n", "BH1203", 8, 81),
    (ANP_IN + "ports: [{portRange: {start: 9, end: 8}}]}\n", "BH1209", 8, 84),
    (ANP_IN + "ports: [{portRange: {start: 9}}]}\n", "BH0206", 8, 69),
]


@pytest.mark.parametrize(("text", "code", "line", "column"), REFUSALS)
def test_refused_at_its_place(text, code, line, column, refused):
    (found,) = refused(files={"cluster.yaml": text})
    assert (found.code, found.loc.file, found.loc.line, found.loc.column) == (code, "cluster.yaml", line, column)


def test_other_versions_learn_which_can_be_read(refused):
    (found,) = refused(files={"cluster.yaml": "apiVersion: apps/v1\nkind: Deployment\n"})
    for version in ("bulkhead/v1alpha1", "networking.k8s.io/v1", "policy.networking.k8s.io/v1alpha2"):
        assert f"`{version}`" in found.hint


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("apiVersion: networking.k8s.io/v1\nkind: NetworkPolcy\n", "did you mean `NetworkPolicy`?"),
        (
            "apiVersion: policy.networking.k8s.io/v1\nkind: ClusterNetworkPolicy\n",
            "write `policy.networking.k8s.io/v1beta1`",
        ),
        (NETPOL + "spec: {podSelectr: {}}\n", "did you mean `podSelector`?"),
        (PORTS + '{port: "80"}]}]}\n', "write 80 without quotes"),
        (PORTS + '{port: 80, endPort: "90"}]}]}\n', "write it without quotes"),
        (FROM + "{ipBlock: {cidr: 10.0.0.1}}]}]}\n", "write `10.0.0.1/32`"),
        (BANP.replace("default}", "base}"), "write `default`"),
    ],
)
def test_hints_say_what_to_write(text, hint, refused):
    (found,) = refused(files={"cluster.yaml": text})
    assert found.hint == hint


def test_policy_that_exists_twice_shows_both_places(refused):
    body = NETPOL + "spec: {}\n"
    (found,) = refused(files={"a.yaml": body, "b.yaml": body.replace("web}", "web, namespace: default}")})
    assert (found.code, found.loc.file, found.loc.line, found.loc.column) == ("BH0401", "b.yaml", 3, 18)
    assert "NetworkPolicy `default/web`" in found.message
    assert [(loc.file, loc.line) for loc, _ in found.related] == [("a.yaml", 3)]


def test_bulkhead_yaml_holds_no_kubernetes_policy(refused):
    repository = "apiVersion: bulkhead/v1alpha1\nkind: Repository\ntrustDomain: example.org\n---\n"
    (found,) = refused(files={"bulkhead.yaml": repository + NETPOL + "spec: {}\n"})
    assert (found.code, found.loc.file, found.loc.line) == ("BH0202", "bulkhead.yaml", 6)


def test_rules_of_kubernetes_policies_count_towards_the_limit(refused, monkeypatch):
    monkeypatch.setattr("bulkhead.policy.parse.RULES_MAX", 2)
    (found,) = refused(files={"cluster.yaml": NETPOL + "spec: {ingress: [{}, {}], egress: [{}]}\n"})
    assert found.code == "BH0702"


def test_refused_policy_does_not_hide_names_of_native_ones(refused):
    found = refused(
        "allow:\n  - {name: a, from: nobody, to: any, ports: [1]}\n",
        {"cluster.yaml": SELECT + "{matchLabels: {a: b/c}}}\n"},
    )
    assert [each.code for each in found] == ["BH1206", "BH0412"]

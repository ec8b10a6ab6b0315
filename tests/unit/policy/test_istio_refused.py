"""What is refused in Istio's policies, and where the finger points."""

from __future__ import annotations

import pytest

HEAD = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: web, namespace: shop}\n"
PEER = HEAD.replace("AuthorizationPolicy", "PeerAuthentication")
RULE = HEAD + "spec: {rules: [{"
SOURCE = RULE + "from: [{source: {"
OPERATION = RULE + "to: [{operation: {"
WHEN = RULE + "when: [{key: "

REFUSALS = [
    # what it is
    (HEAD.replace("Authorization", "Authorisation"), "BH1201", 2, 7),
    (HEAD.replace("/v1\n", "/v1alpha1\n"), "BH1201", 1, 13),
    (HEAD.replace("AuthorizationPolicy", "RequestAuthentication") + "spec: {}\n", "BH1201", 2, 7),
    (
        HEAD.replace("security.istio.io/v1", "networking.istio.io/v1").replace("Authorization", "Sidecar"),
        "BH0203",
        1,
        13,
    ),
    # around the rules
    (HEAD, "BH0206", 1, 1),
    (HEAD + "spec:\n", "BH0207", 4, 6),
    (HEAD + "spec: {rule: []}\n", "BH0205", 4, 8),
    (HEAD + "spec: {rules: }\n", "BH0207", 4, 15),
    (HEAD + "spec: {rules: [{form: []}]}\n", "BH0205", 4, 17),
    (HEAD + "spec: {action: allow}\n", "BH0306", 4, 16),
    (HEAD + "spec: {targetRef: {kind: Gateway, name: a}}\n", "BH1302", 4, 8),
    (HEAD + "spec: {targetRefs: [{kind: Service, name: a}]}\n", "BH1302", 4, 8),
    (HEAD + "spec: {selector: {app: web}}\n", "BH0205", 4, 19),
    (HEAD + "spec: {selector: {matchExpressions: []}}\n", "BH0205", 4, 19),
    (HEAD + "spec: {selector: {matchLabels: {app: 1}}}\n", "BH0111", 4, 38),
    (HEAD + "spec: {action: CUSTOM, rules: [{}]}\n", "BH1304", 4, 8),
    (HEAD + "spec: {provider: {name: rego/a}, rules: [{}]}\n", "BH1304", 4, 8),
    (HEAD + "spec: {action: CUSTOM, provider: {name: opa}, rules: [{}]}\n", "BH1305", 4, 41),
    (HEAD + "spec: {action: CUSTOM, provider: {name: rego/}, rules: [{}]}\n", "BH1305", 4, 41),
    (HEAD + "spec: {action: CUSTOM, provider: {name: rego/a-b}, rules: [{}]}\n", "BH1305", 4, 41),
    (HEAD.replace("shop}", 'shop, annotations: {"istio.io/dry-run": true}}') + "spec: {}\n", "BH0111", 3, 74),
    (HEAD.replace("shop}", 'shop, annotations: {"istio.io/dry-run": "yes"}}') + "spec: {}\n", "BH0306", 3, 74),
    # what could be read as nothing or as everything
    (RULE + "from: []}]}\n", "BH0209", 4, 23),
    (RULE + "to: []}]}\n", "BH0209", 4, 21),
    (RULE + "when: []}]}\n", "BH0209", 4, 23),
    (RULE + "from: [{}]}]}\n", "BH0206", 4, 24),
    (RULE + "from: [{source: {}}]}]}\n", "BH0209", 4, 33),
    (RULE + "to: [{operation: {}}]}]}\n", "BH0209", 4, 34),
    (SOURCE + "principals: []}}]}]}\n", "BH0209", 4, 46),
    (SOURCE + 'principals: [""]}}]}]}\n', "BH0209", 4, 47),
    (SOURCE + "principal: [a/b]}}]}]}\n", "BH0205", 4, 34),
    # callers
    (SOURCE + "principals: [spiffe://a/b]}}]}]}\n", "BH1301", 4, 47),
    (SOURCE + "principals: [web]}}]}]}\n", "BH1301", 4, 47),
    (SOURCE + "principals: [a/ns/*/sa/b]}}]}]}\n", "BH1301", 4, 47),
    (SOURCE + "principals: ['*web*']}}]}]}\n", "BH1301", 4, 47),
    (SOURCE + "principals: ['**']}}]}]}\n", "BH1301", 4, 47),
    (SOURCE + "principals: [a//b]}}]}]}\n", "BH1301", 4, 47),
    (SOURCE + "namespaces: [Shop]}}]}]}\n", "BH1301", 4, 47),
    (SOURCE + "namespaces: [shop.a]}}]}]}\n", "BH1301", 4, 47),
    (SOURCE + "serviceAccounts: ['shop/*']}}]}]}\n", "BH1301", 4, 52),
    (SOURCE + "serviceAccounts: [a/b/c]}}]}]}\n", "BH1301", 4, 52),
    (SOURCE + "serviceAccounts: [a], principals: [a/b]}}]}]}\n", "BH1307", 4, 51),
    (SOURCE + "namespaces: [a], notServiceAccounts: [a]}}]}]}\n", "BH1307", 4, 71),
    (SOURCE + f"serviceAccounts: [{', '.join(f'a{number}' for number in range(17))}]}}}}]}}]}}\n", "BH1204", 4, 51),
    (SOURCE + "trustDomains: [Example]}}]}]}\n", "BH1301", 4, 49),
    (SOURCE + "ipBlocks: [10.0.0.1/8]}}]}]}\n", "BH0304", 4, 45),
    (SOURCE + "notRemoteIpBlocks: [example.org]}}]}]}\n", "BH0303", 4, 54),
    (SOURCE + "requestPrincipals: [issuer]}}]}]}\n", "BH1301", 4, 54),
    (SOURCE + "requestPrincipals: ['https://issuer*']}}]}]}\n", "BH1301", 4, 54),
    (SOURCE + "requestPrincipals: [issuer/]}}]}]}\n", "BH1301", 4, 54),
    # what is asked for
    (OPERATION + "ports: [80]}}]}]}\n", "BH0111", 4, 43),
    (OPERATION + "ports: ['0']}}]}]}\n", "BH1301", 4, 43),
    (OPERATION + "ports: ['65536']}}]}]}\n", "BH1301", 4, 43),
    (OPERATION + "ports: ['80-90']}}]}]}\n", "BH1301", 4, 43),
    (OPERATION + "methods: [get]}}]}]}\n", "BH1301", 4, 45),
    (OPERATION + "methods: ['GET,POST']}}]}]}\n", "BH1301", 4, 45),
    (OPERATION + "hosts: [https://a.example]}}]}]}\n", "BH1301", 4, 43),
    (OPERATION + "paths: [admin]}}]}]}\n", "BH1301", 4, 43),
    (OPERATION + "paths: ['/a?b=c']}}]}]}\n", "BH1301", 4, 43),
    (OPERATION + "paths: ['/a/*/b']}}]}]}\n", "BH1301", 4, 43),
    (OPERATION + "paths: ['/a/{*}*']}}]}]}\n", "BH1301", 4, 43),
    (OPERATION + "paths: ['/{**}/{*}']}}]}]}\n", "BH1301", 4, 43),
    (OPERATION + "paths: ['/{name}']}}]}]}\n", "BH1301", 4, 43),
    (OPERATION + f"paths: [/{'a' * 1024}]}}}}]}}]}}\n", "BH1301", 4, 43),
    (OPERATION + f"""ports: [{", ".join(f"'{port}'" for port in range(1, 2002))}]}}}}]}}]}}\n""", "BH1309", 4, 16),
    # conditions
    (WHEN + "source.ip}]}]}\n", "BH0206", 4, 30),
    (WHEN + "source.ip, values: []}]}]}\n", "BH0209", 4, 49),
    (WHEN + "source.ips, values: [a]}]}]}\n", "BH1303", 4, 30),
    (WHEN + "'request.headers', values: [a]}]}]}\n", "BH1303", 4, 30),
    (WHEN + "'request.headers[]', values: [a]}]}]}\n", "BH1303", 4, 30),
    (WHEN + "'request.headers[a][b]', values: [a]}]}]}\n", "BH1303", 4, 30),
    (WHEN + "'request.headers[a b]', values: [a]}]}]}\n", "BH1303", 4, 30),
    (WHEN + "destination.labels, values: [a]}]}]}\n", "BH1303", 4, 30),
    (WHEN + "'experimental.envoy.filters.network.mysql_proxy[a.b]', values: [a]}]}]}\n", "BH1302", 4, 30),
    (WHEN + "destination.port, values: [http]}]}]}\n", "BH1301", 4, 57),
    (WHEN + "source.ip, values: [web]}]}]}\n", "BH0303", 4, 50),
    # PeerAuthentication
    (PEER + "spec: {mtls: {mode: strict}}\n", "BH0306", 4, 21),
    (PEER + "spec: {mtls: {}, portLevelMtls: {'80': {mode: STRICT}}}\n", "BH1306", 4, 18),
    (PEER + "spec: {selector: {matchLabels: {a: b}}, portLevelMtls: {http: {mode: STRICT}}}\n", "BH1301", 4, 57),
    (PEER + "spec: {selector: {matchLabels: {a: b}}, portLevelMtls: {'80': {}}}\n", "BH0206", 4, 63),
    (PEER.replace("shop", "istio-system") + "spec: {selector: {matchLabels: {a: b}}}\n", "BH1306", 4, 8),
]


@pytest.mark.parametrize(("text", "code", "line", "column"), REFUSALS)
def test_refuse_by_code_and_place(text, code, line, column, refused):
    found = refused(files={"istio.yaml": text})
    assert [(each.code, each.loc.line, each.loc.column) for each in found] == [(code, line, column)]


def test_refuse_in_the_repository_file(refused):
    repository = f"apiVersion: bulkhead/v1alpha1\nkind: Repository\ntrustDomain: example.org\n---\n{HEAD}spec: {{}}\n"
    assert [each.code for each in refused(files={"bulkhead.yaml": repository})] == ["BH0202"]


def test_a_hint_names_the_attribute_that_was_most_likely_meant(refused):
    (found,) = refused(files={"istio.yaml": WHEN + "source.ipp, values: ['192.0.2.1']}]}]}\n"})
    assert found.hint == "did you mean `source.ip`?"

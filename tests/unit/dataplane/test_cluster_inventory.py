"""A cluster is read as kubectl shows it, and what is no cluster is refused by name."""

from __future__ import annotations

import json
from ipaddress import ip_address

import pytest

from bulkhead.dataplane.cluster_inventory import SIZE_LIMIT, Cluster, NamedPort, is_cluster, parse_cluster
from bulkhead.errors import UsageError
from bulkhead.policy.documents import DEPTH_MAX

LISTED = """
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Pod
  metadata:
    name: web-1
    namespace: shop
    labels: {app: web, version: "2"}
  spec:
    nodeName: one
    serviceAccountName: web
    initContainers:
    - name: once
      ports: [{name: never, containerPort: 1}]
    - name: sidecar
      restartPolicy: Always
      ports: [{name: metrics, containerPort: 9090}]
    containers:
    - name: main
      ports:
      - {name: http, containerPort: 8080, protocol: TCP}
      - {containerPort: 8443}
      - {name: dns, containerPort: 53, protocol: UDP}
  status:
    phase: Running
    podIP: 10.0.0.5
    podIPs: [{ip: 10.0.0.5}, {ip: fd00::5}]
- kind: Pod
  metadata: {name: job, namespace: shop}
  status: {phase: Succeeded, podIP: 10.0.0.6}
- kind: Pod
  metadata: {name: agent, namespace: kube-system}
  spec: {hostNetwork: true, nodeName: two}
  status: {podIP: 172.16.0.2}
- kind: Pod
  metadata: {name: new, namespace: shop, labels: }
  status: {phase: Pending, podIP: ""}
- kind: Node
  metadata: {name: one, labels: {zone: a}}
  status:
    addresses:
    - {type: Hostname, address: one}
    - {type: ExternalIP, address: 203.0.113.1}
    - {type: InternalIP, address: 172.16.0.1}
- kind: Namespace
  metadata: {name: shop, labels: {team: a}}
- kind: Service
  metadata: {name: web, namespace: shop}
- kind: Deployment
  metadata: {name: web, namespace: shop}
"""


def read(text: str) -> Cluster:
    return parse_cluster(text.encode(), "cluster.yaml")


def test_a_list_gives_pods_nodes_and_namespaces_with_what_policies_ask_for() -> None:
    cluster = read(LISTED)
    web, agent, new = cluster.pods
    assert (web.qualified, web.node, web.service_account) == ("shop/web-1", "one", "web")
    assert web.labels == {"app": "web", "version": "2"}
    assert web.addresses == (ip_address("10.0.0.5"), ip_address("fd00::5"))
    assert web.ports == (NamedPort("http", 6, 8080), NamedPort("dns", 17, 53), NamedPort("metrics", 6, 9090))
    assert agent.host_network and agent.families == {4}
    assert (new.addresses, new.families, new.labels) == ((), {4, 6}, {})
    assert cluster.nodes[0].addresses == (ip_address("172.16.0.1"), ip_address("203.0.113.1"))
    assert cluster.ignored == {"Deployment": 1}


def test_a_namespace_has_its_name_as_a_label_even_when_it_is_not_listed() -> None:
    name = "kubernetes.io/metadata.name"
    assert read(LISTED).namespaces == {"shop": {"team": "a", name: "shop"}, "kube-system": {name: "kube-system"}}


def test_a_node_whose_network_a_pod_uses_exists_even_when_it_is_not_listed() -> None:
    assert [(node.name, node.addresses) for node in read(LISTED).nodes][1:] == [("two", (ip_address("172.16.0.2"),))]


def test_documents_and_typed_lists_say_the_same_as_one_list() -> None:
    pod = {"metadata": {"name": "a", "namespace": "x"}, "spec": {}, "status": {"podIP": "10.0.0.1"}}
    space = {"kind": "Namespace", "metadata": {"name": "x"}}
    listed = json.dumps({"kind": "List", "items": [{**pod, "kind": "Pod"}, space]})
    typed = "---\n".join((json.dumps({"kind": "PodList", "items": [pod]}) + "\n", json.dumps(space) + "\n"))
    nested = json.dumps({"kind": "List", "items": [json.loads(listed)]})
    assert read(listed) == read("---\n" + typed) == read(nested)


def test_an_object_may_be_listed_twice_in_the_same_words() -> None:
    assert len(read(LISTED + "---" + LISTED).pods) == 3


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (LISTED, True),
        ('{"items":[],"kind":"List"}', True),
        ("endpoints:\n  - {name: kind}\n", False),
        ('{"endpoints": [{"name": "kind"}]}', False),
        ("kind: Pod\nmetadata:\n  annotations:\n    endpoints: here\n", True),
    ],
)
def test_a_cluster_is_told_from_a_list_of_endpoints(text: str, answer: bool) -> None:
    assert is_cluster(text.encode()) is answer


POD = "kind: Pod\nmetadata: {name: a, namespace: x}\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("kind: [\n", "cluster.yaml:2:1: did not find"),
        ("metadata: {}", "an object has no `kind`"),
        ("- kind: Pod", "an object is a mapping"),
        ("kind: List\nitems: 3", "`items` of a List is a list"),
        ("kind: Pod", "`metadata` of a Pod is a mapping"),
        ("kind: Pod\nmetadata: {name: 7}", "`metadata.name` of a Pod is text"),
        (
            "kind: Pod\nmetadata: {name: a, labels: {version: 2}}",
            "pod default/a: the label `version` is text: `2` needs",
        ),
        (POD + "spec: {containers: [{ports: [{name: p, containerPort: 0}]}]}", "pod x/a: `containerPort` of `p`"),
        (POD + "spec: {containers: [{ports: [{name: p, containerPort: 1, protocol: ICMP}]}]}", "TCP, UDP or SCTP"),
        (POD + "status: {podIP: 10.0.0}", "pod x/a: `10.0.0` is not an address"),
        (POD + "---\n" + POD + "spec: {nodeName: other}", "Pod x/a is listed twice"),
        ("kind: &a Pod\nmetadata: *a", "1:7: anchors and tags are not read"),
        ("kind: !!python/object:os.system Pod", "1:7: anchors and tags are not read"),
        ("kind: " + "[" * (DEPTH_MAX + 1), "more than 64 collections in each other"),
        ('{"kind": ' + "[" * 100_000, "more than 64 collections in each other"),
        ("kind: \x00", "characters that YAML does not allow"),
    ],
)
def test_what_is_no_cluster_is_refused(text: str, problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(text)
    assert problem in str(caught.value)


def test_a_cluster_has_a_size_limit() -> None:
    with pytest.raises(UsageError, match="at most 67,108,864 bytes"):
        parse_cluster(bytes(SIZE_LIMIT + 1), "cluster.yaml")


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(UsageError, match="byte 7 is not UTF-8"):
        parse_cluster(b"kind: \xff", "cluster.yaml")

"""Commands that take `--inventory` with Kubernetes objects: a change of policies, and tests, judged by pods."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bulkhead.cli.main import run
from lab.repository import git

Captured = pytest.CaptureFixture[str]

NATIVE = (
    "apiVersion: bulkhead/v1alpha1\nkind: Policy\nmetadata: {name: shop}\nworkloads:\n"
    "  web: {match: {namespace: shop, labels: {app: web}}}\n  db: {match: {namespace: shop, labels: {app: db}}}\n"
    "allow:\n  - {name: web-db, from: web, to: db, ports: [5432]}\n"
    "never:\n  - {name: one-way, from: db, to: web, why: it asks for nothing}\n"
    "tests:\n  - {from: web, accept: ['db:5432'], deny: ['db:22']}\n"
)
NETPOL = (
    "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: api, namespace: shop}\n"
    "spec:\n  podSelector: {matchLabels: {app: api}}\n  ingress:\n"
    "    - {from: [{podSelector: {matchLabels: {app: front}}}], ports: [{port: PORT}]}\n"
)
DENY = (
    "---\napiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\nmetadata: {name: lockdown}\n"
    "spec:\n  priority: 1\n  subject: {namespaces: {}}\n  ingress:\n"
    "    - {name: VERB-all, action: VERB, from: [{namespaces: {}}]}\n"
)


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    pods = [("front-7d9f8b6c5-bcdfg", "front"), ("front-7d9f8b6c5-hjklm", "front"), ("api-0", "api")]
    pods += [("web-0", "web"), ("db-0", "db")]
    items = [
        {"kind": "Pod", "metadata": {"name": name, "namespace": "shop", "labels": {"app": app}}} for name, app in pods
    ]
    path = tmp_path / "cluster.json"
    path.write_text(json.dumps({"kind": "List", "items": items}))
    return path


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One commit: the API is reached by the front on 8443, and the database by native rules."""
    directory = tmp_path / "repository"
    directory.mkdir()
    (directory / "bulkhead.yaml").write_text(
        "apiVersion: bulkhead/v1alpha1\nkind: Repository\ntrustDomain: example.org\n"
    )
    (directory / "shop.yaml").write_text(NATIVE)
    (directory / "k8s.yaml").write_text(NETPOL.replace("PORT", "8443"))
    git(directory, "init", "-q")
    git(directory, "add", ".")
    git(directory, "commit", "-qm", "shop")
    return directory


@pytest.fixture
def changed(repository: Path) -> Path:
    """A second commit: another port, and the one before denied."""
    deny = DENY.replace("VERB", "Deny").replace("subject: {namespaces: {}}", "subject: {pods: {namespaceSelector: {}, "
                                                "podSelector: {matchLabels: {app: api}}}}")  # fmt: skip
    (repository / "k8s.yaml").write_text(NETPOL.replace("PORT", "9443") + deny.replace("}]}\n", PORTS))
    git(repository, "commit", "-qam", "another port")
    return repository


PORTS = "}], ports: [{portNumber: {port: 8443}}]}\n"


def planned(repository: Path, *more: str) -> int:
    return run(["plan", "HEAD~1..HEAD", "--repository", str(repository), *more])


def test_altered_policies_are_listed_and_the_inventory_asked_for(changed: Path, capfd: Captured) -> None:
    assert planned(changed) == 0
    out = capfd.readouterr().out
    rows = [line.split()[:3] for line in out.splitlines() if " rule " in line or " AdminNetworkPolicy " in line]
    assert ["~", "rule", "netpol/shop/api/ingress-1"] in rows
    assert ["+", "AdminNetworkPolicy", "lockdown"] in rows
    assert "needs `--inventory FILE`" in " ".join(out.split())
    assert "rules 1 added, 1 changed; reach the same for everybody" in out


def test_a_plan_without_altered_policies_asks_for_no_inventory(repository: Path, capfd: Captured) -> None:
    (repository / "shop.yaml").write_text(NATIVE.replace("ports: [5432]", "ports: [5432, 5433]"))
    assert run(["plan", str(repository)]) == 0
    assert "--inventory" not in capfd.readouterr().out


def test_reach_between_pods_names_groups_ports_and_rules(changed: Path, inventory: Path, capfd: Captured) -> None:
    assert planned(changed, "--inventory", str(inventory), "-o", "json") == 0
    cluster = json.loads(capfd.readouterr().out)["data"]["cluster"]
    assert (cluster["pods"], cluster["nodes"]) == (5, 0)
    gained, lost = cluster["reach"]
    assert (gained["change"], gained["text"], gained["family"]) == ("gained", "9443", None)
    assert gained["from"][0]["name"] == "shop/front (2 pods)"
    assert gained["from"][0]["pods"] == ["shop/front-7d9f8b6c5-bcdfg", "shop/front-7d9f8b6c5-hjklm"]
    assert [(rule["name"], rule["author"]["name"]) for rule in gained["rules"]] == [("netpol/shop/api/ingress-1", "t")]
    assert [rule["name"] for rule in lost["rules"]] == ["netpol/shop/api/ingress-1", "anp/lockdown/Deny-all"]
    assert [(one["protocol"], one["first"], one["last"]) for one in lost["ports"]] == [(6, 8443, 8443)]


@pytest.mark.parametrize("form", ["table", "github", "junit"])
def test_reach_between_pods_is_in_every_form(changed: Path, inventory: Path, capfd: Captured, form: str) -> None:
    assert planned(changed, "--inventory", str(inventory), "-o", form, "--detailed-exitcode") == 2
    words = " ".join(capfd.readouterr().out.split())
    assert "shop/front (2 pods)" in words
    if form == "junit":
        names = [case.get("name") for case in ElementTree.fromstring(words).iter("testcase")]
        assert names == ["gained: shop/front (2 pods) -> shop/api (1 pod):9443",
                         "lost: shop/front (2 pods) -> shop/api (1 pod):8443"]  # fmt: skip
    else:
        assert "between pods 1 gained, 1 lost" in words
        assert "anp/lockdown/Deny-all" in words


def test_what_breaks_a_test_between_pods_has_no_plan(repository: Path, inventory: Path, capfd: Captured) -> None:
    (repository / "k8s.yaml").write_text(NETPOL.replace("PORT", "8443") + DENY.replace("VERB", "Deny"))
    assert run(["plan", str(repository)]) == 0
    assert run(["plan", str(repository), "--inventory", str(inventory)]) == 2
    assert "BH0502" in capfd.readouterr().err


def test_tests_and_invariants_hold_between_pods(repository: Path, inventory: Path, capfd: Captured) -> None:
    assert run(["test", str(repository), "--inventory", str(inventory)]) == 0
    assert "judged between 5 pods as well" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("verb", "failed"), [("Deny", ["shop: web accept db:5432"]), ("Allow", ["shop/one-way", "shop: web deny db:22"])]
)
def test_what_another_policy_decides_fails_a_test(
    repository: Path, inventory: Path, capfd: Captured, verb: str, failed: list[str]
) -> None:
    out = "  egress:\n    - {name: out, action: VERB, to: [{namespaces: {}}]}\n"
    (repository / "k8s.yaml").write_text((DENY + out).replace("VERB", verb))
    assert run(["test", str(repository)]) == 0
    capfd.readouterr()
    assert run(["test", str(repository), "--inventory", str(inventory), "-o", "junit"]) == 1
    root = ElementTree.fromstring(capfd.readouterr().out)
    assert [case.get("name") for case in root.iter("testcase") if case.find("failure") is not None] == failed


@pytest.mark.parametrize("command", ["plan", "test"])
def test_an_inventory_of_hosts_is_none_of_pods(repository: Path, tmp_path: Path, capfd: Captured, command: str) -> None:
    listed = tmp_path / "hosts.yaml"
    listed.write_text("endpoints: []\n")
    assert run([command, str(repository), "--inventory", str(listed)]) == 2
    assert "lists no Kubernetes objects" in capfd.readouterr().err
    assert run([command, str(repository), "--inventory", str(tmp_path / "missing")]) == 3

"""`bulkhead catalog`: its three forms, hostile texts in them, and where flows come from."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from bulkhead.cli.catalog.matrix import SIDE_MAX
from bulkhead.cli.catalog.mermaid import EDGES_MAX, NODES_MAX
from bulkhead.cli.main import run
from bulkhead.cli.markup import mermaid_text
from lab.repository import POLICIES, example_repository
from unit.cli import catalog_policy, fake_agent
from unit.cli.catalog_policy import HOSTILE
from unit.cli.fake_agent import LOST, FakeAgent

NOW = time.time()
EXAMPLE = Path(__file__).parents[3] / "docs" / "catalog-example.md"
Captured = pytest.CaptureFixture[str]
Asked = Callable[..., tuple[int, str, str]]


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    return catalog_policy.write(tmp_path / "policy")


@pytest.fixture
def asked(capfd: Captured) -> Asked:
    """Runs `bulkhead catalog`; gives exit code, standard output and standard error."""

    def go(*arguments: object) -> tuple[int, str, str]:
        code = run(["catalog", *map(str, arguments)])
        return (code, *capfd.readouterr())

    return go


def envelope(kind: str, data: object) -> str:
    return json.dumps({"apiVersion": "bulkhead/v1", "kind": kind, "data": data})


def saved(directory: Path, *found: dict[str, Any], lost: dict[str, int] | None = None, kind: str = "Flows") -> Path:
    """Flows as a file."""
    path = directory / "flows.json"
    path.write_text(envelope(kind, {"records": found or catalog_policy.sample(NOW), "lost": lost or LOST}))
    return path


def data(out: str) -> dict[str, Any]:
    answer = json.loads(out)
    assert (answer["apiVersion"], answer["kind"]) == ("bulkhead/v1", "Catalog")
    found: dict[str, Any] = answer["data"]
    return found


def uses(found: dict[str, Any]) -> dict[str, str]:
    return {rule["name"]: rule["usage"]["state"] for rule in found["rules"]}


# Forms


def test_the_example_in_the_documentation_is_of_today(asked: Asked) -> None:
    assert asked(POLICIES) == (0, EXAMPLE.read_text(), "")


def test_json_names_everything_that_the_policy_says(policy: Path, asked: Asked) -> None:
    code, out, err = asked(policy, "-o", "json")
    found = data(out)
    assert (code, err) == (0, "")
    web = found["services"][0]
    assert (web["name"], web["spiffe_id"]) == ("shop/web", "spiffe://example.org/shop/web")
    assert (web["mode"], web["level"], web["owner"]) == ("enforce", "app", HOSTILE.replace("\n", " "))
    assert web["match"] == {"host": ["web-*"], "unit": ["nginx.service", "nginx.socket"]}
    assert (web["called_by"], web["calls"]) == (["shop/in"], ["shop/web-api", "shop/all-users"])
    assert (web["restrained_by"], web["source"]) == (["shop/no-web-db"], "shop.yaml:5")
    assert [test["expect"] for test in web["tests"]] == ["accept", "deny"]
    debug = found["rules"][-1]
    assert (debug["kind"], debug["expires"], debug["expired"]) == ("exception", "2099-01-31T18:00:00Z", False)
    assert found["rules"][2]["from"] == {"text": "{tier: web}", "members": ["shop/web"]}
    assert (found["observed"], found["undeclared"], debug["usage"]) == (None, None, None)


def test_a_commit_is_in_every_place(tmp_path: Path, asked: Asked) -> None:
    found = data(asked(example_repository(tmp_path / "r"), "--rev", "HEAD", "-o", "json")[1])
    assert found["services"][0]["source"] == f"shop.yaml:7@{found['commit'][:7]}"


def test_a_policy_that_would_be_refused_has_no_catalogue(policy: Path, asked: Asked) -> None:
    (policy / "shop.yaml").write_text(
        catalog_policy.POLICY.replace("name: api-db, from: api", "name: api-db, from: web")
    )
    code, out, err = asked(policy)
    assert (code, out) == (2, "")
    assert "BH0501" in err


def test_one_policy_alone(policy: Path, asked: Asked) -> None:
    found = data(asked(policy, "-o", "json", "--policy", "hosts")[1])
    assert (found["policy"], found["services"]) == ("hosts", [])
    assert [rule["name"] for rule in found["rules"]] == ["hosts/lifeline-1"]
    assert asked(policy, "--policy", "shopp")[0] == 2


# Hostile texts


def cells(line: str) -> int:
    """Cells of a row; a backslash hides no bar here, since none is needed."""
    assert "\\" not in line
    return line.count("|") - 1


def test_no_text_becomes_markdown(policy: Path, tmp_path: Path, asked: Asked) -> None:
    code, out, _ = asked(policy, "--flows", saved(tmp_path))
    assert code == 0
    lines = out.split("\n")
    assert "alert" in out
    assert set(re.findall(r"<[^>]*>", out.split("```mermaid")[0] + out.split("```\n")[-1])) == {"<code>", "</code>"}
    assert sum(line.startswith("```") for line in lines) == 2
    assert not {"\u202e", "\x1b"} & set(out)
    for before, row in pairwise(lines):
        if before.startswith("|") and row.startswith("|"):
            assert cells(before) == cells(row)


def test_no_text_becomes_mermaid(policy: Path, asked: Asked) -> None:
    # Labels are the only author's text that a chart may show.
    text = catalog_policy.POLICY.replace("tier: web", 'tier: "a.b_c"')
    (policy / "shop.yaml").write_text(text)
    chart = asked(policy)[1].split("```mermaid\n")[1].split("```")[0]
    shape = r'n\d+(\["[^"]*"\]|\(\["[^"]*"\]\)|\(\("[^"]*"\)\)|\[\["[^"]*"\]\])'
    edge = r'n\d+ (-->|-\.->)\|"[^"]*"\| n\d+'
    for line in chart.strip().split("\n"):
        assert re.fullmatch(rf'flowchart LR| +({shape}|{edge}|subgraph p\d+\["[^"]*"\]|end)', line), line


def test_a_label_of_mermaid_has_nothing_that_ends_it() -> None:
    assert re.fullmatch(r'"([A-Za-z0-9 ./:,=+-]|#[0-9]+;)*"', mermaid_text(HOSTILE))


def test_an_exception_is_dashed_with_its_deadline_and_an_external_is_round(policy: Path, asked: Asked) -> None:
    out = asked(policy)[1]
    assert re.search(r'n(\d+)\(\["shop/admins"\]\)\n', out)
    assert re.search(r'n\d+ -\.->\|"debug: 5432, until 2099-01-31T18:00:00Z"\| n\d+', out)


class Page(HTMLParser):
    """Elements, attributes and texts of a page; fails when an element is left open."""

    VOID = frozenset({"meta", "br", "img", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def values(self, name: str) -> set[str]:
        return {value or "" for key, value in self.attributes if key == name}


def test_no_text_becomes_html(policy: Path, tmp_path: Path, asked: Asked) -> None:
    code, out, _ = asked(policy, "--flows", saved(tmp_path), "-o", "html")
    page = Page(out)
    assert code == 0
    assert not page.tags & {"script", "img", "link", "iframe", "object", "form", "svg"}
    assert not {key for key, _ in page.attributes if key.startswith("on") or key in ("src", "style")}
    assert not {"\u202e", "\x1b"} & set(out)
    assert HOSTILE.replace("\n", " ") in "\n".join(page.texts)


def test_html_refers_to_nothing_outside_itself_and_every_link_leads_somewhere(
    policy: Path, tmp_path: Path, asked: Asked
) -> None:
    page = Page(asked(policy, "--flows", saved(tmp_path), "-o", "html")[1])
    links = page.values("href")
    assert "#rule/shop/debug" in links
    assert {link.removeprefix("#") for link in links} <= page.values("id")


def test_the_matrix_says_in_words_what_its_colours_say(policy: Path, tmp_path: Path, asked: Asked) -> None:
    out = asked(policy, "--flows", saved(tmp_path), "-o", "html")[1]
    matrix = out.split('<table class="matrix">')[1].split("</table>")[0]
    for state in ("allow", "unused", "deny", "would-deny"):
        assert f'<span class="state {state}">{state}</span>' in matrix


# Sizes


def large(directory: Path, policies: int, workloads: int) -> Path:
    directory.mkdir()
    (directory / "bulkhead.yaml").write_text("{apiVersion: bulkhead/v1alpha1, kind: Repository, trustDomain: a.org}\n")
    for policy in range(policies):
        members = ", ".join(f"w{n}: {{match: {{cgroup: /p{policy}/{n}}}}}" for n in range(workloads))
        rules = ", ".join(f"{{name: r{n}, from: w{n}, to: any, ports: [{n + 1}]}}" for n in range(workloads))
        (directory / f"p{policy}.yaml").write_text(
            f"{{apiVersion: bulkhead/v1alpha1, kind: Policy, metadata: {{name: p{policy}}}, "
            f"workloads: {{{members}}}, allow: [{rules}]}}\n"
        )
    return directory


def test_a_large_policy_is_drawn_in_charts_that_can_be_drawn(tmp_path: Path, asked: Asked) -> None:
    out = asked(large(tmp_path / "large", 3, 50))[1]
    charts = re.findall(r"```mermaid\n(.*?)```", out, re.DOTALL)
    assert len(charts) == 3
    for number, chart in enumerate(charts):
        assert chart.startswith(f'flowchart LR\n  subgraph p0["p{number}"]')
        assert len(re.findall(r"^ +n\d+[\[(]", chart, re.MULTILINE)) <= NODES_MAX
        assert chart.count("-->") <= EDGES_MAX
        assert '[["any #40;150#41;"]]' in chart
    assert "more edges found no room" in out


def test_a_large_matrix_is_cut_and_says_so(tmp_path: Path, asked: Asked) -> None:
    out = asked(large(tmp_path / "large", 2, 50), "-o", "html")[1]
    matrices = out.split('<table class="matrix">')[1:]
    assert len(matrices) == 2
    for matrix in matrices:
        assert matrix.split("</table>")[0].count("<tr>") == 1 + SIDE_MAX
    assert "more found no room" in out


def test_workloads_of_other_policies_are_drawn_as_workloads(tmp_path: Path, asked: Asked) -> None:
    out = asked(large(tmp_path / "small", 2, 2), "--policy", "p0")[1]
    assert "subgraph" in out
    assert re.search(r'subgraph p\d\["p1"\]\n +n\d+\["w0"\]', out)


# Flows


def test_flows_of_a_file_mark_what_is_used_and_what_is_not_declared(policy: Path, tmp_path: Path, asked: Asked) -> None:
    code, out, err = asked(policy, "--flows", saved(tmp_path), "-o", "json")
    found = data(out)
    assert (code, err) == (0, "")
    assert uses(found)["shop/api-db"] == "used"
    assert uses(found)["shop/web-api"] == "unused"
    assert [(one["verdict"], one["from"], one["port"], one["count"]) for one in found["undeclared"]] == [
        ("deny", "shop/web", "5432", 41),
        ("would-deny", "host", "80", 3),
        ("allow", "host", "443", 2),
        ("allow", "shop/api", "99", 1),
    ]
    assert found["observed"]["complete"]
    assert any("samples" in one for one in found["observed"]["missing"])


def test_lost_events_make_the_unseen_unknown_and_the_exit_code_four(policy: Path, tmp_path: Path, asked: Asked) -> None:
    code, out, err = asked(policy, "--flows", saved(tmp_path, lost={**LOST, "event-ring": 3}), "-o", "json")
    assert code == 4
    assert "3 events lost" in err
    assert uses(data(out))["shop/web-api"] == "unknown"
    assert uses(data(out))["shop/api-db"] == "used"


def test_refusals_alone_do_not_call_a_rule_unused(policy: Path, tmp_path: Path, asked: Asked) -> None:
    denied = catalog_policy.record(NOW)
    code, out, _ = asked(policy, "--flows", saved(tmp_path, denied, kind="Drops"), "-o", "json")
    assert code == 4
    assert set(uses(data(out)).values()) == {"unknown"}


def test_followed_flows_tell_of_a_conversation_again_and_count_it_once(
    policy: Path, tmp_path: Path, asked: Asked
) -> None:
    lines = (catalog_policy.allowed(NOW, "shop/api-db", "shop/api", "shop/db", count=n) for n in (1, 2, 3))
    path = tmp_path / "flows.jsonl"
    path.write_text("".join(envelope("Flow", one) + "\n" for one in lines))
    code, out, err = asked(policy, "--flows", path, "-o", "json")
    (rule,) = [rule for rule in data(out)["rules"] if rule["name"] == "shop/api-db"]
    assert (code, rule["usage"]["seen"]) == (4, 3)
    assert "without a count of lost events" in err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no record"),
        ("\xff", "is not UTF-8"),
        ("[1]", "not what `bulkhead flows -o json` writes"),
        (envelope("Flows", {}), "the answer has no records"),
        (envelope("Flow", {"verdict": "allow"}) + "\n{", "flows.json:1: not a flow record"),
        (envelope("Flow", {}).replace("{}", "[]") + "\nx", "flows.json:1: not a flow record"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_file_of_something_else_is_refused_with_its_place(
    policy: Path, tmp_path: Path, asked: Asked, text: str, said: str
) -> None:
    path = tmp_path / "flows.json"
    path.write_bytes(text.encode("latin-1"))
    code, out, err = asked(policy, "--flows", path)
    assert said in err
    assert (code, out == "") == ((2, True) if text else (4, False))


def test_a_file_that_is_not_there_exits_with_three(policy: Path, tmp_path: Path, asked: Asked) -> None:
    assert asked(policy, "--flows", tmp_path / "missing")[0] == 3


def test_two_sources_of_flows_are_refused(policy: Path, tmp_path: Path, asked: Asked) -> None:
    assert asked(policy, "--live", "--flows", saved(tmp_path))[0] == 2


# The agent


def agent(hits: dict[str, int], **status: Any) -> FakeAgent:
    rules = [{"name": name, "hits": count} for name, count in hits.items()]
    values = fake_agent.status(NOW, **{"commit": "", "host": "web-1", **status})
    records = {"records": catalog_policy.sample(NOW), "totals": {}, "lost": {**LOST, "event-rate": 5}}
    return FakeAgent({"flows": records, "rules": {"rules": rules}, "status": values})


def test_the_agent_counts_exactly_what_its_records_sample(policy: Path, tmp_path: Path, asked: Asked) -> None:
    with agent({"shop/api-db": 90, "shop/in": 2, "shop/web-api": 0, "shop/all-users": 4}).running(tmp_path):
        code, out, err = asked(policy, "--live", "--run-dir", tmp_path, "-o", "json")
    found = data(out)
    used = {rule["name"]: (rule["usage"]["state"], rule["usage"]["hits"]) for rule in found["rules"]}
    assert used["shop/api-db"] == ("used", 90)
    assert used["shop/web-api"] == ("unused", 0)
    assert used["shop/all-users"] == ("used", 4)
    assert used["shop/debug"] == ("unknown", None)
    assert code == 4
    assert "5 event-rate" in err
    assert (found["observed"]["host"], found["observed"]["complete"]) == ("web-1", False)


def test_another_commit_in_force_is_said(policy: Path, tmp_path: Path, asked: Asked) -> None:
    with agent({}, commit="3f2c1ab" + "0" * 33).running(tmp_path):
        out = asked(policy, "--live", "--run-dir", tmp_path, "-o", "json")[1]
    assert any("3f2c1ab" in one and "not committed" in one for one in data(out)["observed"]["missing"])


@pytest.mark.parametrize("form", ["markdown", "json", "html"])
def test_without_an_agent_the_catalogue_is_written_and_says_that_nothing_is_known(
    policy: Path, tmp_path: Path, asked: Asked, form: str
) -> None:
    code, out, err = asked(policy, "--live", "--run-dir", tmp_path, "-o", form)
    assert code == 4
    assert "No agent answered" in out
    assert "No agent answered" in err
    assert "unknown" in out

"""The examples of docs/rego.md are Rego, and do what the page says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bulkhead.errors import Loc
from bulkhead.policy.parse import parse
from bulkhead.policy.rego_modules import RegoModule
from bulkhead.policy.source import SourceFile, Sources, blob_id
from bulkhead.rego.engine import Engine
from bulkhead.rego.examine import examine
from bulkhead.rego.outcome import Outcome

PAGE = (Path(__file__).parents[3] / "docs/rego.md").read_text()
(POLICY,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
DECISION, GUARDRAIL = re.findall(r"```rego\n(.*?)```", PAGE, re.DOTALL)
REPOSITORY = "apiVersion: bulkhead/v1alpha1\nkind: Repository\ntrustDomain: example.org\n"


def sources(**files: str) -> Sources:
    read = [SourceFile(path, blob_id(text.encode()), text.encode()) for path, text in sorted(files.items())]
    return Sources(
        "",
        tuple(one for one in read if one.path.endswith(".yaml")),
        tuple(one for one in read if one.path.endswith(".rego")),
    )


def test_the_policy_of_the_page_asks_the_package_of_the_page() -> None:
    files = {"bulkhead.yaml": REPOSITORY, "shop.yaml": POLICY, "orders.rego": DECISION}
    assert examine(parse(sources(**files))) == ()
    del files["orders.rego"]
    assert [one.code for one in examine(parse(sources(**files)))] == ["BH1404"]


@pytest.mark.parametrize("caller, allowed", [("web", True), ("other", False)])
def test_the_package_of_the_page_decides(caller: str, allowed: bool) -> None:
    document = {
        "attributes": {"request": {"http": {"method": "GET"}}},
        "parsed_path": ["v1", "orders"],
        "source_principal": f"spiffe://example.org/shop/{caller}",
    }
    engine = Engine([RegoModule("orders.rego", DECISION, Loc("orders.rego", 1))])
    assert engine.value("shop.orders.allow", json.dumps(document)) is allowed


def test_the_guardrails_of_the_page_find_open_ssh_and_a_missing_owner() -> None:
    text = (
        POLICY.replace("from: web", "from: any")
        .replace("[8080]", "[22]")
        .replace("    authz: {rego: shop.orders}\n", "")
    )
    found = examine(parse(sources(**{"bulkhead.yaml": REPOSITORY, "shop.yaml": text, "lint.rego": GUARDRAIL})))
    assert [(one.code, one.loc.file, one.message) for one in found] == [
        ("BH1406", "shop.yaml", "shop has no owner"),
        ("BH1405", "shop.yaml", "shop/web-orders opens SSH to everybody"),
    ]


def test_the_page_names_every_outcome() -> None:
    assert {one.value for one in Outcome} <= set(re.findall(r"`([a-z]+)`", PAGE))

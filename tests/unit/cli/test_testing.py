"""`bulkhead test`: who judges, and what is said when judges disagree."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bulkhead.cli.main import run
from lab.repository import POLICIES, example_repository

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def without_root() -> Iterator[None]:
    """Nobody's rights, for as long as the test lasts."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_the_kernel_is_not_asked_without_root(without_root: None, capfd: Captured) -> None:
    assert run(["test", str(POLICIES), "--engine", "kernel"]) == 2
    assert "needs root; `--engine model` does not" in capfd.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--engine", "model"]])
def test_the_model_judges_unless_told_otherwise(arguments: list[str], capfd: Captured) -> None:
    assert run(["test", str(POLICIES), "-o", "json", *arguments]) == 0
    assert {case["engine"] for case in json.loads(capfd.readouterr().out)["data"]} == {"model"}
    assert run(["test", str(POLICIES), "-o", "junit", *arguments]) == 0
    root = ElementTree.fromstring(capfd.readouterr().out)
    engines = [one.get("value") for one in root.iter("property") if one.get("name") == "engine"]
    assert engines == ["model"] * 3


def test_rules_and_tables_that_disagree_are_no_verdict(
    tmp_path: Path, capfd: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check of rules is made blind: the tables still know that the invariant is broken."""
    directory = example_repository(tmp_path / "repository")
    path = directory / "shop.yaml"
    path.write_text(path.read_text().replace("from: api, to: cache", "from: [api, web], to: cache"))
    monkeypatch.setattr("bulkhead.dataplane.compile.check_nevers", lambda *_: [])
    assert run(["test", str(directory)]) == 2
    out = capfd.readouterr().out
    assert "error[BH0911]: the rules and the tables disagree about" in out
    assert "--> shop.yaml:22" in out

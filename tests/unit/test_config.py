"""Settings: what is taken, and one clear sentence for what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from bulkhead import config
from bulkhead.config import Lifeline
from bulkhead.errors import UsageError


def load(tmp_path: Path, text: str) -> config.Settings:
    path = tmp_path / "agent.toml"
    path.write_text(text)
    return config.load(path)


def test_a_lifeline_is_a_block_of_addresses_and_a_port(tmp_path: Path) -> None:
    settings = load(tmp_path, 'lifeline = [{from = "10.9.0.0/24", port = 22}, {from = "fd00::/64", port = 2222}]')
    assert settings.lifeline == (Lifeline("10.9.0.0/24", 22), Lifeline("fd00::/64", 2222))


def test_settings_survive_the_way_to_another_process(tmp_path: Path) -> None:
    settings = load(tmp_path, 'host = "web-1"\npoll_s = 3\nlifeline = [{from = "10.9.0.7/32", port = 22}]')
    assert config.parse(config.dump(settings)) == settings


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("colour = 1", "unknown setting `colour`"),
        ("host = 3", "the setting `host` takes a str"),
        ("metrics_port = 70000", "the setting `metrics_port` is 0..65535"),
        ("metrics_port = true", "the setting `metrics_port` takes a int"),
        ("observe_only = 1", "the setting `observe_only` takes a bool"),
        ('prefer = "xdp"', "the setting `prefer` is `tcx` or `clsact`"),
        ("poll_s = 0.1", "the setting `poll_s` is 1 at least"),
        ("poll_s = nan", "the setting `poll_s` is 1 at least"),
        ('lifeline = "10.9.0.0/24"', "the setting `lifeline` is a list"),
        ('lifeline = ["10.9.0.0/24"]', "the setting `lifeline` has entries such as"),
        ('lifeline = [{from = "10.9.0.0/24"}]', "the setting `lifeline` has entries such as"),
        ('lifeline = [{from = "10.9.0.0/24", port = 22, to = "x"}]', "the setting `lifeline` has entries such as"),
        ('lifeline = [{from = "10.9.0.1/24", port = 22}]', "has host bits set"),
        ('lifeline = [{from = "admins", port = 22}]', "does not appear to be an IPv4 or IPv6 network"),
        ('lifeline = [{from = "10.9.0.0/24", port = 0}]', "`port` is 1..65535"),
        ('lifeline = [{from = "10.9.0.0/24", port = "22"}]', "`port` is 1..65535"),
        ("host = ", "are not valid TOML"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(UsageError) as refused:
        load(tmp_path, text)
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)

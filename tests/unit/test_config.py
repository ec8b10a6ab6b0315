"""Settings: what is taken, and one clear sentence for what is not."""

from __future__ import annotations

import json
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


def etcd(**given: object) -> str:
    """The table `etcd`, with what is given in place of what makes sense."""
    sensible = {"endpoints": ["https://10.0.0.1:2379"], "ca": "/e/ca", "cert": "/e/cert", "key": "/e/key"}
    return "etcd = {" + ", ".join(f"{key} = {json.dumps(value)}" for key, value in (sensible | given).items()) + "}"


def test_an_etcd_survives_the_way_to_another_process(tmp_path: Path) -> None:
    settings = load(tmp_path, f'registry = "etcd"\n{etcd(endpoints=["https://[fd00::1]:2379"], ttl_s=60)}')
    assert settings.etcd == config.Etcd(("https://[fd00::1]:2379",), "/e/ca", "/e/cert", "/e/key", ttl_s=60)
    assert config.parse(config.dump(settings)) == settings


def test_an_etcd_that_is_not_asked_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="go together"):
        load(tmp_path, etcd())


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
        ('registry = "dns"', "the setting `registry` is `files` or `etcd`"),
        ('registry = "etcd"', '`registry = "etcd"` and `etcd` go together'),
        *[
            (f'registry = "etcd"\n{text}', complaint)
            for text, complaint in [
                ("etcd = 3", "the setting `etcd` is a table"),
                (etcd(colour="red"), "the setting `etcd` has no `colour`"),
                ("etcd = {}", "the setting `etcd` lacks `endpoints`"),
                (etcd(endpoints=[]), "`endpoints` is a list of 1..16"),
                (etcd(endpoints="https://10.0.0.1:2379"), "`endpoints` is a list of 1..16"),
                (etcd(endpoints=["http://10.0.0.1:2379"]), "an endpoint is such as `https://10.0.0.1:2379`"),
                (etcd(endpoints=["https://10.0.0.1"]), "an endpoint is such as"),
                (etcd(endpoints=["https://10.0.0.1:70000"]), "an endpoint is such as"),
                (etcd(endpoints=["https://u:p@10.0.0.1:2379"]), "an endpoint is such as"),
                (etcd(endpoints=[3]), "an endpoint is such as"),
                (etcd(endpoints=["https://[fd00::1]:2379"] * 2), "an endpoint twice"),
                (etcd(ca=3), "`ca` is a text"),
                (etcd(key="key.pem"), "`key` is an absolute path"),
                (etcd(prefix="bulkhead"), "`prefix` is such as `/bulkhead/`"),
                (etcd(ttl_s=4), "`ttl_s` is 5..86400"),
                (etcd(ttl_s=True), "`ttl_s` is 5..86400"),
                (etcd(user="web-1"), "`user` and `password` go together"),
                (etcd(user="web 1", password="/etc/secret"), "`user` is 1 to 255 printable characters"),
                (etcd(user="web-1", password="secret"), "`password` is an absolute path"),
            ]
        ],
        ('node_addresses = "10.0.0.1"', "the setting `node_addresses` is a list of addresses"),
        ('node_addresses = ["10.0.0.1/8"]', "has host bits set"),
        ("wire_hours = 0", "the setting `wire_hours` is 1..168"),
        ("svid_minutes = 4", "the setting `svid_minutes` is 5..720"),
        ("svid_minutes = 721", "the setting `svid_minutes` is 5..720"),
        ('authority = "/etc/bulkhead/authority.pem"', "`authority` and `authority_passphrase` go together"),
        ("wire_hours = 169", "the setting `wire_hours` is 1..168"),
        ('node_key = "/etc/bulkhead/node.key"', "`node_key` and `node_key_passphrase` go together"),
        ('node_key_passphrase = "/etc/bulkhead/phrase"', "`node_key` and `node_key_passphrase` go together"),
        ("host = ", "are not valid TOML"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(UsageError) as refused:
        load(tmp_path, text)
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)

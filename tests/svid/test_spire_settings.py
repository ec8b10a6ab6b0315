"""The setting `spire`: what is taken, and one clear sentence for what is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bulkhead import config
from bulkhead.errors import UsageError

BROKER = {"kind": "broker", "socket": "/s/broker", "workload_socket": "/s/agent"}


def load(tmp_path: Path, **table: object) -> config.Settings:
    """Settings with that table."""
    path = tmp_path / "agent.toml"
    path.write_text("spire = {" + ", ".join(f"{key} = {json.dumps(value)}" for key, value in table.items()) + "}")
    return config.load(path)


@pytest.mark.parametrize(
    "table",
    [
        {"kind": "delegated", "socket": "/s/admin"},
        BROKER,
        BROKER | {"delegated_socket": "/s/admin", "agent_id": "spiffe://example.org/spire/agent/x"},
    ],
)
def test_a_spire_survives_the_way_to_another_process(tmp_path: Path, table: dict[str, str]) -> None:
    settings = load(tmp_path, **table)
    assert settings.spire == config.Spire(**table)
    assert config.parse(config.dump(settings)) == settings


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({"kind": "delegated"}, "lacks `socket`"),
        (BROKER | {"colour": "red"}, "has no `colour`"),
        (BROKER | {"kind": "other"}, "`kind` is `broker` or `delegated`, not `other`"),
        (BROKER | {"socket": "s"}, "`socket` is an absolute path, not `s`"),
        (BROKER | {"socket": ""}, "`socket` is empty"),
        (BROKER | {"socket": 7}, "`socket` is a text"),
        (BROKER | {"workload_socket": ""}, "a broker needs `workload_socket`"),
        (BROKER | {"delegated_socket": "x"}, "`delegated_socket` is an absolute path"),
        (BROKER | {"agent_id": "spiffe://example.org"}, "`agent_id` is a SPIFFE ID"),
        (BROKER | {"kind": "delegated"}, "are for a broker"),
    ],
)
def test_a_wrong_spire_is_refused(tmp_path: Path, table: dict[str, object], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        load(tmp_path, **table)

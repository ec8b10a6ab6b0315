"""A policy in which everything that a catalogue shows occurs, written by somebody who means harm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unit.cli import fake_agent

HOSTILE = "</script>]]><img src=x onerror=alert(1)> `x` ```\n| a\\| **b** [l](javascript:1) \"'; end --> @all &lt;"

REPOSITORY = """\
apiVersion: bulkhead/v1alpha1
kind: Repository
trustDomain: example.org
hosts: {lifeline: [{from: shop/admins, to: "host:22"}]}
"""

POLICY = f"""\
apiVersion: bulkhead/v1alpha1
kind: Policy
metadata: {{name: shop, level: app, owner: {json.dumps(HOSTILE)}}}
workloads:
  web: {{match: {{host: "web-*", unit: [nginx.service, nginx.socket]}}, labels: {{tier: web}}, mode: enforce}}
  api: {{match: {{cgroup: /api}}, labels: {{tier: app}}}}
  db: {{match: {{cgroup: /db, user: postgres}}, labels: {{tier: data}}}}
externals:
  users: {{cidr: [0.0.0.0/0], except: [10.0.0.0/8]}}
  admins: {{cidr: [10.9.0.0/24]}}
allow:
  - {{name: in, from: users, to: web, ports: [443]}}
  - {{name: web-api, from: {{tier: web}}, to: api, ports: ["8000-8100", icmp/echo], why: {json.dumps(HOSTILE)}}}
  - {{name: api-db, from: api, to: db, ports: [5432]}}
  - {{name: all-users, from: any, to: users, ports: [53/udp]}}
never:
  - {{name: no-web-db, from: web, to: db, why: {json.dumps(HOSTILE)}}}
exceptions:
  - name: debug
    from: admins
    to: db
    ports: [5432]
    expires: 2099-01-31T18:00:00Z
    owner: {json.dumps(HOSTILE)}
    ticket: {json.dumps(HOSTILE)}
tests:
  - {{from: web, accept: ["api:8000"], deny: ["db:5432"]}}
"""


def write(directory: Path) -> Path:
    """The policy as files."""
    directory.mkdir(exist_ok=True)
    (directory / "bulkhead.yaml").write_text(REPOSITORY)
    (directory / "shop.yaml").write_text(POLICY)
    return directory


def record(now: float, **changed: Any) -> dict[str, Any]:
    """A record as `bulkhead flows -o json` writes it."""
    return fake_agent.record(now, **{"process_end": "source", "commit": "", **changed})


def allowed(now: float, rule: str, source: str, destination: str, **changed: Any) -> dict[str, Any]:
    names = {"source": source, "destination": destination, "rule": rule}
    return record(now, verdict="allow", reason="none", rule_id=1, **{**names, **changed})


def sample(now: float) -> list[dict[str, Any]]:
    """A rule in use at both ends, a refusal by a hostile process, a host of which nobody knows, a rule of old."""
    return [
        allowed(now, "shop/api-db", "shop/api", "shop/db", count=7),
        allowed(now, "shop/api-db", "shop/api", "shop/db", count=5, direction="ingress"),
        record(now, source="shop/web", destination="shop/db", comm="evil", exe=HOSTILE + "\u202e\x1b[31m"),
        record(now, verdict="would-deny", source="host", destination="world", count=3, port=80),
        allowed(now, "shop/in", "host", "shop/web", port=443, count=2),
        allowed(now, "shop/gone", "shop/api", "shop/web", port=99, count=1),
    ]

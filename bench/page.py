"""docs/performance.md, made from the results of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from figures import Figure

_HEAD = """\
# What it costs

Made by `make bench` from `bench/results/latest.json`; do not edit. Every comparison is paired and interleaved within
one run, because levels drift between machines and hours while differences in one run hold. Processes that talk to
each other share one CPU: waking another one costs more than what is measured.

**Two hosts** are two network namespaces joined by veth, each with its own control groups, its own pins and its own
`bulkhead agent`, enforcing 1,000 rules at both ends. **Bare** and **enforced** are two wires between the same two hosts
that change roles block by block, so that neither gains by where the kernel has put its structures.

**Time at a hook** is the kernel's own (`BPF_ENABLE_STATS`), less that of an empty program on the same hook that sees
the same packets.

**Identity on the wire** is compared on one pair of hosts that are registered nodes, under a policy that allows the
conversation by identity and by address: with it, and as if there were no node key (`wire_self.node` 0, sock_ops not
attached), switched between one run and the next while the agents are held still. What the kernel's judge of an opening
costs, and the storm of forged ones, are BPF_PROG_TEST_RUN of the same programs; the large trust domain is the agent's
own code and bulkhead-keys, with real maps and a made-up roster.

**Mutual TLS** is measured on one such pair with an Envoy on each host, one thread each, its SVIDs from the node's own
authority: the same client and nginx in plaintext (`mtls: off`), through HBONE with L4 authorisation, and with L7
authorisation. **Two plain Envoys** are the same binary with as many threads, which carry TCP without TLS between two
hosts of which Bulkhead knows nothing. Requests/s are taken on all CPUs; times of single requests on one.

"""


def write(figures: Sequence[Figure], path: Path) -> None:
    """Write the page."""
    promised = [figure for figure in figures if figure.mark is not None]
    others = [figure for figure in figures if figure.mark is None]
    text = _HEAD + "## Marks\n\n" + _table(promised) + "\n## For comparison\n\n" + _table(others)
    text += "\n## How each was measured\n\n" + "".join(f"- **{f.name}**: {f.method}.\n" for f in figures)
    path.write_text(text)


def _table(figures: Sequence[Figure]) -> str:
    rows = [f"| {f.name} | {f.value:g} {f.unit} | {_mark(f)} |\n" for f in figures]
    return "| | measured | mark |\n|---|---|---|\n" + "".join(rows)


def _mark(figure: Figure) -> str:
    if figure.mark is None:
        return ""
    return f"{figure.mark.replace('<=', '≤').replace('>=', '≥')}{'' if figure.holds else ', **missed**'}"

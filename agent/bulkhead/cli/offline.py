"""Commands on files: no agent, and no root unless the kernel itself is asked."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bulkhead.cli.options import View, view_options
from bulkhead.cli.output import note, show, show_json, write_json, write_pieces
from bulkhead.errors import Diagnostic, ExitCode, PolicyError, UsageError

if TYPE_CHECKING:
    from bulkhead.dataplane.addresses import Address
    from bulkhead.dataplane.compile import Compiled
    from bulkhead.dataplane.inventory import Listed
    from bulkhead.dataplane.matrix import Engine
    from bulkhead.dataplane.resolve import Resolved
    from bulkhead.policy.model import PortSpec


@click.command()
@click.option("--policy", type=click.Path(path_type=Path), required=True, help="Directory, or repository with --rev.")
@click.option("--rev", help="A commit of the repository.")
@click.option(
    "--inventory",
    type=click.Path(path_type=Path),
    required=True,
    help="YAML list of endpoints, or Kubernetes objects: `kubectl get ns,pods,services,nodes -A -o yaml`.",
)
@click.option("--ports", required=True, help="Such as 80/tcp,53/udp,3868/sctp,icmp/echo.")
@click.option("--address", "addresses", metavar="NAME=IP", multiple=True, help="An address outside, under a name.")
@click.option(
    "--engine", type=click.Choice(("model", "kernel")), default="model", help="Who judges; kernel needs root."
)
@view_options()
def matrix(
    view: View,
    policy: Path,
    rev: str | None,
    inventory: Path,
    ports: str,
    addresses: tuple[str, ...],
    engine: str,
) -> ExitCode:
    """Show who reaches whom, for every pair of endpoints, as if all were in enforce mode."""
    from bulkhead.dataplane.cluster_inventory import SIZE_LIMIT, is_cluster
    from bulkhead.dataplane.inventory import read_content
    from bulkhead.dataplane.matrix import parse_ports

    wanted, outside = parse_ports(ports), _addresses(addresses)
    content = read_content(inventory, SIZE_LIMIT)
    draw = _draw_cluster if is_cluster(content) else _draw_hosts
    draw(view, _Question(policy, rev, inventory, content, wanted, outside, engine))
    return ExitCode.OK


@dataclasses.dataclass(frozen=True, slots=True)
class _Question:
    """What a matrix is asked."""

    policy: Path
    rev: str | None
    inventory: Path
    content: bytes
    """Of the inventory."""
    ports: Sequence[PortSpec]
    addresses: Mapping[str, Address]
    engine: str


def _draw_hosts(view: View, asked: _Question) -> None:
    from bulkhead.cli.files import compile_policy
    from bulkhead.dataplane.compile import lookup
    from bulkhead.dataplane.inventory import parse_inventory
    from bulkhead.dataplane.matrix import matrix as tabulate

    listed = parse_inventory(asked.content, str(asked.inventory))
    compiled = compile_policy(asked.policy, asked.rev)
    with _kernel(asked, lambda: (compiled, listed)) as kernel:
        found = tabulate(compiled, listed, asked.ports, asked.addresses, kernel[1] if kernel else lookup)
    if view.as_json:
        write_json(found)
    else:
        from bulkhead.cli import render

        show(view, render.matrix(found))


def _draw_cluster(view: View, asked: _Question) -> None:
    from bulkhead.cli.files import read_policy
    from bulkhead.dataplane.cluster_checks import judged_cluster
    from bulkhead.dataplane.cluster_inventory import parse_cluster
    from bulkhead.dataplane.cluster_matrix import cluster_matrix, tables

    cluster = parse_cluster(asked.content, str(asked.inventory))
    for kind, count in cluster.ignored.items():
        note(f"{count} of kind {kind} in the inventory are of no matter here")
    resolved = judged_cluster(read_policy(asked.policy, asked.rev), cluster, datetime.now(UTC))
    with _kernel(asked, lambda: tables(resolved, asked.ports)) as kernel:
        found = cluster_matrix(resolved, asked.ports, asked.addresses, kernel)
        write_pieces(found.json() if view.as_json else found.lines())


@contextlib.contextmanager
def _kernel(
    asked: _Question, tables: Callable[[], tuple[Compiled, Sequence[Listed]]]
) -> Iterator[tuple[Compiled, Engine] | None]:
    """The engine that asks the kernel, with the tables it has in force; None when the model is to answer."""
    if asked.engine == "model":
        yield None
        return
    import os

    if os.geteuid() != 0:
        raise UsageError("`--engine kernel` loads the kernel programs, which needs root; `--engine model` does not")
    from bulkhead.kernel.judge import kernel_engine

    compiled, listed = tables()
    with kernel_engine(compiled, listed, asked.addresses) as engine:
        yield compiled, engine


def _addresses(texts: Sequence[str]) -> dict[str, Address]:
    from bulkhead.cli.files import split_pair
    from bulkhead.observe.tables import parse_address

    found: dict[str, Address] = {}
    for text in texts:
        name, value = split_pair(text, "an address with a name, such as `admin=10.9.0.7`")
        address = parse_address(value)
        if address is None:
            raise UsageError(f"`{value}` is not an address")
        if name in found:
            raise UsageError(f"the address `{name}` is given twice")
        found[name] = address
    return found


@click.command()
@click.argument("directory", metavar="[DIR]", type=click.Path(path_type=Path), default=".")
@click.option("--rev", help="Read this commit of the repository instead of the files.")
@view_options()
def lint(view: View, directory: Path, rev: str | None) -> ExitCode:
    """Check the policy in DIR: errors, broken invariants, failing tests, and what is most likely not meant.

    Exits with 2 when the policy would be refused, with 1 for an error of lint's own, such as an expired exception.
    """
    refused, found = findings(directory, rev)
    if view.as_json:
        show_json("Findings", [_finding(one) for one in found])
    else:
        for one in found:
            click.echo(one.render() + "\n")
        note(_summary(found))
    if refused:
        return ExitCode.INVALID
    return ExitCode.NO if any(one.severity == "error" for one in found) else ExitCode.OK


def findings(directory: Path, rev: str | None) -> tuple[bool, tuple[Diagnostic, ...]]:
    """Whether the policy would be refused, and everything there is to say about it."""
    from bulkhead.cli.files import read_policy
    from bulkhead.dataplane.compile import examine
    from bulkhead.dataplane.lint import lint as inspect
    from bulkhead.rego.examine import examine as examine_rego

    try:
        policy_set = read_policy(directory, rev)
    except PolicyError as error:
        return True, error.diagnostics
    now = datetime.now(UTC)
    resolved: Resolved | None = None
    try:
        resolved, refusals = examine(policy_set, None, now)
    except PolicyError as error:
        refusals = error.diagnostics
    rego = examine_rego(policy_set)
    refused = bool(refusals) or any(one.severity == "error" for one in rego)
    return refused, (*refusals, *rego, *inspect(policy_set, now, resolved))


def _finding(one: Diagnostic) -> dict[str, Any]:
    value = dataclasses.asdict(one)
    value["related"] = [{"loc": related["loc"], "label": related["label"]} for related in _related(one)]
    return value


def _related(one: Diagnostic) -> Iterator[dict[str, Any]]:
    for loc, label in one.related:
        yield {"loc": dataclasses.asdict(loc), "label": label}


def _summary(found: Sequence[Diagnostic]) -> str:
    errors = sum(one.severity == "error" for one in found)
    warnings = len(found) - errors
    return f"{errors} errors, {warnings} warnings" if found else "no findings"

"""Commands on files: no agent, and no root unless the kernel itself is asked."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bulkhead.cli.options import View, view_options
from bulkhead.cli.output import note, show, show_json, write_json
from bulkhead.errors import Diagnostic, ExitCode, PolicyError, UsageError

if TYPE_CHECKING:
    from bulkhead.dataplane.addresses import Address
    from bulkhead.dataplane.compile import Compiled
    from bulkhead.dataplane.inventory import Listed
    from bulkhead.dataplane.matrix import Engine
    from bulkhead.policy.model import PolicySet


@click.command()
@click.option("--policy", type=click.Path(path_type=Path), required=True, help="Directory, or repository with --rev.")
@click.option("--rev", help="A commit of the repository.")
@click.option("--inventory", type=click.Path(path_type=Path), required=True, help="YAML list of endpoints.")
@click.option("--ports", required=True, help="Such as 80/tcp,53/udp,icmp/echo.")
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
    from bulkhead.cli.files import compile_policy
    from bulkhead.dataplane.inventory import read_inventory
    from bulkhead.dataplane.matrix import matrix as tabulate
    from bulkhead.dataplane.matrix import parse_ports

    wanted, outside = parse_ports(ports), _addresses(addresses)
    listed = read_inventory(inventory)
    compiled = compile_policy(policy, rev)
    with _engine(engine, compiled, listed, outside) as judge:
        found = tabulate(compiled, listed, wanted, outside, judge)
    if view.as_json:
        write_json(found)
    else:
        from bulkhead.cli import render

        show(view, render.matrix(found))
    return ExitCode.OK


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


@contextlib.contextmanager
def _engine(
    name: str, compiled: Compiled, listed: Sequence[Listed], outside: Mapping[str, Address]
) -> Iterator[Engine]:
    if name == "model":
        from bulkhead.dataplane.compile import lookup

        yield lookup
        return
    import os

    if os.geteuid() != 0:
        raise UsageError("`--engine kernel` loads the kernel programs, which needs root; `--engine model` does not")
    from bulkhead.kernel.judge import kernel_engine

    with kernel_engine(compiled, listed, outside) as engine:
        yield engine


@click.command()
@click.argument("directory", metavar="[DIR]", type=click.Path(path_type=Path), default=".")
@click.option("--rev", help="Read this commit of the repository instead of the files.")
@view_options()
def lint(view: View, directory: Path, rev: str | None) -> ExitCode:
    """Check the policy in DIR: errors, broken invariants, failing tests, and what is most likely not meant.

    Exits with 2 when the policy would be refused, with 1 for an error of lint's own, such as an expired exception.
    """
    refused, found = _findings(directory, rev)
    if view.as_json:
        show_json("Findings", [_finding(one) for one in found])
    else:
        for one in found:
            click.echo(one.render() + "\n")
        note(_summary(found))
    if refused:
        return ExitCode.INVALID
    return ExitCode.NO if any(one.severity == "error" for one in found) else ExitCode.OK


def _findings(directory: Path, rev: str | None) -> tuple[bool, tuple[Diagnostic, ...]]:
    """Whether the policy would be refused, and everything there is to say about it."""
    from bulkhead.cli.files import read_policy
    from bulkhead.policy.lint import lint as inspect

    try:
        policy_set = read_policy(directory, rev)
    except PolicyError as error:
        return True, error.diagnostics
    now = datetime.now(UTC)
    refusals = _refusals(policy_set, now)
    return bool(refusals), (*refusals, *inspect(policy_set, now))


def _refusals(policy_set: PolicySet, now: datetime) -> tuple[Diagnostic, ...]:
    from bulkhead.dataplane.compile import compile_commit

    try:
        compile_commit(policy_set, None, now)
    except PolicyError as error:
        return error.diagnostics
    return ()


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

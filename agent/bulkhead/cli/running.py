"""Commands that run, change or remove what enforces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bulkhead.cli.options import View, view_options
from bulkhead.cli.output import note, tell
from bulkhead.config import Settings
from bulkhead.config import load as load_settings
from bulkhead.errors import ExitCode, UnreachableError, UsageError

_PATH = click.Path(path_type=Path)


def _setting_options(command: Any) -> Any:
    for option in (
        click.option("--observe-only", is_flag=True, default=None, help="Never drop, whatever policy says."),
        click.option("--prefer", type=click.Choice(("tcx", "clsact")), help="How to hook devices."),
        click.option("--metrics-port", type=int, help="0: no metrics."),
        click.option("--metrics-host", help="Address to serve metrics at; loopback unless given."),
        click.option("--pins", type=_PATH, help="Directory on a BPF file system."),
        click.option("--netns", type=_PATH, help="Network namespace to enforce in."),
        click.option("--cgroup-root", type=_PATH, help="Control group below which sockets are judged."),
        click.option("--ref", help="Branch, tag or commit to enforce."),
        click.option("--repository", help="Policy repository: a path or a URL."),
        click.option("--host", help="Name of this host in policies."),
        click.option("--config", type=_PATH, help="Settings file; /etc/bulkhead/agent.toml unless given."),
    ):
        command = option(command)
    return command


def _settings(context: click.Context, view: View, config: Path | None, options: dict[str, Any]) -> Settings:
    """Settings of the file, and of the options that were given."""
    sources = [context, *([context.parent] if context.parent else [])]
    given = any(one.get_parameter_source("run_dir") is click.core.ParameterSource.COMMANDLINE for one in sources)
    return load_settings(config, run_dir=view.run_dir if given else None, **options)


@click.command()
@_setting_options
@view_options()
def agent(view: View, config: Path | None, **options: Any) -> ExitCode:
    """Run the agent in the foreground, until it is told to stop. What it has put in force stays so."""
    settings = _settings(click.get_current_context(), view, config, options)
    from bulkhead.daemon.run import run

    run(settings)
    return ExitCode.OK


@click.command()
@click.option("--config", type=_PATH, help="Settings file; /etc/bulkhead/agent.toml unless given.")
@click.option("--pins", type=_PATH, help="Directory on a BPF file system.")
@view_options()
def loader(view: View, config: Path | None, pins: Path | None) -> ExitCode:
    """Load the kernel programs, pin them and leave. Nothing is enforced by that alone."""
    settings = _settings(click.get_current_context(), view, config, {"pins": pins})
    from bulkhead.kernel.load import is_current, load

    if is_current(settings.pins):
        note(f"the programs at {settings.pins} are current")
        return ExitCode.OK
    load(settings.pins, settings.cache_dir)
    note(f"programs pinned at {settings.pins}")
    return ExitCode.OK


@click.command()
@_setting_options
@view_options()
def proxy(view: View, config: Path | None, **options: Any) -> ExitCode:
    """Keep the node's Envoy running as the agent's files say, in the foreground, until it is told to stop."""
    settings = _settings(click.get_current_context(), view, config, options)
    from bulkhead.proxyd import run

    run(settings)
    return ExitCode.OK


@click.command()
@_setting_options
@view_options()
def detach(view: View, config: Path | None, **options: Any) -> ExitCode:
    """Remove every hook and every trace, once the agent has stopped. Nothing is enforced afterwards."""
    import os

    settings = _settings(click.get_current_context(), view, config, options)
    if os.geteuid() != 0:
        raise UsageError("detaching needs root")
    _refuse_while_running(settings)
    from bulkhead.daemon.run import detach as take_down

    take_down(settings)
    tell(view, "Detach", {"pins": str(settings.pins)}, "detached: nothing is enforced")
    return ExitCode.OK


def _refuse_while_running(settings: Settings) -> None:
    """An agent that runs would put back what is taken away."""
    from bulkhead.control import client

    try:
        status = client.call(settings.control_socket, "status")
    except UnreachableError:
        return
    raise UsageError(f"an agent is running (pid {status.get('pid')}): stop it first")


@click.command()
@view_options()
def reload(view: View) -> ExitCode:
    """Look at the repository now, and put a new commit into force."""
    from bulkhead.control import client

    answer = client.call(view.socket, "reload", timeout_s=60.0)
    tell(view, "Reload", answer, "asked the agent to look at the repository")
    return ExitCode.OK

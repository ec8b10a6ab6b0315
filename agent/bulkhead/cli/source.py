"""`bulkhead verify | rollback`: may these commits be enforced, and back to one that was."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bulkhead.cli.options import View, view_options
from bulkhead.cli.output import show, show_json, tell
from bulkhead.errors import ExitCode, PolicyError, UsageError

if TYPE_CHECKING:
    from bulkhead.policy.history import Verified

_ROLLBACK_TIMEOUT_S = 150.0


@click.command()
@click.argument("commits", metavar="OLD..NEW")
@click.option("--repository", type=click.Path(path_type=Path), default=".", help="The policy repository.")
@click.option("--signers", type=click.Path(path_type=Path), help="The operator's file of signers, as an agent has it.")
@view_options()
def verify(view: View, commits: str, repository: Path, signers: Path | None) -> ExitCode:
    """Check that NEW may follow OLD: it descends from it, and every commit between is signed by one who may.

    Signers are those of the file, and those that the repository names at OLD. NEW alone is judged as the first commit
    of a new host. Exits with 1 when it may not, with 2 when nobody has to sign.
    """
    try:
        verified = _verified(commits, repository, signers)
    except PolicyError as error:
        tell(view, "Findings", [asdict(one) for one in error.diagnostics], str(error))
        return ExitCode.NO
    if view.as_json:
        show_json("Verified", [_to_json(one) for one in verified])
    else:
        show(view, _table(verified))
    return ExitCode.OK


def _verified(commits: str, repository: Path, signers: Path | None) -> tuple[Verified, ...]:
    from tempfile import TemporaryDirectory

    from bulkhead.policy.git import git_directory, resolve
    from bulkhead.policy.history import History
    from bulkhead.policy.signers import Roots, of_commit, read_operators

    old, dots, new = commits.rpartition("..")
    directory = git_directory(repository)
    last = resolve(directory, old, repository) if dots else ""
    commit = resolve(directory, new, repository)
    roots = read_operators(signers) if signers else Roots()
    if not roots.signers and not (last and of_commit(directory, last)):
        raise UsageError("nobody has to sign: give `--signers`, or name signers in `bulkhead.yaml`")
    with TemporaryDirectory(prefix="bulkhead-verify-") as place:
        return History(repository, roots, Path(place) / "keyring").judge(last, commit)


def _to_json(one: Verified) -> dict[str, Any]:
    signer = one.signer
    return {
        "commit": one.commit,
        "signer": signer.name,
        "key": signer.fingerprint,
        "level": str(signer.level),
        "named_by": signer.origin,
    }


def _table(verified: tuple[Verified, ...]) -> Any:
    from bulkhead.cli.output import cell
    from bulkhead.cli.render import table

    made = table("COMMIT", "SIGNER", "LEVEL", "KEY")
    for one in verified:
        row = (one.commit[:7], one.signer.name, str(one.signer.level), one.signer.fingerprint)
        made.add_row(*map(cell, row))
    return made


@click.command()
@click.argument("commit")
@click.option("--reason", required=True, help="Why; kept with the record.")
@view_options()
def rollback(view: View, commit: str, reason: str) -> ExitCode:
    """Enforce COMMIT of the repository, and leave the one that is there now alone. Needs root.

    The next commit has to follow COMMIT, and the reference has to move on past what it names now. A COMMIT that was
    never accepted has to be signed by somebody who may write anything, when anybody has to sign.
    """
    from bulkhead.control import client

    request = {"commit": commit, "reason": reason}
    answer = client.call(view.socket, "rollback", request, timeout_s=_ROLLBACK_TIMEOUT_S)
    held = f"; {answer['held_off'][:7]} is held off" if answer["held_off"] else ""
    tell(view, "Rollback", answer, f"enforcing {answer['target'][:7]} in generation {answer['generation']}{held}")
    return ExitCode.OK

"""`bulkhead identity`: SVIDs of this node, the caller's own, and whether a certificate is one to be believed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bulkhead.cli.options import View, view_options
from bulkhead.cli.output import cell, note, show, show_json
from bulkhead.errors import ExitCode, UnreachableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table

    from bulkhead.svid.bundle import Bundle
    from bulkhead.svid.fetching import Fetched
    from bulkhead.svid.svids import JwtSvid

_PATH = click.Path(path_type=Path)


@click.group()
def identity() -> None:
    """SPIFFE identities: of this node's workloads, of the caller, and in files."""


@identity.command()
@click.option("--node", required=True, help="The node's name, as its agent's setting `host`.")
@click.option("--trust-domain", required=True, help="As `trustDomain` in bulkhead.yaml.")
@click.option("--out", required=True, type=_PATH, help="File to write, which must not exist.")
@click.option("--passphrase-file", required=True, type=_PATH, help="File whose first line protects the key.")
@view_options()
def init(view: View, node: str, trust_domain: str, out: Path, passphrase_file: Path) -> ExitCode:
    """Make a node's certificate authority, and print the line with its certificate for its `kind: Node` record."""
    import base64

    from bulkhead.secret_files import read_passphrase, write_secret
    from bulkhead.svid import authority
    from bulkhead.svid.spiffe_id import is_trust_domain

    if not is_trust_domain(trust_domain):
        raise UsageError(f"`{trust_domain}` is not a trust domain")
    file, certificate = authority.generate(node, trust_domain, read_passphrase(passphrase_file))
    write_secret(out, file)
    text = base64.b64encode(certificate).decode()
    if view.as_json:
        show_json("NodeAuthority", {"file": str(out), "ca": [text]})
    else:
        click.echo(f"ca: [{text}]")
    return ExitCode.OK


@identity.command("ls")
@view_options()
def list_(view: View) -> ExitCode:
    """Show the SVIDs of this node's workloads. Exits with 4 when some are missing."""
    from bulkhead.control import client

    answer = client.call(view.socket, "identities")
    if view.as_json:
        show_json("Identities", answer)
    else:
        if answer["svids"]:
            show(view, _svids(answer["svids"], time.time()))
        _notes(answer)
    is_whole = answer["ready"] and not answer["missing"] and not answer["problem"]
    return ExitCode.OK if is_whole else ExitCode.INCOMPLETE


def _svids(svids: Sequence[Mapping[str, Any]], now: float) -> Table:
    from bulkhead.cli.render import table

    made = table("WORKLOAD", "SPIFFE ID", "AGE", "LEFT", numbers=("AGE", "LEFT"))
    for one in sorted(svids, key=lambda svid: str(svid["name"])):
        texts = (one["name"], one["spiffe_id"], _minutes(now - one["issued_at"]), _minutes(one["expires_at"] - now))
        made.add_row(*map(cell, texts))
    return made


def _minutes(seconds: float) -> str:
    return f"{max(0.0, seconds) / 60:.0f} min"


def _notes(answer: Mapping[str, Any]) -> None:
    if answer["problem"]:
        note(f"nothing new is handed out: {answer['problem']}")
    elif not answer["ready"]:
        note("the identities of this node are not known yet")
    for one in answer["missing"]:
        note(f"no SVID: {one}")
    for one in answer.get("unusable", ()):
        note(one)
    if answer["ready"] and not answer["svids"] and not answer["missing"]:
        note("no workload of this node")


@identity.command()
@click.option("--endpoint", type=_PATH, help="The Workload API's socket, if it is not the agent's.")
@click.option("--audience", multiple=True, help="Get a JWT-SVID for it, instead of an X.509-SVID; may be repeated.")
@click.option("--out", type=_PATH, help="Directory for svid.pem, key.pem and bundle.pem, none of which may exist.")
@view_options()
def get(view: View, endpoint: Path | None, audience: tuple[str, ...], out: Path | None) -> ExitCode:
    """Get the SVID of whoever calls this command: of the workload that this shell is, if it is one."""
    from bulkhead.svid import fetching

    socket = endpoint or view.run_dir / "workload.sock"
    if audience and out is not None:
        raise UsageError("`--out` is for X.509-SVIDs: a token is printed")
    if audience:
        _show_tokens(view, fetching.fetch_jwt(socket, audience))
    else:
        _show_fetched(view, fetching.fetch_x509(socket), out)
    return ExitCode.OK


def _show_tokens(view: View, tokens: Sequence[JwtSvid]) -> None:
    if view.as_json:
        found = [{"spiffe_id": one.spiffe_id, "token": one.token, "expires_at": one.expires_at} for one in tokens]
        show_json("JwtSvids", found)
        return
    for one in tokens:
        click.echo(one.token)


def _show_fetched(view: View, fetched: Fetched, out: Path | None) -> None:
    if out is not None:
        _write(out, fetched)
    found = [
        {"name": one.hint, "spiffe_id": one.spiffe_id, "issued_at": one.issued_at, "expires_at": one.expires_at}
        for one in fetched.svids
    ]
    if view.as_json:
        show_json("X509Svids", found)
    else:
        show(view, _svids(found, time.time()))


def _write(directory: Path, fetched: Fetched) -> None:
    """The first SVID, which is the default one."""
    from bulkhead.secret_files import write_secret
    from bulkhead.svid.pem import pem

    svid = fetched.svids[0]
    own = fetched.bundles[svid.spiffe_id.split("/")[2]]
    directory.mkdir(parents=True, exist_ok=True)
    write_secret(directory / "key.pem", pem("PRIVATE KEY", svid.key))
    write_secret(directory / "svid.pem", b"".join(pem("CERTIFICATE", der) for der in svid.chain))
    write_secret(directory / "bundle.pem", b"".join(pem("CERTIFICATE", der) for der in own.x509))


@identity.command()
@click.argument("file", type=_PATH)
@click.option("--bundle", type=_PATH, help="A SPIFFE bundle document or certificates, instead of what the agent has.")
@click.option("--trust-domain", help="Whose bundle that is.")
@view_options()
def verify(view: View, file: Path, bundle: Path | None, trust_domain: str | None) -> ExitCode:
    """Is the certificate chain in FILE (PEM, leaf first) an SVID to be believed? Exits with 1 when it is not."""
    from bulkhead.svid.verify import SvidError
    from bulkhead.svid.verify import verify as check

    if (bundle is None) != (trust_domain is None):
        raise UsageError("`--bundle` and `--trust-domain` go together")
    chain = _chain(file)
    known = _from_agent(view) if bundle is None or trust_domain is None else _from_file(bundle, trust_domain)
    try:
        found = check(chain, known)
    except SvidError as error:
        if view.as_json:
            show_json("Verification", {"ok": False, "reason": error.reason, "detail": str(error)})
        else:
            click.echo(f"refused ({error.reason}): {error}")
        return ExitCode.NO
    answer = {"ok": True, "spiffe_id": str(found.spiffe_id), "expires_at": found.expires_at}
    if view.as_json:
        show_json("Verification", answer)
    else:
        click.echo(f"{found.spiffe_id}, for another {_minutes(found.expires_at - time.time())}")
    return ExitCode.OK


def _chain(file: Path) -> list[bytes]:
    from bulkhead.svid.pem import certificates

    found = certificates(_read(file))
    if not found:
        raise UsageError(f"`{file}` has no certificate in PEM")
    return found


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UnreachableError(f"cannot read `{file}`: {error.strerror}") from error


def _from_file(file: Path, trust_domain: str) -> dict[str, Bundle]:
    from bulkhead.svid import bundle as bundles
    from bulkhead.svid.pem import certificates

    content = _read(file)
    if found := certificates(content):
        return {trust_domain: bundles.Bundle(trust_domain, tuple(found))}
    try:
        return {trust_domain: bundles.read(trust_domain, content)}
    except bundles.BundleError as error:
        raise UsageError(f"`{file}` is no SPIFFE bundle: {error}") from error


def _from_agent(view: View) -> dict[str, Bundle]:
    from bulkhead.control import client
    from bulkhead.svid import bundle as bundles

    answer = client.call(view.socket, "bundles")
    return {domain: bundles.read(domain, text.encode()) for domain, text in answer.items()}

"""The Workload API as a client sees it: what this very process is given, once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bulkhead.errors import UnreachableError
from bulkhead.svid import jwt
from bulkhead.svid.bundle import Bundle, read_certificate
from bulkhead.svid.messages import message
from bulkhead.svid.spiffe_id import SCHEME
from bulkhead.svid.spire_calls import Call, Caller, CallError
from bulkhead.svid.spire_offers import certificates_of
from bulkhead.svid.svids import JwtSvid, X509Svid
from bulkhead.svid.workload_api import HEADER, SERVICE

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Fetched:
    """X.509-SVIDs, and what checks those of others."""

    svids: tuple[X509Svid, ...]
    bundles: Mapping[str, Bundle]
    """By trust domain."""


def fetch_x509(socket: Path) -> Fetched:
    """The caller's own X.509-SVIDs. Raises UnreachableError, with the server's words where it refuses."""
    call = Call(f"{SERVICE}FetchX509SVID", message("X509SVIDRequest")(), message("X509SVIDResponse"), _fetched)
    return _run(_first(socket, call))


def fetch_jwt(socket: Path, audiences: Sequence[str]) -> tuple[JwtSvid, ...]:
    """The caller's own JWT-SVIDs for those audiences. Raises UnreachableError likewise."""
    question = message("JWTSVIDRequest")(audience=audiences)
    return _run(_only(socket, Call(f"{SERVICE}FetchJWTSVID", question, message("JWTSVIDResponse"), _tokens)))


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except CallError as error:
        raise UnreachableError(str(error)) from error


async def _first(socket: Path, call: Call[T]) -> T:
    with contextlib.closing(Caller(socket, dict([HEADER]))) as caller:
        async with contextlib.aclosing(caller.follow(call)) as answers:
            return await anext(answers)


async def _only(socket: Path, call: Call[T]) -> T:
    with contextlib.closing(Caller(socket, dict([HEADER]))) as caller:
        return await caller.ask(call)


def _fetched(answer: Any) -> Fetched:
    bundles: dict[str, Bundle] = {}
    svids = []
    for one in answer.svids:
        chain = certificates_of(one.x509_svid)
        leaf = read_certificate(chain[0])
        dates = (leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp())
        svids.append(X509Svid(one.spiffe_id, chain, one.x509_svid_key, *dates, one.hint))
        own = one.spiffe_id.removeprefix(SCHEME).partition("/")[0]
        bundles[own] = Bundle(own, certificates_of(one.bundle))
    for key, ders in answer.federated_bundles.items():
        domain = key.removeprefix(SCHEME)
        bundles[domain] = Bundle(domain, certificates_of(ders) if ders else ())
    return Fetched(tuple(svids), bundles)


def _tokens(answer: Any) -> tuple[JwtSvid, ...]:
    return tuple(JwtSvid(one.spiffe_id, one.svid, jwt.expiry(one.svid), one.hint) for one in answer.svids)

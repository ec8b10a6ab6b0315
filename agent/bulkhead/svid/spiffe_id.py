"""SPIFFE IDs: `spiffe://TRUSTDOMAIN/PATH`, one spelling each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

SCHEME: Final = "spiffe://"
_BYTES_MAX: Final = 2048
_TRUST_DOMAIN: Final = re.compile(r"[a-z0-9._-]{1,255}")
_SEGMENT: Final = re.compile(r"[A-Za-z0-9._-]+")


class SpiffeIdError(ValueError):
    """It is no SPIFFE ID; says why in one clause."""


@dataclass(frozen=True, slots=True, order=True)
class SpiffeId:
    """Who a workload is, within a trust domain; or, without a path, the trust domain itself."""

    trust_domain: str
    path: str = ""
    """Empty, or `/` and segments."""

    def __str__(self) -> str:
        return f"{SCHEME}{self.trust_domain}{self.path}"

    @property
    def is_workload(self) -> bool:
        """Whether it names more than a trust domain."""
        return bool(self.path)


def parse(text: str) -> SpiffeId:
    """The ID that is written so. Nothing is normalised: what differs in a byte is another ID. Raises SpiffeIdError."""
    if not text.startswith(SCHEME):
        raise SpiffeIdError("it does not begin with `spiffe://`")
    if len(text.encode(errors="surrogateescape")) > _BYTES_MAX:
        raise SpiffeIdError(f"it is longer than {_BYTES_MAX} bytes")
    trust_domain, slash, path = text.removeprefix(SCHEME).partition("/")
    if not is_trust_domain(trust_domain):
        raise SpiffeIdError("its trust domain is not of lower-case letters, digits, dots, hyphens and underscores")
    if slash:
        for segment in path.split("/"):
            if segment in ("", ".", "..") or not _SEGMENT.fullmatch(segment):
                raise SpiffeIdError("its path has a segment that is empty, `.`, `..` or of other characters")
    return SpiffeId(trust_domain, slash + path)


def is_trust_domain(text: str) -> bool:
    """Whether a trust domain may be called so."""
    return _TRUST_DOMAIN.fullmatch(text) is not None

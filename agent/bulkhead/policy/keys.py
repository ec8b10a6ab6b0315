"""Public keys of signers, as authors write them: is this one, and is it strong enough?"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import struct
from collections.abc import Callable
from typing import Final

OPENPGP: Final = "openpgp:"
RSA_BITS_MIN: Final = 2048
WRITTEN_MAX: Final = 4096
"""Characters of the longest key that is looked at."""

_FINGERPRINT = re.compile(r"[0-9A-Fa-f]{40}|[0-9A-Fa-f]{64}")
_POINT_BYTES: Final = {"nistp256": 65, "nistp384": 97, "nistp521": 133}
"""Of an uncompressed point: 0x04 and both coordinates."""


class KeyProblemError(ValueError):
    """Why a text is no key; a clause for a message."""

    def __init__(self, problem: str, hint: str = "") -> None:
        super().__init__(problem)
        self.hint = hint


def parse_key(text: str) -> str:
    """The key in its canonical form, by which equal keys are equal: `TYPE BASE64` without comment, or the upper-case
    fingerprint of an OpenPGP key. Raises KeyProblemError for anything else, and for keys that are too weak."""
    if text.startswith(OPENPGP):
        return _parse_fingerprint(text.removeprefix(OPENPGP))
    words = text.split()
    if len(text) > WRITTEN_MAX:
        raise KeyProblemError(f"it has more than {WRITTEN_MAX} characters")
    if not words or words[0] not in _BODIES:
        hint = f"write `{OPENPGP}{text}`" if _FINGERPRINT.fullmatch(text) else "such as `ssh-ed25519 AAAA…`"
        raise KeyProblemError("it begins with no type of key that is known", hint)
    if len(words) == 1:
        raise KeyProblemError("there is nothing behind its type")
    kind, encoded = words[:2]
    _check_blob(kind, _decoded(encoded))
    return f"{kind} {encoded}"


def key_fingerprint(key: str) -> str:
    """What a canonical key is called for short: `SHA256:…` as OpenSSH shows it, or the OpenPGP fingerprint."""
    _, blank, encoded = key.partition(" ")
    if not blank:
        return key
    return "SHA256:" + base64.b64encode(hashlib.sha256(base64.b64decode(encoded)).digest()).decode().rstrip("=")


def _parse_fingerprint(text: str) -> str:
    if not _FINGERPRINT.fullmatch(text):
        raise KeyProblemError("a fingerprint has 40 or 64 hexadecimal digits", "short key ids are easily forged")
    return text.upper()


def _decoded(encoded: str) -> bytes:
    try:
        return base64.b64decode(encoded, validate=True)
    except binascii.Error:
        raise KeyProblemError("what follows its type is not base64") from None


class _Blob:
    """The fields of a key, one length-prefixed field after the other."""

    def __init__(self, data: bytes) -> None:
        self._rest = data

    def field(self) -> bytes:
        if len(self._rest) < 4:
            raise KeyProblemError("it is cut short")
        (size,) = struct.unpack_from(">I", self._rest)
        if len(self._rest) < 4 + size:
            raise KeyProblemError("it is cut short")
        value, self._rest = self._rest[4 : 4 + size], self._rest[4 + size :]
        return value

    def end(self) -> None:
        if self._rest:
            raise KeyProblemError("there is something behind its end")


def _check_blob(kind: str, data: bytes) -> None:
    blob = _Blob(data)
    inner = blob.field()
    if inner != kind.encode():
        raise KeyProblemError(f"it says `{kind}`, and is another type of key within")
    _BODIES[kind](blob)
    blob.end()


def _ed25519(blob: _Blob) -> None:
    if len(blob.field()) != 32:
        raise KeyProblemError("its public key has not 32 bytes")


def _ecdsa(curve: str) -> Callable[[_Blob], None]:
    def check(blob: _Blob) -> None:
        if blob.field() != curve.encode():
            raise KeyProblemError("it is on another curve than it says")
        point = blob.field()
        if len(point) != _POINT_BYTES[curve] or point[:1] != b"\x04":
            raise KeyProblemError(f"its public key is no point of {curve}")

    return check


def _of_token(check: Callable[[_Blob], None]) -> Callable[[_Blob], None]:
    """Of a hardware token, which adds the application that the key is for."""

    def check_both(blob: _Blob) -> None:
        check(blob)
        if not blob.field():
            raise KeyProblemError("it names no application")

    return check_both


def _rsa(blob: _Blob) -> None:
    exponent, modulus = (int.from_bytes(blob.field(), "big") for _ in range(2))
    if modulus.bit_length() < RSA_BITS_MIN:
        raise KeyProblemError(f"RSA keys have {RSA_BITS_MIN} bits at least, not {modulus.bit_length()}")
    if exponent < 3 or not exponent & 1:
        raise KeyProblemError("its exponent is none")


_BODIES: Final[dict[str, Callable[[_Blob], None]]] = {
    "ssh-ed25519": _ed25519,
    "sk-ssh-ed25519@openssh.com": _of_token(_ed25519),
    **{f"ecdsa-sha2-{curve}": _ecdsa(curve) for curve in _POINT_BYTES},
    "sk-ecdsa-sha2-nistp256@openssh.com": _of_token(_ecdsa("nistp256")),
    "ssh-rsa": _rsa,
}
"""Checks of what follows the type, by type."""

KEY_TYPES: Final = tuple(_BODIES)

"""PEM: DER between two lines, as other programs take it."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

_CERTIFICATE: Final = re.compile(rb"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)


def pem(what: str, der: bytes) -> bytes:
    """One block of PEM."""
    return f"-----BEGIN {what}-----\n".encode() + base64.encodebytes(der) + f"-----END {what}-----\n".encode()


def certificates(text: bytes) -> list[bytes]:
    """The certificates (DER) in a text, in their order. What is not base64 between the lines is no certificate."""
    found = []
    for body in _CERTIFICATE.findall(text):
        try:
            found.append(base64.b64decode(b"".join(body.split()), validate=True))
        except (binascii.Error, ValueError):
            found.append(b"")
    return found

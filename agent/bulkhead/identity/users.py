"""Users and groups by name."""

from __future__ import annotations

import grp
import pwd

_LARGEST_ID = 2**32 - 2
"""2**32 - 1 is the kernel's "no such id"."""


class Users:
    """Turns the names that authors write into the numbers that the kernel compares.

    Answers, unknown names included, are kept until `refresh`, because a name service may be slow or away.
    """

    def __init__(self) -> None:
        self._uids: dict[str, int | None] = {}
        self._gids: dict[str, int | None] = {}

    def uid(self, text: str) -> int | None:
        """The number of a user given by name or number; None when there is no such user."""
        if text not in self._uids:
            self._uids[text] = _number(text) if _is_number(text) else _uid_of(text)
        return self._uids[text]

    def gid(self, text: str) -> int | None:
        """The number of a group given by name or number; None when there is no such group."""
        if text not in self._gids:
            self._gids[text] = _number(text) if _is_number(text) else _gid_of(text)
        return self._gids[text]

    def refresh(self) -> bool:
        """Ask again for every name asked so far. True when an answer changed: identities must be derived again."""
        uids, gids = self._uids, self._gids
        self._uids, self._gids = {}, {}
        for text in uids:
            self.uid(text)
        for text in gids:
            self.gid(text)
        return (uids, gids) != (self._uids, self._gids)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _number(text: str) -> int | None:
    # Longer than any id; int() of arbitrarily many digits raises.
    if len(text) > 10 or int(text) > _LARGEST_ID:
        return None
    return int(text)


def _uid_of(name: str) -> int | None:
    try:
        return pwd.getpwnam(name).pw_uid
    except (KeyError, ValueError):
        return None


def _gid_of(name: str) -> int | None:
    try:
        return grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):
        return None

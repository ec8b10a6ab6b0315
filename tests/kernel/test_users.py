"""Users and groups by name, from this machine's own databases."""

from __future__ import annotations

import grp
import pwd

import pytest

from bulkhead.identity.users import Users


def test_names_are_resolved() -> None:
    users = Users()
    for entry in pwd.getpwall():
        assert users.uid(entry.pw_name) == pwd.getpwnam(entry.pw_name).pw_uid
    for group in grp.getgrall():
        assert users.gid(group.gr_name) == grp.getgrnam(group.gr_name).gr_gid


def test_numbers_pass_whether_or_not_anyone_has_them() -> None:
    assert Users().uid("0") == 0
    assert Users().gid("4294967294") == 4294967294


@pytest.mark.parametrize("text", ["nobody-has-this-name", "", "4294967295", "9" * 5000, "-1", "٣", "a\0b", "\udcff"])
def test_what_names_nobody_is_none(text: str) -> None:
    assert Users().uid(text) is None
    assert Users().gid(text) is None


def test_refresh_without_change_says_so() -> None:
    users = Users()
    users.uid("root")
    users.gid("nobody-has-this-name")
    assert not users.refresh()
    assert users.uid("root") == 0

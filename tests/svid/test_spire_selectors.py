"""The words of policy in the words of SPIRE."""

from __future__ import annotations

import pytest

from bulkhead.policy.model import Match
from bulkhead.svid.spire_selectors import selectors_of


@pytest.mark.parametrize(
    ("match", "selectors"),
    [
        (Match(unit=("web.service",)), {("systemd", "id:web.service")}),
        (Match(exe=("/usr/sbin/nginx",)), {("unix", "path:/usr/sbin/nginx")}),
        (Match(user=("33",), group=("33",)), {("unix", "uid:33"), ("unix", "gid:33")}),
        (Match(user=("www-data",), group=("web",)), {("unix", "user:www-data"), ("unix", "group:web")}),
        (
            Match(host=("web-*",), unit=("web.service",), exe=("/bin/web",), user=("web",)),
            {("systemd", "id:web.service"), ("unix", "path:/bin/web"), ("unix", "user:web")},
        ),
        (
            Match(namespace=("shop",), service_account=("checkout",), labels=(("app", "web"),)),
            {("k8s", "ns:shop"), ("k8s", "sa:checkout"), ("k8s", "pod-label:app:web")},
        ),
    ],
)
def test_a_match_is_said_whole(match: Match, selectors: set[tuple[str, str]]) -> None:
    assert set(selectors_of(match)) == selectors


@pytest.mark.parametrize(
    "match",
    [
        Match(everything=True),
        Match(unit=("web-*.service",)),
        Match(unit=("web@?.service",)),
        Match(unit=("web.service", "api.service")),
        Match(unit=("web.service",), cgroup=("/system.slice/web.service",)),
        Match(unit=("web.service",), user=("33", "34")),
        Match(exe=("/bin/a", "/bin/b")),
        Match(namespace=("shop-*",)),
        Match(namespace=("a", "b")),
        Match(namespace=("shop",), service_account=("check*",)),
        Match(),
    ],
)
def test_a_match_that_spire_has_no_words_for_is_not_said_in_part(match: Match) -> None:
    assert selectors_of(match) == ()

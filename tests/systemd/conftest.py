"""A box with Bulkhead installed in it, shared by the tests of the units."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.installed import SERVICE, Installed
from lab.systemd_box import SystemdBox


@pytest.fixture(scope="package")
def box() -> Iterator[SystemdBox]:
    with SystemdBox("units") as running:
        yield running


@pytest.fixture(scope="package")
def installed(box: SystemdBox) -> Installed:
    """Installed, not started."""
    made = Installed(box)
    made.install()
    return made


@pytest.fixture(scope="package")
def running(installed: Installed) -> Installed:
    """Enforcing, with units up: `asker` may reach `server`, `stranger` may not."""
    installed.start()
    for unit, arguments in (("server", "listen 8080"), ("asker", "call"), ("stranger", "call")):
        installed.box.start_unit(f"{unit}.service", SERVICE.format(type="notify", arguments=arguments))
    installed.until(lambda: installed.attested() >= {"t/server", "t/asker", "t/stranger"})
    return installed

"""Programs that were compiled before are the same programs, and nobody else's."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bulkhead.kernel import libbpf, load, source
from bulkhead.kernel.libbpf import MapInfo
from bulkhead.kernel.programs import PROGRAMS
from lab.bpf import pin_directory
from lab.host import CACHE


def tags(pins: Path) -> dict[str, str]:
    """Hash of each program's instructions, as the kernel computes it: maps do not count."""
    found = {}
    for program in PROGRAMS:
        with libbpf.obj_get(pins / "programs" / program.name) as fd:
            found[program.name] = libbpf.prog_info(fd).tag
    return found


def maps(pins: Path) -> dict[str, MapInfo]:
    found = {}
    for path in (pins / "maps").iterdir():
        with libbpf.map_open(path) as opened:
            info = libbpf.map_info(opened.fd)
            found[path.name] = (info.map_type, info.key_size, info.value_size, info.max_entries, info.flags)
    return found


def test_what_is_kept_loads_as_the_same_programs_with_the_same_maps(pins: Path, tmp_path: Path) -> None:
    load.load(pins, tmp_path / "cache")
    compiled, made = tags(pins), maps(pins)
    with pin_directory() as others:
        load.load(others, tmp_path / "cache")
        assert load.is_current(others)
        assert (tags(others), maps(others)) == (compiled, made)


def is_used(cache: Path, pins: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether a load finds what it wants there; one that does not, fails."""
    monkeypatch.setattr(load, "compile_text", _compile_nothing)
    try:
        load.load(pins, cache)
    except _CompilerWantedError:
        return False
    return True


class _CompilerWantedError(Exception):
    pass


def _compile_nothing(text: str) -> None:
    raise _CompilerWantedError


def writable_by_others(build: Path) -> None:
    build.parent.chmod(0o777)


def another_owner(build: Path) -> None:
    os.chown(build / "maps.json", 65534, 0)


def a_link(build: Path) -> None:
    (build / "maps.json").rename(build / "elsewhere")
    (build / "maps.json").symlink_to("elsewhere")


def cut_short(build: Path) -> None:
    path = build / "maps.json"
    path.write_bytes(path.read_bytes()[:-9])


def of_another_build(build: Path) -> None:
    build.rename(build.with_name("0" * 32))


@pytest.fixture
def cache(tmp_path: Path, pins: Path) -> Path:
    """A copy of the checkout's own, which is filled if need be."""
    with pin_directory() as first:
        load.load(first, CACHE)
    build = tmp_path / "cache" / source.object_id()
    build.mkdir(mode=0o700, parents=True)
    for path in (CACHE / build.name).iterdir():
        (build / path.name).write_bytes(path.read_bytes())
        (build / path.name).chmod(0o600)
    return tmp_path / "cache"


def test_a_copy_is_used_as_it_is(cache: Path, pins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_used(cache, pins, monkeypatch)


@pytest.mark.parametrize("spoil", (writable_by_others, another_owner, a_link, cut_short, of_another_build))
def test_what_another_may_have_written_or_is_not_whole_is_compiled_again(
    cache: Path, pins: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None]
) -> None:
    spoil(cache / source.object_id())
    assert not is_used(cache, pins, monkeypatch)

"""Control groups on this machine's own hierarchy, in a private subtree."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from bulkhead.errors import RefusedError
from bulkhead.identity.cgroups import Cgroup, CgroupTree, find_mount
from bulkhead.identity.handles import handle_of
from bulkhead.identity.processes import read
from lab.cgroup import cgroup_subtree, child, read_line, tell

HYBRID = "36 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n"
SAY_PATH = "print(open('/proc/self/cgroup').read().split('0::')[1].split()[0], flush=True); input()"


@pytest.fixture
def root() -> Iterator[Path]:
    with cgroup_subtree() as directory:
        yield directory


def make(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).mkdir(parents=True)


def mountinfo_line(directory: Path, mount_root: str = "/", device: str | None = None) -> str:
    st_dev = os.stat(directory).st_dev
    shown = device or f"{os.major(st_dev)}:{os.minor(st_dev)}"
    escaped = str(directory).replace(" ", "\\040")
    return f"41 31 {shown} {mount_root} {escaped} rw - cgroup2 cgroup2 rw\n"


def test_the_mount_found_is_a_cgroup2_directory() -> None:
    assert (find_mount().mount_point / "cgroup.procs").exists()


def test_a_machine_without_cgroup2_is_refused_by_name() -> None:
    with pytest.raises(RefusedError, match=r"cgroup2.*not mounted"):
        find_mount(HYBRID)


def test_a_mount_that_another_one_hides_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="hidden"):
        find_mount(mountinfo_line(tmp_path, device="0:4095"))


def test_of_several_mounts_the_one_that_shows_most_is_taken(tmp_path: Path) -> None:
    part, whole = tmp_path / "part", tmp_path / "the whole"
    part.mkdir()
    whole.mkdir()
    text = HYBRID + mountinfo_line(part, "/docker/abc") + mountinfo_line(whole)
    assert find_mount(text).mount_point == whole


def test_a_root_that_is_not_cgroup2_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="not on cgroup2"):
        CgroupTree(tmp_path)


def test_a_root_that_does_not_exist_is_refused(root: Path) -> None:
    with pytest.raises(RefusedError, match="cannot open control group root"):
        CgroupTree(root / "absent")


def test_walk_gives_every_group_relative_to_the_root_and_parents_first(root: Path) -> None:
    make(root, "a/b/c", "d", "with space")
    scan = CgroupTree(root).walk()
    assert scan.complete
    assert scan.groups[0] == Cgroup(root.stat().st_ino, "/")
    paths = [group.path for group in scan.groups]
    assert sorted(paths) == ["/", "/a", "/a/b", "/a/b/c", "/d", "/with space"]
    assert paths.index("/a") < paths.index("/a/b") < paths.index("/a/b/c")


def test_walk_says_when_its_limit_cut_it_short(root: Path) -> None:
    make(root, "a", "b", "c")
    scan = CgroupTree(root).walk(limit=3)
    assert len(scan.groups) == 3
    assert not scan.complete


def test_the_id_is_inode_number_and_file_handle_alike(root: Path) -> None:
    make(root, "a")
    (group,) = (group for group in CgroupTree(root).walk().groups if group.path == "/a")
    fd = os.open(root / "a", os.O_RDONLY)
    try:
        handle = handle_of(fd)
    finally:
        os.close(fd)
    assert handle is not None
    assert handle.data == struct.pack("=Q", group.cgroup_id)
    assert group.cgroup_id == (root / "a").stat().st_ino


def test_members_are_the_processes_directly_in_the_group(root: Path) -> None:
    make(root, "a/b")
    tree = CgroupTree(root)
    with child(SAY_PATH, cgroup=root / "a" / "b") as process:
        read_line(process)
        assert tree.members("/a/b") == (process.pid,)
        assert tree.members("/a") == ()


def test_a_group_that_is_gone_has_no_members_and_no_id(root: Path) -> None:
    tree = CgroupTree(root)
    assert tree.members("/gone") == ()
    assert tree.cgroup_id("/gone") is None


def test_a_group_made_anew_under_the_same_name_is_not_alive(root: Path) -> None:
    make(root, "a")
    tree = CgroupTree(root)
    group = tree.walk().groups[1]
    assert tree.alive(group)
    (root / "a").rmdir()
    assert not tree.alive(group)
    make(root, "a")
    assert not tree.alive(group)


def test_a_group_is_found_by_its_id_while_it_lives(root: Path) -> None:
    make(root, "a/b")
    tree = CgroupTree(root)
    cgroup_id = tree.cgroup_id("/a/b")
    assert cgroup_id is not None
    assert tree.path_of(cgroup_id) == "/a/b"
    assert tree.path_of(tree.root_id) == "/"
    (root / "a" / "b").rmdir()
    assert tree.path_of(cgroup_id) is None


def test_a_group_outside_the_root_is_not_found_by_its_id(root: Path) -> None:
    make(root, "a", "ab")
    outside = (root / "ab").stat().st_ino
    assert CgroupTree(root / "a").path_of(outside) is None
    assert CgroupTree(root / "a").path_of(root.stat().st_ino) is None


def test_the_path_of_a_process_is_translated(root: Path) -> None:
    make(root, "a/b")
    with child(SAY_PATH, cgroup=root / "a" / "b") as process:
        read_line(process)
        facts = read(process.pid)
        assert facts is not None
        assert facts.cgroup_path is not None
        assert CgroupTree(root).relative_of_namespace(facts.cgroup_path) == "/a/b"
        assert CgroupTree(root / "a").relative_of_namespace(facts.cgroup_path) == "/b"


def test_kernel_paths_are_translated_and_those_outside_are_not(root: Path) -> None:
    tree = CgroupTree(root)
    name = root.name
    assert tree.relative(f"/{name}") == "/"
    assert tree.relative(f"/{name}/x/y") == "/x/y"
    assert tree.relative(f"/{name}x/y") is None
    assert tree.relative("/other/x") is None
    assert tree.relative("/") is None
    assert tree.relative(f"/{name}/../other") is None


def test_below_the_hierarchys_own_root_every_kernel_path_is_inside() -> None:
    tree = CgroupTree(find_mount().mount_point)
    assert tree.relative("/") == "/"
    assert tree.relative("/a/b") == "/a/b"


TRANSLATE = """
from pathlib import Path
from bulkhead.identity.cgroups import CgroupTree
tree = CgroupTree(Path({root!r}))
made = tree.cgroup_id('/a')
print(tree.relative_of_namespace('/a'), tree.relative_of_namespace('/../other'), flush=True)
print(tree.relative({real!r} + '/a'), tree.relative({real!r} + '/a', made), tree.relative({real!r} + '/gone'),
      tree.relative('/other'), flush=True)
"""


def in_namespace(root: Path, command: str) -> tuple[str, ...]:
    """Run in a cgroup namespace whose root is `root`: it takes the group of the process, so the move comes first."""
    return ("sh", "-c", f'echo 0 > "{root}/cgroup.procs"; exec {command}')


def test_in_a_cgroup_namespace_the_hosts_mount_still_tells_every_name(root: Path) -> None:
    make(root, "host/a")
    host = root / "host"
    code = TRANSLATE.format(root=str(host), real=f"/{root.name}/host")
    with child(code, prefix=in_namespace(host, 'unshare --cgroup "$0" "$@"')) as process:
        assert read_line(process) == "/a None"
        assert read_line(process) == "/a /a /gone None"


def test_in_a_cgroup_namespace_a_root_above_it_sees_siblings(root: Path) -> None:
    make(root, "host/a", "sibling")
    code = f"""
from pathlib import Path
from bulkhead.identity.cgroups import CgroupTree
tree = CgroupTree(Path({str(root)!r}))
print(*map(tree.relative_of_namespace, ['/', '/a', '/../sibling', '/..', '/../..']), flush=True)
"""
    with child(code, prefix=in_namespace(root / "host", 'unshare --cgroup "$0" "$@"')) as process:
        assert read_line(process) == "/host /host/a /sibling / None"


def test_in_a_cgroup_namespace_with_its_own_mount_the_real_root_is_learnt_from_a_live_group(
    root: Path, tmp_path: Path
) -> None:
    make(root, "host/a")
    code = TRANSLATE.format(root=str(tmp_path), real=f"/{root.name}/host")
    remount = f"""unshare --cgroup --mount sh -c 'mount -t cgroup2 none "{tmp_path}" && exec "$0" "$@"' "$0" "$@" """
    with child(code, prefix=in_namespace(root / "host", remount)) as process:
        assert read_line(process) == "/a None"
        assert read_line(process) == "None /a /gone None"


def test_a_process_of_a_removed_group_has_no_path(root: Path) -> None:
    make(root, "a")
    with child(SAY_PATH, cgroup=root / "a") as process:
        read_line(process)
        with pytest.raises(OSError) as caught:
            (root / "a").rmdir()
        assert caught.value.errno == errno.EBUSY
        tell(process)
        process.wait()
        (root / "a").rmdir()
        facts = read(process.pid)
        assert facts is None or facts.cgroup_path in (None, "/")

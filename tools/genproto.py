"""Writes the descriptor sets of the rooms that speak gRPC from their .proto files.

    python tools/genproto.py            write the files
    python tools/genproto.py --check    exit 1 when a committed file is stale

Each room has its messages in `proto/`, and their descriptors, imports included, in `proto/descriptors.binpb`: the
message classes are made of them when the room is imported, in a pool of its own.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import grpc_tools
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
AGENT = ROOT / "agent" / "bulkhead"
WELL_KNOWN = Path(grpc_tools.__file__).parent / "_proto"


def descriptors(directory: Path) -> bytes:
    """The descriptor set of the .proto files in a directory. Raises SystemExit when protoc refuses one."""
    sources = sorted(str(path) for path in directory.glob("*.proto"))
    with tempfile.NamedTemporaryFile(suffix=".binpb") as file:
        paths = [f"--proto_path={directory}", f"--proto_path={WELL_KNOWN}"]
        if protoc.main(["protoc", *paths, "--include_imports", f"--descriptor_set_out={file.name}", *sources]):
            raise SystemExit(f"protoc refuses what is in {directory}")
        found = FileDescriptorSet.FromString(Path(file.name).read_bytes())
    for one in found.file:
        one.ClearField("source_code_info")
        one.options.Clear()
        one.ClearField("options")
    return found.SerializeToString(deterministic=True)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files instead of writing")
    check = parser.parse_args().check
    stale = 0
    for directory in sorted(AGENT.glob("*/proto")):
        target = directory / "descriptors.binpb"
        made = descriptors(directory)
        if not check:
            target.write_bytes(made)
        elif not target.is_file() or target.read_bytes() != made:
            print(f"{target.relative_to(ROOT)} is stale: run `python tools/genproto.py`", file=sys.stderr)
            stale += 1
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())

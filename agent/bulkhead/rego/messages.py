"""Classes of the messages of `proto/`, made of the committed descriptors in a pool of their own: another library in
this process may bring messages of the same names."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from typing import Any, Final

from google.protobuf import message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool

SERVICE: Final = "envoy.service.auth.v3"


@lru_cache
def _pool() -> DescriptorPool:
    pool = DescriptorPool()
    text = files("bulkhead.rego").joinpath("proto", "descriptors.binpb").read_bytes()
    for file in FileDescriptorSet.FromString(text).file:  # protoc writes a file after those that it imports
        pool.Add(file)
    return pool


@lru_cache
def message(name: str) -> Any:
    """The class of a message of the service, by its short name. `Any`: what the fields are is known when it runs.

    Raises KeyError.
    """
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"{SERVICE}.{name}"))

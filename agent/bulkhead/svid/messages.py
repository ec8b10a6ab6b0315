"""Classes of the messages of `proto/`, made of the committed descriptors in a pool of their own: another library in
this process may bring messages of the same names."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message

TYPE_URL = "type.googleapis.com/"


@lru_cache
def _pool() -> DescriptorPool:
    pool = DescriptorPool()
    text = files("bulkhead.svid").joinpath("proto", "descriptors.binpb").read_bytes()
    for file in FileDescriptorSet.FromString(text).file:  # protoc writes a file after those that it imports
        pool.Add(file)
    return pool


@lru_cache
def message(name: str) -> Any:
    """The class of the message of that full name. `Any`: what the fields are is known when it runs. Raises KeyError."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(name))


def pack(inner: Message) -> Any:
    """A `google.protobuf.Any` of this pool that holds a message."""
    packed = message("google.protobuf.Any")()
    packed.type_url = TYPE_URL + inner.DESCRIPTOR.full_name
    packed.value = inner.SerializeToString(deterministic=True)
    return packed

"""What a client of secret discovery says and hears."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

from bulkhead.svid.messages import message
from bulkhead.svid.svids import Attested
from svid.serving import DB, WEB, Line, Node, Shared, line

RESPONSE = "envoy.service.discovery.v3.DiscoveryResponse"
TLS = "envoy.extensions.transport_sockets.tls.v3."
SECRET_URL = f"type.googleapis.com/{TLS}Secret"
PROXY = Attested(proxy=True)


def request(*names: str, nonce: str = "", error: str = "", type_url: str = SECRET_URL) -> Any:
    """A request of these names."""
    made = message("envoy.service.discovery.v3.DiscoveryRequest")(
        resource_names=names, response_nonce=nonce, type_url=type_url
    )
    if error:
        made.error_detail.message = error
    return made


def secrets(response: Any) -> dict[str, Any]:
    """The secrets of a response, by name."""
    assert response.type_url == SECRET_URL
    found = [message(f"{TLS}Secret").FromString(one.value) for one in response.resources]
    return {secret.name: secret for secret in found}


def with_line(
    shared: Shared, who: Attested, work: Callable[[Node, Line], Awaitable[None]], **state: dict[str, str]
) -> None:
    """Have a caller that is attested as somebody work on a node that serves two workloads."""

    async def served(node: Node) -> None:
        node.people[os.getpid()] = who
        await node.serve(WEB, DB, **state)
        await node.status(lambda status: not status["missing"])
        with line(node) as one:
            await work(node, one)

    shared.run(served)

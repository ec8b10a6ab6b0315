"""The node's own authority as a source: at once, anew at half of their life, and without a handshake that fails."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest
from cryptography import x509

from bulkhead.svid.authority import Authority
from bulkhead.svid.bundle import Bundle
from bulkhead.svid.issuing import Embedded
from bulkhead.svid.pem import pem
from bulkhead.svid.svids import Workload, X509Svid
from bulkhead.svid.upstream import UpstreamError
from bulkhead.svid.verify import verify
from unit.svid.authorities import DOMAIN, anchor

WEB, DB = (Workload(f"spiffe://{DOMAIN}/shop/{name}", f"shop/{name}") for name in ("web", "db"))


class Source:
    """A running authority, and a word when something has changed."""

    def __init__(self, embedded: Embedded) -> None:
        self.embedded = embedded
        self.changed = asyncio.Event()

    async def svid(self, workload: Workload, after: X509Svid | None = None) -> X509Svid:
        """That workload's, once it is another than `after`."""
        async with asyncio.timeout(10):
            while True:
                self.changed.clear()
                found = self.embedded.svids().get(workload.spiffe_id)
                if found is not None and found != after:
                    return found
                await self.changed.wait()


@contextlib.asynccontextmanager
async def running(embedded: Embedded) -> AsyncIterator[Source]:
    source = Source(embedded)
    task = asyncio.create_task(embedded.run(source.changed.set))
    try:
        yield source
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def authority(name: str = "node-1") -> Authority:
    return Authority(DOMAIN, anchor(name=name), ephemeral=False)


def handshake(directory: Path, server: X509Svid, client: X509Svid, anchors: Iterable[bytes]) -> None:
    """Mutual TLS between the two, each of which believes these anchors. Raises ssl.SSLError."""
    trusted = b"".join(pem("CERTIFICATE", der) for der in anchors).decode()
    contexts = []
    for svid, side in ((server, ssl.PROTOCOL_TLS_SERVER), (client, ssl.PROTOCOL_TLS_CLIENT)):
        context = ssl.SSLContext(side)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=trusted)
        file = directory / "svid.pem"
        chain = b"".join(pem("CERTIFICATE", der) for der in svid.chain)
        file.write_bytes(chain + pem("PRIVATE KEY", svid.key))
        context.load_cert_chain(file)
        contexts.append(context)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        contexts[0].wrap_bio(to_server, to_client, server_side=True),
        contexts[1].wrap_bio(to_client, to_server, server_side=False),
    ]
    waiting = list(ends)
    for _ in range(10):
        for end in tuple(waiting):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
                waiting.remove(end)
    assert not waiting


def test_an_svid_is_as_the_standard_wants_it() -> None:
    async def main() -> None:
        async with running(Embedded(authority(), 3600)) as source:
            source.embedded.want([WEB])
            svid = await source.svid(WEB)
            assert (svid.hint, svid.spiffe_id) == (WEB.name, WEB.spiffe_id)
            assert verify(svid.chain, source.embedded.bundles()).chain == 2
            leaf, intermediate = map(x509.load_der_x509_certificate, svid.chain)
            assert list(leaf.subject) == []
            assert leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).critical
            usage = leaf.extensions.get_extension_for_class(x509.KeyUsage)
            assert usage.critical and usage.value.digital_signature and not usage.value.key_cert_sign
            assert len(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == 2
            assert 55 <= time.time() - leaf.not_valid_before_utc.timestamp() <= 65
            assert 3590 <= svid.expires_at - time.time() <= 3600
            assert intermediate.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0

    asyncio.run(main())


def test_each_svid_is_replaced_at_half_of_its_life_and_so_is_the_intermediate(tmp_path: Path) -> None:
    async def main() -> None:
        embedded = Embedded(authority(), lifetime_s=2.0, intermediate_s=3.0)
        async with running(embedded) as source:
            embedded.want([WEB, DB])
            seen = [await source.svid(WEB)]
            while len({svid.chain[1] for svid in seen}) < 2:
                seen.append(await source.svid(WEB, after=seen[-1]))
                assert seen[-1].issued_at < seen[-2].expires_at
                handshake(tmp_path, seen[-2], await source.svid(DB), embedded.bundles()[DOMAIN].x509)
                handshake(tmp_path, await source.svid(DB), seen[-1], embedded.bundles()[DOMAIN].x509)
            assert len(seen) >= 2

    asyncio.run(main())


def test_only_what_is_wanted_is_there() -> None:
    async def main() -> None:
        async with running(Embedded(authority(), 3600)) as source:
            source.embedded.want([WEB, DB])
            before = await source.svid(WEB)
            await source.svid(DB)
            source.embedded.want([WEB])
            assert source.embedded.svids() == {WEB.spiffe_id: before}
            source.embedded.want([WEB, DB])
            await source.svid(DB)
            assert source.embedded.svids()[WEB.spiffe_id] == before
            assert source.embedded.issued["x509"] == 3

    asyncio.run(main())


def test_five_hundred_svids_cost_less_than_a_second_of_processor_time() -> None:
    async def main() -> None:
        workloads = [Workload(f"spiffe://{DOMAIN}/a/w{number}", f"a/w{number}") for number in range(500)]
        started = time.process_time()
        async with running(Embedded(authority(), 3600)) as source:
            source.embedded.want(workloads)
            async with asyncio.timeout(20):
                while len(source.embedded.svids()) < 500:
                    source.changed.clear()
                    await source.changed.wait()
        assert time.process_time() - started < 1.0

    asyncio.run(main())


@pytest.mark.parametrize("audiences", [(), ("",), ("a",) * 17, ("a" * 1025,)])
def test_a_token_has_audiences_within_bounds(audiences: tuple[str, ...]) -> None:
    with pytest.raises(UpstreamError, match="audiences"):
        asyncio.run(Embedded(authority(), 3600).jwt(WEB, audiences))


def test_an_anchor_is_replaced_without_a_failed_handshake_while_both_are_in_the_record(tmp_path: Path) -> None:
    async def svid(of: Authority, workload: Workload) -> X509Svid:
        async with running(Embedded(of, 3600)) as source:
            source.embedded.want([workload])
            return await source.svid(workload)

    async def main() -> None:
        peer, old, new = authority("node-2"), authority("node-1"), authority("node-1")
        theirs, before, after = await svid(peer, DB), await svid(old, WEB), await svid(new, WEB)
        records = [
            ((old,), before),
            ((old, new), before),
            ((old, new), after),
            ((new,), after),
        ]
        for own, ours in records:
            bundle = Bundle(DOMAIN).with_anchors([one.anchor.der for one in (*own, peer)])
            handshake(tmp_path, ours, theirs, bundle.x509)
            handshake(tmp_path, theirs, ours, bundle.x509)
        with pytest.raises(ssl.SSLError):
            handshake(tmp_path, theirs, before, [new.anchor.der, peer.anchor.der])

    asyncio.run(main())

"""Secret discovery: who may have which secret, and what each is."""

from __future__ import annotations

from typing import Any

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError

from bulkhead.svid import authority, bundle
from bulkhead.svid.bundle import Bundle
from bulkhead.svid.messages import message
from bulkhead.svid.pem import certificates
from bulkhead.svid.svids import Attested
from svid.discovery import PROXY, RESPONSE, TLS, request, secrets, with_line
from svid.serving import DB, DOMAIN, WEB, Line, Node, Shared, workload

SERVICE = "/envoy.service.secret.v3.SecretDiscoveryService/"
STREAM, FETCH = f"{SERVICE}StreamSecrets", f"{SERVICE}FetchSecrets"
THEIRS = authority.ephemeral("theirs", "partner.example").anchor
FEDERATED = {
    "partner.example": bundle.write(Bundle("partner.example").with_anchors([THEIRS.der])).decode(),
    "revoked.example": '{"keys": []}',
}
THIRD = workload("shop/third")


def domains(secret: Any) -> dict[str, list[bytes]]:
    """The anchors of each trust domain in a validation context."""
    extension = secret.validation_context.custom_validator_config
    assert extension.name == "envoy.tls.cert_validator.spiffe"
    config = message(f"{TLS}SPIFFECertValidatorConfig").FromString(extension.typed_config.value)
    return {one.name: certificates(one.trust_bundle.inline_bytes) for one in config.trust_domains}


async def refused(one: Line, method: str, question: object) -> Status:
    with pytest.raises(GRPCError) as error:
        await one.first(method, question, RESPONSE)
    return error.value.status


def test_the_proxy_gets_every_local_secret_and_each_validation_context_believes_what_it_is_for(shared: Shared) -> None:
    async def work(node: Node, one: Line) -> None:
        own = node.process.own.certificate
        names = (WEB.spiffe_id, DB.spiffe_id, f"spiffe://{DOMAIN}", "spiffe://partner.example", "ROOTCA", "ALL")
        found = secrets(await one.first(FETCH, request(*names), RESPONSE))
        assert tuple(found) == names
        for one_of in (WEB, DB):
            certificate = found[one_of.spiffe_id].tls_certificate
            assert len(certificates(certificate.certificate_chain.inline_bytes)) == 2
            assert certificate.private_key.inline_bytes.startswith(b"-----BEGIN PRIVATE KEY-----\n")
        assert domains(found[f"spiffe://{DOMAIN}"]) == domains(found["ROOTCA"]) == {DOMAIN: [own]}
        assert domains(found["spiffe://partner.example"]) == {"partner.example": [THEIRS.der]}
        assert domains(found["ALL"]) == {DOMAIN: [own], "partner.example": [THEIRS.der]}
        everything = secrets(await one.first(FETCH, request(), RESPONSE))
        assert everything.keys() == {WEB.spiffe_id, DB.spiffe_id, "ROOTCA", "ALL"}
        assert await refused(one, FETCH, request(f"spiffe://{DOMAIN}/shop/none")) is Status.NOT_FOUND
        assert await refused(one, FETCH, request(type_url="type.googleapis.com/x")) is Status.INVALID_ARGUMENT

    with_line(shared, PROXY, work, federated=FEDERATED)


def test_a_workload_gets_its_own_secret_and_no_other(shared: Shared) -> None:
    async def work(_: Node, one: Line) -> None:
        for method in (FETCH, STREAM):
            assert await refused(one, method, request(DB.spiffe_id)) is Status.PERMISSION_DENIED
            assert await refused(one, method, request(WEB.spiffe_id, DB.spiffe_id)) is Status.PERMISSION_DENIED
        found = secrets(await one.first(FETCH, request("default", WEB.spiffe_id), RESPONSE))
        assert found["default"].tls_certificate == found[WEB.spiffe_id].tls_certificate
        everything = secrets(await one.first(FETCH, request(), RESPONSE))
        assert everything.keys() == {WEB.spiffe_id, "ROOTCA", "ALL"}

    with_line(shared, Attested((WEB.spiffe_id,)), work, federated=FEDERATED)


def test_nobody_gets_nothing(shared: Shared) -> None:
    async def work(_: Node, one: Line) -> None:
        for method in (FETCH, STREAM):
            assert await refused(one, method, request("ALL")) is Status.PERMISSION_DENIED

    with_line(shared, Attested(), work, federated=FEDERATED)


def test_a_subscriber_is_told_only_of_what_it_follows_and_never_twice_of_the_same(shared: Shared) -> None:
    async def work(node: Node, one: Line) -> None:
        async with one.call(STREAM, request(WEB.spiffe_id), RESPONSE, end=False) as stream:
            first = await stream.recv_message()
            assert secrets(first).keys() == {WEB.spiffe_id}
            await stream.send_message(request(WEB.spiffe_id, nonce=first.nonce))
            await stream.send_message(request(THIRD.spiffe_id, nonce=first.nonce))
            node.publish(WEB, DB, THIRD, federated=FEDERATED)
            second = await stream.recv_message()
            assert secrets(second).keys() == {THIRD.spiffe_id}
            assert second.nonce != first.nonce
            await stream.send_message(request(WEB.spiffe_id, nonce=first.nonce))  # too late: of no account
            await stream.send_message(request("ROOTCA", nonce=second.nonce))
            assert secrets(await stream.recv_message()).keys() == {"ROOTCA"}
            await stream.cancel()

    with_line(shared, PROXY, work, federated=FEDERATED)


def test_a_secret_that_is_refused_is_counted_and_not_sent_again(shared: Shared) -> None:
    async def work(node: Node, one: Line) -> None:
        async with one.call(STREAM, request("ROOTCA"), RESPONSE, end=False) as stream:
            first = await stream.recv_message()
            await stream.send_message(request("ROOTCA", nonce=first.nonce, error="bad certificate"))
            await node.status(lambda status: "nack" in status["refusals"])
            await stream.send_message(request("ALL", nonce=first.nonce))
            assert secrets(await stream.recv_message()).keys() == {"ALL"}
            await stream.cancel()

    with_line(shared, PROXY, work, federated=FEDERATED)


def test_a_subscriber_that_is_the_proxy_no_more_loses_its_stream(shared: Shared) -> None:
    async def work(node: Node, one: Line) -> None:
        async def follow() -> None:
            async with one.call(STREAM, request(DB.spiffe_id), RESPONSE, end=False) as stream:
                await stream.recv_message()
                node.people.clear()
                node.process.attest_again()
                await stream.recv_message()

        with pytest.raises((GRPCError, ProtocolError, StreamTerminatedError)):
            await follow()
        assert await refused(one, STREAM, request(DB.spiffe_id)) is Status.PERMISSION_DENIED

    with_line(shared, PROXY, work, federated=FEDERATED)

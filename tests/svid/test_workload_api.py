"""The Workload API, as the public client and as one without manners use it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from spiffe import JwtSource, WorkloadApiClient, X509Source

from bulkhead.secret_files import write_secret
from bulkhead.svid import ads, authority, bundle
from bulkhead.svid.bundle import Bundle
from bulkhead.svid.messages import message
from bulkhead.svid.svids import Attested
from bulkhead.svid.verify import verify
from svid.serving import DB, DOMAIN, WAIT_S, WEB, Line, Node, Shared, line, running, x509_request

X509 = "/SpiffeWorkloadAPI/FetchX509SVID"
JWT = "/SpiffeWorkloadAPI/FetchJWTSVID"
OTHER_NODE = authority.ephemeral("node-2", DOMAIN).anchor
THEIRS = authority.ephemeral("theirs", "partner.example").anchor


def with_node(directory: Path, work: Callable[[Node], Awaitable[None]], **settings: object) -> None:
    async def main() -> None:
        async with running(directory, **settings) as node, asyncio.timeout(WAIT_S):
            await work(node)

    asyncio.run(main())


async def refusal(one: Line, method: str, question: object, answer: str, **more: object) -> GRPCError:
    with pytest.raises(GRPCError) as error:
        await one.first(method, question, answer, **more)
    return error.value


def test_the_public_client_gets_everything_unmodified(shared: Shared) -> None:
    federated = {"partner.example": bundle.write(Bundle("partner.example").with_anchors([THEIRS.der])).decode()}

    def client(address: str) -> None:
        with WorkloadApiClient(address) as api:
            context = api.fetch_x509_context()
            svid = context.default_svid
            assert str(svid.spiffe_id) == WEB.spiffe_id
            assert len(svid.cert_chain) == 2
            bundles = {str(one.trust_domain): one for one in context.x509_bundle_set.bundles}
            assert bundles.keys() == {DOMAIN, "partner.example"}
            assert bundles.keys() == {str(one.trust_domain) for one in api.fetch_x509_bundles().bundles}
            tokens = api.fetch_jwt_bundles()
            assert {str(one.trust_domain) for one in tokens.bundles} == bundles.keys()
            token = api.fetch_jwt_svid(audience={"api", "db"})
            assert str(token.spiffe_id) == WEB.spiffe_id
            assert 240 < token.expiry - time.time() < 302
            assert str(api.validate_jwt_svid(token.token, "db").spiffe_id) == WEB.spiffe_id
        with X509Source(socket_path=address) as source, JwtSource(socket_path=address) as tokens_source:
            assert str(source.get_x509_context().default_svid.spiffe_id) == WEB.spiffe_id
            assert str(tokens_source.fetch_svid(audience={"api"}).spiffe_id) == WEB.spiffe_id

    async def work(node: Node) -> None:
        await node.serve(WEB, DB, federated=federated)
        await asyncio.to_thread(client, node.address)

    shared.run(work)


def test_a_subscriber_is_told_of_each_new_svid_and_of_new_anchors_in_whole_messages(shared: Shared) -> None:
    async def work(node: Node) -> None:
        await node.serve(WEB, lifetime_s=4.0)
        with line(node) as one:
            async with one.call(X509, x509_request(), "X509SVIDResponse") as stream:
                first = await stream.recv_message()
                second = await stream.recv_message()
                assert first.svids[0].x509_svid != second.svids[0].x509_svid
                assert [svid.hint for svid in second.svids] == [WEB.name]
                node.publish(WEB, lifetime_s=4.0, anchors={"node-2": [OTHER_NODE.der]})
                third = await stream.recv_message()
                while third.svids[0].bundle == second.svids[0].bundle:
                    third = await stream.recv_message()
                assert third.svids[0].bundle.startswith(second.svids[0].bundle)
                await stream.cancel()

    shared.run(work)


def test_a_subscriber_that_policy_makes_nobody_is_told_so_at_once(shared: Shared) -> None:
    async def work(node: Node) -> None:
        await node.serve(WEB, DB)
        with line(node) as one:
            async with one.call(X509, x509_request(), "X509SVIDResponse") as stream:
                assert (await stream.recv_message()).svids[0].spiffe_id == WEB.spiffe_id
                node.people[os.getpid()] = Attested((DB.spiffe_id,))
                await node.serve(DB)
                assert (await stream.recv_message()).svids[0].spiffe_id == DB.spiffe_id
                node.people.clear()
                await node.serve()
                assert await stream.recv_message() is None
                with pytest.raises(GRPCError) as error:
                    await stream.recv_trailing_metadata()
                assert error.value.status is Status.PERMISSION_DENIED

    shared.run(work)


def jwt_request(audience: tuple[str, ...] = ("api",), spiffe_id: str = "") -> object:
    return message("JWTSVIDRequest")(audience=audience, spiffe_id=spiffe_id)


def test_the_errors_are_those_of_the_standard(tmp_path: Path) -> None:
    async def work(node: Node) -> None:
        with line(node) as one:
            assert (await refusal(one, X509, x509_request(), "X509SVIDResponse")).status is Status.UNAVAILABLE
            await node.serve(WEB, DB)
            await one.first(X509, x509_request(), "X509SVIDResponse")
            denied, invalid, missing = Status.PERMISSION_DENIED, Status.INVALID_ARGUMENT, Status.UNIMPLEMENTED
            validate = message("ValidateJWTSVIDRequest")
            cases = [
                (X509, x509_request(), {"header": False}, invalid),
                (JWT, jwt_request(), {"header": False}, invalid),
                (JWT, jwt_request(audience=()), {}, invalid),
                (JWT, jwt_request(audience=("",)), {}, invalid),
                (JWT, jwt_request(spiffe_id="web"), {}, invalid),
                (JWT, jwt_request(spiffe_id=DB.spiffe_id), {}, denied),
                ("/SpiffeWorkloadAPI/ValidateJWTSVID", validate(audience="api", svid="x"), {}, invalid),
                ("/SpiffeWorkloadAPI/ValidateJWTSVID", validate(svid="x"), {}, invalid),
                ("/SpiffeWorkloadAPI/FetchWITSVID", x509_request(), {}, missing),
                ("/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets", x509_request(), {}, missing),
                (f"{ads.SERVICE}DeltaAggregatedResources", x509_request(), {}, missing),
                (JWT, jwt_request(audience=("a" * (300 << 10),)), {}, Status.RESOURCE_EXHAUSTED),
            ]
            for method, question, more, status in cases:
                found = await refusal(one, method, question, "JWTSVIDResponse", **more)
                assert found.status is status, (method, question, found)
            node.people.clear()
            for method, question in ((X509, x509_request()), (JWT, jwt_request())):
                assert (await refusal(one, method, question, "JWTSVIDResponse")).status is denied
        await asyncio.sleep(0)

    with_node(tmp_path, work)


PASS_ON = """
import array, socket, sys
to = socket.socket(socket.AF_UNIX)
to.connect(sys.argv[1])
with socket.socket(fileno=int(sys.argv[2])) as back:
    back.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [to.fileno()]))])
    back.recv(1)
"""


def test_a_connection_that_outlives_who_made_it_is_worth_nothing(shared: Shared) -> None:
    async def work(node: Node) -> None:
        await node.serve(WEB)
        ours, theirs = socket.socketpair()
        arguments = [sys.executable, "-c", PASS_ON, str(node.settings.workload_socket), str(theirs.fileno())]
        child = subprocess.Popen(arguments, pass_fds=[theirs.fileno()])
        node.people[child.pid] = Attested((WEB.spiffe_id,))
        with ours, theirs:
            _, descriptors, _, _ = await asyncio.to_thread(socket.recv_fds, ours, 1, 1)
            connection = socket.socket(fileno=descriptors[0])
            connection.setblocking(False)
            with line(connection) as one:
                await one.first(X509, x509_request(), "X509SVIDResponse")
                assert node.asked[-1] == child.pid
                ours.send(b"x")
                await asyncio.to_thread(child.wait)
                found = await refusal(one, X509, x509_request(), "X509SVIDResponse")
                assert (found.status, found.message) == (Status.PERMISSION_DENIED, "the calling process has ended")

    shared.run(work)


def test_one_user_cannot_take_all_there_is(shared: Shared) -> None:
    async def work(node: Node) -> None:
        await node.serve(WEB)
        with line(node) as one, line(node) as other, line(node) as third:
            await one.first(X509, x509_request(), "X509SVIDResponse")

            async def hold(of: Line) -> None:
                await of.first(X509, x509_request(), "X509SVIDResponse")
                async with of.call(X509, x509_request(), "X509SVIDResponse") as stream:
                    await stream.recv_message()
                    await stream.recv_message()

            held = [asyncio.create_task(hold(of)) for of in (one, other, third) for _ in range(90)]
            done, waiting = await asyncio.wait(held, return_when=asyncio.FIRST_EXCEPTION)
            assert {task.exception().status for task in done} == {Status.RESOURCE_EXHAUSTED}
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    shared.run(work)


def test_the_process_gives_up_what_it_does_not_need_and_comes_back_when_it_dies(tmp_path: Path) -> None:
    async def work(node: Node) -> None:
        await node.serve(WEB)
        with line(node) as one:
            before = await one.first(X509, x509_request(), "X509SVIDResponse")
        lines = Path(f"/proc/{node.process.pid}/status").read_text().splitlines()
        status = dict(one.split(":\t") for one in lines if ":\t" in one)
        assert (int(status["CapEff"], 16), int(status["CapPrm"], 16)) == (0, 0)
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        own = node.process.own
        os.kill(node.process.pid, 9)
        await node.until(lambda: node.process.own not in (None, own))
        assert node.process.restarts == 1
        with line(node) as one:
            after = await one.first(X509, x509_request(), "X509SVIDResponse")
        assert before.svids[0].bundle != after.svids[0].bundle

    with_node(tmp_path, work)


def sealed(directory: Path, trust_domain: str) -> dict[str, object]:
    """Settings with an authority in a file."""
    content, _ = authority.generate("node-1", trust_domain, b"correct horse")
    write_secret(directory / "authority.pem", content)
    write_secret(directory / "passphrase", b"correct horse\n")
    return {"authority": directory / "authority.pem", "authority_passphrase": directory / "passphrase"}


def test_a_sealed_authority_outlives_its_process_and_what_it_signs_is_believed(tmp_path: Path) -> None:
    async def work(node: Node) -> None:
        await node.serve(WEB)
        await node.until(lambda: node.process.own is not None)
        own = node.process.own
        assert own is not None and not own.ephemeral
        documents = await node.process.bundles()
        bundles = {name: bundle.read(name, text.encode()) for name, text in documents.items()}
        assert bundles[DOMAIN].x509 == (own.certificate,)
        with line(node) as one:
            answer = await one.first(X509, x509_request(), "X509SVIDResponse")
        chain = answer.svids[0].x509_svid
        length = 4 + int.from_bytes(chain[2:4], "big")
        assert str(verify([chain[:length], chain[length:]], bundles).spiffe_id) == WEB.spiffe_id
        os.kill(node.process.pid, 9)
        await node.until(lambda: node.process.restarts == 1 and not node.process.error)
        assert node.process.own == own

    with_node(tmp_path, work, **sealed(tmp_path, DOMAIN))


def test_an_authority_of_another_trust_domain_issues_nothing(tmp_path: Path) -> None:
    async def work(node: Node) -> None:
        node.publish(WEB)
        with line(node) as one:
            assert (await refusal(one, X509, x509_request(), "X509SVIDResponse")).status is Status.UNAVAILABLE
        await node.status(lambda status: "partner.example" in status["problem"])

    with_node(tmp_path, work, **sealed(tmp_path, "partner.example"))


def test_status_tells_ages_counts_and_what_cannot_be_used(shared: Shared) -> None:
    async def work(node: Node) -> None:
        await node.serve(WEB, DB, anchors={"node-2": [b"\x30\x82"]}, federated={"partner.example": "{}"})
        with line(node) as one:
            await refusal(one, X509, x509_request(), "X509SVIDResponse", header=False)
        found = await node.status(lambda status: len(status["svids"]) == 2 and "no-header" in status["refusals"])
        assert found["refusals"]["no-header"] >= 1
        assert {one["spiffe_id"] for one in found["svids"]} == {WEB.spiffe_id, DB.spiffe_id}
        assert all(one["issued_at"] < time.time() < one["expires_at"] for one in found["svids"])
        assert (found["ready"], found["missing"]) == (True, [])
        assert found["issued"]["x509"] >= 2
        assert [one.split("`")[1] for one in found["unusable"]] == ["node-2", "partner.example"]
        json.dumps(found)

    shared.run(work)

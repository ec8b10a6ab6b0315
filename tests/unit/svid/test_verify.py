"""Which certificates are believed to be SVIDs, and why each other one is not."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ObjectIdentifier

from bulkhead.svid.bundle import Bundle
from bulkhead.svid.verify import CHAIN_MAX, Refusal, SvidError, verify
from bulkhead.svid.x509 import make_leaf
from unit.svid.authorities import BOTH, DAY_S, DOMAIN, NOW, WEB, Leaf, anchor, intermediate, uri, usage

ANCHOR, OTHER_NODE, FOREIGN = anchor(), anchor(name="node-2"), anchor("partner.example")
SIGNER = intermediate(ANCHOR)
BUNDLES = {
    DOMAIN: Bundle(DOMAIN, (ANCHOR.der, OTHER_NODE.der)),
    "partner.example": Bundle("partner.example", (FOREIGN.der,)),
    "revoked.example": Bundle("revoked.example"),
}
EVIL = "spiffe://evil.example/x"


def refused(*chain: bytes, now: float = NOW) -> Refusal:
    with pytest.raises(SvidError) as error:
        verify(chain, BUNDLES, now)
    assert str(error.value).isprintable()
    return error.value.reason


def test_what_this_node_issues_is_believed_until_it_expires() -> None:
    leaf = make_leaf(SIGNER, WEB, NOW, 3600)
    chain = (leaf.der, SIGNER.der)
    found = verify(chain, BUNDLES, NOW)
    assert (str(found.spiffe_id), found.chain) == (WEB, 2)
    assert abs(found.expires_at - (NOW + 3600)) <= 1
    assert str(verify(chain, BUNDLES, NOW - 59).spiffe_id) == WEB
    assert refused(*chain, now=NOW - 62) is Refusal.NOT_YET_VALID
    assert refused(*chain, now=NOW + 3602) is Refusal.EXPIRED


def test_a_leaf_that_an_anchor_signs_itself_is_believed() -> None:
    assert verify([Leaf().sign(OTHER_NODE)], BUNDLES, NOW).chain == 1


def test_an_svid_of_a_federated_domain_is_believed_of_that_domain_only() -> None:
    theirs = Leaf(names=[uri("spiffe://partner.example/web")]).sign(FOREIGN)
    assert verify([theirs], BUNDLES, NOW).spiffe_id.trust_domain == "partner.example"
    assert refused(Leaf().sign(FOREIGN)) is Refusal.UNTRUSTED


@pytest.mark.parametrize(
    ("leaf", "reason"),
    [
        (Leaf(names=()), Refusal.NO_URI),
        (Leaf(names=[x509.DNSName("web.example.org")]), Refusal.NO_URI),
        (Leaf(names=[uri(EVIL), uri(WEB)]), Refusal.SEVERAL_URIS),
        (Leaf(names=[uri(WEB), uri(WEB)]), Refusal.SEVERAL_URIS),
        (Leaf(names=[uri(f"{WEB}\0.evil")]), Refusal.NOT_A_SPIFFE_ID),
        (Leaf(names=[uri(f"{WEB},{EVIL}")]), Refusal.NOT_A_SPIFFE_ID),
        (Leaf(names=[uri("https://example.org/shop/web")]), Refusal.NOT_A_SPIFFE_ID),
        (Leaf(names=[uri("spiffe://EXAMPLE.org/shop/web")]), Refusal.NOT_A_SPIFFE_ID),
        (Leaf(names=[uri(f"spiffe://{DOMAIN}/shop/../web")]), Refusal.NOT_A_SPIFFE_ID),
        (Leaf(names=[uri(f"spiffe://{DOMAIN}")]), Refusal.NO_PATH),
        (Leaf(is_authority=True), Refusal.IS_AUTHORITY),
        (Leaf(is_authority=True, usage=usage("key_cert_sign", "digital_signature")), Refusal.IS_AUTHORITY),
        (Leaf(usage=None), Refusal.KEY_USAGE),
        (Leaf(usage=usage("key_agreement")), Refusal.KEY_USAGE),
        (Leaf(usage=usage("digital_signature", "key_cert_sign")), Refusal.KEY_USAGE),
        (Leaf(usage=usage("digital_signature", "crl_sign")), Refusal.KEY_USAGE),
        (Leaf(extended=BOTH[:1]), Refusal.KEY_USAGE),
        (Leaf(critical_names=False), Refusal.NOT_CRITICAL),
        (Leaf(more=[(x509.OCSPNoCheck(), True)]), Refusal.CRITICAL_EXTENSION),
        (
            Leaf(more=[(x509.UnrecognizedExtension(ObjectIdentifier("1.2.3"), b"\x05\x00"), True)]),
            Refusal.CRITICAL_EXTENSION,
        ),
        (Leaf(begins=NOW + 600), Refusal.NOT_YET_VALID),
        (Leaf(begins=NOW - 7200, ends=NOW - 1), Refusal.EXPIRED),
        (Leaf(names=[uri(EVIL)]), Refusal.UNKNOWN_TRUST_DOMAIN),
        (Leaf(names=[uri("spiffe://revoked.example/web")]), Refusal.UNKNOWN_TRUST_DOMAIN),
        (Leaf(names=[uri("spiffe://partner.example/shop/web")]), Refusal.UNTRUSTED),
        (Leaf(key=rsa.generate_private_key(65537, 1024)), Refusal.WEAK),
        (Leaf(hash=hashes.SHA224()), None),
    ],
    ids=lambda value: value.name if isinstance(value, Refusal) else "",
)
def test_bad_input_is_refused_by_its_reason(leaf: Leaf, reason: Refusal | None) -> None:
    chain = (leaf.sign(SIGNER), SIGNER.der)
    if reason is None:
        assert str(verify(chain, BUNDLES, NOW).spiffe_id) == WEB
    else:
        assert refused(*chain) is reason


def test_a_subject_makes_a_name_that_is_not_critical_enough() -> None:
    chain = (Leaf(critical_names=False, subject="web").sign(SIGNER), SIGNER.der)
    assert str(verify(chain, BUNDLES, NOW).spiffe_id) == WEB


GOOD = Leaf().sign(SIGNER)
STRANGER = anchor()
LEAF_AS_ISSUER = make_leaf(SIGNER, WEB, NOW, 3600)


@pytest.mark.parametrize(
    "chain",
    [
        (GOOD,),
        (GOOD, intermediate(ANCHOR).der),
        (Leaf().sign(STRANGER), STRANGER.der),
        (Leaf().sign(intermediate(STRANGER)), ANCHOR.der),
        (Leaf().sign(LEAF_AS_ISSUER), LEAF_AS_ISSUER.der, SIGNER.der),
        (Leaf().sign(below := intermediate(SIGNER)), below.der, SIGNER.der),
        (Leaf().sign(expired := intermediate(ANCHOR, 60, NOW - 3600)), expired.der),
        (Leaf().sign(early := intermediate(ANCHOR, DAY_S, NOW + 3600)), early.der),
    ],
    ids=["no intermediate", "another", "foreign", "mixed", "leaf", "too deep", "expired", "too early"],
)
def test_a_chain_that_leads_to_no_anchor_is_refused(chain: tuple[bytes, ...]) -> None:
    assert refused(*chain) is Refusal.UNTRUSTED


@pytest.mark.parametrize("chain", [(), (b"",), (b"\x30\x03\x02\x01\x01",), (GOOD[:-1],), (GOOD,) * (CHAIN_MAX + 1)])
def test_what_is_no_chain_is_refused(chain: tuple[bytes, ...]) -> None:
    assert refused(*chain) is Refusal.MALFORMED


def test_an_expired_anchor_vouches_for_nobody() -> None:
    old = anchor(lifetime_s=3600, now=NOW - 7200)
    leaf = Leaf().sign(old)
    with pytest.raises(SvidError) as error:
        verify([leaf], {DOMAIN: Bundle(DOMAIN, (old.der,))}, NOW)
    assert error.value.reason is Refusal.UNTRUSTED

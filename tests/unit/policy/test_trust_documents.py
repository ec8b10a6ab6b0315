"""What vouches for workloads: authorities of nodes, and bundles of other trust domains."""

from __future__ import annotations

import base64
import json
import textwrap

import pytest

from bulkhead.policy.alterations import alterations
from bulkhead.policy.parse import parse
from bulkhead.policy.trust_documents import read_certificate

NODE = "apiVersion: bulkhead/v1alpha1\nkind: Node\nmetadata: {name: web-1}\naddresses: [10.0.0.1]\n"
HEAD = "apiVersion: bulkhead/v1alpha1\nkind: TrustBundle\nmetadata: {name: partner.example}\n"
DER = b"\x30\x82\x01\x00" + bytes(256)
"""The form of a certificate, which is all that is looked at here."""
OTHER = b"\x30\x82\x01\x00" + bytes(255) + b"x"
TEXT, OTHER_TEXT = (base64.b64encode(der).decode() for der in (DER, OTHER))
PEM = f"-----BEGIN CERTIFICATE-----\n{textwrap.fill(TEXT, 64)}\n-----END CERTIFICATE-----\n"
DOCUMENT = json.dumps({"keys": [{"use": "x509-svid", "x5c": [TEXT]}, {"use": "jwt-svid", "kid": "1"}]})


def bundle(text: str) -> str:
    return f"{HEAD}bundle: '{text}'\n"


def test_a_node_has_the_authorities_that_its_record_lists_in_either_form(sources_of):
    block = "".join(f"      {line}\n" for line in PEM.splitlines())
    text = f"{NODE}ca:\n  - {OTHER_TEXT}\n  - |\n{block}  - {OTHER_TEXT}\n"
    (node,) = parse(sources_of({"n.yaml": text})).nodes
    assert node.ca == (OTHER, DER)


@pytest.mark.parametrize(
    "text",
    [PEM, PEM.replace("\n", " "), TEXT, f"  {TEXT}\n"],
)
def test_one_certificate_has_several_spellings(text):
    assert read_certificate(text) == DER


@pytest.mark.parametrize(
    "text",
    [
        "",
        "%",
        None,
        TEXT[:-4],
        base64.b64encode(DER + b"x").decode(),
        base64.b64encode(b"\x30\x03" + bytes(3)).decode(),
        base64.b64encode(b"\x30\x82\xff\xff" + bytes(0xFFFF)).decode(),
        PEM + PEM,
    ],
)
def test_what_has_not_the_form_of_a_certificate_is_none(text):
    assert read_certificate(text) is None


@pytest.mark.parametrize(
    ("text", "code", "line", "column"),
    [
        (f"{NODE}ca: []\n", "BH0209", 5, 5),
        (f"{NODE}ca: {TEXT}\n", "BH0207", 5, 5),
        (f"{NODE}ca: [{TEXT[:-4]}]\n", "BH0327", 5, 6),
        (f"{NODE}ca:\n" + "".join(f"  - {TEXT}\n" for _ in range(5)), "BH0327", 10, 5),
        (HEAD, "BH0206", 1, 1),
        (HEAD.replace("partner.example", "Partner") + "bundle: '{\"keys\": []}'\n", "BH0313", 3, 18),
        (HEAD + 'bundle: {"keys": []}\n', "BH0207", 4, 9),
        (bundle("not json"), "BH0328", 4, 9),
        (bundle("[]"), "BH0328", 4, 9),
        (bundle('{"keys": 1}'), "BH0328", 4, 9),
        (bundle('{"keys": [1]}'), "BH0328", 4, 9),
        (bundle('{"keys": [{"use": "x509-svid"}]}'), "BH0328", 4, 9),
        (bundle('{"keys": [{"use": "x509-svid", "x5c": ["AAAA"]}]}'), "BH0328", 4, 9),
        (bundle('{"keys": [{"use": "jwt-svid"}]}'), "BH0328", 4, 9),
        (bundle('{"keys": [{"use": "jwt-svid", "kid": "1", "d": "x"}]}'), "BH0328", 4, 9),
        (bundle('{"keys": [], "x": "' + "x" * (256 << 10) + '"}'), "BH0328", 4, 9),
    ],
)
def test_what_vouches_for_nobody_is_refused_where_it_stands(text, code, line, column, refused):
    (found,) = refused(files={"n.yaml": text})
    assert (found.code, found.loc.line, found.loc.column) == (code, line, column)


def test_a_bundle_is_what_its_document_says(sources_of):
    block = "".join(f"  {line}\n" for line in json.dumps(json.loads(DOCUMENT), indent=1).splitlines())
    text = f"{bundle(DOCUMENT)}---\n{HEAD.replace('partner', 'other')}bundle: |\n{block}"
    found = parse(sources_of({"t.yaml": text})).trust_bundles
    assert [(one.trust_domain, json.loads(one.document), one.loc.line) for one in found] == [
        ("partner.example", json.loads(DOCUMENT), 1),
        ("other.example", json.loads(DOCUMENT), 6),
    ]


def test_one_domain_has_one_bundle_and_the_own_domain_none(refused):
    (found,) = refused(files={"a.yaml": bundle(DOCUMENT), "b.yaml": bundle(DOCUMENT)})
    assert (found.code, found.loc.file) == ("BH0401", "b.yaml")
    (own,) = refused(files={"a.yaml": bundle(DOCUMENT).replace("partner.example", "example.org")})
    assert own.code == "BH0413"


def test_another_certificate_or_bundle_is_an_alteration(sources_of):
    before = parse(sources_of({"n.yaml": f"{NODE}ca: [{TEXT}]\n---\n{bundle(DOCUMENT)}"}))
    after = parse(sources_of({"n.yaml": f"{NODE}ca: [{OTHER_TEXT}]\n---\n{bundle(DOCUMENT + ' ')}"}))
    found = {(one.kind, one.name): [each.field for each in one.details] for one in alterations(before, after, ())}
    assert found == {("node", "web-1"): ["ca"], ("trust bundle", "partner.example"): ["bundle"]}

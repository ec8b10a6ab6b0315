"""Nodes in the policy repository: what is read, what is refused where, and what a change of one reads like."""

from __future__ import annotations

import base64
from ipaddress import ip_network

import pytest

from bulkhead.policy.alterations import alterations
from bulkhead.policy.format import format_file
from bulkhead.policy.model import Entity
from bulkhead.policy.nodes import Node, Unknown, default_number, roster
from bulkhead.policy.parse import parse

HEAD = "apiVersion: bulkhead/v1alpha1\nkind: Node\n"
KEY = base64.b64encode(bytes(range(32))).decode()
OTHER_KEY = base64.b64encode(bytes(range(1, 33))).decode()
NAME, ADDRESSES = "metadata: {name: web-1}\n", "addresses: [10.0.0.1]\n"
SAME_DEFAULT_NUMBER = ("node-5f4", "node-1fbc")


def node(name: str, *lines: str, address: str = "10.0.0.1") -> str:
    return f"{HEAD}metadata: {{name: {name}}}\naddresses: [{address}]\n" + "".join(f"{line}\n" for line in lines)


@pytest.fixture
def nodes(sources_of):
    """The nodes that `n.yaml` holds."""
    return lambda text: parse(sources_of({"n.yaml": text})).nodes


def test_a_node_is_what_its_record_says(nodes):
    text = f"""# of the shop
{HEAD}metadata: {{name: Web-1.example.org}}
key: "{KEY}"
addresses: [10.0.0.1, "fd00::1", 10.244.1.0/24, 10.0.0.1/32]
number: 17
unknown: address
revoked: true
"""
    networks = tuple(map(ip_network, ("10.0.0.1", "fd00::1", "10.244.1.0/24")))
    assert nodes(text) == (
        Node("Web-1.example.org", 17, networks, bytes(range(32)), Unknown.ADDRESS, True, "n.yaml:2"),
    )


def test_a_node_without_the_rest_runs_no_agent_and_is_refused_what_it_does_not_say(nodes):
    (found,) = nodes(node("printer"))
    assert (found.key, found.unknown, found.revoked) == (None, Unknown.DENY, False)
    assert found.number == default_number("printer")


def test_a_file_holds_several_nodes_beside_policies(sources_of):
    text = node("web-1") + "---\n" + node("web-2", address="10.0.0.2") + "---\n"
    policy = "apiVersion: bulkhead/v1alpha1\nkind: Policy\nmetadata: {name: shop}\n"
    found = parse(sources_of({"a.yaml": text + policy, "b/c.yml": node("web-3", address="10.0.0.3")}))
    assert [(each.name, each.origin) for each in found.nodes] == [
        ("web-1", "a.yaml:1"),
        ("web-2", "a.yaml:6"),
        ("web-3", "b/c.yml:1"),
    ]
    assert [each.name for each in found.policies] == ["shop"]
    assert roster(found.nodes).nodes == found.nodes


@pytest.mark.parametrize(
    ("text", "code", "line", "column"),
    [
        (HEAD + ADDRESSES, "BH0206", 1, 1),
        (HEAD + NAME, "BH0206", 1, 1),
        (HEAD + "metadata: {}\n" + ADDRESSES, "BH0206", 3, 11),
        (HEAD + NAME + "addresses: []\n", "BH0209", 4, 12),
        (HEAD + NAME + "addresses: 10.0.0.1\n", "BH0207", 4, 12),
        (HEAD + NAME + ADDRESSES + "keys: x\n", "BH0205", 5, 1),
        (HEAD + "metadata: {name: web-1, owner: x}\n" + ADDRESSES, "BH0205", 3, 25),
        (HEAD + 'metadata: {name: "web-*"}\n' + ADDRESSES, "BH0323", 3, 18),
        (HEAD + "metadata: {name: -web}\n" + ADDRESSES, "BH0323", 3, 18),
        (HEAD + f"metadata: {{name: {'w' * 254}}}\n" + ADDRESSES, "BH0323", 3, 18),
        (HEAD + NAME + "addresses: [web-1.example.org]\n", "BH0303", 4, 13),
        (HEAD + NAME + "addresses: [10.0.0.300]\n", "BH0303", 4, 13),
        (HEAD + NAME + "addresses: [10.244.1.1/24]\n", "BH0304", 4, 13),
        (HEAD + NAME + 'addresses: ["::ffff:10.0.0.1"]\n', "BH0305", 4, 13),
        (HEAD + NAME + "addresses: [10.0.0.1, 127.0.0.0/8]\n", "BH0324", 4, 23),
        (HEAD + NAME + 'addresses: ["::1"]\n', "BH0324", 4, 13),
        (HEAD + NAME + "addresses: [224.0.0.1]\n", "BH0324", 4, 13),
        (HEAD + NAME + 'addresses: ["ff02::/16"]\n', "BH0324", 4, 13),
        (HEAD + NAME + "addresses: [0.0.0.0]\n", "BH0324", 4, 13),
        (HEAD + NAME + 'addresses: ["::"]\n', "BH0324", 4, 13),
        (HEAD + NAME + "addresses: [0.0.0.0/0]\n", "BH0324", 4, 13),
        (HEAD + NAME + 'addresses: ["::/0"]\n', "BH0324", 4, 13),
        (HEAD + NAME + "addresses: [255.255.255.255]\n", "BH0324", 4, 13),
        (HEAD + NAME + ADDRESSES + "key: c2hvcnQ=\n", "BH0325", 5, 6),
        (HEAD + NAME + ADDRESSES + f"key: {KEY}A\n", "BH0325", 5, 6),
        (HEAD + NAME + ADDRESSES + f"key: {KEY[:-2]}9=\n", "BH0325", 5, 6),
        (HEAD + NAME + ADDRESSES + f"key: {'A' * 43}=\n", "BH0325", 5, 6),
        (HEAD + NAME + ADDRESSES + f"key: {bytes(range(32)).hex()}\n", "BH0325", 5, 6),
        (HEAD + NAME + ADDRESSES + "number: 0\n", "BH0326", 5, 9),
        (HEAD + NAME + ADDRESSES + "number: 16777216\n", "BH0326", 5, 9),
        (HEAD + NAME + ADDRESSES + "number: seven\n", "BH0326", 5, 9),
        (HEAD + NAME + ADDRESSES + "unknown: allow\n", "BH0306", 5, 10),
        (HEAD + NAME + ADDRESSES + 'revoked: "true"\n', "BH0306", 5, 10),
        (HEAD + NAME + ADDRESSES + "revoked: maybe\n", "BH0306", 5, 10),
        (HEAD.replace("Node", "Nod") + NAME + ADDRESSES, "BH0204", 2, 7),
    ],
)
def test_what_is_no_record_is_refused_where_it_stands(text, code, line, column, refused):
    (found,) = refused(files={"n.yaml": text})
    assert (found.code, found.loc.file, found.loc.line, found.loc.column) == (code, "n.yaml", line, column)
    assert found.source_line == text.splitlines()[line - 1]


def test_a_node_does_not_stand_beside_the_repository(refused, sources_of):
    repository = sources_of({}).files[0].content.decode()
    (found,) = refused(files={"bulkhead.yaml": f"{repository}---\n{node('web-1')}"})
    assert (found.code, found.hint) == ("BH0202", "move it to a file of its own")


def test_a_name_for_an_address_is_answered_in_the_words_of_nodes(refused):
    (found,) = refused(files={"n.yaml": node("web-1", address="web-1.example.org")})
    assert found.hint == "a node is known by addresses, not by a name to look up"


def test_a_key_that_is_not_sound_is_not_repeated(refused):
    (found,) = refused(files={"n.yaml": node("web-1", "key: aGVsbG8sIHRoaXMgaXMgc2VjcmV0")})
    assert "aGVs" not in found.message


@pytest.mark.parametrize(
    ("one", "other", "code", "place", "first", "shown"),
    [
        (node("web-1"), node("web-1", address="10.0.0.2"), "BH0401", (3, 18), (3, 18), "node `web-1`"),
        (node("web-1"), node("web-2"), "BH0405", (4, 13), (4, 13), "the address 10.0.0.1/32"),
        (
            node("web-1", "number: 9"),
            node("web-2", "number: 9", address="10.0.0.2"),
            "BH0405",
            (5, 9),
            (5, 9),
            "the number 9",
        ),
        (
            node("web-1", f"key: {KEY}"),
            node("web-2", "unknown: deny", f'key: "{KEY}"', address="10.0.0.2"),
            "BH0405",
            (6, 6),
            (5, 6),
            "the key 00010203…",
        ),
        (
            node("web-1"),
            node("web-2", f"number: {default_number('web-1')}", address="10.0.0.2"),
            "BH0405",
            (5, 9),
            (3, 18),
            f"the number {default_number('web-1')}",
        ),
    ],
)
def test_two_nodes_that_share_something_are_refused_with_both_lines(one, other, code, place, first, shown, refused):
    (found,) = refused(files={"a.yaml": one, "b.yaml": other})
    assert (found.code, found.loc.file, found.loc.line, found.loc.column) == (code, "b.yaml", *place)
    ((loc, label),) = found.related
    assert (loc.file, loc.line, loc.column, label) == ("a.yaml", *first, "`web-1` is here")
    assert shown in found.message


def test_names_whose_default_numbers_are_equal_are_told_what_to_do(refused):
    one, other = SAME_DEFAULT_NUMBER
    (found,) = refused(files={"a.yaml": node(one), "b.yaml": node(other, address="10.0.0.2")})
    assert found.code == "BH0405"
    assert found.hint == "its number is a hash of its name: give it another with `number`"


def test_each_of_several_that_share_something_is_told_once(refused):
    found = refused(files={f"{name}.yaml": node(name) for name in ("a", "b", "c")})
    assert [(each.loc.file, each.related[0][0].file) for each in found] == [("b.yaml", "a.yaml"), ("c.yaml", "a.yaml")]


def test_a_revoked_node_gives_back_what_it_had(nodes):
    found = nodes(node("web-1", f"key: {KEY}", "revoked: true") + "---\n" + node("web-1", f"key: {OTHER_KEY}"))
    assert [each.revoked for each in found] == [True, False]
    assert [each.key for each in roster(found)] == [base64.b64decode(OTHER_KEY)]


def test_prefixes_may_lie_within_each_other(nodes):
    assert len(nodes(node("web-1", address="10.0.0.0/24") + "---\n" + node("web-2", address="10.0.0.7"))) == 2


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        ("from: legacy, to: web, ports: [9100]", ""),
        ("from: web, to: [legacy, api], ports: [9100]", ""),
        ("from: legacy, to: legacy, ports: [9100]", "BH0503"),
        ("from: world, to: legacy, ports: [9100]", "BH0503"),
        ("from: legacy, to: web, ports: [9100], mtls: required", "BH0504"),
    ],
)
def test_legacy_is_a_peer_at_which_nobody_judges(rule, code, parsed, refused):
    body = "workloads:\n  web: {match: {unit: a.service}}\n  api: {match: {unit: b.service}}\n"
    body += f"allow:\n  - {{name: r, {rule}}}\n"
    if code:
        assert [each.code for each in refused(body)] == [code]
    else:
        (found,) = parsed(body).rules
        assert Entity.LEGACY in (*found.source.entities, *found.destination.entities)


def test_nothing_else_is_called_legacy(refused):
    assert [each.code for each in refused("workloads:\n  legacy: {match: {unit: a.service}}\n")] == ["BH0402"]


def test_a_change_of_a_node_is_told_field_by_field(sources_of):
    before, after = (
        parse(sources_of({"n.yaml": text}))
        for text in (node("web-1", "number: 9"), node("web-1", f"key: {KEY}", "unknown: address", "revoked: true"))
    )
    (found,) = alterations(before, after, ())
    assert (found.kind, found.name, found.what) == ("node", "web-1", "changed")
    assert {each.field: (each.before, each.after) for each in found.details} == {
        "number": ("9", str(default_number("web-1"))),
        "key": ("", KEY),
        "unknown": ("deny", "address"),
        "revoked": ("", "true"),
    }


def test_a_revoked_record_beside_the_one_that_counts_is_told_apart(sources_of):
    old, fresh = node("web-1", f"key: {KEY}"), node("web-1", f"key: {OTHER_KEY}")
    before = parse(sources_of({"n.yaml": old}))
    after = parse(sources_of({"n.yaml": f"{old}revoked: true\n---\n{fresh}"}))
    found = {(each.name, each.what): each for each in alterations(before, after, ())}
    assert found.keys() == {("web-1", "changed"), ("web-1 (2)", "added")}
    assert [(each.before, each.after) for each in found["web-1", "changed"].details] == [(KEY, OTHER_KEY)]


def test_the_form_of_a_node_keeps_its_comments():
    written = f"""\
kind: Node # one
metadata:
    name: web-1
apiVersion: bulkhead/v1alpha1
revoked: false
unknown: deny
# since June
key: '{KEY}'
addresses:
- 10.0.0.1
- 'fd00::1' # the new one
number: 17
"""
    wanted = f"""\
apiVersion: bulkhead/v1alpha1
kind: Node  # one
metadata: {{name: web-1}}
addresses:
  - 10.0.0.1
  - "fd00::1"  # the new one
# since June
key: {KEY}
number: 17
unknown: deny
revoked: false
"""
    assert format_file("n.yaml", written.encode()).decode() == wanted
    assert format_file("n.yaml", wanted.encode()).decode() == wanted

"""What is refused, and where the finger points."""

from __future__ import annotations

import pytest

SHOP = "workloads:\n  web: {match: {unit: nginx.service}}\n  api: {match: {unit: api.service}}\n"
"""Lines 4 to 6, behind the head."""

EXCEPTION = "exceptions:\n  - {name: a, from: any, to: any, ports: [1], owner: a, ticket: b, "

REFUSALS = [
    # the text of a file
    ("workloads: [\n", "BH0101", 5, 1),
    ("workloads:\n\tweb: {}\n", "BH0101", 5, 1),
    ("externals:\n  users: {cidr: [::/0]}\n", "BH0101", 5, 18),
    ("workloads: *all\n", "BH0103", 4, 12),
    ("workloads:\n  web: {match: {host: *, unit: a.service}}\n", "BH0103", 5, 23),
    ("workloads: &all {}\n", "BH0104", 4, 12),
    ("workloads: !!python/object:os.system {}\n", "BH0105", 4, 12),
    ("---\n%TAG ! tag:x,2000:\n---\n", "BH0105", 5, 1),
    ("workloads:\n  web:\n    <<: {mode: enforce}\n    match: {unit: a.service}\n", "BH0106", 6, 5),
    ("allow: []\nallow: []\n", "BH0107", 5, 1),
    ("workloads:\n  web: {match: {unit: a.service, unit: b.service}}\n", "BH0107", 5, 34),
    ("workloads:\n  {a: b}: {}\n", "BH0108", 5, 3),
    ("workloads: " + "{a: " * 40 + "1" + "}" * 40 + "\n", "BH0109", 4, 12 + 31 * 4),
    ("workloads: {} # \u202e\n", "BH0110", 4, 17),
    ("workloads: {} # \x00\n", "BH0110", 4, 17),
    ("workloads: {} # \u2028\n", "BH0110", 4, 17),
    ("workloads: {}\rallow: []\n", "BH0110", 4, 14),
    ('workloads:\n  web: {match: {unit: "a\\e[0m.service"}}\n', "BH0110", 5, 23),
    # scalars that mean something else
    ("workloads:\n  no: {match: {unit: a.service}}\n", "BH0111", 5, 3),
    ("workloads:\n  1: {match: {unit: a.service}}\n", "BH0111", 5, 3),
    ("workloads:\n  2026-01-01: {match: {unit: a.service}}\n", "BH0111", 5, 3),
    (SHOP + "allow:\n  - {name: on, from: web, to: api, ports: [1]}\n", "BH0111", 8, 12),
    (SHOP + "allow:\n  - {name: a, from: web, to: api, ports: [22:22]}\n", "BH0111", 8, 43),
    (SHOP + "allow:\n  - {name: a, from: web, to: api, ports: [010]}\n", "BH0111", 8, 43),
    (SHOP + "allow:\n  - {name: a, from: web, to: api, ports: [0x50]}\n", "BH0111", 8, 43),
    (SHOP + "allow:\n  - {name: a, from: web, to: api, ports: [80.0]}\n", "BH0111", 8, 43),
    (SHOP + "allow:\n  - {name: a, from: web, to: api, ports: [1], mtls: off}\n", "BH0111", 8, 53),
    (SHOP + "allow:\n  - {name: a, from: web, to: api, ports: [1], ticket: 4711}\n", "BH0111", 8, 55),
    ("workloads:\n  web: {match: {unit: a.service}, labels: {tier: yes}}\n", "BH0111", 5, 50),
    ("workloads:\n  web: {match: {user: 0755}}\n", "BH0111", 5, 23),
    ("tests:\n  - {from: any, accept: [22:22]}\n", "BH0111", 5, 26),
    # structure
    ("workload: {}\n", "BH0205", 4, 1),
    (SHOP + "allow:\n  - {name: a, from: web, to: api, port: [1], ports: [1]}\n", "BH0205", 8, 35),
    ("workloads:\n  web: {labels: {a: b}}\n", "BH0206", 5, 9),
    (SHOP + "allow:\n  - {from: web, to: api, ports: [1]}\n", "BH0206", 8, 6),
    ("exceptions:\n  - {name: a, from: any, to: any, ports: [1], owner: a, ticket: b}\n", "BH0206", 5, 6),
    ("tests:\n  - {from: any}\n", "BH0206", 5, 5),
    ("workloads: []\n", "BH0207", 4, 12),
    ("allow: {}\n", "BH0207", 4, 8),
    ("allow:\n", "BH0207", 4, 7),
    (SHOP + "allow:\n  - {name: a, from: web, to: [[api]], ports: [1]}\n", "BH0207", 8, 31),
    (SHOP + "allow:\n  - {name: a, from: web, to: api, ports: 443}\n", "BH0207", 8, 42),
    ("workloads:\n  web: {match: {unit: a.service, host: {a: b}}}\n", "BH0207", 5, 40),
    ("workloads:\n  web: {match: {unit: a.service}, spiffe: a}\n", "BH0345", 5, 43),
    (SHOP + "allow:\n  - {name: a, from: web, to: api, ports: [1], l7: {}}\n", "BH0209", 8, 51),
    ("workloads:\n  web: {match: {}}\n", "BH0209", 5, 16),
    ("workloads:\n  web: {match: {unit: []}}\n", "BH0209", 5, 23),
    (SHOP + "allow:\n  - {name: a, from: [], to: api, ports: [1]}\n", "BH0209", 8, 21),
    (SHOP + "allow:\n  - {name: a, from: {}, to: api, ports: [1]}\n", "BH0209", 8, 21),
    (SHOP + "allow:\n  - {name: a, from: web, to: api, ports: []}\n", "BH0209", 8, 42),
    ("externals:\n  users: {cidr: []}\n", "BH0209", 5, 17),
    ("workloads:\n  web: {match: {unit: a.service}, labels: {}}\n", "BH0209", 5, 43),
    ("externals:\n  s3: {except: [192.0.2.0/24]}\n", "BH0206", 5, 7),
    ("externals:\n  s3: {fqdn: a.example.org}\n", "BH0207", 5, 14),
    ("externals:\n  s3: {fqdn: []}\n", "BH0209", 5, 14),
    ("externals:\n  s3: {fqdn: [a.example.org], cidr: [192.0.2.0/24]}\n", "BH0210", 5, 31),
    ("externals:\n  s3: {except: [192.0.2.0/24], fqdn: [a.example.org]}\n", "BH0210", 5, 8),
    ("scope: {namespace: shop}\n", "BH0206", 4, 9),
    ("scope: shop\n", "BH0207", 4, 8),
    ("scope: {cluster: prod, namespce: shop}\n", "BH0205", 4, 24),
    ("workloads:\n  web: {match: {namespace: a, unit: a.service}}\n", "BH0210", 5, 31),
    ("workloads:\n  web: {match: {host: web-1, labels: {a: b}, namespace: a}}\n", "BH0210", 5, 30),
    ("workloads:\n  web: {match: {all: true, namespace: a}}\n", "BH0210", 5, 28),
    ("workloads:\n  web: {match: {namespace: a, labels: {}}}\n", "BH0209", 5, 39),
    # values
    ("workloads:\n  web_1: {match: {unit: a.service}}\n", "BH0301", 5, 3),
    (f"workloads:\n  {'a' * 64}: {{match: {{unit: a.service}}}}\n", "BH0301", 5, 3),
    (SHOP + "allow:\n  - {name: a, from: a/b/c, to: api, ports: [1]}\n", "BH0301", 8, 21),
    (SHOP + 'allow:\n  - {name: a, from: "*", to: api, ports: [1]}\n', "BH0301", 8, 21),
    (SHOP + "allow:\n  - {name: a, from: 10.0.0.1, to: api, ports: [1]}\n", "BH0301", 8, 21),
    (SHOP + "allow:\n  - {name: a, from: web, to: api, ports: [0]}\n", "BH0302", 8, 43),
    (SHOP + "allow:\n  - {name: a, from: web, to: api, ports: [65536]}\n", "BH0302", 8, 43),
    (SHOP + "allow:\n  - {name: a, from: web, to: api, ports: [90-80]}\n", "BH0302", 8, 43),
    (SHOP + "allow:\n  - {name: a, from: web, to: api, ports: [53/upd]}\n", "BH0302", 8, 43),
    (SHOP + "allow:\n  - {name: a, from: web, to: api, ports: [icmp/ping]}\n", "BH0302", 8, 43),
    (SHOP + "allow:\n  - {name: a, from: web, to: api, ports: [proto/6]}\n", "BH0302", 8, 43),
    (SHOP + "allow:\n  - {name: a, from: web, to: api, ports: [http]}\n", "BH0302", 8, 43),
    ("externals:\n  users: {cidr: [example.org]}\n", "BH0303", 5, 18),
    ("externals:\n  users: {cidr: [10.0.0.0/33]}\n", "BH0303", 5, 18),
    ("externals:\n  users: {cidr: [10.0.0.0/255.0.0.0]}\n", "BH0303", 5, 18),
    ('externals:\n  users: {cidr: ["fe80::1%eth0/64"]}\n', "BH0303", 5, 18),
    ("externals:\n  users: {cidr: [10.0.0.1/24]}\n", "BH0304", 5, 18),
    ('externals:\n  users: {cidr: ["2001:db8::1/32"]}\n', "BH0304", 5, 18),
    ('externals:\n  users: {cidr: ["::ffff:10.0.0.1"]}\n', "BH0305", 5, 18),
    ("workloads:\n  web: {match: {unit: a.service}, mode: audit}\n", "BH0306", 5, 41),
    (EXCEPTION + "expires: 2027-01-31T18:00:00}\n", "BH0307", 5, 77),
    (EXCEPTION + "expires: 2027-02-31T18:00:00Z}\n", "BH0307", 5, 77),
    ("workloads:\n  web: {match: {unit: shop.slice}}\n", "BH0308", 5, 23),
    ("workloads:\n  web: {match: {unit: /system.slice/a.service}}\n", "BH0308", 5, 23),
    ("workloads:\n  web: {match: {host: a b, unit: a.service}}\n", "BH0308", 5, 23),
    ("workloads:\n  web: {match: {cgroup: shop/web}}\n", "BH0309", 5, 25),
    ("workloads:\n  web: {match: {cgroup: /shop/../web}}\n", "BH0309", 5, 25),
    ("workloads:\n  web: {match: {cgroup: /shop/**}}\n", "BH0309", 5, 25),
    ("workloads:\n  web: {match: {exe: /usr/bin/*}}\n", "BH0309", 5, 22),
    ("workloads:\n  web: {match: {exe: /usr/bin/}}\n", "BH0309", 5, 22),
    ("workloads:\n  web: {match: {user: a:b}}\n", "BH0310", 5, 23),
    ("workloads:\n  web: {match: {group: 4294967295}}\n", "BH0310", 5, 24),
    ("workloads:\n  web: {match: {unit: a.service}, labels: {tier: -web}}\n", "BH0311", 5, 50),
    ("workloads:\n  web: {match: {all: false}}\n", "BH0312", 5, 22),
    ('workloads:\n  web: {match: {all: "true"}}\n', "BH0312", 5, 22),
    ("workloads:\n  web: {match: {all: true, exe: /bin/a}}\n", "BH0312", 5, 22),
    ("tests:\n  - {from: any, accept: [any]}\n", "BH0314", 5, 26),
    ("scope: {cluster: Prod}\n", "BH0301", 4, 18),
    ("scope: {cluster: prod, namespace: shop-*}\n", "BH0301", 4, 35),
    ("workloads:\n  web: {match: {namespace: Shop}}\n", "BH0308", 5, 28),
    ("workloads:\n  web: {match: {namespace: a, serviceAccount: a/b}}\n", "BH0308", 5, 47),
    ("workloads:\n  web: {match: {namespace: a, labels: {a/b/c: d}}}\n", "BH0311", 5, 40),
    ("workloads:\n  web: {match: {namespace: a, labels: {a: b/c}}}\n", "BH0311", 5, 43),
    ("workloads:\n  web: {match: {namespace: a, labels: {a: b*}}}\n", "BH0311", 5, 43),
    # names
    (
        SHOP + "allow:\n  - {name: a, from: web, to: api, ports: [1]}\n  - {name: a, from: api, to: web, ports: [1]}\n",
        "BH0401",
        9,
        12,
    ),
    (SHOP + "never:\n  - {name: a, from: web, to: api}\n  - {name: a, from: api, to: web}\n", "BH0401", 9, 12),
    ("workloads:\n  host: {match: {unit: a.service}}\n", "BH0402", 5, 3),
    (SHOP + "never:\n  - {name: a, from: unknown, to: api}\n", "BH0403", 8, 21),
    (SHOP + "allow:\n  - {name: a, from: web, to: ap1, ports: [1]}\n", "BH0412", 8, 30),
    (SHOP + "allow:\n  - {name: a, from: [web, ap1], to: api, ports: [1]}\n", "BH0412", 8, 27),
    (SHOP + "allow:\n  - {name: a, from: web, to: store/api, ports: [1]}\n", "BH0412", 8, 30),
    (SHOP + 'tests:\n  - {from: web, accept: ["ap1:80"]}\n', "BH0412", 8, 26),
    # meaning
    ("scope: {cluster: a, namespace: b}\nworkloads:\n  web: {match: {namespace: c}}\n", "BH0506", 6, 28),
    ("scope: {cluster: a, namespace: b}\nworkloads:\n  web: {match: {namespace: [b, b*]}}\n", "BH0506", 6, 28),
    ("workloads:\n  web: {match: {serviceAccount: a}}\n", "BH0507", 5, 17),
    ("scope: {cluster: a}\nworkloads:\n  web: {match: {labels: {a: b}}}\n", "BH0507", 6, 17),
    ("scope: {cluster: a}\nworkloads:\n  web: {match: {host: a, unit: a.service}}\n", "BH0508", 6, 17),
    ("workloads:\n  web: {match: {all: true}}\nscope: {cluster: a, namespace: b}\n", "BH0508", 5, 17),
    ("allow:\n  - {name: a, from: world, to: world, ports: [1]}\n", "BH0503", 5, 32),
    ("externals:\n  s3: {cidr: [192.0.2.0/24]}\nnever:\n  - {name: a, from: world, to: s3}\n", "BH0503", 7, 32),
    (SHOP + "allow:\n  - {name: a, from: world, to: api, ports: [1], mtls: required}\n", "BH0504", 8, 55),
]


@pytest.mark.parametrize(("body", "number", "line", "column"), REFUSALS, ids=lambda value: repr(value)[:60])
def test_refused_with_one_code_at_the_place_of_the_slip(body, number, line, column, refused):
    (found,) = refused(body)
    assert (found.code, found.loc.file, found.loc.line, found.loc.column) == (number, "shop.yaml", line, column)
    assert str(found.loc) in found.render()


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("", "BH0201"),
        ("# nothing\n", "BH0201"),
        ("apiVersion: bulkhead/v1alpha1\nkind: Repository\n", "BH0206"),
        ("apiVersion: bulkhead/v1alpha1\nkind: Repository\ntrustDomain: a/b\n", "BH0313"),
        ("apiVersion: bulkhead/v1alpha1\nkind: Policy\nmetadata: {name: a}\n", "BH0202"),
        ("kind: Repository\ntrustDomain: a\n", "BH0206"),
        ("apiVersion: bulkhead/v1\nkind: Repository\ntrustDomain: a\n", "BH0203"),
        ("- a\n", "BH0207"),
    ],
)
def test_refuse_a_repository_file_that_is_none(text, number, refused):
    assert number in {each.code for each in refused(files={"bulkhead.yaml": text})}


def test_refuse_two_repository_documents(refused):
    text = "apiVersion: bulkhead/v1alpha1\nkind: Repository\ntrustDomain: example.org\n"
    (found,) = refused(files={"bulkhead.yaml": f"{text}---\n{text}"})
    assert (found.code, found.loc.line) == ("BH0202", 6)


def test_refuse_bytes_that_are_not_utf8(refused):
    (found,) = refused(files={"a.yaml": b"kind: Policy\nname: \xff\n"})
    assert (found.code, found.loc.file, found.loc.line, found.loc.column) == ("BH0102", "a.yaml", 2, 7)


@pytest.mark.parametrize(("target", "number"), [("api:22", "BH0315"), ("host", "BH0314"), ("host:ssh", "BH0302")])
def test_refuse_a_lifeline_that_does_not_end_at_a_port_of_the_host(target, number, refused):
    text = "apiVersion: bulkhead/v1alpha1\nkind: Repository\ntrustDomain: a\nhosts: {lifeline: [{from: any, to: "
    (found,) = refused(files={"bulkhead.yaml": f'{text}"{target}"}}]}}\n'})
    assert (found.code, found.loc.line) == (number, 4)


@pytest.mark.parametrize(
    "name",
    [
        "example", "*", "*.com", "*.*.example.org", "a.*.org", "a*.example.org", "-a.example.org", "a-.example.org",
        "a..example.org", ".example.org", "192.0.2.1", "2001:db8::1", "https://example.org", "example.org:443",
        "bücher.example", "a b.example.org", f"{'a' * 64}.example.org", "a." * 127 + "ab",
    ],
)  # fmt: skip
def test_refuse_what_is_no_dns_name(name, refused):
    (found,) = refused(f'externals:\n  s3: {{fqdn: [a.example.org, "{name}"]}}\n')
    assert (found.code, found.loc.line, found.loc.column) == ("BH0316", 5, 30)


def test_refuse_an_ambiguous_bare_name_in_a_lifeline(refused):
    external = "externals:\n  admins: {cidr: [192.0.2.0/24]}\n"
    other = f"apiVersion: bulkhead/v1alpha1\nkind: Policy\nmetadata: {{name: other}}\n{external}"
    text = "apiVersion: bulkhead/v1alpha1\nkind: Repository\ntrustDomain: a\n"
    lifeline = f'{text}hosts: {{lifeline: [{{from: admins, to: "host:22"}}]}}\n'
    (found,) = refused(external, files={"bulkhead.yaml": lifeline, "other.yaml": other})
    assert found.code == "BH0411"
    assert [loc.file for loc, _ in found.related] == ["other.yaml", "shop.yaml"]


def test_refuse_a_policy_name_twice_and_show_both(refused):
    text = "apiVersion: bulkhead/v1alpha1\nkind: Policy\nmetadata: {name: shop}\n"
    (found,) = refused(files={"z.yaml": text})
    assert (found.code, found.loc.file, found.related[0][0].file) == ("BH0401", "z.yaml", "shop.yaml")


def test_refuse_the_policy_name_hosts(refused):
    text = "apiVersion: bulkhead/v1alpha1\nkind: Policy\nmetadata: {name: hosts}\n"
    (found,) = refused(files={"z.yaml": text})
    assert found.code == "BH0402"


def test_all_findings_are_shown_in_file_order(refused):
    found = refused(
        SHOP + "allow:\n  - {name: a, from: wep, to: api, ports: [0]}\n  - {name: b, from: wep, to: api, ports: [1]}\n",
        files={"a.yaml": "nonsense\n"},
    )
    assert [each.loc.file for each in found] == ["a.yaml", "shop.yaml"]
    assert [each.code for each in found] == ["BH0207", "BH0302"]


def test_unknown_names_are_not_reported_while_a_file_that_may_hold_them_is_unreadable(refused):
    found = refused(SHOP + "allow:\n  - {name: a, from: web, to: other/x, ports: [1]}\n", files={"other.yaml": "{"})
    assert [each.code for each in found] == ["BH0101"]


def test_at_most_twenty_findings_are_shown_and_the_rest_is_counted(refused):
    found = refused(files={f"f{number}.yaml": "bad: [" for number in range(50)})
    assert len(found) == 20
    assert found[-1].code == "BH0100"
    assert "31 further" in found[-1].message


def test_a_file_full_of_slips_is_counted_to_the_end(refused):
    found = refused("".join(f"key{number}: 1\n" for number in range(3000)))
    assert len(found) == 20
    assert "2981 further" in found[-1].message


def test_unknown_name_is_answered_with_the_nearest_and_its_line(refused):
    (found,) = refused(SHOP + "allow:\n  - {name: a, from: web, to: ap1, ports: [1]}\n")
    assert found.hint == "did you mean `api`? (line 6)"
    assert found.source_line == "  - {name: a, from: web, to: ap1, ports: [1]}"
    assert found.width == 3


def test_a_name_of_another_policy_is_suggested_with_its_policy(refused):
    other = "apiVersion: bulkhead/v1alpha1\nkind: Policy\nmetadata: {name: dns}\nworkloads:\n"
    (found,) = refused(
        SHOP + "allow:\n  - {name: a, from: web, to: resolver, ports: [53/udp]}\n",
        files={"dns.yaml": other + "  resolver: {match: {unit: unbound.service}}\n"},
    )
    assert "`dns/resolver`" in found.hint


def test_a_misspelt_section_does_not_make_its_names_unknown(refused):
    found = refused(SHOP.replace("workloads", "workload") + "never:\n  - {name: a, from: web, to: api}\n")
    assert [each.code for each in found] == ["BH0205"]

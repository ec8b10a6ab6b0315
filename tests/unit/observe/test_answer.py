"""What policy says to a question: verdicts, rules, nearest rules, and names that mean nobody."""

from __future__ import annotations

from itertools import product

import pytest

from bulkhead.abi import Direction, DropReason, Identity
from bulkhead.errors import UsageError
from bulkhead.observe.answer import Answer, answer_to_json, can
from bulkhead.observe.question import Question, parse_question
from bulkhead.observe.tables import Tables
from unit.observe.build import COMMIT, T, both_forms, compiled, identity

FORMS = ("values", "bundle")


@pytest.fixture(params=FORMS)
def tables(request: pytest.FixtureRequest) -> Tables:
    return both_forms()[FORMS.index(request.param)]


def ask(tables: Tables, source: str, target: str, now: float = T) -> Answer:
    return can(tables, parse_question(source, target), now)


def test_no_policy_for_it_means_deny(tables: Tables) -> None:
    answer = ask(tables, "web", "db:5432")
    assert answer.verdict == "deny"
    assert [end.verdict for end in answer.ends] == ["deny", "deny"]
    assert answer_to_json(answer)["because"] == "default deny; no rule matched"


def test_an_allow_names_the_rule_and_its_line(tables: Tables) -> None:
    answer = ask(tables, "web", "api:8443")
    assert answer.verdict == "allow"
    assert answer.deciding.rule is not None
    assert answer.deciding.rule.loc.short == "shop.yaml:16@3f2c1ab"
    assert answer.commit == COMMIT


def test_the_nearest_rule_comes_with_the_clause_that_failed(tables: Tables) -> None:
    nearest = ask(tables, "web", "db:5432").source_end.nearest
    assert nearest is not None
    assert nearest.rule.name == "shop/api-db"
    assert nearest.failed == ("from: {tier: app}, not web",)


def test_a_wrong_port_is_the_clause_that_failed(tables: Tables) -> None:
    nearest = ask(tables, "web", "api:5432").source_end.nearest
    assert nearest is not None
    assert nearest.failed == ("port: 8443, not 5432",)


def test_a_wrong_protocol_shows_in_the_port(tables: Tables) -> None:
    nearest = ask(tables, "web", "api:8443/udp").source_end.nearest
    assert nearest is not None
    assert nearest.failed == ("port: 8443, not 8443/udp",)


def test_without_any_rule_for_either_end_nothing_is_near(tables: Tables) -> None:
    answer = can(tables, Question("batch", "batch", 1), T)
    assert answer.source_end.nearest is not None
    answer = can(tables, Question("unknown", "batch", 1), T)
    assert answer.destination_end.nearest is None


def test_a_refusal_in_observe_mode_would_deny(tables: Tables) -> None:
    answer = ask(tables, "batch", "world:443")
    assert answer.verdict == "would-deny"
    assert answer.destination_end.verdict == ""


def test_each_end_applies_its_own_mode(tables: Tables) -> None:
    answer = ask(tables, "batch", "api:8443")
    assert [end.verdict for end in answer.ends] == ["would-deny", "deny"]
    assert answer.verdict == "deny"


def test_observe_only_turns_every_deny_into_would_deny(tables: Tables) -> None:
    assert can(tables, parse_question("web", "db:5432"), T, observe_only=True).verdict == "would-deny"


def test_labels_are_members_of_a_peer(tables: Tables) -> None:
    assert ask(tables, "batch", "db:5432").verdict == "allow"


def test_an_address_stands_for_its_class(tables: Tables) -> None:
    assert ask(tables, "198.51.100.7", "web:443").verdict == "allow"
    assert ask(tables, "10.1.2.3", "web:443").verdict == "deny"
    assert ask(tables, "2001:db8::1", "web:443").verdict == "allow"
    assert ask(tables, "::ffff:198.51.100.7", "web:443").verdict == "allow"


def test_the_lifeline_reaches_the_host(tables: Tables) -> None:
    assert ask(tables, "10.9.0.5", "host:22").verdict == "allow"
    assert ask(tables, "198.51.100.7", "host:22").verdict == "deny"


def test_an_external_must_be_allowed_with_all_its_addresses(tables: Tables) -> None:
    assert ask(tables, "users", "web:443").verdict == "allow"
    answer = ask(tables, "admins", "web:443")
    assert answer.verdict == "deny"
    assert answer.destination_end.note == "part of `shop/admins` is allowed"


def test_the_world_is_every_address(tables: Tables) -> None:
    answer = ask(tables, "world", "web:443")
    assert answer.verdict == "deny"
    assert "part of" in answer.destination_end.note


def test_an_exception_allows_until_it_expires(tables: Tables) -> None:
    assert ask(tables, "10.9.0.5", "db:5432").verdict == "allow"
    late = ask(tables, "10.9.0.5", "db:5432", now=T + 86400)
    assert late.verdict == "deny"
    assert late.destination_end.reason is DropReason.EXPIRED
    assert late.destination_end.rule is not None
    assert late.destination_end.rule.name == "shop/debug"


def test_an_exception_that_had_expired_at_compile_time_is_said_to_have(tables: Tables) -> None:
    answer = ask(tables, "web", "db:9999")
    assert answer.source_end.reason is DropReason.EXPIRED
    assert answer.source_end.rule is not None
    assert answer.source_end.rule.name == "shop/gone"


def test_a_workload_of_another_host_is_judged_there(tables: Tables) -> None:
    answer = ask(tables, "web", "remote:53/udp")
    assert answer.verdict == "allow"
    assert answer.destination_end.verdict == ""
    assert "it is judged where it runs" in answer.destination_end.note


def test_with_all_hosts_at_once_both_ends_are_judged() -> None:
    for tables in both_forms(None):
        answer = ask(tables, "web", "remote:53/udp")
        assert [end.verdict for end in answer.ends] == ["allow", "allow"]


def test_icmp_is_asked_by_type_in_the_family_of_the_address(tables: Tables) -> None:
    assert ask(tables, "host", "web:icmp/echo").verdict == "allow"
    assert ask(tables, "web", "2001:db8::1:icmp/echo".replace("2001:db8::1", "[2001:db8::1]")).verdict == "deny"


def test_the_unknown_match_nothing(tables: Tables) -> None:
    answer = ask(tables, "unknown", "web:443")
    assert answer.verdict == "deny"
    assert answer.source_end.reason is DropReason.UNATTESTED
    assert can(tables, Question("ambiguous", "web", 443), T).source_end.reason is DropReason.AMBIGUOUS


def test_names_may_be_short_qualified_or_spiffe_ids(tables: Tables) -> None:
    names = ("web", "shop/web", "spiffe://example.org/shop/web")
    assert {can(tables, Question(name, "api", 8443), T).source for name in names} == {"shop/web"}


def test_other_names_come_with_their_identities(tables: Tables) -> None:
    aliases = {"nginx.service": identity("web"), "cron.service": int(Identity.HOST), "new.service": 0}
    assert can(tables, Question("nginx.service", "api", 8443), T, aliases).source == "shop/web"
    assert can(tables, Question("cron.service", "api", 8443), T, aliases).source == "host"
    assert can(tables, Question("new.service", "api", 8443), T, aliases).source == "unknown"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("wbe", "did you mean `web`?"),
        ("any", "is many"),
        ("127.0.0.1", "is this machine"),
        ("shop/nobody", "unknown workload"),
        ("\x1b[31mred", r"`\u{1b}[31mred`"),
    ],
)
def test_a_name_that_means_nobody_is_refused(tables: Tables, source: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        can(tables, Question(source, "api", 8443), T)
    assert said in str(caught.value)


def test_nobody_judges_between_two_addresses(tables: Tables) -> None:
    with pytest.raises(UsageError, match="nobody here judges"):
        ask(tables, "10.0.0.1", "10.0.0.2:443")


def test_both_forms_answer_alike() -> None:
    names = ("web", "api", "db", "batch", "remote", "host", "users", "admins", "world", "10.9.0.5", "10.9.1.5")
    ports = ("443", "5432", "53/udp", "icmp/echo", "22")
    one, other = both_forms()
    for source, destination, port in product(names, names, ports):
        question = parse_question(source, f"{destination}:{port}")
        answers = []
        for tables in (one, other):
            try:
                answers.append(answer_to_json(can(tables, question, T)))
            except UsageError as error:
                answers.append({"error": str(error)})
        assert answers[0] == answers[1]


def test_the_answer_is_that_of_the_tables() -> None:
    found = compiled()
    for source, destination in product(("web", "api", "db"), repeat=2):
        entry = both_forms()[1].lookup(identity(source), int(Direction.EGRESS), identity(destination), 6, 5432)
        answer = can(found, Question(source, destination, 5432), T)
        assert (answer.source_end.verdict == "allow") == (entry is not None)


# Questions


@pytest.mark.parametrize(
    ("target", "question"),
    [
        ("db:5432", Question("a", "db", 5432)),
        ("shop/db:53/udp", Question("a", "shop/db", 53, "udp")),
        ("[::1]:80", Question("a", "::1", 80)),
        ("10.0.0.1:80/tcp", Question("a", "10.0.0.1", 80)),
        ("db:icmp/echo", Question("a", "db", 0, "icmp/echo")),
        ("db:proto/47", Question("a", "db", 0, "proto/47")),
        ("web-03:nginx.service:80", Question("a", "web-03:nginx.service", 80)),
        ("spiffe://example.org/shop/db:80", Question("a", "spiffe://example.org/shop/db", 80)),
    ],
)
def test_a_question_is_read_from_its_target(target: str, question: Question) -> None:
    assert parse_question("a", target) == question


@pytest.mark.parametrize(
    "target",
    ["db", "db:", ":80", "db:70000", "db:0", "db:80-90", "db:any", "db:icmp", "db:x/y", "::1:80", "db:80/sctp", "db:٣"],
)
def test_a_target_that_is_none_is_refused(target: str) -> None:
    with pytest.raises(UsageError):
        parse_question("a", target)

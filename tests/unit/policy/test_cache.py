"""The cost of a commit: what is read again, and how long it takes."""

from __future__ import annotations

import time

import pytest

from bulkhead.errors import PolicyError
from bulkhead.policy.parse import ParseCache, parse

HEAD = "apiVersion: bulkhead/v1alpha1\nkind: Policy\nmetadata: {{name: p{0}}}\n"


def policy(number: int, rules: int, workloads: int = 100) -> str:
    lines = [f"  w{index}: {{match: {{unit: w{number}-{index}.service}}}}\n" for index in range(workloads)]
    lines.append("allow:\n")
    for index in range(rules):
        ends = f"from: w{index % workloads}, to: w{(index + 7) % workloads}"
        lines.append(f"  - {{name: r{index}, {ends}, ports: [{index + 1}, 443]}}\n")
    return HEAD.format(number) + "workloads:\n" + "".join(lines)


def processor_s(run) -> float:
    """The shortest of three runs, in seconds of processor time: others use this machine too."""
    taken = []
    for _ in range(3):
        begun = time.process_time()
        run()
        taken.append(time.process_time() - begun)
    return min(taken)


def test_a_known_file_is_not_read_again(sources_of):
    cache = ParseCache()
    first = sources_of({"a.yaml": policy(0, 10), "b.yaml": policy(1, 10)})
    parse(first, cache)
    assert len(cache) == 3
    changed = sources_of({"a.yaml": policy(0, 10), "b.yaml": policy(1, 11)})
    before = cache.draft(first.files[0])
    policy_set = parse(changed, cache)
    assert cache.draft(changed.files[0]) is before
    assert len(cache) == 4
    assert policy_set == parse(changed)


def test_equal_content_under_another_path_keeps_its_own_places(sources_of):
    cache = ParseCache()
    parse(sources_of({"a.yaml": policy(0, 1)}), cache)
    (rule,) = parse(sources_of({"b.yaml": policy(0, 1)}), cache).rules
    assert rule.loc.file == "b.yaml"


def test_the_cache_stays_within_its_bound_and_forgets_the_oldest(sources_of):
    size = len(policy(0, 10))
    cache = ParseCache(bytes_max=size * 5)
    for number in range(20):
        parse(sources_of({f"f{number}.yaml": policy(0, 10)}), cache)
        assert len(cache) <= 6


def test_a_file_larger_than_the_cache_is_read_all_the_same(sources_of):
    cache = ParseCache(bytes_max=1)
    assert len(parse(sources_of({"a.yaml": policy(0, 10)}), cache).rules) == 10
    assert len(cache) == 0


def test_refuse_more_rules_than_the_limit(sources_of, monkeypatch):
    monkeypatch.setattr("bulkhead.policy.parse.RULES_MAX", 9)
    with pytest.raises(PolicyError, match="10 rules are more than 9"):
        parse(sources_of({"a.yaml": policy(0, 10)}))


@pytest.mark.parametrize(("rules", "limit_s"), [(1_000, 0.5), (10_000, 4.0)])
def test_parsing_takes_time_in_proportion_to_the_rules(rules, limit_s, sources_of):
    sources = sources_of({"a.yaml": policy(0, rules)})
    assert processor_s(lambda: parse(sources)) < limit_s


def test_one_changed_file_among_many_costs_little_more_than_linking(sources_of):
    texts = {f"f{number}.yaml": policy(number, 100) for number in range(50)}
    cache = ParseCache(64 << 20)
    whole = sources_of(texts)
    cold = processor_s(lambda: parse(whole))
    parse(whole, cache)
    changed = sources_of({**texts, "f0.yaml": policy(0, 101)})
    assert processor_s(lambda: parse(changed, cache)) < cold / 2

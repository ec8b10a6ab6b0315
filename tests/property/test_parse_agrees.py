"""From text to values: what the parser reads means what was written."""

from __future__ import annotations

from hypothesis import given, settings

from bulkhead.abi import Verdict
from bulkhead.dataplane import reference
from bulkhead.dataplane.compile import compile_commit
from bulkhead.dataplane.reference import Answer, Identified
from bulkhead.policy.model import PolicySet
from bulkhead.policy.parse import parse
from bulkhead.policy.source import SourceFile, Sources, blob_id
from property import strategies
from property.strategies import NOW, Case


def read_text(files: dict[str, str]) -> PolicySet:
    """The PolicySet of files by path."""
    blobs = {path: text.encode() for path, text in files.items()}
    ordered = sorted(blobs.items(), key=lambda item: item[0].encode())
    return parse(Sources("", tuple(SourceFile(path, blob_id(blob), blob) for path, blob in ordered)))


def identified(policy_set: PolicySet, case: Case) -> list[Identified]:
    return [reference.identify(policy_set, case.host, endpoint) for endpoint in case.endpoints]


def judged(policy_set: PolicySet, case: Case) -> list[tuple[Answer, Verdict]]:
    """The oracle's answers to all openings of a case, modes aside and with them."""
    questions = [(policy_set, o.host, o.local, o.direction, o.remote, o.protocol, o.port, NOW) for o in case.openings]
    return [(reference.judge(*question), reference.verdict(*question)) for question in questions]


@settings(max_examples=settings().max_examples * 3 // 5)
@given(strategies.policy_texts())
def test_a_repository_means_the_same_as_text_and_as_values(drawn: tuple[Case, dict[str, str]]) -> None:
    case, files = drawn
    parsed = read_text(files)
    assert identified(parsed, case) == identified(case.policy_set, case)
    assert judged(parsed, case) == judged(case.policy_set, case)
    from_text, from_values = (compile_commit(one, case.host, NOW) for one in (parsed, case.policy_set))
    assert from_text.entries == from_values.entries
    assert (from_text.classes4, from_text.classes6) == (from_values.classes4, from_values.classes6)

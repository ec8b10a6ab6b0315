"""Since when a flow log is whole: through evictions, and through agents that end and begin."""

from __future__ import annotations

import json
import time

import pytest

from bulkhead.errors import UsageError
from bulkhead.observe.evidence import open_now, recorded
from bulkhead.observe.flows import FlowLog


def dumped(**changed: object) -> str:
    return json.dumps({**json.loads(FlowLog().dump()), **changed})


def test_a_log_is_whole_since_it_was_begun() -> None:
    before = time.time()
    log = FlowLog()
    assert before <= log.since <= time.time()
    assert log.absent_s == 0


def test_a_log_that_is_taken_up_again_says_how_long_nobody_kept_it() -> None:
    log = FlowLog()
    started = log.since
    log.load(dumped(since=started - 1000, until=started - 30, absent_s=5.0))
    assert log.since == started - 1000
    assert log.absent_s == pytest.approx(35)


def test_a_log_of_an_older_agent_does_not_say_since_when() -> None:
    log = FlowLog()
    started = log.since
    value = json.loads(dumped())
    del value["since"]
    log.load(json.dumps(value))
    assert log.since == started


@pytest.mark.parametrize("answer", [None, [], {}, {"log": {}}, {"log": {"at": "now", "host": "h"}}])
def test_what_is_no_flow_log_is_no_evidence(answer: object) -> None:
    with pytest.raises(UsageError, match="not a flow log"):
        recorded(answer, 60.0, "")


@pytest.mark.parametrize("row", [{}, {"source": {}, "destination": {}}, {"source": 1, "destination": 2}])
def test_what_is_no_conversation_is_no_evidence(row: object) -> None:
    with pytest.raises(UsageError, match="not a flow log"):
        open_now({"host": "h", "complete": True, "omitted": 0, "unattested": 0, "conversations": [row]})

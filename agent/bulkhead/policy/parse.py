"""Sources to a PolicySet: each file to its draft, all drafts linked, every finding gathered before any is raised."""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from bulkhead.errors import Diagnostic, Loc, PolicyError
from bulkhead.policy.codes import message
from bulkhead.policy.dialects.istio import istio_rule_count
from bulkhead.policy.dialects.rules import rule_count
from bulkhead.policy.draft import Draft
from bulkhead.policy.findings import FINDINGS_MAX
from bulkhead.policy.link import link
from bulkhead.policy.model import PolicySet
from bulkhead.policy.read import read_file
from bulkhead.policy.rego_modules import read_modules
from bulkhead.policy.source import REPOSITORY_FILE, SourceFile, Sources

RULES_MAX = 200_000


class ParseCache:
    """Drafts of files that were read before, by path and blob. The oldest go first when it is full.

    `bytes_max` bounds the sum of the files' sizes, not of the memory taken, which is some twenty times as much.
    """

    def __init__(self, bytes_max: int = 8 << 20) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._drafts: OrderedDict[tuple[str, str], tuple[Draft, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._drafts)

    def draft(self, file: SourceFile) -> Draft:
        """The draft of a file, read now unless it is known."""
        key = (file.path, file.blob_id)
        known = self._drafts.get(key)
        if known is not None:
            self._drafts.move_to_end(key)
            return known[0]
        draft = read_file(file.path, file.content)
        self._drafts[key] = (draft, len(file.content))
        self._bytes += len(file.content)
        while self._bytes > self._bytes_max and self._drafts:
            _, (_, size) = self._drafts.popitem(last=False)
            self._bytes -= size
        return draft


def parse(sources: Sources, cache: ParseCache | None = None) -> PolicySet:
    """The PolicySet that the files say. With a cache, only files that it does not know are read.

    Raises PolicyError with every finding, up to 20, in the order of files and lines.
    """
    with _collector_paused():
        return _parse(sources, ParseCache(bytes_max=0) if cache is None else cache)


def _parse(sources: Sources, cache: ParseCache) -> PolicySet:
    drafts = [cache.draft(file) for file in sources.files]
    _check_rule_count(drafts, sources)
    linked = link(sources, drafts)
    found = [_at_commit(each, sources.abbreviated) for draft in drafts for each in draft.diagnostics]
    found += linked.diagnostics
    modules, unreadable = read_modules(sources)
    found += unreadable
    if not any(draft.path == REPOSITORY_FILE and (draft.repository or draft.diagnostics) for draft in drafts):
        found.append(_repository_missing(sources))
    if found:
        raise PolicyError(_first(found, linked.dropped + sum(draft.dropped for draft in drafts)))
    return replace(linked.policy_set, modules=modules)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Hundreds of thousands of values that live on make the cyclic collector run often and find nothing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _check_rule_count(drafts: list[Draft], sources: Sources) -> None:
    count = 0
    for draft in drafts:
        count += sum(len(policy.rules) for policy in draft.policies)
        count += rule_count(draft.cluster_policies) + istio_rule_count(draft.istio)
        if count > RULES_MAX:
            text = message("BH0702", count=count, limit=RULES_MAX)
            raise PolicyError([Diagnostic("BH0702", text, Loc(draft.path, 1, commit=sources.abbreviated))])


def _repository_missing(sources: Sources) -> Diagnostic:
    hint = "it holds `apiVersion: bulkhead/v1alpha1`, `kind: Repository` and `trustDomain`"
    return Diagnostic("BH0201", message("BH0201"), Loc(REPOSITORY_FILE, 1, commit=sources.abbreviated), hint)


def _at_commit(diagnostic: Diagnostic, commit: str) -> Diagnostic:
    """A finding of a draft, which knows of no commit."""
    if not commit:
        return diagnostic
    related = tuple((replace(loc, commit=commit), label) for loc, label in diagnostic.related)
    return replace(diagnostic, loc=replace(diagnostic.loc, commit=commit), related=related)


def _first(found: list[Diagnostic], dropped: int) -> list[Diagnostic]:
    """As many findings as are shown, in order; the last says how many are not."""
    ordered = sorted(found, key=lambda diagnostic: (diagnostic.loc, diagnostic.code))
    if len(ordered) + dropped <= FINDINGS_MAX:
        return ordered
    shown = ordered[: FINDINGS_MAX - 1]
    rest = len(ordered) + dropped - len(shown)
    return [*shown, Diagnostic("BH0100", message("BH0100", count=rest), ordered[len(shown)].loc)]

"""The canonical form: what `bulkhead fmt` makes of a text."""

from __future__ import annotations

from pathlib import Path

import pytest

from bulkhead.errors import BulkheadError, PolicyError
from bulkhead.policy import format as formatting
from bulkhead.policy.format import format_file
from bulkhead.policy.layout import WIDTH

EXAMPLE = Path(__file__).parents[3] / "policies"
HEAD = "apiVersion: bulkhead/v1alpha1\nkind: Policy\nmetadata: {name: shop}\n"
LONG = [f"workload-{number:02}" for number in range(8)]


def formatted(text: str) -> str:
    return format_file("shop.yaml", text.encode()).decode()


FORMS = {
    "keys stand in the order of the schema": (
        "allow: [{ports: [443], to: b, from: a, name: x}]\nworkloads: {b: {mode: enforce, match: {all: true}}}\n",
        "workloads:\n  b: {match: {all: true}, mode: enforce}\nallow:\n  - {name: x, from: a, to: b, ports: [443]}\n",
    ),
    "unknown keys come last": (
        "workloads:\n  b: {colour: red, match: {all: true}}\n",
        "workloads:\n  b: {match: {all: true}, colour: red}\n",
    ),
    "names, labels and lists stay in order": (
        "workloads:\n  b: {match: {unit: [z, a]}, labels: {z: b, a: b}}\n  a: {match: {all: true}}\n",
        "workloads:\n  b: {match: {unit: [z, a]}, labels: {z: b, a: b}}\n  a: {match: {all: true}}\n",
    ),
    "what was spread out and fits is joined": (
        "allow:\n- name: x\n  from:\n      - a\n      - b\n  to: c\n  ports:\n  - 443\n",
        "allow:\n  - {name: x, from: [a, b], to: c, ports: [443]}\n",
    ),
    "what does not fit is spread out": (
        f"allow:\n- {{name: x, from: [{', '.join(LONG)}], to: c, ports: [443]}} # why\n",
        f"allow:\n  # why\n  - name: x\n    from: [{', '.join(LONG)}]\n    to: c\n    ports: [443]\n",
    ),
    "quotes go where they say nothing": (
        "allow:\n- {name: 'x', from: \"web-*\", to: '*', ports: [\"443\", 'any', \"53/udp\", 'host:22', \"off\"]}\n",
        'allow:\n  - {name: x, from: web-*, to: "*", ports: ["443", any, 53/udp, "host:22", "off"]}\n',
    ),
    "quotes come where brackets ask for them": (
        "allow:\n- name: x\n  why: read, not written\n  from:\n  - ::/0\n",
        'allow:\n  - {name: x, from: ["::/0"], why: "read, not written"}\n',
    ),
    "a comment behind a value stays behind it": (
        "allow:\n- {name: x, # why x\n   from: a}   # why a\n- name: y # why y\n  from: b\n",
        "allow:\n  - name: x  # why x\n    from: a\n    # why a\n  - name: y  # why y\n    from: b\n",
    ),
    "a comment above moves with what it stands above": (
        "allow:\n- from: a\n  # the name\n  name: x\n# the next\n- {name: y}\n# the end\n",
        "allow:\n  # the name\n  - {name: x, from: a}\n  # the next\n  - {name: y}\n# the end\n",
    ),
    "a comment inside spreads what it stands in": (
        "allow:\n- {name: x, from: a,\n   # where\n   to: b}\n",
        "allow:\n  - name: x\n    from: a\n    # where\n    to: b\n",
    ),
    "a comment behind a key stays there": (
        "workloads: # who\n  a: {match: {all: true}}\n  b: # it\n    match: {all: true}\n",
        "workloads:  # who\n  a: {match: {all: true}}\n  b: {match: {all: true}}  # it\n",
    ),
    "at most one blank line is kept": (
        "workloads:\n\n\n  a: {match: {all: true}}\n\n\n  b: {match: {all: true}}\n\n\n\nallow: []\n\n\n",
        "workloads:\n  a: {match: {all: true}}\n\n  b: {match: {all: true}}\n\nallow: []\n",
    ),
    "blank lines around a comment between key and value are one": (
        "allow: []\n\ntests:\n\n\n# why\n  []\n",
        "allow: []\n\n# why\ntests: []\n",
    ),
    "a text block of no text is text in quotes": (
        "allow:\n- name: x\n  why: |  # why\n  from: a\n",
        'allow:\n  - name: x\n    from: a\n    why: ""  # why\n',
    ),
    "a text block keeps its lines": (
        "allow:\n- name: x\n  why: >- # because\n        of\n\n          this\n\n",
        "allow:\n  - name: x\n    why: >-  # because\n      of\n\n        this\n",
    ),
    "a text block at the end of a file without a line end": (
        "allow:\n- name: x\n  why: |\n   this",
        "allow:\n  - name: x\n    why: |-\n      this\n",
    ),
    "a text block that begins indented": (
        "allow:\n- name: x\n  why: |1\n     this\n   that\n",
        "allow:\n  - name: x\n    why: |2\n        this\n      that\n",
    ),
}


@pytest.mark.parametrize(("written", "wanted"), FORMS.values(), ids=FORMS)
def test_the_form(written: str, wanted: str) -> None:
    assert formatted(HEAD + written) == HEAD + wanted
    assert formatted(HEAD + wanted) == HEAD + wanted


def test_a_line_may_be_as_wide_as_the_limit_and_no_wider() -> None:
    widest = "  - {name: " + "x" * (WIDTH - len("  - {name: }")) + "}"
    assert len(widest) == WIDTH
    assert formatted(f"{HEAD}allow:\n{widest}\n") == f"{HEAD}allow:\n{widest}\n"
    wider = widest.replace("{name: ", "{name: x")
    assert formatted(f"{HEAD}allow:\n{wider}\n") == f"{HEAD}allow:\n  - {wider[5:-1]}\n"


def test_comments_at_the_top_stay_there_whichever_key_was_first() -> None:
    written = (
        "# yaml-language-server: $schema=v1alpha1.json\n\n# What it is.\nkind: Policy\napiVersion: bulkhead/v1alpha1\n"
    )
    found = formatted(written)
    assert found.splitlines()[:3] == written.splitlines()[:3]
    assert found.splitlines()[3:] == ["apiVersion: bulkhead/v1alpha1", "kind: Policy"]


def test_documents_stay_apart_with_the_comments_between_them() -> None:
    written = f"# first\n---  # begins\n{HEAD}# end of first\n---\n# second\n{HEAD}...\n# last\n"
    assert formatted(written) == f"# first\n# begins\n{HEAD}# end of first\n---\n# second\n{HEAD}# last\n"


def test_documents_of_others_stay_as_they_are() -> None:
    other = "apiVersion:   networking.k8s.io/v1 # theirs\nkind:  NetworkPolicy\nspec: {  }\n"
    assert formatted(other) == other
    assert (
        formatted(f"{other}---\nmetadata: {{name: shop}}\n{HEAD[:-23]}---\n{other}")
        == f"{other}---\n{HEAD}---\n{other}"
    )


def test_files_that_do_not_name_the_language_are_not_even_read() -> None:
    text = "a: &anchor [1\n"
    assert formatted(text) == text


def test_line_ends_and_marks_of_other_systems_go() -> None:
    assert format_file("shop.yaml", b"\xef\xbb\xbf" + HEAD.replace("\n", "\r\n").encode()).decode() == HEAD


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("workloads: {a: &a {match: {all: true}}}\n", "BH0104"),
        ("workloads: !!map {}\n", "BH0105"),
        ("workloads: {\n", "BH0101"),
        ("kind: Policy\n", "BH0107"),
    ],
)
def test_what_is_no_sound_yaml_is_refused(body: str, code: str) -> None:
    with pytest.raises(PolicyError) as error:
        formatted(HEAD + body)
    assert [one.code for one in error.value.diagnostics] == [code]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda lines: [line.replace("shop", "shed") for line in lines], "would change what it says"),
        (lambda lines: [line.replace("443", '"443"') for line in lines], "would change what it says"),
        (lambda lines: [line.partition("  #")[0] for line in lines], "would lose a comment"),
    ],
)
def test_a_fault_of_the_formatter_is_told_as_one(monkeypatch: pytest.MonkeyPatch, fault, said: str) -> None:
    sound = formatting.lay_out
    monkeypatch.setattr(formatting, "lay_out", lambda *given: fault(sound(*given)))
    with pytest.raises(BulkheadError, match=said):
        formatted(f"{HEAD}allow: [{{ports: [443]}}]  # a comment\n")


@pytest.mark.parametrize("path", sorted(EXAMPLE.rglob("*.yaml")), ids=lambda path: path.name)
def test_the_example_repository_is_in_form(path: Path) -> None:
    assert format_file(path.name, path.read_bytes()) == path.read_bytes()

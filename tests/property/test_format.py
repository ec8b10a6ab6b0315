"""`bulkhead fmt` on files written in every legal manner, with comments wherever they can stand."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from random import Random
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bulkhead.policy.format import format_file

Value = Any
HEAD = {"apiVersion": "bulkhead/v1alpha1", "kind": "Policy"}
TEXTS = (
    *("web", "api", "web-*", "*.example.org", "::/0", "10.0.0.0/8", "host:22", "/usr/bin/x", "card data: none", "a#b"),
    *(
        "a #b",
        "it's",
        'say "no"',
        "back\\slash",
        " padded ",
        "ünï",
        "two\nlines",
        "tab\there",
        "8000-8100",
        "- x",
        "?",
        "",
    ),
    *("on", "443", "22:22", "2027-01-31", "~", "=", "[x]", "{x}", "a, b", "%x", "@x", "`x`", "!x", "&x", "long " * 30),
)
PLAIN = ("443", "off", "2027-01-31T18:00:00Z", "1.5", "true", "web", "nginx.service", "a b", "x-y", "53/udp", "::/0")
"""What is also written without quotes, whatever it then means."""
KEYS = ("name", "from", "to", "ports", "match", "mode", "labels", "zebra", "on", "a b", "k:k", "lifeline")


@dataclass(frozen=True)
class Plain:
    """Text to be written without quotes."""

    text: str


@dataclass
class Line:
    text: str
    closed: bool = False
    """Nothing may be added behind it: it is inside a scalar."""
    column_max: int = 12
    """How far in a comment above it may stand, -1 where none may."""


def scalars(random: Random) -> str | Plain:
    return Plain(random.choice(PLAIN)) if random.random() < 0.5 else random.choice(TEXTS)


def values(random: Random, depth: int) -> Value:
    kind = random.random()
    if depth == 0 or kind < 0.4:
        return scalars(random)
    if kind < 0.7:
        return [values(random, depth - 1) for _ in range(random.randrange(4))]
    return {key: values(random, depth - 1) for key in random.sample(KEYS, random.randrange(4))}


def rules(random: Random) -> list[Value]:
    keys = ("name", "from", "to", "ports", "why")
    return [{key: scalars(random) for key in random.sample(keys, random.randrange(1, 6))} for _ in range(2)]


def policies(random: Random) -> dict[str, Value]:
    sections = [
        ("metadata", {"name": "shop", "owner": scalars(random)}),
        ("workloads", {name: values(random, 3) for name in ("web", "api")}),
        ("allow", [values(random, 3), *rules(random)]),
        ("tests", values(random, 4)),
    ]
    whole = {**HEAD, **dict(sections[: random.randrange(5)])}
    keys = random.sample(sorted(whole), len(whole))
    return {key: whole[key] for key in keys}


@dataclass
class Writer:
    """Writes a value in one of its many spellings."""

    random: Random
    comments: float = 0.0
    blocks: bool = False
    blanks: bool = False
    written: list[str] = field(default_factory=list)

    def document(self, value: dict[str, Value]) -> str:
        lines = self.mapping(value, 0) if self.random.random() < 0.9 else self.flow_lines(value, "", 0)
        text = "".join(f"{line}\n" for line in self.commented(lines))
        return text if self.random.random() < 0.9 else text.replace("\n", "\r\n")

    def commented(self, lines: list[Line]) -> list[str]:
        out: list[str] = []
        lines = [*lines, Line("", closed=True)]
        for before, line in zip([Line(""), *lines], lines, strict=False):
            # Deeper, it would be part of the text block above.
            line.column_max = min(line.column_max, 0) if before.closed else line.column_max
            while line.column_max >= 0 and self.random.random() < self.comments / 2:
                if self.blanks and self.random.random() < 0.3:
                    out += [""] * self.random.randrange(4)
                out.append(" " * self.random.randrange(line.column_max + 1) + self.comment())
            if line.column_max >= 0 and self.blanks and self.random.random() < 0.1:
                out.append("")
            behind = "" if line.closed or self.random.random() >= self.comments else f"  {self.comment()}"
            out.append(line.text + behind)
        return out

    def comment(self) -> str:
        self.written.append(f"# <{len(self.written)}>" + self.random.choice(("", " - {x: 1}", ' # " [', ": é")))
        return self.written[-1]

    def mapping(self, value: dict[str, Value], column: int) -> list[Line]:
        lines: list[Line] = []
        for key, one in value.items():
            lead = " " * column + self.scalar(Plain(key) if key in ("name", "from", "to") else key)
            lines += self.entry(f"{lead}:", one, column, sequences_in=self.random.choice((0, 2)))
        return lines

    def sequence(self, value: list[Value], column: int) -> list[Line]:
        lines: list[Line] = []
        for one in value:
            compact = self.random.random() < 0.6
            if isinstance(one, dict) and one and compact and self.random.random() < 0.8:
                first, *rest = self.mapping(one, column + 2)
                first.text = " " * column + "- " + first.text.lstrip(" ")
                lines += [first, *rest]
            else:
                lines += self.entry(" " * column + "-", one, column, sequences_in=2)
        return lines

    def entry(self, lead: str, one: Value, column: int, *, sequences_in: int) -> list[Line]:
        inner = column + self.random.choice((1, 2, 4))
        if isinstance(one, dict) and one and self.random.random() < 0.5:
            return [Line(lead), *self.mapping(one, inner)]
        if isinstance(one, list) and one and self.random.random() < 0.5:
            return [Line(lead), *self.sequence(one, column + sequences_in if sequences_in == 0 else inner)]
        if self.blocks and isinstance(one, str) and one and one == one.strip() and self.random.random() < 0.5:
            return self.text_block(lead, one, inner)
        if self.random.random() < 0.1:
            return [Line(lead), *self.flow_lines(one, " " * inner, column)]
        return self.flow_lines(one, f"{lead} ", column)

    def text_block(self, lead: str, one: str, column: int) -> list[Line]:
        style = self.random.choice(("|-", ">-")) if "\n" not in one else "|-"
        inside = [Line(" " * column + line, closed=True, column_max=-1) for line in one.split("\n")]
        return [Line(f"{lead} {style}"), *inside]

    def flow_lines(self, one: Value, lead: str, column: int) -> list[Line]:
        """In brackets, with line breaks at some of the places where they may be."""
        tokens = self.tokens(one)
        lines = [Line(lead)]
        for number, token in enumerate(tokens):
            if number and token[:1] != ":" and tokens[number - 1] in "{[,]}" and self.random.random() < 0.2:
                lines.append(Line(" " * (column + 1)))
            lines[-1].text += token + " " * self.random.choice((0, 1)) if token in "{[]}" and token else token
            lines[-1].text += " " if token in (",", ":") else ""
        return lines

    def tokens(self, one: Value) -> list[str]:
        if isinstance(one, dict):
            parts = [[self.scalar(key), ":", *self.tokens(item)] for key, item in one.items()]
            return ["{", *self.joined(parts), "}"]
        if isinstance(one, list):
            return ["[", *self.joined([self.tokens(item) for item in one]), "]"]
        return [self.scalar(one)]

    def joined(self, parts: list[list[str]]) -> list[str]:
        closing = [","] if parts and self.random.random() < 0.2 else []
        tokens = [token for part in parts for token in (*part, ",")]
        return tokens[:-1] + closing

    def scalar(self, one: str | Plain) -> str:
        if isinstance(one, Plain):
            return one.text if one.text != "::/0" else '"::/0"'
        if self.random.random() < 0.5 and one.isprintable():
            return "'" + one.replace("'", "''") + "'"
        text = one.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
        return f'"{text}"'


def formatted(text: str) -> str:
    return format_file("shop.yaml", text.encode()).decode()


def texts(value: Value) -> Value:
    """The value as a reader sees it that takes every scalar for text."""
    if isinstance(value, dict):
        return {key: texts(one) for key, one in value.items()}
    if isinstance(value, list):
        return [texts(one) for one in value]
    return value.text if isinstance(value, Plain) else value


def order_of(comments: list[str], text: str) -> list[str]:
    return sorted(comments, key=text.index)


RANDOMS = st.integers(0, 2**64).map(Random)
"""A text is thousands of choices: more than hypothesis draws one by one, and none that would shrink."""
TRIED = settings(max_examples=settings().max_examples * 2 // 5)


@TRIED
@given(RANDOMS)
def test_values_and_comments_survive_and_a_second_run_changes_nothing(random: Random) -> None:
    value = policies(random)
    writer = Writer(random, comments=random.choice((0.05, 0.2, 0.5)), blocks=True, blanks=True)
    source = writer.document(value)
    found = formatted(source)
    assert yaml.load(found, yaml.BaseLoader) == texts(value)
    assert yaml.safe_load(found) == yaml.safe_load(source)
    assert [found.count(comment.split(">")[0] + ">") for comment in writer.written] == [1] * len(writer.written)
    assert all(comment in found for comment in writer.written)
    assert formatted(found) == found
    assert not re.search(r"[ \t]$", found, re.MULTILINE)


@TRIED
@given(RANDOMS)
def test_comments_keep_their_order_where_keys_keep_theirs(random: Random) -> None:
    keys = ("name", "from", "to", "ports", "why")
    allow = [{key: values(random, 1) for key in keys} for _ in range(4)]
    value = {**HEAD, "metadata": {"name": "shop", "owner": scalars(random)}, "allow": allow, "zebra": scalars(random)}
    writer = Writer(random, comments=0.4, blocks=True)
    found = formatted(writer.document(value))
    assert order_of(writer.written, found) == writer.written


@TRIED
@given(RANDOMS)
def test_one_value_has_one_form(random: Random) -> None:
    value = policies(random)
    assert formatted(Writer(random).document(value)) == formatted(Writer(random).document(value))

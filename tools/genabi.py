"""Writes agent/bulkhead/abi.py from bpf/abi.h.

    python tools/genabi.py            write the file
    python tools/genabi.py --check    exit 1 when the committed file is stale

The grammar is that of bpf/abi.h and no more: an include guard, comments, enums whose every value is written out,
structs of fixed-width scalars and one-dimensional arrays of them. Anything else is an error that names its line,
implicit padding included: what the compiler would insert silently must have a name.

Comments become documentation: the one before a type is its docstring, the one on a member's line is that member's.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
HEADER = ROOT / "bpf" / "abi.h"
MODULE = ROOT / "agent" / "bulkhead" / "abi.py"
LINE_LENGTH = 120

SCALARS = {
    "__u8": (1, "c_uint8"),
    "__u16": (2, "c_uint16"),
    "__u32": (4, "c_uint32"),
    "__u64": (8, "c_uint64"),
    "__be16": (2, "c_uint16.__ctype_be__"),
    "__be32": (4, "c_uint32.__ctype_be__"),
    "char": (1, "c_char"),
}
"""C type to (width in bytes, ctypes expression)."""

TOKEN = re.compile(
    r"(?P<comment>/\*.*?\*/)|(?P<guard>#(?:ifndef|define)[ \t]+\w+[ \t]*(?=\n)|#endif)|(?P<word>\w+)"
    r"|(?P<punctuation>[{}\[\]=,;])|(?P<space>\s+)|(?P<other>.)",
    re.DOTALL,
)


class GrammarError(Exception):
    """bpf/abi.h says something that the generator does not accept; the header must change."""


class Token(NamedTuple):
    """A piece of the header. `line` counts from 1 and is where the token starts."""

    kind: str
    text: str
    line: int


@dataclass(frozen=True, slots=True)
class Constant:
    """A member of an enum, its C prefix dropped."""

    name: str
    value: int
    doc: str


@dataclass(frozen=True, slots=True)
class Enumeration:
    """An enum; `tag` is its C name."""

    tag: str
    constants: tuple[Constant, ...]
    doc: str

    @property
    def is_flag_set(self) -> bool:
        """The members are bits 1, 2, 4 and so on without a gap, at least three: values are ORed together."""
        return len(self.constants) >= 3 and all(c.value == 1 << bit for bit, c in enumerate(self.constants))


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a struct. `count` is 0 for a scalar, else the length of the array."""

    name: str
    c_type: str
    count: int
    doc: str

    @property
    def size(self) -> int:
        return SCALARS[self.c_type][0] * max(1, self.count)

    @property
    def ctypes_expression(self) -> str:
        base = SCALARS[self.c_type][1]
        return f"{base} * {self.count}" if self.count else base

    @property
    def annotation(self) -> str:
        """What reading the field gives."""
        if not self.count:
            return "int"
        return "bytes" if self.c_type == "char" else f"Array[{SCALARS[self.c_type][1].partition('.')[0]}]"

    @property
    def parameter(self) -> str:
        """What the constructor takes."""
        if not self.count:
            return f"{self.name}: int = 0"
        if self.c_type == "char":
            return f'{self.name}: bytes = b""'
        return f"{self.name}: tuple[int, ...] | {self.annotation} = ()"


@dataclass(frozen=True, slots=True)
class Struct:
    """A struct; `tag` is its C name."""

    tag: str
    fields: tuple[Field, ...]
    doc: str


Definition = Enumeration | Struct


def tokens(text: str) -> Iterator[Token]:
    """The header's tokens without white space. Raises GrammarError on anything unknown."""
    line = 1
    for match in TOKEN.finditer(text):
        kind = match.lastgroup or "other"
        if kind == "other":
            raise GrammarError(f"line {line}: `{match.group()}` is outside the grammar")
        if kind != "space":
            yield Token(kind, match.group(), line)
        line += match.group().count("\n")


def comment_text(raw: str) -> str:
    """What a C comment says, without its stars; paragraphs are a blank line apart."""
    lines = (re.sub(r"^\s*\*? ?", "", line).rstrip() for line in raw[2:-2].splitlines())
    return "\n".join(lines).strip()


class Parser:
    """Recursive descent over the tokens; one pass, no backtracking."""

    def __init__(self, text: str) -> None:
        self._tokens = list(tokens(text))
        self._position = 0

    def definitions(self) -> tuple[Definition, ...]:
        """Every enum and struct in the order of the header."""
        found: list[Definition] = []
        doc = self._comments()
        while self._position < len(self._tokens):
            found.append(self._definition(doc))
            doc = self._comments()
        _refuse_duplicates(found)
        return tuple(found)

    def _definition(self, doc: str) -> Definition:
        keyword = self._take("word")
        if keyword.text not in ("enum", "struct"):
            raise GrammarError(f"line {keyword.line}: expected `enum` or `struct`, found `{keyword.text}`")
        tag = self._take("word")
        self._punctuation("{")
        if keyword.text == "enum":
            return Enumeration(tag.text, tuple(self._constants(tag)), doc)
        fields = tuple(self._fields(tag))
        refuse_padding(tag, fields)
        return Struct(tag.text, fields, doc)

    def _constants(self, tag: Token) -> Iterator[Constant]:
        prefix = tag.text.upper() + "_"
        doc = self._comments()
        while not self._at("}"):
            name = self._take("word")
            if not name.text.startswith(prefix) or not name.text[len(prefix) :].isidentifier():
                raise GrammarError(f"line {name.line}: `{name.text}` does not start with `{prefix}`")
            self._punctuation("=")
            value = self._number()
            if not self._at("}"):
                self._punctuation(",")
            doc = self._trailing_comment() or doc
            yield Constant(name.text[len(prefix) :], value, doc)
            doc = self._comments()
        self._end_of_body()

    def _fields(self, tag: Token) -> Iterator[Field]:
        doc = self._comments()
        while not self._at("}"):
            c_type = self._take("word")
            if c_type.text not in SCALARS:
                raise GrammarError(f"line {c_type.line}: `{c_type.text}` is no fixed-width scalar, in `{tag.text}`")
            name = self._take("word")
            count = self._array_length() if self._at("[") else 0
            if c_type.text == "char" and not count:
                raise GrammarError(f"line {c_type.line}: `char {name.text}`: char comes in arrays only")
            self._punctuation(";")
            doc = self._trailing_comment() or doc
            yield Field(name.text, c_type.text, count, doc)
            doc = self._comments()
        self._end_of_body()

    def _array_length(self) -> int:
        self._punctuation("[")
        length = self._number()
        if length == 0:
            raise GrammarError(f"line {self._tokens[self._position].line}: an array of length 0")
        self._punctuation("]")
        return length

    def _end_of_body(self) -> None:
        self._punctuation("}")
        self._punctuation(";")

    def _number(self) -> int:
        token = self._take("word")
        if not re.fullmatch(r"0|[1-9][0-9]*|0x[0-9a-fA-F]+", token.text):
            raise GrammarError(f"line {token.line}: `{token.text}` is no unsigned number")
        return int(token.text, 0)

    def _comments(self) -> str:
        """The comment right before the next definition or member; earlier ones, and the guard's, stand alone."""
        text = ""
        while self._position < len(self._tokens) and self._tokens[self._position].kind in ("comment", "guard"):
            token = self._tokens[self._position]
            text = comment_text(token.text) if token.kind == "comment" else ""
            self._position += 1
        return text

    def _trailing_comment(self) -> str:
        previous = self._tokens[self._position - 1]
        token = self._tokens[self._position] if self._position < len(self._tokens) else previous
        if token.kind != "comment" or token.line != previous.line:
            return ""
        self._position += 1
        return comment_text(token.text)

    def _at(self, text: str) -> bool:
        return self._position < len(self._tokens) and self._tokens[self._position].text == text

    def _punctuation(self, text: str) -> None:
        token = self._take("punctuation")
        if token.text != text:
            raise GrammarError(f"line {token.line}: expected `{text}`, found `{token.text}`")

    def _take(self, kind: str) -> Token:
        if self._position >= len(self._tokens):
            raise GrammarError("the header ends in the middle of a definition")
        token = self._tokens[self._position]
        if token.kind != kind:
            raise GrammarError(f"line {token.line}: expected a {kind}, found `{token.text}`")
        self._position += 1
        return token


def refuse_padding(tag: Token, fields: tuple[Field, ...]) -> None:
    """Raise GrammarError where a C compiler would insert bytes that have no name."""
    if not fields:
        raise GrammarError(f"line {tag.line}: `struct {tag.text}` is empty")
    offset, alignment = 0, 1
    for field in fields:
        width = SCALARS[field.c_type][0]
        if offset % width:
            raise GrammarError(f"line {tag.line}: implicit padding before `{tag.text}.{field.name}` at byte {offset}")
        alignment = max(alignment, width)
        offset += field.size
    if offset % alignment:
        raise GrammarError(f"line {tag.line}: implicit padding at the end of `struct {tag.text}`, after byte {offset}")


def _refuse_duplicates(definitions: list[Definition]) -> None:
    names = [class_name(d.tag) for d in definitions]
    for definition in definitions:
        members = definition.constants if isinstance(definition, Enumeration) else definition.fields
        names.extend(f"{definition.tag}.{member.name}" for member in members)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise GrammarError(f"defined twice: `{'`, `'.join(twice)}`")


def parse(text: str) -> tuple[Definition, ...]:
    """Every definition of a header. Raises GrammarError."""
    return Parser(text).definitions()


def class_name(tag: str) -> str:
    """`policy_key` -> `PolicyKey`."""
    return "".join(part.capitalize() for part in tag.split("_"))


def normalised(definition: Definition) -> str:
    """The definition without comments and white space: equal text, equal meaning."""
    if isinstance(definition, Enumeration):
        body = ",".join(f"{c.name}={c.value}" for c in definition.constants)
        return f"enum {definition.tag}{{{body}}}"
    body = "".join(f"{f.c_type} {f.name}[{f.count}];" for f in definition.fields)
    return f"struct {definition.tag}{{{body}}}"


def digest(definitions: tuple[Definition, ...]) -> str:
    """SHA-256, in hex, of what the header means."""
    return hashlib.sha256("\n".join(map(normalised, definitions)).encode()).hexdigest()


def _docstring(text: str, indent: str, fallback: str = "") -> list[str]:
    text = text or fallback
    if not text:
        return []
    text = text.replace("\\", "\\\\").replace('"""', "'''")
    text = text[:-1] + '\\"' if text.endswith('"') else text
    width = LINE_LENGTH - len(indent)
    paragraphs = [textwrap.wrap(paragraph, width - 3) for paragraph in text.split("\n\n")]
    lines = [line for paragraph in paragraphs for line in (*paragraph, "")][:-1]
    if len(lines) == 1 and len(lines[0]) <= width - 6:
        return [f'{indent}"""{lines[0]}"""']
    body = [f"{indent}{line}".rstrip() for line in lines[1:]]
    return [f'{indent}"""{lines[0]}', *body, f'{indent}"""']


def render_enumeration(enumeration: Enumeration) -> list[str]:
    """The Python class of an enum, as lines."""
    base = "IntFlag" if enumeration.is_flag_set else "IntEnum"
    lines = [f"class {class_name(enumeration.tag)}({base}):"]
    lines += [*_docstring(enumeration.doc, "    ", f"`enum {enumeration.tag}`."), ""]
    for constant in enumeration.constants:
        lines.append(f"    {constant.name} = {constant.value}")
        lines += _docstring(constant.doc, "    ")
    return lines


def render_struct(struct: Struct) -> list[str]:
    """The ctypes class of a struct, as lines."""
    lines = [f"class {class_name(struct.tag)}(Structure):"]
    lines += [*_docstring(struct.doc, "    ", f"`struct {struct.tag}`."), ""]
    for field in struct.fields:
        lines.append(f"    {field.name}: {field.annotation}")
        lines += _docstring(field.doc, "    ")
    lines += ["", "    if TYPE_CHECKING:", "", "        def __init__(", "            self,", "            *,"]
    lines += [f"            {field.parameter}," for field in struct.fields]
    lines += ["        ) -> None: ...", "    else:", "        __slots__ = ()", ""]
    pairs = [f'("{field.name}", {field.ctypes_expression}),' for field in struct.fields]
    if len(pairs) == 1:
        return [*lines, f"    _fields_ = ({pairs[0]})"]
    return [*lines, "    _fields_ = (", *(f"        {pair}" for pair in pairs), "    )"]


PROLOGUE = '''"""Types shared with the kernel programs. GENERATED from bpf/abi.h by tools/genabi.py: DO NOT EDIT.

Byte order is in the type: `PolicyKey(port=443)` stores 01 bb, and reading `port` gives 443 back.
A misspelt field is an error, for the type checker and at run time.
"""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import {ctypes_names}
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING, Final

LAYOUT: Final = "{digest}"
"""SHA-256 of every definition, without comments: equal exactly when both sides mean the same bytes."""
'''

EPILOGUE = '''

def name_of(enum_cls: type[IntEnum | IntFlag], value: int) -> str:
    """`DropReason, 5` -> `no-policy`. Flags join by commas, no flag is `none`. Unknown values print as numbers."""
    if issubclass(enum_cls, IntFlag):
        return _names_of_flags(enum_cls, value)
    for member in enum_cls:
        if member.value == value:
            return _spoken(member.name)
    return str(value)


def _names_of_flags(enum_cls: type[IntFlag], value: int) -> str:
    names = []
    for member in enum_cls:
        if value & member.value:
            names.append(_spoken(member.name or ""))
            value &= ~member.value
    if value:
        names.append(str(value))
    return ",".join(names) or "none"


def _spoken(name: str) -> str:
    return name.lower().replace("_", "-")


def static_assertions() -> str:
    """C text that fails to compile unless the compiler lays every type out as these classes do.

    Names the size of every struct, offset and width of every field, and the value of every enum member.
    """
    return "".join(f"{line}\\n" for line in _assertions())


def _assertions() -> Iterator[str]:
    for tag, struct in STRUCTS.items():
        yield _assertion(f"sizeof(struct {tag}) == {sizeof(struct)}", f"size of {tag}")
        for field in struct._fields_:
            descriptor = getattr(struct, field[0])
            place = f"{tag}.{field[0]}"
            yield _assertion(
                f"__builtin_offsetof(struct {tag}, {field[0]}) == {descriptor.offset}", f"offset of {place}"
            )
            yield _assertion(f"sizeof(((struct {tag} *)0)->{field[0]}) == {descriptor.size}", f"width of {place}")
    for tag, enum_cls in ENUMS.items():
        for name, member in enum_cls.__members__.items():
            constant = f"{tag.upper()}_{name}"
            yield _assertion(f"(long long){constant} == {member.value}LL", f"value of {constant}")


def _assertion(condition: str, what: str) -> str:
    return f'_Static_assert({condition}, "{what} differs between bpf/abi.h and bulkhead.abi");'
'''


def _index(name: str, value_type: str, doc: str, definitions: list[Definition]) -> list[str]:
    lines = ["", "", f"{name}: Final[dict[str, {value_type}]] = {{"]
    lines += [f'    "{d.tag}": {class_name(d.tag)},' for d in definitions]
    return [*lines, "}", f'"""{doc}"""']


def render(text: str) -> str:
    """The Python module for a header's text. Raises GrammarError."""
    definitions = parse(text)
    structs = [d for d in definitions if isinstance(d, Struct)]
    used = {SCALARS[f.c_type][1].partition(".")[0] for s in structs for f in s.fields}
    ctypes_names = ", ".join(["Array", "Structure", *sorted(used, key=lambda name: (len(name), name)), "sizeof"])
    lines = PROLOGUE.replace("{ctypes_names}", ctypes_names).replace("{digest}", digest(definitions)).splitlines()
    for definition in definitions:
        body = render_struct(definition) if isinstance(definition, Struct) else render_enumeration(definition)
        lines += ["", "", *body]
    enums: list[Definition] = [d for d in definitions if isinstance(d, Enumeration)]
    lines += _index("STRUCTS", "type[Structure]", "Every struct, by its C name.", list(structs))
    lines += _index("ENUMS", "type[IntEnum | IntFlag]", "Every enum, by its C name.", enums)
    return "\n".join(lines) + "\n" + EPILOGUE


def main(arguments: list[str] | None = None) -> int:
    """Write or check the module; returns the exit status."""
    parser = argparse.ArgumentParser(description="generate agent/bulkhead/abi.py from bpf/abi.h")
    parser.add_argument("--check", action="store_true", help="exit 1 when the committed file is stale; write nothing")
    options = parser.parse_args(arguments)
    try:
        wanted = render(HEADER.read_text(encoding="utf-8"))
    except GrammarError as error:
        print(f"bpf/abi.h: {error}", file=sys.stderr)
        return 2
    present = MODULE.read_text(encoding="utf-8") if MODULE.exists() else ""
    if present == wanted:
        return 0
    if options.check:
        print("agent/bulkhead/abi.py is stale: run `python tools/genabi.py`", file=sys.stderr)
        return 1
    MODULE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

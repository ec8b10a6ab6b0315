"""Calls of functions that do not exist. The engine finds them when it comes to them; a commit is refused before."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

Tree: TypeAlias = Mapping[str, Any]
"""The syntax tree of a module, as the engine gives it."""


class Call(NamedTuple):
    """A call at a place of a module."""

    path: str
    line: int
    column: int
    name: str


@dataclass(frozen=True, slots=True)
class Outline:
    """What one module defines and calls."""

    package: str
    imports: Mapping[str, str]
    """What names at the beginning of another stand for."""
    rules: frozenset[str]
    """Full names, without `data.`, functions included."""
    functions: frozenset[str]
    """Full names, with it."""
    calls: tuple[Call, ...]


def outline(path: str, text: str, tree: Tree) -> Outline:
    """What a module of that text defines and calls."""
    package = _name(tree["package"]["refr"])
    return Outline(
        package,
        dict(_import(one, text) for one in tree["imports"]),
        frozenset(f"{package}.{_name(head['refr'])}" for head in _heads(tree)),
        frozenset(f"data.{package}.{_name(head['refr'])}" for head in _heads(tree) if head.get("args")),
        tuple(_calls(path, tree["rules"])),
    )


def unknown_calls(outlines: Sequence[Outline], functions: Collection[str]) -> list[Call]:
    """Calls of what is neither one of `functions` nor defined by a module, in the order of modules and lines."""
    defined = frozenset[str]().union(*(one.functions for one in outlines))
    return [
        call
        for one in outlines
        for call in one.calls
        if call.name not in functions and not defined.intersection(_meanings(call.name, one))
    ]


def _heads(tree: Tree) -> Iterator[Tree]:
    for rule in tree["rules"]:
        yield next(iter(rule["Spec"]["head"].values())) if "Spec" in rule else rule["Default"]


def _import(one: Tree, text: str) -> tuple[str, str]:
    """The name that an import makes, and what it stands for. The engine gives the place of a name in bytes."""
    imported, place = _name(one["refr"]), one.get("as")
    alias = text.encode()[place["start"] : place["end"]].decode() if place else imported.rpartition(".")[2]
    return alias, imported


def _meanings(name: str, where: Outline) -> tuple[str, ...]:
    """What a name may stand for in a module: itself, of its package, or of what it imports."""
    first, dot, rest = name.partition(".")
    imported = where.imports.get(first)
    found = (name, f"data.{where.package}.{name}")
    return (*found, f"{imported}{dot}{rest}") if imported else found


def _calls(path: str, node: Any) -> list[Call]:
    found: list[Call] = []
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            call = one.get("Call")
            if isinstance(call, dict):
                place = _leftmost(call["fcn"])
                found.append(Call(path, place["line"], place["col"], _name(call["fcn"])))
            waiting += [value for key, value in one.items() if key != "span"]
        elif isinstance(one, list):
            waiting += one
    return sorted(found)


def _name(reference: Tree) -> str:
    """`a.b["c"]` as `a.b.c`; what is not written out as `?`, which nothing is called."""
    kind, body = next(iter(reference.items()))
    if kind == "Var":
        return str(body["value"])
    if kind == "RefDot":
        return f"{_name(body['refr'])}.{body['field'][1]}"
    if kind == "RefBrack" and "String" in body["index"]:
        return f"{_name(body['refr'])}.{body['index']['String']['value']}"
    return _name(body["refr"]) if kind == "RefBrack" else "?"


def _leftmost(reference: Tree) -> Tree:
    body: Tree = next(iter(reference.values()))
    return _leftmost(body["refr"]) if "refr" in body else body["span"]

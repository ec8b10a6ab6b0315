"""The engine that evaluates Rego, and all that is peculiar to it.

It is native code that reads what other people wrote: it can be made to loop, to take all memory, or to crash. It is
therefore used in processes that end with the question only (`bulkhead.rego.child`, `bulkhead.rego.judge`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any, Final

from bulkhead.policy.rego_modules import RegoModule

REFUSED: Final = frozenset({"http.send", "opa.runtime"})
"""Functions that the engine has by name: the one is undefined whatever it is asked, the other shows its surroundings.
"""

_UNDEFINED: Final = '"<undefined>"'
_NO_RULE: Final = "not a valid rule path"
_PLACE: Final = re.compile(r"^--> (?P<path>.*):(?P<line>\d+):(?P<column>\d+)$", re.MULTILINE)
_PROBLEM: Final = re.compile(r"^error: (?P<problem>.*?):?$", re.MULTILINE)


class RegoError(Exception):
    """What the engine cannot read or evaluate. `path` is empty where nobody knows a place."""

    def __init__(self, text: str, path: str = "") -> None:
        place, problem = _PLACE.search(text), _PROBLEM.search(text)
        self.path = place["path"] if place else path
        self.line = int(place["line"]) if place else 1
        self.column = int(place["column"]) if place else 0
        self.problem = problem["problem"] if problem else text.partition("\n")[0]
        super().__init__(f"{self.path}:{self.line}:{self.column}: {self.problem}" if place else self.problem)


class UndefinedError(Exception):
    """A rule has no value, or there is none of the name."""


def is_installed() -> bool:
    """Whether there is an engine at all: it comes with the extra `bulkhead[rego]`."""
    return find_spec("regorus") is not None


class Engine:
    """The modules of one repository, ready to be asked."""

    def __init__(self, modules: Iterable[RegoModule]) -> None:
        """Raises RegoError for the first module that is no Rego."""
        from regorus import Engine as Native

        self._native = Native()
        self._native.set_gather_prints(True)
        path = ""
        try:
            for module in modules:
                path = module.path
                self._native.add_policy(path, module.text)
            path = ""
            self._native.set_input_json("null")
            self._native.eval_query("true")
        except RuntimeError as error:
            raise RegoError(str(error), path) from None
        self.packages = frozenset(name.removeprefix("data.") for name in self._native.get_packages())
        """Such as `shop.orders`."""

    def value(self, rule: str, document: str) -> Any:
        """What a rule (`shop.orders.allow`) comes to for an input document, as JSON. Raises UndefinedError, RegoError.

        A function that does not exist is an error where it is reached, and so is one that fails.
        """
        try:
            self._native.set_input_json(document)
            found = self._native.eval_rule_as_json(f"data.{rule}")
        except RuntimeError as error:
            if str(error).startswith(_NO_RULE):
                raise UndefinedError from None
            raise RegoError(str(error)) from None
        finally:
            self._native.take_prints()
        if found == _UNDEFINED:
            raise UndefinedError
        return json.loads(found)

    def functions(self) -> frozenset[str]:
        """Names of the functions that modules may call and need not define."""
        found = json.loads(self._native.eval_query_as_json("opa.runtime().builtins"))
        return frozenset(found["result"][0]["expressions"][0]["value"]) - REFUSED | {"print"}


def syntax_tree(module: RegoModule) -> dict[str, Any]:
    """Of one module: the tree is a hundred times as large. Raises RegoError."""
    from regorus import Engine as Native

    native = Native()
    try:
        native.add_policy(module.path, module.text)
        (tree,) = json.loads(native.get_ast_as_json())
    except RuntimeError as error:
        raise RegoError(str(error), module.path) from None
    found: dict[str, Any] = tree["ast"]
    return found

"""A catalogue as one HTML page: nothing is fetched, nothing is run, every text of an author is escaped."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined

from bulkhead.cli.catalog import words
from bulkhead.cli.catalog.matrix import matrices
from bulkhead.cli.output import safe
from bulkhead.dataplane.catalog import Catalogue


def html(found: Catalogue) -> str:
    """The whole page."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=_printable, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["listed"] = _listed
    template = environment.from_string(resources.files("bulkhead.cli.catalog").joinpath("page.html").read_text("utf-8"))
    known = {str(one.name) for one in found.services} | {one.name for one in found.outsides}
    return template.render(found=found, known=known, matrices=matrices(found), words=words) + "\n"


def _listed(values: Iterable[object], separator: str = ", ") -> str:
    """Unlike `join`, text: it is made printable and escaped like any other."""
    return separator.join(map(str, values))


def _printable(value: Any) -> Any:
    """Plain texts without what a browser or a terminal would obey; markup of the template as it is."""
    return safe(value) if type(value) is str else value

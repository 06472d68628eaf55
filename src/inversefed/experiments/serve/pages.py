"""Templates, addresses, and what a request asks for."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import urlencode

import jinja2

from inversefed.evaluation.metrics import FACTS
from inversefed.experiments.browse import SORTS, Filters, Sort
from inversefed.experiments.serve.live import decibels
from inversefed.experiments.serve.wording import TITLES
from inversefed.experiments.words import length
from inversefed.report.html import visible

__all__ = ["ROWS", "STATIC", "View", "policy_of_report", "render"]

ROWS = 100
"""Lines of a page of a table."""

_FOLDER = files("inversefed.experiments.serve")


@dataclass(frozen=True)
class View:
    """What a request asks a table for.

    Args:
        filters: which jobs.
        sort: in which order.
        page: from 1.
    """

    filters: Filters = Filters()
    sort: Sort = Sort()
    page: int = 1

    @staticmethod
    def of(query: Mapping[str, str]) -> "View":
        """Read it from an address; what cannot be read counts as not given."""
        given: dict[str, Any] = {each.name: query.get(each.name, "") or None for each in fields(Filters)}
        if given["num_images"] is not None:
            given["num_images"] = _number(given["num_images"], -1)
        text = query.get("sort", "")
        by = text.removeprefix("-")
        sort = Sort(by, text.startswith("-")) if by in SORTS else Sort()
        return View(Filters(**given), sort, max(1, _number(query.get("page", ""), 1)))

    def query(self) -> str:
        """The same as part of an address, with its question mark; empty where nothing is asked for."""
        given: dict[str, str | int] = dict(self.filters.given())
        if self.sort != Sort():
            given["sort"] = f"{'-' if self.sort.falling else ''}{self.sort.by}"
        if self.page > 1:
            given["page"] = self.page
        return f"?{urlencode(given)}" if given else ""

    def sorted_by(self, column: str, falling_first: bool) -> "View":
        """The first page, sorted by a column, or the other way round where it is sorted by that already."""
        falling = not self.sort.falling if self.sort.by == column else falling_first
        return replace(self, sort=Sort(column, falling), page=1)

    def at(self, page: int) -> "View":
        """Another page of the same."""
        return replace(self, page=page)


def render(name: str, **values: Any) -> str:
    """A page from a template."""
    return _environment().get_template(f"{name}.html.j2").render(**values)


def policy_of_report(page: bytes) -> str:
    """The policy under which a report is served: its own, by the hash of its style sheet, and no script or form.

    The file may have been changed, so nothing of it is believed but a hash.
    """
    found = re.search(rb"style-src '(sha256-[A-Za-z0-9+/]{43}=)'", page[:4096])
    style = "'none'" if found is None else f"'{found[1].decode('ascii')}'"
    return (
        f"sandbox; default-src 'none'; img-src data:; style-src {style}; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'self'"
    )


def _number(text: str, otherwise: int) -> int:
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else otherwise


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _sheet() -> str:
    """The report's style, and what these pages have beside it."""
    house = (files("inversefed.report") / "templates" / "report.css").read_text(encoding="utf-8")
    return house + "\n" + _read("static/serve.css")


STATIC: Mapping[str, tuple[str, str]] = {
    "serve.css": (_sheet(), "text/css; charset=utf-8"),
    "live.js": (_read("static/live.js"), "text/javascript; charset=utf-8"),
    "icon.svg": (_read("static/icon.svg"), "image/svg+xml"),
}
"""What the pages load: content and media type by name."""


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: _read(f"templates/{name}")),
        autoescape=True,
        finalize=visible,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"titles": TITLES, "decibels": decibels, "length": length, "facts": FACTS}
    environment.filters["count"] = lambda number: f"{number:,}"
    environment.filters["moment"] = _moment
    environment.filters["tick"] = lambda number: f"{number:g}"
    return environment


def _moment(seconds: float) -> str:
    """Seconds since 1970 as local date and time."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))

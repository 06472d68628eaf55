"""The report as one page of HTML: pictures inside it, no script, no network, nothing foreign that runs.

Every value goes through Jinja's escaping, and a content security policy allows pictures from within
the page and the one style sheet whose hash it names. Characters that are not seen, or that turn the direction of what
follows, are written out. Pictures are shown enlarged, without smoothing.
"""

import base64
import hashlib
import json
import unicodedata
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

import jinja2
from markupsafe import Markup

from inversefed.evaluation.controls import described
from inversefed.evaluation.metrics import FACTS
from inversefed.report import gallery
from inversefed.report.frontier import COLUMNS, cells
from inversefed.report.plots import frontier_figure, loss_figure
from inversefed.report.to_json import plain

if TYPE_CHECKING:
    from inversefed.report.model import Report

__all__ = ["page"]

_FOLDER = files("inversefed.report") / "templates"
_LEVELS = ("error", "warning", "info")
_UNSEEN = {"Cc", "Cf", "Co", "Cs", "Zl", "Zp"}


def page(report: "Report", images: bool = True) -> str:
    """Write the report as one self-contained page.

    Args:
        report: what is written.
        images: whether pictures are shown; without them the page holds no pixel.
    """
    said, style = report.digest, _source("report.css")
    histories = [candidate.history for candidate in report.reconstruction.candidates]
    return _template().render(
        said=said,
        style=Markup(style),  # our own file; the policy names its hash
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii"),
        gallery=gallery.pictures(report) if images else [],
        cells=gallery.cells(report) if images else [],
        curves=[(title, Markup(drawing)) for title, drawing in gallery.curves(report)] if images else [],  # likewise
        restarts=gallery.restarts(report, said.labels_known) if images else [],
        without_images=not images,
        hidden=max(0, said.count - gallery.MOST_PICTURES) if images else 0,
        findings=sorted(said.findings, key=lambda finding: _LEVELS.index(finding.level)),
        curve=Markup(loss_figure(histories, gallery.chosen(report))),  # our own drawing; its text is escaped
        config=json.dumps(plain(report.config), indent=2, ensure_ascii=False) if report.config else "",
        metrics=FACTS,
        described=described,
        sweep=[(cells(row), row) for row in report.frontier],
        sweep_columns=COLUMNS[1:],
        sweep_drawing=Markup(frontier_figure(report.frontier, page=True)),
    )


def visible(value: object) -> object:
    """Write characters that are not seen, or that turn the direction of what follows, as JSON escapes them.

    >>> visible("abc\u202ecod.exe"), visible("two\\nlines")
    ('abc\\\\u202ecod.exe', 'two\\nlines')
    """
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    unseen = {each for each in value if unicodedata.category(each) in _UNSEEN and each != "\n"}
    return value.translate({ord(each): json.dumps(each)[1:-1] for each in unseen})


def _source(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        finalize=visible,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")

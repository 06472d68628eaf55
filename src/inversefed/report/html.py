"""The report as one page of HTML: pictures inside it, no script, no network, nothing foreign that runs.

Every value goes through Jinja's escaping, and a content security policy allows pictures from within
the page and the one style sheet whose hash it names. Characters that are not seen, or that turn the direction of what
follows, are written out. Pictures are shown enlarged, without smoothing.
"""

import base64
import hashlib
import json
import unicodedata
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from inversefed.evaluation.metrics import FACTS
from inversefed.report import gallery
from inversefed.report.frontier import COLUMNS, cells
from inversefed.report.model import Report
from inversefed.report.plots import frontier_figure, loss_figure
from inversefed.report.sentences import SCOPE, believed, pairing, status_note
from inversefed.report.summary import answer, meaning, measures, outcome
from inversefed.report.to_json import plain

__all__ = ["page"]

_FOLDER = files("inversefed.report") / "templates"
_LEVELS = ("error", "warning", "info")
_UNSEEN = {"Cc", "Cf", "Co", "Cs", "Zl", "Zp"}


_CONTROLS = {
    "mean": "the mean of other pictures",
    "prior": "what the attack finds without any update",
    "other": "what it finds in another example's update",
    "null": "the best of what it finds in updates of random numbers",
}


def page(report: Report, images: bool = True) -> str:
    """Write the report as one self-contained page.

    Args:
        report: what is written.
        images: whether pictures are shown; without them the page holds no pixel.
    """
    style = _source("report.css")
    subject, figures = answer(report)
    measures_title, steps = measures(report)
    return _template().render(
        report=report,
        style=Markup(style),  # our own file; the policy names its hash
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii"),
        outcome=outcome(report),
        subject=subject,
        figures=figures,
        meaning=meaning(report),
        measures_title=measures_title,
        measures=steps,
        note=status_note(report.status),
        pairing=pairing(report.count),
        believed=believed(report.agreed),
        gallery=gallery.pictures(report) if images else [],
        restarts=gallery.restarts(report) if images else [],
        without_images=not images,
        hidden=max(0, report.count - gallery.MOST_PICTURES) if images else 0,
        findings=sorted(report.findings, key=lambda finding: _LEVELS.index(finding.level)),
        curve=Markup(  # our own drawing; its text is escaped
            loss_figure([c.history for c in report.reconstruction.candidates], gallery.chosen(report))
        ),
        evidence=_facts(vars(report.verdict.figures)) if report.verdict else {},
        config=json.dumps(plain(report.config), indent=2, ensure_ascii=False),
        facts=FACTS,
        explained={name: text for name, text in _CONTROLS.items() if name in report.baselines},
        sweep=[(cells(row), row) for row in report.frontier],
        sweep_columns=COLUMNS[1:],
        sweep_drawing=Markup(frontier_figure(report.frontier, page=True)),
        scope=report.verdict.scope if report.verdict else SCOPE,
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


def _facts(figures: Mapping[str, Any]) -> dict[str, str]:
    """Figures as words and text; longer lists are left to `report.json`."""
    named = {name.replace("_", " "): plain(value) for name, value in figures.items()}
    return {name: _figure(value) for name, value in named.items() if not isinstance(value, dict) and _short(value)}


def _short(value: Any) -> bool:
    return not isinstance(value, list) or (0 < len(value) <= 8 and not any(isinstance(each, list) for each in value))


def _figure(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}"
        case list():
            return ", ".join(map(_figure, value))
    return "n/a" if value is None else str(value)


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

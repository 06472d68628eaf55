"""The report as one page of HTML: pictures inside it, no script, no network, nothing foreign that runs.

Every value goes through Jinja's escaping, and a content security policy allows pictures from within
the page and the one style sheet whose hash it names. Pictures are shown enlarged, without smoothing.
"""

import base64
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import jinja2
from markupsafe import Markup
from torch import Tensor

from inversefed.evaluation import controls
from inversefed.evaluation.curve import loss_curve
from inversefed.evaluation.pictures import data_uri, difference
from inversefed.evaluation.plain import plain
from inversefed.evaluation.report import Report
from inversefed.evaluation.tables import Table
from inversefed.evaluation.words import PSNR, SCOPE, pairing, status_note

__all__ = ["page"]

MOST_PICTURES = 16
"""How many pictures the gallery shows; the folder holds them all."""

_FOLDER = files("inversefed.evaluation") / "templates"
_LEVELS = ("error", "warning", "info")


@dataclass(frozen=True)
class Figure:
    """One picture of the gallery, what it is, and what it scores."""

    caption: str
    score: str
    source: str


def page(report: Report, images: bool = True) -> str:
    """Write the report as one self-contained page.

    Args:
        report: what is written.
        images: whether pictures are shown; without them the page holds no pixel.
    """
    style = _source("report.css")
    chosen = [candidate.loss == report.reconstruction.loss for candidate in report.reconstruction.candidates]
    return _template().render(
        report=report,
        style=Markup(style),  # our own file; the policy names its hash
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii"),
        note=status_note(report.status),
        pairing=pairing(report.count),
        gallery=list(_gallery(report)) if images else [],
        hidden=max(0, report.count - MOST_PICTURES) if images else 0,
        findings=sorted(report.findings, key=lambda finding: _LEVELS.index(finding.level)),
        curve=loss_curve(
            [c.history for c in report.reconstruction.candidates], chosen.index(True) if any(chosen) else None
        ),
        config=json.dumps(plain(report.config), indent=2, ensure_ascii=False),
        scope=SCOPE,
    )


def _source(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def _gallery(report: Report) -> Iterator[tuple[str, list[Figure]]]:
    """A title and the figures of each picture that is shown."""
    found, truth, labels = report.images.detach().cpu(), report.truth, report.labels.tolist()
    others = controls.guesses(truth) if truth else {}
    table = next((table for table in report.tables if table.metric == PSNR), None)
    for index in range(min(report.count, MOST_PICTURES)):
        scores = _scores(table, index)
        label = f"label {labels[index]}"
        recovered = Figure("Recovered", scores.get("recovered", ""), data_uri(found[index]))
        if truth is None:
            yield f"Picture {index}, {label}", [recovered]
            continue
        target = truth.images[index]
        beside = [_control(name, images[index], scores) for name, images in others.items()]
        yield (
            f"Picture {index}, {label}, true label {truth.labels[index].item()}",
            [
                Figure("Target", "", data_uri(target)),
                recovered,
                Figure("Difference", "black is none", data_uri(difference(found[index], target))),
                *beside,
            ],
        )


def _control(name: str, image: Tensor, scores: dict[str, str]) -> Figure:
    return Figure(name.capitalize(), scores.get(name, ""), data_uri(image))


def _scores(table: Table | None, index: int) -> dict[str, str]:
    """What the picture and the controls score in decibels, as text, by column."""
    if table is None:
        return {}
    return {name: f"{cell} dB" for name, cell in zip(table.columns, table.cells(table.rows[index]), strict=True)}

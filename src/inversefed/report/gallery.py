"""The pictures of a report's page: truth, reconstruction, difference and controls, and what every restart found."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inversefed.evaluation import controls
from inversefed.evaluation.align import paired
from inversefed.evaluation.metrics import peak_signal_noise_ratio
from inversefed.inputs import Series
from inversefed.report.plots import window_figure
from inversefed.report.png import data_uri, difference
from inversefed.report.sentences import PSNR
from inversefed.report.tables import Table
from inversefed.types import Candidate, Images

if TYPE_CHECKING:
    from inversefed.report.model import Report

__all__ = ["MOST_PICTURES", "MOST_RESTARTS", "Figure", "cells", "chosen", "curves", "pictures", "restarts"]

MOST_PICTURES = 16
"""How many pictures the page shows; the folder holds them all."""

MOST_RESTARTS = 16
"""How many restarts the page shows, those that match the update best."""

_MOST_OF_A_RESTART = 4

_CURVES = 8
"""How many curves of series the page shows."""

_BESIDE = 4
"""How many examples that are no pictures stand side by side."""


@dataclass(frozen=True)
class Figure:
    """One picture of the page, what it is, and what it scores."""

    caption: str
    score: str
    source: str


Row = tuple[str, list[Figure]]


def chosen(report: "Report") -> int | None:
    """Which restart the reconstruction is, by its cost; `None` where it is none of them."""
    costs = [candidate.loss for candidate in report.reconstruction.candidates]
    return costs.index(report.reconstruction.loss) if report.reconstruction.loss in costs else None


def pictures(report: "Report") -> list[Row]:
    """A title and the figures of each picture that is shown."""
    return list(_rows(report)) if report.pictured else []


@dataclass(frozen=True)
class Cell:
    """One cell of an example that is no picture: its name, what was recovered, the truth, and whether they agree."""

    name: str
    found: str
    true: str = ""
    right: bool = True


def cells(report: "Report") -> list["CellTable"]:
    """The examples that are shown, a few side by side; nothing for pictures."""
    space, truth = report.inputs, report.truth
    if space is None or report.pictured:
        return []
    found, labels, shown = report.images.detach().cpu(), report.labels.tolist(), []
    labeled = report.labels.shape != found.shape  # else a language model's, which are the examples themselves
    for index in range(min(report.count, MOST_PICTURES)):
        title, own = f"{space.noun.capitalize()} {index}", space.cells(found[index])
        title += f", label {_said(labels[index])}" if labeled else ""
        if truth is None:
            shown.append((title, {name: Cell(name, text) for name, text in own}))
            continue
        true = dict(space.cells(truth.images[index].detach().cpu()))
        title += f", true label {_said(truth.labels[index].tolist())}" if labeled else ""
        both = {**dict.fromkeys(true, ""), **dict(own)}
        shown.append(
            (title, {name: Cell(name, text, said := true.get(name, ""), text == said) for name, text in both.items()})
        )
    return [CellTable.of(shown[first : first + _BESIDE]) for first in range(0, len(shown), _BESIDE)]


@dataclass(frozen=True)
class CellTable:
    """Some examples side by side.

    Args:
        titles: of each.
        lines: the name of a cell, and that cell of each example; `None` where an example has none, such as a word less.
    """

    titles: tuple[str, ...]
    lines: tuple[tuple[str, tuple[Cell | None, ...]], ...]

    @classmethod
    def of(cls, examples: Sequence[tuple[str, Mapping[str, Cell]]]) -> "CellTable":
        """Examples with the cells of each by name."""
        longest = max((own for _, own in examples), key=len)
        names = dict.fromkeys([*longest, *(name for _, own in examples for name in own)])
        lines = tuple((name, tuple(own.get(name) for _, own in examples)) for name in names)
        return cls(tuple(title for title, _ in examples), lines)


def curves(report: "Report") -> list[tuple[str, str]]:
    """A title and a drawing of each channel of the first windows of a series; nothing for other inputs."""
    space, truth = report.inputs, report.truth
    if not isinstance(space, Series):
        return []
    found = space.decode(report.images.detach().cpu().double())
    true = None if truth is None else space.decode(truth.images.detach().cpu().double())
    drawn = []
    for index, channel in list(itertools.product(range(report.count), range(space.channels)))[:_CURVES]:
        title = f"Window {index}" + (f", channel {channel}" if space.channels > 1 else "")
        private = None if true is None else true[index, channel].tolist()
        drawing = window_figure(found[index, channel].tolist(), private, f"window-{index}-{channel}", title)
        drawn.append((title, drawing))
    return drawn


def restarts(report: "Report", labels_known: bool) -> list[Row]:
    """A title and the pictures of each restart, the best match first; nothing where there was only one.

    Each restart's pictures are paired with the truths anew, as those of the chosen one were: within labels that the
    attack was told.

    Args:
        report: what is shown.
        labels_known: whether the attack was told the labels.
    """
    found = report.reconstruction.candidates
    if len(found) < 2 or not report.pictured:
        return []
    order = sorted(range(len(found)), key=lambda index: (not found[index].loss < float("inf"), found[index].loss))
    return [_restart(report, labels_known, index, found[index]) for index in order[:MOST_RESTARTS]]


def _restart(report: "Report", labels_known: bool, index: int, candidate: Candidate) -> Row:
    images = candidate.images.detach().cpu()
    scores: list[str] = [""] * len(images)
    if report.truth is not None and images.shape == report.truth.images.shape:
        images = images[paired(images, candidate.labels, report.truth, labels_known)]
        decibels = peak_signal_noise_ratio(images, report.truth.images.detach().cpu()).tolist()
        scores = [f"{value:.2f} dB" for value in decibels]
    mark = ", chosen" if index == chosen(report) else ""
    shown = list(zip(images, scores, strict=True))[:_MOST_OF_A_RESTART]
    title = f"Restart {index}{mark}: cost {candidate.loss:.3g}, {candidate.status.value}"
    return title, [Figure(f"Restart {index}", score, data_uri(image)) for image, score in shown]


def _rows(report: "Report") -> Iterator[Row]:
    found, truth, labels = report.images.detach().cpu(), report.truth, report.labels.tolist()
    others: Mapping[str, Images] = (report.controls or controls.guesses(truth)) if truth else {}
    table = next((table for table in report.tables if table.metric == PSNR), None)
    for index in range(min(report.count, MOST_PICTURES)):
        scores = _scores(table, index)
        label = f"label {_said(labels[index])}"
        recovered = Figure("Recovered", scores.get("recovered", ""), data_uri(found[index]))
        if truth is None:
            yield f"Picture {index}, {label}", [recovered]
            continue
        target = truth.images[index]
        beside = [_control(name, images[index], scores) for name, images in others.items()]
        changed = Figure("Difference", _largest(found[index], target), data_uri(difference(found[index], target)))
        title = f"Picture {index}, {label}, true label {_said(truth.labels[index].tolist())}"
        yield title, [Figure("Private picture", "the truth", data_uri(target)), recovered, changed, *beside]


_MOST_NUMBERS = 8


def _said(label: object) -> str:
    """A class, a number, or the first of a row of numbers."""
    if not isinstance(label, list):
        return f"{label:.4g}" if isinstance(label, float) else str(label)
    more = ", ..." if len(label) > _MOST_NUMBERS else ""
    return f"({', '.join(map(_said, label[:_MOST_NUMBERS]))}{more})"


def _largest(image: Tensor, target: Tensor) -> str:
    """How far the worst value is off, as a share of the range."""
    largest = float(torch.nan_to_num(difference(image, target), nan=1.0).max())
    return "none to be seen" if largest < 1 / 255 else f"up to {largest:.0%}; black is none"


def _control(name: str, image: Tensor, scores: dict[str, str]) -> Figure:
    return Figure(controls.described(name).title, scores.get(name, ""), data_uri(image))


def _scores(table: Table | None, index: int) -> dict[str, str]:
    """What the picture and the controls score in decibels, as text, by column."""
    if table is None:
        return {}
    return {name: f"{cell} dB" for name, cell in table.named(table.rows[index]).items()}

"""The numbers of a report as tables: one a metric, a row an image and one for the mean.

Every reader of a report, the terminal's, the page's and the one in Markdown, shows these tables, so a
score never stands without what the controls score beside it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from inversefed.evaluation.metrics import FACTS
from inversefed.inputs import Measure
from inversefed.types import Scores

__all__ = ["Table", "number", "tables"]

Row = tuple[str, tuple[float, ...]]


def number(value: float, form: str) -> str:
    """Write a number in the given format, and one that is not finite as `n/a`.

    >>> number(24.3149, ".2f"), number(float("nan"), ".2f")
    ('24.31', 'n/a')
    """
    return format(value, form) if math.isfinite(value) else "n/a"


@dataclass(frozen=True)
class Table:
    """What a reconstruction and the controls score by one metric.

    Args:
        metric: the metric's name.
        fact: its title, unit, direction and format.
        columns: `"recovered"`, then the controls that have this metric.
        rows: a name and one number a column, for every image.
        mean: the mean over the images; NaN where an image has none.
    """

    metric: str
    fact: Measure
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    mean: Row

    @property
    def heading(self) -> str:
        """The title and the unit, such as `Peak signal-noise ratio (PSNR), dB`."""
        return f"{self.fact.title}, {self.fact.unit}" if self.fact.unit else self.fact.title

    @property
    def best(self) -> str:
        """Which direction is good, in words."""
        return "higher is better" if self.fact.higher_is_better else "lower is better"

    def cells(self, row: Row) -> list[str]:
        """The numbers of a row as text, in the metric's own format."""
        return [number(value, self.fact.format) for value in row[1]]

    def named(self, row: Row) -> dict[str, str]:
        """The numbers of a row as text, by column."""
        return dict(zip(self.columns, self.cells(row), strict=True))


def tables(scores: Mapping[str, Scores], baselines: Mapping[str, Mapping[str, Scores]]) -> tuple[Table, ...]:
    """Lay out the scores, each with its baselines beside it.

    Args:
        scores: one number per image, by the metric's name.
        baselines: the same, by the control's name.

    >>> psnr = {"peak_signal_noise_ratio": torch.tensor([24.0, 20.0])}
    >>> table, = tables(psnr, {"gray": {"peak_signal_noise_ratio": torch.tensor([12.0, 11.0])}})
    >>> table.columns, table.rows[0], table.mean
    (('recovered', 'gray'), ('0', (24.0, 12.0)), ('mean', (22.0, 11.5)))
    """
    return tuple(_table(metric, scores[metric], baselines) for metric in scores)


def _table(metric: str, scores: Scores, baselines: Mapping[str, Mapping[str, Scores]]) -> Table:
    columns = {"recovered": scores} | {name: found[metric] for name, found in baselines.items() if metric in found}
    values = torch.stack([column.detach().cpu().double() for column in columns.values()], dim=1)
    rows = tuple((str(index), tuple(row.tolist())) for index, row in enumerate(values))
    fact = FACTS.get(metric) or Measure(metric, "", higher_is_better=True, format=".4g", meaning="")
    return Table(metric, fact, tuple(columns), rows, ("mean", tuple(values.mean(dim=0).tolist())))

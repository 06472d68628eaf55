"""Rows of a table: `[n, d]` in [0, 1], a number as its place in its range, a category as its one-hot block.

    number: (value - low) / (high - low)        category: 1 at its place among the values, 0 elsewhere

The network is fed `(encoded - mean) / std`: numbers standardized by their own mean and standard deviation, categories
as they are. The space is a value: what a schema prints builds it again.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Generator, Tensor

from inversefed.errors import InputError, shown
from inversefed.inputs.real import check_real
from inversefed.inputs.space import Measure

__all__ = ["Category", "Columns", "Number"]

MEASURES: Mapping[str, Measure] = {
    "cells_right": Measure(
        "Cells right",
        "",
        True,
        ".3f",
        "Share of a row's cells that are right: the category, or the number within a thousandth of its column's "
        "standard deviation. 1 is the whole row.",
    ),
    "exact_row": Measure(
        "Exact row", "", True, ".2f", "1 if every cell of the row is right, else 0; its mean is the share."
    ),
    "tableak_accuracy": Measure(
        "TabLeak's accuracy",
        "",
        True,
        ".3f",
        "As the share of cells that are right, but a number counts within 0.319 standard deviations of its column "
        "(Vero et al. 2023). What is typical for the table has half of it and more.",
    ),
    "worst_number": Measure(
        "Worst number",
        "sd",
        False,
        ".3g",
        "The greatest error of a number in the row, in standard deviations of its column. 0 is none.",
    ),
}
"""What `Columns.measures` gives, in the words of a report."""

_SAME = 1e-3
"""Standard deviations up to which a number counts as right: a thousandth of what people differ by."""

_TABLEAK = 0.319
"""The same in TabLeak's score (Vero et al. 2023, arXiv:2210.01785): a number is taken for right within 0.319 standard
deviations of its column."""

Cell = str | int | float
"""What stands in a cell."""


@dataclass(frozen=True)
class Number:
    """A column of numbers, in the table's own units.

    Args:
        name: of the column.
        low: the least number, encoded as 0.
        high: the greatest, encoded as 1.
        whole: whether only whole numbers stand there.
        mean: what the client subtracts before the network sees it.
        std: what it divides by, above 0.

    Raises:
        InputError: no range, or figures that are not finite.
    """

    name: str
    low: int | float
    high: int | float
    whole: bool = False
    mean: int | float = 0.0
    std: int | float = 1.0

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (self.low, self.high, self.mean, self.std))) or self.std <= 0:
            raise InputError(
                f"column {shown(self.name)} needs finite low, high and mean, and std above 0; got low={self.low}, "
                f"high={self.high}, mean={self.mean}, std={self.std}"
            )
        if not self.low < self.high:
            raise InputError(
                f"column {shown(self.name)} needs low below high; got {self.low} and {self.high}; leave out a "
                "column of one value"
            )

    @property
    def width(self) -> int:
        """How many numbers it takes in the tensor: one."""
        return 1

    @property
    def span(self) -> int | float:
        """The length of its range, in the table's units."""
        return self.high - self.low

    def encoded(self, cell: object) -> list[float]:
        """A cell as one number in [0, 1].

        Raises:
            InputError: no number, or one outside the range.
        """
        try:
            value = float(cell)  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise InputError(f"column {shown(self.name)} takes numbers; got {_cell(cell)}") from error
        if not self.low <= value <= self.high:
            raise InputError(
                f"column {shown(self.name)} takes numbers from {self.low:g} to {self.high:g}; got {value:g}; give it a "
                "wider range"
            )
        return [(value - self.low) / self.span]

    def values_of(self, block: Tensor) -> Tensor:
        """`[n, 1]` in [0, 1] in the table's units, float64 `[n]`, rounded where only whole numbers stand there."""
        values = block[:, 0].double() * self.span + self.low
        return values.round() if self.whole else values

    def decoded(self, block: Tensor) -> list[Cell]:
        """`[n, 1]` as cells."""
        return [int(value) if self.whole else value for value in self.values_of(block).tolist()]

    def snapped(self, block: Tensor) -> Tensor:
        """Within the range, `[n, 1]`, and whole where only such stand there."""
        inside = block.clamp(0, 1)
        if not self.whole:
            return inside
        values = self.values_of(inside).clamp(math.ceil(self.low), math.floor(self.high))
        return ((values - self.low) / self.span)[:, None].to(block.dtype)

    def drawn(self, count: int, random: Generator) -> Tensor:
        """Normal with its mean and standard deviation, within its range, `[count, 1]`."""
        values = self.mean + self.std * torch.randn(count, 1, generator=random, dtype=torch.float64)
        return self.snapped(((values - self.low) / self.span).float())

    def typical(self) -> Tensor:
        """Its mean, or the end of the range that is nearer, `[1]`."""
        return self.snapped(torch.tensor([[(self.mean - self.low) / self.span]]))[0]


@dataclass(frozen=True)
class Category:
    """A column of categories.

    Args:
        name: of the column.
        values: all that may stand there, in the order of the one-hot block.

    Raises:
        InputError: no value, or one twice.
    """

    name: str
    values: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(map(str, self.values)))
        if not self.values or len(set(self.values)) != len(self.values):
            raise InputError(f"column {shown(self.name)} needs one value or more, all different; got {self.values!r}")

    @property
    def width(self) -> int:
        """How many numbers it takes in the tensor: one a value."""
        return len(self.values)

    @cached_property
    def _places(self) -> Mapping[str, int]:
        return {value: place for place, value in enumerate(self.values)}

    def encoded(self, cell: object) -> list[float]:
        """A cell as its one-hot block.

        Raises:
            InputError: a value that is not in the schema.
        """
        place = self._places.get(str(cell))
        if place is None:
            known = ", ".join(map(shown, self.values[:12])) + (", .." if len(self.values) > 12 else "")
            raise InputError(
                f"column {shown(self.name)} does not know {_cell(cell)}; its values are {known}; add it to the schema"
            )
        return [float(each == place) for each in range(len(self.values))]

    def decoded(self, block: Tensor) -> list[Cell]:
        """`[n, values]` as cells: the value of the greatest entry."""
        return [self.values[place] for place in block.argmax(dim=1).tolist()]

    def snapped(self, block: Tensor) -> Tensor:
        """One-hot, `[n, values]`: 1 at the greatest entry."""
        return torch.nn.functional.one_hot(block.argmax(dim=1), self.width).to(block.dtype)

    def drawn(self, count: int, random: Generator) -> Tensor:
        """Each value as often as any other, `[count, values]`."""
        places = torch.randint(self.width, (count,), generator=random)
        return torch.nn.functional.one_hot(places, self.width).float()

    def typical(self) -> Tensor:
        """All values alike, `[values]`: it is no row, but of all guesses nearest to any."""
        return torch.full((self.width,), 1 / self.width)


@dataclass(frozen=True)
class Columns:
    """The columns of a table, in the order in which they stand in the tensor.

    Args:
        columns: one or more, no name twice.

    Raises:
        InputError: none, or a name twice.

    >>> table = Columns((Number("age", 17, 90, whole=True, mean=38.6, std=13.6), Category("sex", ("female", "male"))))
    >>> rows = table.encode([{"age": 39, "sex": "male"}, {"age": 17, "sex": "female"}])
    >>> rows
    tensor([[0.3014, 0.0000, 1.0000],
            [0.0000, 1.0000, 0.0000]])
    >>> table.decode(rows)
    [{'age': 39, 'sex': 'male'}, {'age': 17, 'sex': 'female'}]
    """

    columns: tuple[Number | Category, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(self.columns))
        names = [column.name for column in self.columns]
        if not names or len(set(names)) != len(names):
            raise InputError(f"a table needs one column or more, no name twice; got {', '.join(map(shown, names))}")

    @property
    def noun(self) -> str:
        """What one of them is called."""
        return "row"

    @cached_property
    def places(self) -> tuple[slice, ...]:
        """Where each column stands among the d numbers of a row."""
        ends = torch.tensor([0, *(column.width for column in self.columns)]).cumsum(0).tolist()
        return tuple(slice(start, end) for start, end in itertools.pairwise(ends))

    @property
    def shape(self) -> tuple[int, ...]:
        """`(d,)`: one number for each number column, one for each value of a category."""
        return (self.places[-1].stop,)

    def encode(self, rows: Sequence[Mapping[str, object]]) -> Tensor:
        """Rows as a tensor `[n, d]`, float32 in [0, 1].

        Args:
            rows: the cells of each by column name; other columns are left out.

        Raises:
            InputError: a column that is missing, a number outside its range, or a value that the schema does not know.
        """
        encoded = []
        for number, row in enumerate(rows):
            missing = [column.name for column in self.columns if column.name not in row]
            if missing:
                raise InputError(f"row {number} lacks {', '.join(map(shown, missing))}; each row needs every column")
            try:
                encoded.append([value for column in self.columns for value in column.encoded(row[column.name])])
            except InputError as error:
                raise InputError(f"row {number}: {error}") from error
        return torch.tensor(encoded, dtype=torch.float64).reshape(len(encoded), *self.shape).float()

    def decode(self, inputs: Tensor) -> list[dict[str, Cell]]:
        """`[n, d]` as rows: the greatest entry of each block, whole numbers rounded."""
        cells = [column.decoded(inputs[:, place]) for column, place in zip(self.columns, self.places, strict=True)]
        names = [column.name for column in self.columns]
        return [dict(zip(names, row, strict=True)) for row in zip(*cells, strict=True)]

    def check(self, inputs: Tensor) -> None:
        """Refuse anything but encoded rows of this table.

        Raises:
            InputError: wrong shape or type, no row, numbers outside [0, 1], or a block that is not one-hot.
        """
        check_real(inputs, self.shape, "rows", "encoded by the schema's encode, not standardized")
        for column, place in zip(self.columns, self.places, strict=True):
            block = inputs[:, place]
            if isinstance(column, Category) and not torch.equal(block, column.snapped(block)):
                raise InputError(
                    f"column {shown(column.name)} takes one-hot blocks of {column.width}, with one 1 in each row; give "
                    "rows as the schema's encode gives them"
                )

    def normalization(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each number of a row, `[d]` each, as it is encoded; 0 and 1 for categories.

        >>> Columns((Number("age", 0, 100, mean=50, std=10), Category("sex", ("f", "m")))).normalization()
        (tensor([0.5000, 0.0000, 0.0000]), tensor([0.1000, 1.0000, 1.0000]))
        """
        mean, std = torch.zeros(self.shape), torch.ones(self.shape)
        for column, place in self._numbers:
            mean[place], std[place] = (column.mean - column.low) / column.span, column.std / column.span
        return mean, std

    def middle(self, count: int) -> Tensor:
        """Every number at its mean and all values of a category alike, `[count, d]`."""
        return torch.cat([column.typical() for column in self.columns]).repeat(count, 1)

    def snap(self, inputs: Tensor) -> Tensor:
        """The nearest rows that can be stored: one value of each category, whole numbers, all within the range."""
        parts = [column.snapped(inputs[:, place]) for column, place in zip(self.columns, self.places, strict=True)]
        return torch.cat(parts, dim=1)

    def stand_ins(self, count: int, random: Generator) -> Tensor:
        """Rows of nobody, each column drawn by itself, `[count, d]`."""
        return torch.cat([column.drawn(count, random) for column in self.columns], dim=1)

    def controls(self, truth: Tensor, others: Tensor | None) -> Mapping[str, Tensor]:
        """The typical row: means, and the most frequent value, of others; and rows of others, one after another.

        Without others: every number at the mean that the schema states, and no value of a category before any other.
        """
        if others is None or not len(others):
            return {"typical_row": self.middle(len(truth)).to(truth)}
        mean = others.to(truth).mean(dim=0, keepdim=True)
        some = torch.arange(len(truth), device=others.device) % len(others)
        return {"typical_row": self.snap(mean).repeat(len(truth), 1), "other_row": others[some].to(truth)}

    def cells(self, example: Tensor) -> Sequence[tuple[str, str]]:
        """A row `[d]` as a report shows it: the name of each column, and its cell in six digits."""
        row = self.decode(example[None])[0]
        return [(name, f"{cell:.6g}" if isinstance(cell, float) else str(cell)) for name, cell in row.items()]

    def measures(self, found: Tensor, truth: Tensor) -> Mapping[str, Tensor]:
        """Of each row, both in one order, `[n]` float64 each: what `MEASURES` says."""
        right: list[Tensor] = []
        roughly: list[Tensor] = []
        worst = torch.zeros(len(truth), dtype=torch.float64, device=truth.device)
        for column, place in zip(self.columns, self.places, strict=True):
            ours, theirs = found[:, place], truth[:, place]
            if isinstance(column, Category):
                same = ours.argmax(dim=1) == theirs.argmax(dim=1)
                right, roughly = [*right, same], [*roughly, same]
                continue
            away = (ours - theirs)[:, 0].double().abs() * column.span / column.std
            right, roughly = [*right, away <= _SAME], [*roughly, away <= _TABLEAK]
            worst = torch.maximum(worst, away)
        cells, rough = (torch.stack(each, dim=1).double().mean(dim=1) for each in (right, roughly))
        return {
            "cells_right": cells,
            "exact_row": (cells == 1).double(),
            "tableak_accuracy": rough,
            "worst_number": worst,
        }

    @property
    def _numbers(self) -> list[tuple[Number, slice]]:
        pairs = zip(self.columns, self.places, strict=True)
        return [(column, place) for column, place in pairs if isinstance(column, Number)]


def _cell(cell: object) -> str:
    return shown(cell) if isinstance(cell, str) else shown(repr(cell))

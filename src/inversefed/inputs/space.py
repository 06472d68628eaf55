"""The protocol of an input space: what one example is, and what may be said of it without an update."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Generator, Tensor

__all__ = ["InputSpace", "Measure"]


class Measure(NamedTuple):
    """What a report has to know about a number that it gives for each example.

    Args:
        title: heads its column.
        unit: after the number; empty for none.
        higher_is_better: whether more is nearer to the truth.
        format: a Python format of one number, such as `".2f"`.
        meaning: what it is, and what its ends mean, in a sentence or two.
    """

    title: str
    unit: str
    higher_is_better: bool
    format: str
    meaning: str


@runtime_checkable
class InputSpace(Protocol):
    """What one example is. A frozen value; its `repr` builds it again.

    The tensor that travels holds `[n, *shape]`: real numbers in [0, 1], which the network's own `mean` and `std` turn
    into what the module is fed, or integer ids, which are fed as they are.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example, all sides at least 1."""
        ...

    @property
    def noun(self) -> str:
        """What one example is called in a sentence: `"image"`, `"row"`, `"window"`, `"sentence"`."""
        ...

    def check(self, inputs: Tensor) -> None:
        """Refuse anything but a batch of examples.

        Raises:
            InputError: what came, what was expected, what to do.
        """
        ...

    def normalization(self) -> tuple[Tensor | float, Tensor | float]:
        """What is subtracted from an example and what divides it before the module sees it, where nobody says else."""
        ...

    def middle(self, count: int) -> Tensor:
        """Examples that say nothing, `[count, *shape]`: the middle of the range, or some id that is no padding."""
        ...

    def snap(self, inputs: Tensor) -> Tensor:
        """The nearest examples that can be stored, of the same shape."""
        ...

    def stand_ins(self, count: int, random: Generator) -> Tensor:
        """Nobody's examples, `[count, *shape]`, drawn as such examples are in general."""
        ...

    def controls(self, truth: Tensor, others: Tensor | None) -> Mapping[str, Tensor]:
        """What anybody could guess without an update, by name, each of the shape of the truth.

        Args:
            truth: the private examples, whose number, shape and mean may be used.
            others: public examples of the same kind; `None` where there are none.
        """
        ...

    def cells(self, example: Tensor) -> Sequence[tuple[str, str]]:
        """One example, of `shape`, as a report shows what is no picture: the name of each cell, and its text."""
        ...

    def measures(self, found: Tensor, truth: Tensor) -> Mapping[str, Tensor]:
        """What a report says of each example beside its decibels, by name, `[n]` each; both in one order."""
        ...

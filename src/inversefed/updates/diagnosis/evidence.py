"""The evidence of a diagnosis: an update, read as a gradient in the way that its metadata say.

    weight delta  d = new - old = -lr sum_t v_t,    v_t = g_t + momentum v_{t-1}
    gradient      g = -d / (lr S),                  S = sum_t (1 - momentum^t) / (1 - momentum),  t = 1..T

with sums over T local steps. Relations that hold for a gradient at given weights hold for a delta of several steps at
the middle of the way, up to the second order in its length.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from inversefed.fl.formats import COARSE, number_format
from inversefed.fl.losses import CrossEntropy, is_plain_cross_entropy, reduction_of
from inversefed.fl.network import Network
from inversefed.types import Params
from inversefed.updates.metadata import Kind, Metadata

__all__ = ["Subject", "passes", "rms"]


@dataclass(frozen=True, eq=False)
class Subject:
    """An update that fits its network, and the ways to look at it; everything is in double precision.

    Args:
        network: as it was sent out.
        tensors: the update's tensors of the weights that the network trains.
        buffers: the running buffers that came with it.
        metadata: what is stated.
        adaptive: whether it is stated that the client's optimizer is none of SGD, so that the update is no gradient.
    """

    network: Network
    tensors: Params = field(repr=False)
    buffers: Params = field(repr=False)
    metadata: Metadata
    adaptive: bool = False

    @cached_property
    def kind(self) -> Kind:
        """As stated; unstated, a gradient, as it is read then."""
        return self.metadata.kind or "gradient"

    @cached_property
    def weights(self) -> Params:
        """The weights that were sent out."""
        return {name: weight.detach().to("cpu", torch.float64) for name, weight in self.network.params.items()}

    @cached_property
    def values(self) -> Params:
        """The tensors as they came."""
        return {name: part.detach().to("cpu", torch.float64) for name, part in self.tensors.items()}

    @cached_property
    def raw(self) -> Params:
        """The update with a gradient's sign, and a scale of its own."""
        if self.kind == "gradient":
            return self.values
        if self.kind == "weight_delta":
            return {name: -part for name, part in self.values.items()}
        return {name: self.weights[name] - part for name, part in self.values.items()}

    @property
    def steps(self) -> int | None:
        """Local steps behind it, where that is known."""
        if self.kind == "gradient":
            return 1
        return self.metadata.local_steps

    @property
    def single(self) -> bool:
        """Whether it is the gradient at the weights that were sent, up to a factor."""
        return self.steps == 1

    @cached_property
    def scale(self) -> float | None:
        """What `raw` is divided by to be a mean gradient; `None` where metadata do not tell."""
        count = self.per_step if self.is_summed else 1
        if self.kind == "gradient":
            return None if count is None else float(count)
        if self.metadata.learning_rate is None or count is None:
            return None
        return self.metadata.learning_rate * passes(self.steps or 1, self.metadata.momentum or 0.0) * count

    @property
    def is_summed(self) -> bool:
        """Whether the client's loss is the sum over its examples."""
        return (self.metadata.loss_reduction or reduction_of(self.network.loss)) == "sum"

    @cached_property
    def gradient(self) -> Params:
        """`raw` in the scale of a mean gradient, as far as that is known."""
        scale = self.scale or 1.0
        return {name: part / scale for name, part in self.raw.items()}

    @property
    def per_step(self) -> int | None:
        """Examples of one local step."""
        return self.metadata.batch_size or self.metadata.num_examples

    @property
    def examples(self) -> int | None:
        """Different examples behind the update."""
        if self.metadata.num_examples is not None:
            return self.metadata.num_examples
        return self.metadata.batch_size if self.single else None

    @cached_property
    def middle(self) -> Params:
        """The weights on which relations between weights and update are asked: the middle of the way."""
        if self.kind == "gradient" or self.single:
            return self.weights
        return {name: self.weights[name] - 0.5 * part for name, part in self.raw.items()}

    @cached_property
    def format(self) -> torch.dtype:
        """The coarsest number format that holds every value of the update."""
        return number_format(self.tensors)

    @cached_property
    def decoded(self) -> torch.dtype | None:
        """The 16-bit format of the new weights that a weight delta is the difference of; `None` for others."""
        if self.kind != "weight_delta":
            return None
        sums = [(self.weights[name] + part, part) for name, part in self.values.items()]
        held = (dtype for dtype in COARSE if all(_on_grid(new, part, dtype) for new, part in sums))
        return next(held, None)

    @property
    def grid(self) -> torch.dtype | None:
        """The 16-bit format that new weights were rounded to, whether they came or their difference; else `None`."""
        if self.kind == "new_weights":
            return self.format if self.format in COARSE else None
        return self.decoded

    def rounding(self, name: str) -> Tensor:
        """Standard deviation that rounding leaves in each entry of `raw`, computed and saved in its format."""
        if self.decoded is not None:
            rounded: Tensor = _relative_error(self.decoded) * (self.weights[name] + self.values[name]).abs()
            return rounded
        saved = _relative_error(self.format) * self.values[name].abs()
        if self.kind == "gradient":
            return saved
        steps = float(self.steps or 1)
        computed: Tensor = _relative_error(self.network.dtype) * math.sqrt(steps) * self.weights[name].abs()
        return saved + computed

    @property
    def is_cross_entropy(self) -> bool:
        """Whether the loss is the cross entropy that exact relations at the head are known for."""
        return isinstance(self.network.loss, CrossEntropy)

    @property
    def is_smoothed(self) -> bool:
        """Whether it is cross entropy with smoothed labels, whose counts are no whole numbers."""
        return self.is_cross_entropy and not is_plain_cross_entropy(self.network.loss)

    @property
    def head(self) -> str | None:
        """The head's weight, where it is a linear layer whose weight is in the update."""
        if self.network.head is None or not self.is_cross_entropy:
            return None
        name = f"{self.network.head}.weight".lstrip(".")
        if not isinstance(self.network.module.get_submodule(self.network.head), torch.nn.Linear):
            return None
        return name if name in self.raw else None

    @property
    def head_bias(self) -> str | None:
        """The head's bias, likewise."""
        name = f"{self.network.head}.bias".lstrip(".")
        return name if self.head is not None and name in self.raw else None


def passes(steps: int, momentum: float) -> float:
    """How many gradients local steps go in all: `sum_t (1 - m^t) / (1 - m)`, in closed form, for any number of steps.

    >>> passes(4, 0.0), round(passes(2, 0.9), 6)
    (4.0, 2.9)
    """
    return (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)


def rms(part: Tensor) -> float:
    """Root mean square of the entries; 0 where there are none."""
    return float(part.square().mean().sqrt()) if part.numel() else 0.0


def _on_grid(new: Tensor, change: Tensor, dtype: torch.dtype) -> bool:
    """Whether new weights are numbers of a format, but for the rounding of their difference to float32."""
    return bool(((new.to(dtype).double() - new).abs() <= 2.0**-22 * (new.abs() + change.abs())).all())


def _relative_error(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 12**0.5

"""The state of peeling: what is known at the current layer, and the problem it belongs to.

A batch is peeled as one: the first axis of all values counts its examples.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from inversefed.attacks.exact.peel.feature_targets import Known
from inversefed.attacks.exact.watch import Watch
from inversefed.networks.layer_chain import Layer
from inversefed.types import Params

__all__ = ["Branch", "PeelState", "Setting"]


@dataclass(frozen=True, eq=False)
class Setting:
    """What peeling works on.

    Args:
        layers: the network as a chain.
        gradient: of the loss of the batch, double precision.
        image_shape: `(c, h, w)`.
        bounds: the least and the greatest value of the normalized image, broadcastable to it.
        eps: rounding of the numbers that the gradient was computed in.
        watch: asked after each round of what iterates.
    """

    layers: tuple[Layer, ...]
    gradient: Params = field(repr=False)
    image_shape: tuple[int, int, int]
    bounds: tuple[Tensor, Tensor] = field(repr=False)
    eps: float
    watch: Watch = Watch()


@dataclass(frozen=True, eq=False)
class Branch:
    """Where the two ways of a sum part, seen from within the longer one.

    Args:
        floor: how many layers are in front of it.
        back: the loss gradient that comes back to it through the other way, `[n, c, h, w]`; `None` where that is not
            known yet.
        beside: the convolution that the other way begins with, if it does: it sees the same input.
        delta: the loss gradient with respect to its output, `[n, o, p, q]`.
        outer: the fork that this one lies within.
    """

    floor: int
    back: Tensor | None = field(default=None, repr=False)
    beside: Layer | None = None
    delta: Tensor | None = field(default=None, repr=False)
    outer: "Branch | None" = None


@dataclass(frozen=True, eq=False)
class PeelState:
    """How far the peeling is: what is known between two layers.

    Args:
        left: the layers between the image and what is known.
        values: the numbers that come out of them, `[n, c, h, w]` or `[n, features]`.
        delta: the loss gradient with respect to them.
        weight: how much each is to be believed: the slopes of the activations above it; 0 where it is not known.
        exact: a zero among the values is exactly a zero, and so tells the side of a ReLU.
        rounded: a layer was solved from rounded numbers on the way.
        image: a normalized image that roughly fits, where one was needed on the way.
        unseen: the share of a random input that the equations of the worst layer so far leave open; 1 where none were
            solved for it.
        tolerance: up to what share of it a channel's part of the gradient is noise.
        fork: where the innermost sum of two ways begins, within which this is.
        checked: not so behind a ReLU whose sides nothing has checked yet.
        settled: which channels are known, `[c]`; all by default. The values of the others are near, their weight is 0.
        also: what is known besides, at other depths.
        ended: the numbers lead no further.
    """

    left: tuple[Layer, ...]
    values: Tensor = field(repr=False)
    delta: Tensor = field(repr=False)
    weight: Tensor = field(repr=False)
    exact: bool = True
    rounded: bool = False
    image: Tensor | None = field(default=None, repr=False)
    unseen: float = 0.0
    tolerance: float = 0.0
    fork: Branch | None = None
    checked: bool = True
    settled: Tensor | None = field(default=None, repr=False)
    also: tuple[Known, ...] = ()
    ended: bool = False

    @property
    def depth(self) -> int:
        """How many layers are left."""
        return len(self.left)

    @property
    def first(self) -> bool:
        """Whether the last layer that is left is the first one of a sum's longer way."""
        return self.fork is not None and self.depth == self.fork.floor + 1

    @property
    def known(self) -> bool:
        """Whether anything is known of the values, and not of the loss gradient alone."""
        return bool(self.weight.any())

    @property
    def shown(self) -> tuple[Known, ...]:
        """What is known here, if anything; behind a ReLU that was passed that is the positive numbers."""
        if not self.known:
            return ()
        on = self.weight > 0
        clipped = not bool((on if self.settled is None else on[:, self.settled]).all())
        return (Known(self.left, torch.where(on, self.values, 0.0), clipped, self.settled),)

    def below(self, values: Tensor, delta: Tensor, weight: Tensor) -> "PeelState":
        """The front in front of the last layer."""
        return replace(self, left=self.left[:-1], values=values, delta=delta, weight=weight)

    def without_values(self, delta: Tensor) -> "PeelState":
        """The front in front of the last layer where only the loss gradient is known."""
        nothing = torch.zeros_like(delta)
        return replace(self.below(nothing, delta, nothing), exact=False, settled=None)

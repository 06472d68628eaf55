"""Units at the edge of a ReLU: which side each was on, where rounding decides, is told by the update.

An update jumps where a ReLU turns on. Of a picture for which the input z_j of one is zero within rounding, the last
bits of the pixels decide its side, and so does the order in which a processor adds: the update of the very picture,
known but to those bits, differs by that unit's part. With J the slopes of the inputs near zero, in double precision,
the nearest picture with sides s and a margin m_j of some roundings is

    x + J^+ (t - z),    t_j = s_j max(|z_j|, m_j),

and sides are turned over, one unit after the other, where the update of that picture comes nearer. Nothing but the
client's update, by the measure of any other result, says that one is found. Own derivation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from inversefed.attacks.matching_error import matching_error
from inversefed.fl.network import Network
from inversefed.fl.threat import Observation
from inversefed.thresholds import EXACT
from inversefed.types import Inputs

__all__ = ["settled"]

_RELUS = (
    F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6,
    F.leaky_relu, F.leaky_relu_, F.prelu, torch.prelu, Tensor.prelu,
)  # fmt: skip


@dataclass(frozen=True)
class Tolerances:
    """The numbers that it decides by, each with its reason.

    Args:
        near: roundings of a layer's mean size within which an input may be on either side: pictures that were solved
            for through a deep network are right to some ten, and their features to some more.
        margin: roundings that it is moved from zero, which a sum of some hundred products does not undo.
        most: units that are looked at, the nearest first: each takes a backward pass, and an update or two.
        rank: share of the largest singular value of slopes below which units turn over together only.
        visible: the largest change of a pixel, a hundredth of a step of eight bits.
    """

    near: float = 100.0
    margin: float = 10.0
    most: int = 32
    rank: float = 1e-3
    visible: float = 4e-5


TOLERANCES = Tolerances()


def settled(
    observation: Observation, images: Inputs, labels: Tensor, cost: float, stop: Callable[[], bool]
) -> tuple[Inputs, float]:
    """The images with the units at their edge on the sides that the update tells, and their `matching_error`.

    Args:
        observation: what the server sees.
        images: right but for rounding, in pixel space.
        labels: theirs.
        cost: their `matching_error`.
        stop: asked before each update of the client.
    """
    rounding = torch.finfo(images.dtype).eps
    inputs, sizes, slopes = _edges(observation.network.to(torch.float64), images.double(), rounding)
    if not len(inputs):
        return images, cost
    inverse = torch.linalg.pinv(slopes, rtol=TOLERANCES.rank)
    margin = torch.maximum(inputs.abs(), TOLERANCES.margin * rounding * sizes)

    def at(sides: Tensor) -> tuple[Inputs, float]:
        change = (inverse @ (sides * margin - inputs)).view_as(images)
        if not change.abs().max() < TOLERANCES.visible:
            return images, float("inf")
        moved = (images.double() + change).to(images.dtype)
        return moved, matching_error(observation, moved, labels)

    sides, best, turned = torch.where(inputs < 0, -1.0, 1.0).to(inputs), (images, cost), True
    while turned:
        turned = False
        for unit in range(-1, len(inputs)):  # first as they are
            if best[1] < EXACT or stop():
                return best
            other = sides.clone()
            other[unit] *= 1 if unit < 0 else -1
            found = at(other)
            if found[1] < best[1]:
                best, sides, turned = found, other, unit >= 0
    return best


def _edges(network: Network, images: Inputs, rounding: float) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs of ReLUs that are zero within rounding, the mean sizes in their layers, and their slopes `[m, pixels]`."""
    images = images.detach().clone().requires_grad_()
    with torch.enable_grad(), _Inputs() as seen:
        network.apply(network.params, images)
    sizes = [each.detach().square().mean().sqrt().expand(each.numel()) for each in seen.inputs]
    flat = [each.flatten() for each in seen.inputs if each.requires_grad]
    if not flat or len(flat) < len(sizes):
        return images.new_zeros(0), images.new_zeros(0), images.new_zeros(0, images.numel())
    values, scale = torch.cat(flat), torch.cat(sizes)
    share = values.detach().abs() / scale.clamp(min=torch.finfo(scale.dtype).tiny)
    chosen = share.argsort()[: TOLERANCES.most]
    chosen = chosen[(share[chosen] < TOLERANCES.near * rounding) & (scale[chosen] > 0)]
    slopes = [torch.autograd.grad(values[each], images, retain_graph=True)[0].flatten() for each in chosen]
    kept = [place for place, slope in enumerate(slopes) if bool(slope.any())]
    found = torch.stack([slopes[place] for place in kept]) if kept else images.new_zeros(0, images.numel())
    return values.detach()[chosen[kept]], scale[chosen[kept]], found


class _Inputs(TorchFunctionMode):
    """Notes what goes into ReLUs, be they layers, functions or methods."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = (*args, *(kwargs or {}).values())
        if func in _RELUS and given and isinstance(given[0], Tensor):
            self.inputs.append(given[0].clone())  # before one that works in place
        return func(*args, **(kwargs or {}))

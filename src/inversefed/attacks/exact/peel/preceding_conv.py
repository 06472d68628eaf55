"""The convolution before an activation: what its weight gradient says of the activation pattern."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from inversefed.attacks.exact.peel.conv_block import affine
from inversefed.attacks.exact.peel.conv_input import require_plain
from inversefed.attacks.exact.peel.shift_operators import MOST_SHORT
from inversefed.attacks.exact.peel.state import Branch
from inversefed.errors import UnsupportedNetworkError
from inversefed.networks.layer_chain import Layer, Residual
from inversefed.networks.layer_shapes import residues
from inversefed.types import Params

_SPARE = 1.1
"""How many equations an unknown must have to show that one of them is wrong."""

_JUST_ENOUGH = 16_384
"""Numbers of an input up to which it is solved for where some of its pixels have just as many equations as unknowns.

Such a system is badly conditioned and takes LSMR minutes where it is larger; a search for the image from the features
behind it, with the sums that these equations are, takes seconds."""

__all__ = ["PrecedingConv", "never_negative", "overdetermined", "preceding_conv", "require_enough", "require_shifts"]


@dataclass(frozen=True, eq=False)
class PrecedingConv:
    """The convolution that an activation gets its input from.

    Args:
        layer: where it stands in the network.
        conv: itself.
        shape: `(c, h, w)` of its input.
        scale: by what BatchNorm behind it multiplies each output, `[o, 1, 1]`.
        added: the loss gradient that comes to its output on another way, divided by that, `[n, o, p, q]`.
        beside: the convolution that sees the same input on the other way of a sum, if there is one.
    """

    layer: Layer
    conv: nn.Conv2d
    shape: tuple[int, int, int]
    scale: Tensor = field(repr=False)
    added: Tensor | None = field(default=None, repr=False)
    beside: nn.Conv2d | None = None

    def gradient(self, gradient: Params) -> Tensor:
        """Gradient with respect to its weight, BatchNorm folded in."""
        return self.layer.weight_gradient(gradient) / self.scale[..., None]


def preceding_conv(
    left: tuple[Layer, ...], fork: Branch | None, image_shape: tuple[int, int, int]
) -> PrecedingConv | None:
    """Find the convolution at the end of these layers, perhaps behind BatchNorm, or at the end of a sum's longer way.

    Args:
        left: layers that end in front of an activation.
        fork: the innermost one that they are within.
        image_shape: `(c, h, w)`.
    """
    scale, added, own = torch.ones(1, 1, 1, dtype=torch.float64), None, fork
    while left:
        if fork is not None and len(left) == fork.floor:
            if fork.back is None or added is not None:
                return None
            added, fork = fork.back / scale, fork.outer
        match left[-1].module:
            case nn.Conv2d() as conv if left[-1].trained:
                shape = left[-2].shape if len(left) > 1 else image_shape
                first = own is not None and fork is own and own.beside is not None and len(left) == own.floor + 1
                beside = own.beside.module if first and own is not None and own.beside is not None else None
                assert beside is None or isinstance(beside, nn.Conv2d)
                return PrecedingConv(left[-1], conv, (shape[0], shape[1], shape[2]), scale, added, beside)
            case Residual() as both:
                fork, left = Branch(len(left) - 1, outer=fork), (*left[:-1], *both.body)
                continue
            case nn.BatchNorm2d() as norm:
                scale = scale * affine(norm)[0]
            case nn.Identity() | nn.Dropout() | nn.Dropout2d():
                pass
            case _:
                return None
        left = left[:-1]
    return None


def require_shifts(feed: PrecedingConv, number: int, shape: tuple[int, ...]) -> None:
    """Refuse a convolution that does not tell the places of its outputs apart.

    Args:
        feed: the convolution.
        number: how many examples.
        shape: `(o, h, w)` of its output.

    Raises:
        UnsupportedNetworkError: a stride, an even kernel, one of side 1, padding that changes the size, or far fewer
            channels than places.
    """
    conv = feed.conv
    require_plain(conv, feed.shape)
    sizes, padding = conv.kernel_size, conv.padding
    if set(conv.stride) != {1} or any(
        size < 3 or size % 2 == 0 or pad != size // 2 for size, pad in zip(sizes, padding, strict=True)
    ):
        raise UnsupportedNetworkError(
            f"an average hides where its ReLU was on; a convolution with kernel 3 or more, stride 1 and the same size "
            f"before and behind would tell, but in front of it is {conv}"
        )

    places, fewest = number * shape[1] * shape[2], min(shape[0], feed.shape[0])
    if fewest + MOST_SHORT < places:
        raise UnsupportedNetworkError(
            f"an average over {shape[1]}x{shape[2]} places hides where its ReLU was on; {number} example(s) make "
            f"{places} places, and the convolution in front has only {fewest} channels to tell them apart"
        )


def overdetermined(feed: PrecedingConv, number: int) -> bool:
    """Whether its weight gradient has equations to spare, so that one unit on the wrong side breaks some.

    Each unit takes part in the equations of every tap. So with a stride it is enough that the pixels of one residue
    have clearly more equations than unknowns, where none has fewer; a large input is not solved for then.

    Args:
        feed: the convolution; one beside it counts as well.
        number: how many examples.
    """
    found, pixels = _equations(feed.conv, feed.shape, feed.layer.shape)
    if feed.beside is not None and feed.beside.stride == feed.conv.stride:
        found = found + _equations(feed.beside, feed.shape, feed.layer.shape)[0]
    unknown = number * pixels
    spare = found > _SPARE * unknown
    if int(pixels.sum()) != feed.shape[1] * feed.shape[2] or (math.prod(feed.shape) > _JUST_ENOUGH and not spare.all()):
        return False
    return bool((found >= unknown).all() and spare.any())


def never_negative(layers: tuple[Layer, ...]) -> bool:
    """Whether what comes out of these layers is never negative: a ReLU is the last that changes anything."""
    passing = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.AvgPool2d)
    last = next((each.module for each in reversed(layers) if not isinstance(each.module, passing)), None)
    return isinstance(last, nn.ReLU)


def require_enough(
    conv: nn.Conv2d, inputs: tuple[int, ...], outputs: tuple[int, ...], number: int, known: bool
) -> None:
    """Refuse a convolution with fewer equations than unknowns, where several examples share them.

    Args:
        conv: the convolution.
        inputs: `(c, h, w)` of its input.
        outputs: `(o, p, q)` of its output.
        number: how many examples.
        known: its outputs are known, at least in part.

    Raises:
        UnsupportedNetworkError: there are fewer, even if none depends on another.
    """
    found, pixels = _equations(conv, inputs, outputs)
    own = inputs[0] * int(torch.minimum(found, number * pixels).sum()) + (number * math.prod(outputs) if known else 0)
    unknown = number * math.prod(inputs)
    if number > 1 and own < unknown:
        raise UnsupportedNetworkError(
            f"{conv} has {own} equations for the {unknown} values that {number} examples send into it"
        )


def _equations(conv: nn.Conv2d, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Equations and pixels of one channel, by the residue of the pixel modulo the stride."""
    down, across = (torch.tensor(residues(conv, inputs, outputs, axis)) for axis in (0, 1))
    return conv.out_channels * torch.outer(down[:, 0], across[:, 0]), torch.outer(down[:, 1], across[:, 1])

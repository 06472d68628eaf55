"""Pictures: `[n, c, h, w]` in [0, 1], stored with eight bits a pixel and channel."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from inversefed.errors import InputError
from inversefed.inputs.real import check_real, mean_of, own_level
from inversefed.inputs.space import InputSpace

__all__ = ["Images"]

_LEVELS = 255
"""Eight bits."""


def pictured(space: InputSpace | None) -> bool:
    """Whether examples are pictures, as they are where nobody says what they are.

    >>> pictured(None), pictured(Images((3, 8, 8)))
    (True, True)
    """
    return space is None or isinstance(space, Images)


@dataclass(frozen=True)
class Images:
    """Pictures in pixel space.

    Args:
        shape: `(channels, height, width)`, all at least 1.

    Raises:
        InputError: another number of sides, or one below 1.

    >>> Images((3, 8, 8)).middle(2).shape
    torch.Size([2, 3, 8, 8])
    """

    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or any(int(side) < 1 for side in self.shape):
            raise InputError(f"an image shape is (channels, height, width), all at least 1; got {tuple(self.shape)}")
        object.__setattr__(self, "shape", tuple(map(int, self.shape)))

    @property
    def noun(self) -> str:
        """What one of them is called."""
        return "image"

    def check(self, inputs: Tensor) -> None:
        """Refuse anything but a batch of such pictures.

        Raises:
            InputError: wrong shape or type, no picture, NaN, or pixels outside [0, 1].
        """
        check_real(inputs, self.shape, "images", "pixel space, not normalized; give mean= and std= instead")

    def normalization(self) -> tuple[float, float]:
        """None: pixels are fed as they are."""
        return 0.0, 1.0

    def middle(self, count: int) -> Tensor:
        """Gray pictures, 0.5 everywhere."""
        return torch.full((count, *self.shape), 0.5)

    def snap(self, inputs: Tensor) -> Tensor:
        """Rounded to eight bits, in [0, 1].

        >>> (255 * Images((1, 1, 1)).snap(torch.tensor([[[[0.3]]]]))).round().item()
        76.0
        """
        return (inputs.clamp(0, 1) * _LEVELS).round() / _LEVELS

    def stand_ins(self, count: int, random: Generator) -> Tensor:
        """White noise; what looks like photographs, `natural_noise` draws with a spectrum."""
        return torch.rand((count, *self.shape), generator=random)

    def controls(self, truth: Tensor, others: Tensor | None) -> Mapping[str, Tensor]:
        """Each picture's own mean color, better than any that could be guessed; gray; the mean picture of others."""
        plain = {"constant": own_level(truth), "gray": torch.full_like(truth, 0.5)}
        return plain if others is None else plain | {"mean": mean_of(others, truth)}

    def cells(self, example: Tensor) -> Sequence[tuple[str, str]]:
        """None: a report shows the picture."""
        return ()

    def measures(self, found: Tensor, truth: Tensor) -> Mapping[str, Tensor]:
        """Nothing: the registry of `evaluation.metrics` is that of pictures."""
        return {}

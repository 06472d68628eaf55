"""Network defenses before the head: PRECODE's variational bottleneck, and dropout.

    mu, log v = E r,    z = mu + e sqrt(v),  e ~ N(0, 1),    r' = D z

PRECODE, Scheliga et al. (2022), arXiv:2108.04725, puts this between the representation r and the head: the client draws
e, so that its gradient is that of a computation which the server cannot repeat. The paper's loss also has 1e-3 times
the divergence of z from N(0, 1); here the loss is the network's own, which sees logits alone, so that term is left out.
Scheliga et al. (2022), arXiv:2208.06163, on dropout.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor, nn

from inversefed.errors import ConfigError, UnsupportedNetworkError
from inversefed.fl.apart import apart
from inversefed.fl.dropout import NormalNoise
from inversefed.fl.network import Network, freeze

__all__ = ["PRECODE", "Dropout"]


class Bottleneck(nn.Module):
    """The variational layer, `[n, d]` to `[n, d]`."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(features, 2 * width)
        self.noise = NormalNoise()
        self.decoder = nn.Linear(width, features)

    def forward(self, inputs: Tensor) -> Tensor:
        """Encode, draw, decode."""
        mean, log_variance = self.encoder(inputs).chunk(2, dim=1)
        outputs: Tensor = self.decoder(mean + self.noise(mean) * (log_variance / 2).exp())
        return outputs


@dataclass(frozen=True)
class PRECODE:
    """Put a variational bottleneck before the head.

    The server sends its weights as those of any layer; what the client draws in it, it keeps.

    Args:
        width: of the latent; 256 in the paper.
        seed: of the bottleneck's first weights.

    Raises:
        ConfigError: a width below 1.
        UnsupportedNetworkError: when called, a network whose last layer is unclear or not linear.
    """

    width: int = 256
    seed: int = 0
    acts_on: ClassVar[Literal["network"]] = "network"

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ConfigError(f"PRECODE needs a width of at least 1, got {self.width}")

    def __call__(self, network: Network) -> Network:
        """The same network with the bottleneck; its head becomes two layers, the old head the second."""
        return _before_head(network, lambda head: self._bottleneck(network, head.in_features))

    def _bottleneck(self, network: Network, features: int) -> nn.Module:
        layer = Bottleneck(features, self.width)
        generator = Generator().manual_seed(self.seed)
        for weight in layer.parameters():  # as torch draws those of a linear layer, but from a generator of its own
            fan_in = features if weight.shape[0] == 2 * self.width else self.width
            draw = torch.rand(weight.shape, generator=generator) * 2 - 1
            weight.data = draw.to(network.device, network.dtype) / fan_in**0.5
        return layer.to(network.device, network.dtype).eval()


@dataclass(frozen=True)
class Dropout:
    """Drop entries of what goes into the head while the client trains, whatever the mode of the rest.

    Args:
        p: the share that is dropped, in (0, 1).

    Raises:
        ConfigError: no such share.
        UnsupportedNetworkError: when called, a network whose last layer is unclear or not linear.
    """

    p: float = 0.5
    acts_on: ClassVar[Literal["network"]] = "network"

    def __post_init__(self) -> None:
        if not 0 < self.p < 1:
            raise ConfigError(f"Dropout drops a share in (0, 1), got {self.p}")

    def __call__(self, network: Network) -> Network:
        """The same network with a dropout layer in train mode before its head."""
        return _before_head(network, lambda _: nn.Dropout(self.p).train())


def _before_head(network: Network, make: Callable[[nn.Linear], nn.Module]) -> Network:
    """A network whose head `h` becomes `h.0`, a new layer, and `h.1`, the old head."""
    module = apart(network.module)
    path, _, last = str(network.head).rpartition(".")
    head = module.get_submodule(str(network.head)) if network.head else None
    if not isinstance(head, nn.Linear):
        raise UnsupportedNetworkError(
            "this defense goes before a last, linear layer; the network's last layer is unclear or of another kind"
        )
    both = nn.Sequential(make(head), head)
    both.training = head.training  # of the container alone: what is in it has a mode of its own
    setattr(module.get_submodule(path), last, both)
    changed = freeze(
        module,
        network.image_shape,
        mean=network.mean.flatten(),
        std=network.std.flatten(),
        loss=network.loss,
        low=network.low.flatten(),
        high=network.high.flatten(),
    )
    return changed.with_masks(network.mask_seed)

"""Labels that are left open."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from inversefed.fl.threat import Observation
from inversefed.types import SoftLabels

__all__ = ["JointLabels"]


@dataclass(frozen=True)
class JointLabels:
    """Not a rule: leave the labels open and optimize softmax logits together with the images.

    DLG, Zhu et al. (2019), arXiv:1906.08935.

    Args:
        shared: one row of logits for the whole batch, as the 2020 code had it, instead of one an example.
    """

    shared: bool = False

    def start(self, observation: Observation, generator: Generator) -> Tensor:
        """Normal logits, `[n, k]`, or `[k]` where shared."""
        network = observation.network
        rows = () if self.shared else (observation.num_examples,)
        shape = (*rows, network.num_classes)
        return torch.randn(shape, generator=generator, dtype=network.dtype, device=generator.device).to(network.device)

    def decode(self, logits: Tensor, num_examples: int) -> SoftLabels:
        """Probabilities, `[n, k]`."""
        return logits.softmax(dim=-1).expand(num_examples, -1)

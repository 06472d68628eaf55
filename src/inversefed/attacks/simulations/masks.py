"""Simulations of unknown dropout masks: averaged over draws, or searched."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from inversefed.attacks.simulations.simulation import Compared, Simulation
from inversefed.errors import ConfigError
from inversefed.fl.dropout import dropout_layers, mask_shapes
from inversefed.fl.threat import Observation
from inversefed.types import Inputs

__all__ = ["AveragedMasks", "OptimizedMasks"]

_APART = 10_000
"""Between the seeds of two draws, for each local step takes the next one."""
_NONE = Generator()
"""For starts that draw nothing."""


@dataclass(frozen=True)
class AveragedMasks(Simulation):
    """Average the client's update over several draws of dropout's masks (and of the order, where it shuffles).

    Args:
        draws: how many; each costs a simulation.
    """

    draws: int = 8

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ConfigError(f"AveragedMasks needs at least one draw, got {self.draws}")

    def __call__(
        self, observation: Observation, variables: Mapping[str, Tensor], images: Inputs, labels: Tensor
    ) -> Compared:
        """The mean update beside the one observed."""
        network = observation.network
        seeds = [network.mask_seed + _APART * draw for draw in range(self.draws)]
        updates = [observation.client(network.with_masks(seed), images, labels) for seed in seeds]
        mean = {name: torch.stack([update[name] for update in updates]).mean(dim=0) for name in updates[0]}
        return Compared(mean, observation.update)


@dataclass(frozen=True)
class OptimizedMasks(Simulation):
    """Search dropout's masks together with the pictures, relaxed to [0, 1].

    The dropout inversion attack, Scheliga et al. (2022), arXiv:2208.06163: every layer, local step and example has a
    mask of its own, held to its layer's share of ones by `weight * (mean(m) - (1 - p))^2`. Here a mask starts at its
    mean, `1 - p`, and passes through a sigmoid instead of being clipped.

    Args:
        rate: how far a unit step of the search moves a mask's logit.
        weight: of the penalty.

    """

    rate: float = 1.0
    weight: float = 1e-3

    def __post_init__(self) -> None:
        if not self.rate > 0 or self.weight < 0:
            raise ConfigError(f"OptimizedMasks needs rate > 0 and weight >= 0; got {self.rate} and {self.weight}")

    def start(self, observation: Observation, generator: Generator) -> Mapping[str, Tensor]:
        """`mask:` and the layer's name, `[steps, examples a step, ..]`, zero where every mask is at its mean."""
        network, steps, size = observation.network, observation.steps, observation.num_examples
        gray = network.space.middle(2)
        shapes = mask_shapes(network.module, lambda: network.features(gray))
        if steps is not None and not steps.clients:
            size = max(part.stop - part.start for part in steps.slices)
        like = next(iter(network.params.values()))
        return {
            f"mask:{name}": torch.zeros(
                (1 if steps is None else steps.count, size, *shape), dtype=like.dtype, device=like.device
            )
            for name, shape in shapes.items()
            if name in dropout_layers(network.module)
        }

    def __call__(
        self, observation: Observation, variables: Mapping[str, Tensor], images: Inputs, labels: Tensor
    ) -> Compared:
        """The client's update with these masks, and how far their means are from what the layers say."""
        network = observation.network
        variables = variables if any(name.startswith("mask:") for name in variables) else self.start(observation, _NONE)
        masks, penalty = {}, images.new_zeros(())
        for name, layer in dropout_layers(network.module).items():
            if f"mask:{name}" in variables:
                kept = 1 - float(layer.p)
                masks[name] = torch.sigmoid(
                    self.rate * variables[f"mask:{name}"] + torch.logit(images.new_tensor(kept))
                )
                penalty = penalty + (masks[name].mean() - kept).square()
        predicted = observation.client(replace(network, masks=masks), images, labels)
        return Compared(predicted, observation.update, self.weight * penalty)

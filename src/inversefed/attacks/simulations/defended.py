"""Simulations of defended clients, for an attacker who knows the defense but not its random draws.

    clipped:    predicted = clip(client(network, x, y))
    leaving:    predicted and observed without the tensors that were tampered with
    augmented:  predicted = client(network, T(x), y)
    unmixed:    predicted = client(network, lam x + (1 - lam) x_p, lam y + (1 - lam) y_p),   lam searched
    noised:     predicted = client(network with draws e, x, y),   e searched

Balunovic et al. (2022), arXiv:2111.04706, broke defenses so: an attack that simulates what is known of the defense, and
searches the rest.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Generator, Tensor

from inversefed.attacks.simulations.known import KnownClient
from inversefed.attacks.simulations.simulation import Compared, Simulation
from inversefed.errors import ConfigError
from inversefed.fl.defenses.augmentation import ATS
from inversefed.fl.defenses.clipping import Clip
from inversefed.fl.defenses.mixing import mixed
from inversefed.fl.dropout import mask_shapes, noise_layers
from inversefed.fl.targets import as_rows
from inversefed.fl.threat import Observation
from inversefed.types import Inputs

__all__ = ["Augmented", "Clipped", "Leaving", "Noised", "Unmixed"]


class Wrapping(Simulation, Protocol):
    """A simulation that leaves to an inner one what it does not change."""

    @property
    def inner(self) -> Simulation:
        """The simulation of the rest."""
        ...

    def copies(self, observation: Observation) -> int:
        """As the inner one."""
        return self.inner.copies(observation)

    def start(self, observation: Observation, generator: Generator) -> Mapping[str, Tensor]:
        """As the inner one."""
        return self.inner.start(observation, generator)

    def result(self, images: Tensor, labels: Tensor) -> Tensor:
        """As the inner one."""
        return self.inner.result(images, labels)


@dataclass(frozen=True)
class Clipped(Wrapping):
    """Clip the guess's update as the client clipped its own.

    Args:
        max_norm: the client's.
        inner: the simulation of the rest.
    """

    max_norm: float
    inner: Simulation = KnownClient()

    def __call__(
        self, observation: Observation, variables: Mapping[str, Tensor], images: Inputs, labels: Tensor
    ) -> Compared:
        """Clip what the inner one predicts."""
        found = self.inner(observation, variables, images, labels)
        return replace(found, predicted=Clip(self.max_norm).scaled(found.predicted))


@dataclass(frozen=True)
class Leaving(Wrapping):
    """Leave tensors out of the comparison, those that a defense such as Soteria changed.

    Args:
        names: of the tensors.
        inner: the simulation of the rest.
    """

    names: tuple[str, ...]
    inner: Simulation = KnownClient()

    def __call__(
        self, observation: Observation, variables: Mapping[str, Tensor], images: Inputs, labels: Tensor
    ) -> Compared:
        """What the inner one predicts and observes, less these tensors."""
        found = self.inner(observation, variables, images, labels)
        kept = [name for name in found.predicted if name not in self.names]
        if not kept:
            raise ConfigError(f"nothing is left to compare without {', '.join(self.names)}")
        return Compared(
            {name: found.predicted[name] for name in kept}, {name: found.observed[name] for name in kept}, found.penalty
        )


@dataclass(frozen=True)
class Augmented(Wrapping):
    """Transform the guess as the client transforms its pictures: what is searched is the picture before.

    Args:
        defense: the client's policy.
        inner: the simulation of the rest.
    """

    defense: ATS = ATS()
    inner: Simulation = KnownClient()

    def __call__(
        self, observation: Observation, variables: Mapping[str, Tensor], images: Inputs, labels: Tensor
    ) -> Compared:
        """Simulate with transformed pictures."""
        return self.inner(observation, variables, self.defense.transformed(images), labels)


@dataclass(frozen=True)
class Unmixed(Wrapping):
    """Search the pictures that were mixed, and the share of the mixture, which starts at `share`.

    The first partner of each example is taken to be the next one: of two examples there is no other, and of more an
    order is as good as another only where labels are all that tells them apart.

    Args:
        share: where the search of the share starts; not 0.5, where the mixtures are the same.
        inner: the simulation of the rest.

    Raises:
        ConfigError: a share outside (0, 1).
    """

    share: float = 0.75
    inner: Simulation = KnownClient()

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ConfigError(f"Unmixed needs a share in (0, 1), got {self.share}")

    def start(self, observation: Observation, generator: Generator) -> Mapping[str, Tensor]:
        """`share`, zero where it is at its start."""
        like = next(iter(observation.network.params.values()))
        zero = torch.zeros((), dtype=like.dtype, device=like.device)
        return {**self.inner.start(observation, generator), "share": zero}

    def __call__(
        self, observation: Observation, variables: Mapping[str, Tensor], images: Inputs, labels: Tensor
    ) -> Compared:
        """Mix pictures and labels, then simulate."""
        logit = torch.logit(images.new_tensor(self.share))
        share = torch.sigmoid(variables.get("share", images.new_zeros(())) + logit)
        soft = as_rows(observation.network, labels)
        partners = torch.arange(len(images), device=images.device).roll(-1)
        targets = mixed(soft.to(images.dtype), share, partners)
        return self.inner(observation, variables, mixed(images, share, partners), targets)


@dataclass(frozen=True)
class Noised(Wrapping):
    """Search what a client's noise layers drew, as PRECODE's bottleneck does, together with the pictures.

    Args:
        rate: how far a unit step of the search moves a draw.
        weight: of the draws' mean square, which keeps them where normal ones are.
        inner: the simulation of the rest, which must not have masks of its own.

    Raises:
        ConfigError: a rate that is not above 0, or a negative weight.
    """

    rate: float = 1.0
    weight: float = 1e-3
    inner: Simulation = KnownClient()

    def __post_init__(self) -> None:
        if not self.rate > 0 or self.weight < 0:
            raise ConfigError(f"Noised needs rate > 0 and weight >= 0; got {self.rate} and {self.weight}")

    def start(self, observation: Observation, generator: Generator) -> Mapping[str, Tensor]:
        """`noise:` and the layer's name, `[steps, examples a step, ..]`, all zero: the draws' mean."""
        network, steps = observation.network, observation.unrolled
        gray = network.space.middle(2)
        shapes = mask_shapes(network.module, lambda: network.features(gray))
        slices = [] if steps is None else steps.slices
        size = max((part.stop - part.start for part in slices), default=observation.num_examples)
        like = next(iter(network.params.values()))
        own = {
            f"noise:{name}": torch.zeros((len(slices) or 1, size, *shapes[name]), dtype=like.dtype, device=like.device)
            for name in noise_layers(network.module)
            if name in shapes
        }
        return {**self.inner.start(observation, generator), **own}

    def __call__(
        self, observation: Observation, variables: Mapping[str, Tensor], images: Inputs, labels: Tensor
    ) -> Compared:
        """The inner simulation with these draws, and how large they are."""
        if not any(name.startswith("noise:") for name in variables):
            variables = {**self.start(observation, Generator()), **variables}
        draws = {
            name.removeprefix("noise:"): self.rate * value
            for name, value in variables.items()
            if name.startswith("noise:")
        }
        size = sum((draw.square().mean() for draw in draws.values()), images.new_zeros(()))
        found = self.inner(_with(observation, draws), variables, images, labels)
        return replace(found, penalty=found.penalty + self.weight * size)


def _with(observation: Observation, draws: Mapping[str, Tensor]) -> Observation:
    """The observation of a network that draws these."""
    return replace(observation, network=replace(observation.network, masks=dict(draws)))

"""What changes from step to step of a restart: wrappers of an inversion problem.

    noise     match(client(network, x + e_t, y^), update*)    the search goes down a smoothed cost, which sharpens
    priors    ... + sum c_t prior(x)                          c_t falls from 1
    pull      ... + weight |x - consensus|^2                  restarts hold each other

What is drawn before a step stays as it is within it, so that a line search goes down one function.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from inversefed.attacks.pieces.group_consistency import GroupConsistency
from inversefed.attacks.search.minimize import Descent
from inversefed.attacks.search.problem import Prior, Problem
from inversefed.fl.network import Network
from inversefed.fl.threat import Observation
from inversefed.types import Inputs, Scalar

__all__ = ["FadingPriors", "Noise", "Pull"]

Schedule = Callable[[float, int, int], float]


@dataclass(frozen=True)
class Noise:
    """Normal noise on the network inputs that the client sees; the priors do not see it.

    Args:
        std: its standard deviation, in normalized inputs.
        schedule: how that changes over a restart.
    """

    std: float
    schedule: Schedule

    def drawn(
        self, problem: Problem, running: Sequence[Descent], iteration: int, iterations: int
    ) -> Sequence[Tensor | None]:
        """From each restart's own generator."""
        std = self.schedule(self.std, iteration, iterations)
        return [_normal(problem.shape, descent) * std for descent in running]

    def applied(self, problem: Problem, drawn: Tensor) -> Problem:
        """The client sees less."""
        return replace(problem, view=_Disturbed(problem.network, drawn))


@dataclass(frozen=True)
class FadingPriors:
    """A common factor of all priors.

    Args:
        schedule: how it changes over a restart, from 1.
    """

    schedule: Schedule

    def drawn(
        self, problem: Problem, running: Sequence[Descent], iteration: int, iterations: int
    ) -> Sequence[Tensor | None]:
        """The factor, as a tensor so that a compiled step need not be compiled anew."""
        factor = self.schedule(1.0, iteration, iterations)
        return [descent.variables["images"].new_tensor(factor) for descent in running]

    def applied(self, problem: Problem, drawn: Tensor) -> Problem:
        """Each prior counts less."""
        return replace(problem, priors=tuple(_Weighted(prior, drawn) for prior in problem.priors))


@dataclass(frozen=True)
class Pull:
    """The pull of each restart towards what all of them agree on; nothing before they first meet.

    Args:
        group: when they meet, what they agree on, and how strong the pull is.
    """

    group: GroupConsistency

    def drawn(
        self, problem: Problem, running: Sequence[Descent], iteration: int, iterations: int
    ) -> Sequence[Tensor | None]:
        """The consensus, in network inputs; where it is time to meet, each restart keeps a new one."""
        if len(running) > 1 and self.group.meets(iteration, iterations):
            with torch.no_grad():
                pictures = [problem.images(descent.variables) for descent in running]
                inputs = torch.stack([problem.network.normalize(each) for each in pictures])
                for descent, consensus in zip(running, self.group.consensus(inputs, problem.labels), strict=True):
                    descent.held = consensus
        return [descent.held for descent in running]

    def applied(self, problem: Problem, drawn: Tensor) -> Problem:
        """It is one prior more, which does not fade."""
        return replace(problem, priors=(*problem.priors, _Pulled(drawn, self.group.weight)))


def _normal(shape: tuple[int, ...], descent: Descent) -> Tensor:
    like = descent.variables["images"]
    return torch.randn(shape, generator=descent.generator, dtype=like.dtype).to(like.device)


@dataclass(frozen=True, eq=False)
class _Disturbed:
    """What the client sees: pictures with noise on the network's inputs."""

    network: Network
    noise: Tensor = field(repr=False)

    def __call__(self, images: Inputs) -> Inputs:
        return self.network.denormalize(self.network.normalize(images) + self.noise)


@dataclass(frozen=True, eq=False)
class _Weighted:
    prior: Prior
    factor: Tensor

    def __call__(self, images: Inputs, observation: Observation) -> Scalar:
        return self.factor * self.prior(images, observation)


@dataclass(frozen=True, eq=False)
class _Pulled:
    """It has a gradient but adds nothing, so that losses before and after restarts meet can be compared."""

    consensus: Tensor = field(repr=False)
    weight: float

    def __call__(self, images: Inputs, observation: Observation) -> Scalar:
        away = observation.network.normalize(images) - self.consensus
        pull = self.weight * away.square().mean()
        return pull - pull.detach()

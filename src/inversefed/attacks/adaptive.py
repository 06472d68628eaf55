"""Adaptive attacks: one for each defense, for an attacker who knows that it ran but not what it drew.

    x^ = argmin_x  - log p(update* | client(network, x, y), defenses)  -  log p(x)

A defense that is only tried against attacks that ignore it is not tried (Balunovic et al. 2022, arXiv:2111.04706). For
each known defense one piece of the search is exchanged: the objective for what the defense does to numbers, the
simulation for what it does to pictures, network or tensors, and the weight of the prior for how much it leaves to say.
Then the undefended attack is run as well, and what explains the update better under the defense is kept.
"""

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator

from inversefed.attacks import SearchAttack
from inversefed.attacks.pieces.likelihoods import GaussianLikelihood, LaplaceLikelihood, PrunedError
from inversefed.attacks.pieces.objectives import RelativeSquaredError
from inversefed.attacks.pieces.priors import TotalVariation
from inversefed.attacks.pieces.quantized import Masked, RoundingLikelihood, SignError
from inversefed.attacks.pieces.schedules import Constant
from inversefed.attacks.search.inversion import GradientInversion
from inversefed.attacks.search.problem import Problem
from inversefed.attacks.search.time_schedule import as_fits
from inversefed.attacks.simulations import Augmented, Clipped, Leaving, Noised, Unmixed
from inversefed.errors import ConfigError, InversefedError
from inversefed.findings import Code
from inversefed.fl import defenses as fl
from inversefed.fl.defenses.protocols import Defense
from inversefed.fl.defenses.soteria import defended_tensor
from inversefed.fl.dropout import noise_layers
from inversefed.fl.threat import Observation
from inversefed.types import Budget, Finding, Reconstruction, Status

__all__ = ["Adaptive"]


@dataclass(frozen=True)
class Adaptive:
    """Attack with what is known of the client's defenses, and without; keep what explains the update better.

    Paper: the idea of Balunovic et al. (2022), arXiv:2111.04706; each defense's own attack is named beside its rule.
    Needs: the defenses, granted by the threat model (`defenses="known"`) or given.
    Cost: the attack, and one more search.

    `recipes.best()` adapts itself; this is for other searches, as in `Adaptive(geiping())`.

    Args:
        attack: what is run where no defense is known, and whose search is adapted: a search, or a choice of one.
        defenses: those to believe in instead of the observation's; `None` for those.
        beside: also run the attack as it is.

    Raises:
        ConfigError: an attack without a search.
    """

    attack: SearchAttack
    defenses: tuple[Defense, ...] | None = None
    beside: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.attack, SearchAttack):
            raise ConfigError(f"Adaptive adapts a search, such as recipes.best() or geiping(); got {self.attack!r}")

    def search(self, observation: Observation) -> GradientInversion:
        """The attack's search, each known defense in it."""
        search = self._plain(observation)
        for defense in self._known(observation):
            search = adapted(search, defense, observation)
        if noise_layers(observation.network.module):
            search = replace(search, simulation=Noised(inner=search.simulation))
        return search

    def with_settings(self, **changes: Any) -> "Adaptive":
        """The same attack, its search with other restarts, precision or compilation."""
        return replace(self, attack=self.attack.with_settings(**changes))

    def __call__(self, observation: Observation, generator: Generator, budget: Budget = Budget()) -> Reconstruction:
        """Attack twice, and choose by what the update says under the known defenses.

        Raises:
            InversefedError: as the attack raises, where the adapted search raises as well.
        """
        began, told = time.monotonic(), self.told(observation)
        if not self.beside or not told:
            return self.informed(observation, generator, budget)
        half = None if budget.seconds is None else budget.seconds / 2
        untold = replace(observation, defenses=())
        found = self.informed(observation, generator, replace(budget, seconds=half))
        try:
            rest = replace(budget, seconds=budget.left(began), checkpoint=None, resume=None)
            other = self.attack(untold, generator, rest)
        except InversefedError:
            return found  # what cannot be attacked without knowledge of its defense was attacked with it
        return self.better(observation, found, other)

    def told(self, observation: Observation) -> bool:
        """Whether anything is known that changes the search."""
        return self.search(observation) != self._plain(observation)

    def _plain(self, observation: Observation) -> GradientInversion:
        """The attack's search as it is, told of no defense.

        Raises:
            ConfigError: it has no pieces that could be exchanged.
        """
        search = self.attack.search(replace(observation, defenses=()) if observation.defenses else observation)
        if not isinstance(search, GradientInversion):
            raise ConfigError(f"only the pieces of a GradientInversion can be adapted to a defense; got {search!r}")
        return search

    def informed(self, observation: Observation, generator: Generator, budget: Budget = Budget()) -> Reconstruction:
        """The adapted search alone; the attack as it is where nothing is known that changes it."""
        if not self.told(observation):
            return self.attack(replace(observation, defenses=()), generator, budget)
        search = self.search(observation)
        found, fewer = as_fits(search, observation, generator, budget)
        found = replace(found, status=Status.STOPPED) if fewer else found
        known = ", ".join(map(repr, self._known(observation))) or "noise in the network itself"
        message = f"The search was adapted to what is known of the client's defenses: {known}."
        finding = Finding(Code.ATTACK_ADAPTED, "info", message, {"attack": repr(search)})
        return replace(found, findings=(finding, *found.findings))

    def _known(self, observation: Observation) -> tuple[Defense, ...]:
        return observation.defenses if self.defenses is None else self.defenses

    def better(self, observation: Observation, found: Reconstruction, other: Reconstruction) -> Reconstruction:
        """Which of two results explains the update better under the known defenses; no truth is asked.

        Args:
            observation: what the server sees.
            found: of the adapted search, whose loss counts with all that was searched beside the pictures.
            other: of another attack; what was not searched stands at its start.
        """
        search = self.search(observation)
        ours = found.loss + _unlikely(search, observation, found)
        theirs = explained(search, observation, other)
        return other if theirs < ours else found


def explained(search: GradientInversion, observation: Observation, found: Reconstruction) -> float:
    """The search's own loss of a result: how badly it explains the update, and how unlikely its pictures are."""
    problem = Problem.of(
        observation, search.objective, search.priors, search.parametrization, search.labels, search.simulation
    )
    loss = problem.match(found.images.clamp(0, 1), found.labels) + _unlikely(search, observation, found)
    return loss if math.isfinite(loss) else math.inf


def _unlikely(search: GradientInversion, observation: Observation, found: Reconstruction) -> float:
    """What the priors say of a result."""
    with torch.no_grad():
        return sum((float(prior(found.images.clamp(0, 1), observation)) for prior in search.priors), 0.0)


def _stated(search: GradientInversion, objective: Any, weight: float) -> GradientInversion:
    """The search with an objective whose scale means something, and a prior beside it that does not fade."""
    return replace(
        search,
        objective=objective,
        priors=(TotalVariation(weight),),
        prior_schedule=Constant(),
        noise=0.0,
        features=0.0,
    )


def _an_entry(observation: Observation) -> float:
    """The prior's weight beside an average over the update's entries: pixels an entry.

    Differences of neighbors are about Laplacian; a scale of one standard deviation of the input is what did best on
    photographs.
    """
    entries = sum(part.numel() for part in observation.update.values())
    return math.prod(observation.batch_shape) / entries


_SMALL = 1e-3
"""Weight of the prior beside a relative error: enough to settle what the update leaves open."""


def adapted(search: GradientInversion, defense: Defense, observation: Observation) -> GradientInversion:
    """The search with one more defense known; as it is where there is nothing to know."""
    match defense:
        case fl.GaussianNoise(std=std) if std:
            return _stated(search, GaussianLikelihood(std), _an_entry(observation))
        case fl.LaplaceNoise(scale=scale) if scale:
            return _stated(search, LaplaceLikelihood(scale), _an_entry(observation))
        case fl.UniformQuantization(bits=bits):
            return _stated(search, RoundingLikelihood(bits), _an_entry(observation))
        case fl.StochasticQuantization(bits=bits):
            return _stated(search, RoundingLikelihood(bits, "stochastic"), _an_entry(observation))
        case fl.SignQuantization(scaled=scaled):
            return _stated(search, SignError(scaled), _SMALL)
    return _partly_sent(search, defense, observation)


def _partly_sent(search: GradientInversion, defense: Defense, observation: Observation) -> GradientInversion:
    """The search that compares what was sent, where a defense sends some entries only."""
    match defense:
        case fl.TopK():
            return _stated(search, PrunedError(), _SMALL)
        case fl.RandomPruning(keep=keep, rescale=rescale):
            objective = Masked(RelativeSquaredError(), keep if rescale else 1.0)
            return _stated(search, objective, _SMALL)
        case fl.PercentilePrivacy(gamma=gamma, steps=steps):
            return _stated(search, PrunedError(most=gamma * steps), _SMALL)
        case fl.SVTPrivacy(gamma=gamma, steps=steps, noise_scale=scale):
            objective = Masked(LaplaceLikelihood(scale), most=gamma * steps)
            return _stated(search, objective, _an_entry(observation))
    return _simulated(search, defense, observation)


def _simulated(search: GradientInversion, defense: Defense, observation: Observation) -> GradientInversion:
    """The search whose simulation does what the defense does."""
    inner = search.simulation
    match defense:
        case fl.ExcludeVars():
            out = defense.left_out(tuple(observation.update))
            return replace(search, simulation=Leaving(out, inner), features=0.0)
        case fl.Clip(max_norm=max_norm):
            return replace(search, simulation=Clipped(max_norm, inner), features=0.0)
        case fl.Soteria():
            return replace(search, simulation=Leaving((defended_tensor(observation.network),), inner), features=0.0)
        case fl.ATS():
            priors = search.priors or (TotalVariation(_SMALL),)
            return replace(search, simulation=Augmented(defense, inner), priors=priors, features=0.0)
        case fl.Mixup() if observation.num_examples > 1:
            return replace(search, simulation=Unmixed(inner=inner), features=0.0)
    return search

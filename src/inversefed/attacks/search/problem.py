"""The inversion problem: an observation as a function of images, which every search minimizes.

    value(x, y) = match(client(network, x, y), update*) + sum prior(x)

How the client is simulated where something about it is unknown is told by a piece of `simulations`; what changes from
step to step (noise, fading priors, a pull) wraps a part of the problem and is told by `changes`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

from inversefed.attacks.head.head_inputs import HeadInputs, recover_head_inputs
from inversefed.attacks.labels import JointLabels, LabelRule, RecoveredLabels, granted_or_recovered_labels
from inversefed.attacks.pieces.parametrizations import Parametrization, bound_to, started
from inversefed.attacks.search.minimize import Conditions, Descent, Variables
from inversefed.attacks.simulations import KnownClient, Simulation
from inversefed.attacks.simulations.known_features import KnownFeatures
from inversefed.errors import ThreatModelError
from inversefed.fl.network import Network
from inversefed.fl.targets import as_targets, forms
from inversefed.fl.threat import Observation
from inversefed.types import Inputs, Params, Scalar, SoftLabels, Targets

__all__ = ["Change", "Objective", "Prior", "Problem", "inversion_loss"]

Objective = Callable[[Params, Params], Scalar]
Prior = Callable[[Inputs, Observation], Scalar]
View = Callable[[Inputs], Inputs]


def inversion_loss(problem: "Problem", variables: Variables) -> Scalar:
    """What is minimized: `match(client(network, x, y^), update*) + sum prior(x)`."""
    images, labels = problem.searched(variables), problem.targets(variables)
    distance, penalty = problem.distance(variables, problem.view(images), labels)
    return sum((prior(images, problem.observation) for prior in problem.priors), start=distance + penalty)


@runtime_checkable
class Change(Protocol):
    """Something of a problem that changes from step to step of a restart: a wrapper of one of its parts."""

    def drawn(
        self, problem: "Problem", running: Sequence[Descent], iteration: int, iterations: int
    ) -> Sequence[Tensor | None]:
        """What it depends on, of each restart at an iteration, from 0; `None` where it does nothing yet."""
        ...

    def applied(self, problem: "Problem", drawn: Tensor) -> "Problem":
        """The problem with it."""
        ...


def _clear(images: Inputs) -> Inputs:
    """The pictures as they are."""
    return images


@dataclass(frozen=True, eq=False)
class Problem:
    """What is minimized, and how its variables are read.

    The variables are `images`, which the parametrization takes to the network's normalized input space, `labels`,
    logits, where the labels are optimized too, and what the simulation of the client adds.

    Args:
        observation: what the server sees.
        objective: distance of two updates.
        priors: added to it.
        parametrization: from the search variable to network inputs; `of` binds one to the network that has to know it.
        joint: how open labels are decoded.
        labels: the labels, where they are known or were recovered.
        simulation: how the client is simulated.
        rows: whether the loss takes open labels as rows; else, of a single output, as one number an example.
        view: what the client sees of the pictures that the priors see.
        changes: what changes from step to step, in the order in which it is applied.
    """

    observation: Observation
    objective: Objective
    priors: Sequence[Prior]
    parametrization: Parametrization
    joint: JointLabels
    labels: Targets | None
    simulation: Simulation = KnownClient()
    rows: bool = True
    view: View = _clear
    changes: tuple[Change, ...] = ()

    @classmethod
    def of(
        cls,
        observation: Observation,
        objective: Objective,
        priors: Sequence[Prior],
        parametrization: Parametrization,
        rule: LabelRule | JointLabels,
        simulation: Simulation = KnownClient(),
        features: float = 0.0,
        stop: Callable[[], bool] = lambda: False,
    ) -> "Problem":
        """Settle the labels first: granted, recovered by a rule, or left open.

        Where `RecoveredLabels` finds no rule that applies, they are left open too. With a weight for `features`, what
        went into the head is solved for, and labels with it, until it is to stop.
        """
        joint = rule if isinstance(rule, JointLabels) else JointLabels()
        known = _separated(observation, stop) if features and simulation == KnownClient() else None
        labels = _settled(observation, rule) if known is None else known.labels
        simulation = simulation if known is None else KnownFeatures.of(observation, known, features)
        return cls(
            observation,
            objective,
            priors,
            bound_to(parametrization, observation.network),
            joint,
            labels,
            simulation,
            labels is not None or "rows" in forms(observation.network),
        )

    def functional(self) -> "Problem":
        """The same problem for `torch.func`: its loss is one function of tensors, without hidden graphs."""
        network = replace(self.observation.network, functional=True)
        return replace(self, observation=replace(self.observation, network=network))

    @property
    def network(self) -> Network:
        """The network that the observation is of."""
        return self.observation.network

    @property
    def shape(self) -> tuple[int, ...]:
        """`(n, c, h, w)` of what is searched: several sets of pictures, where the simulation has them apart."""
        count, *one = self.observation.batch_shape
        return (count * self.simulation.copies(self.observation), *one)

    def start(self, images: Tensor, generator: Generator) -> Mapping[str, Tensor]:
        """The variables of a restart."""
        images = started(self.parametrization, images, generator)
        variables = {"images": images.to(self.observation.network.device)}
        if self.labels is None:
            variables["labels"] = self.joint.start(self.observation, generator)
        return {**variables, **self.simulation.start(self.observation, generator)}

    def images(self, variables: Mapping[str, Tensor]) -> Inputs:
        """The pictures that are the result, in pixel space."""
        return self.simulation.result(self.searched(variables), self.targets(variables))

    def searched(self, variables: Mapping[str, Tensor]) -> Inputs:
        """The pictures that are searched, in pixel space."""
        return self.observation.network.denormalize(self.parametrization(variables["images"]))

    def targets(self, variables: Mapping[str, Tensor]) -> Tensor:
        """The labels, hard or soft, that the simulated client trains on."""
        if self.labels is not None:
            return self.labels
        found = self.joint.decode(variables["labels"], self.observation.num_examples)
        return found if self.rows else found.squeeze(1)

    def decoded(self, variables: Mapping[str, Tensor]) -> tuple[Targets, SoftLabels | None]:
        """The labels of a result as the loss takes them, and the probabilities behind them, where they were open."""
        targets = self.targets(variables)
        if self.labels is not None:
            return targets, None
        network = self.observation.network
        if network.num_classes > 1 and "classes" not in forms(network):
            return targets, targets
        classes = (targets > 0.5).flatten() if network.num_classes == 1 else targets.argmax(dim=1)
        return as_targets(network, classes.long()), targets

    def conditions(self, running: Sequence[Descent], iteration: int, iterations: int) -> Sequence[Conditions]:
        """What all changes depend on, of each restart at an iteration, from 0."""
        drawn = [change.drawn(self, running, iteration, iterations) for change in self.changes]
        return [tuple(each[number] for each in drawn) for number in range(len(running))]

    def under(self, conditions: Conditions) -> "Problem":
        """The problem as it is under such conditions; under none as it is."""
        problem = self
        for change, drawn in zip(self.changes, conditions, strict=False):
            problem = problem if drawn is None else change.applied(problem, drawn)
        return problem

    def loss(self, variables: Variables, conditions: Conditions = ()) -> Scalar:
        """What is minimized: `inversion_loss` of the problem under its conditions."""
        return inversion_loss(self.under(conditions), variables)

    def value(self, variables: Variables) -> float:
        """The loss as a number, without a graph, and without what changes."""
        with torch.no_grad():
            return float(self.loss(variables))

    def fit(self, variables: Mapping[str, Tensor]) -> float:
        """The distance of the updates alone, without priors, as a number."""
        with torch.no_grad():
            return float(self.distance(variables, self.searched(variables), self.targets(variables))[0])

    def match(self, images: Inputs, labels: Tensor) -> float:
        """The distance of the updates for any pictures, with nothing known of the simulation's own variables."""
        with torch.no_grad():
            return float(self.distance({}, images, labels)[0])

    def distance(self, variables: Variables, images: Inputs, labels: Tensor) -> tuple[Scalar, Scalar | float]:
        """How far the update of a guess is from the one observed, and what the simulation adds to it."""
        found = self.simulation(self.observation, variables, images, labels)
        return self.objective(found.predicted, found.observed), found.penalty


def _separated(observation: Observation, stop: Callable[[], bool]) -> HeadInputs | None:
    """What went into the head; nothing for one example, which needs no help, and where it cannot be solved for."""
    steps, whole = observation.steps, len(observation.update) == len(observation.network.params)
    if observation.num_examples == 1 or steps is None or not steps.alone or not whole:
        return None
    try:
        return recover_head_inputs(observation, stop)
    except ThreatModelError:
        return None


def _settled(observation: Observation, rule: LabelRule | JointLabels) -> Targets | None:
    """The labels that were granted or that a rule finds; nothing where they are left open.

    Raises:
        ThreatModelError: a rule was asked for that does not apply, or the loss takes no open labels.
    """
    if isinstance(rule, JointLabels):
        if observation.labels is None:
            rule.check(observation.network)
        return observation.labels
    try:
        return granted_or_recovered_labels(observation, rule)
    except ThreatModelError:
        if not isinstance(rule, RecoveredLabels):
            raise
        JointLabels().check(observation.network, guessed=True)
        return None

"""An observation as a function of images: what every optimization attack minimizes.

value(x, y) = match(client(network, x, y), update*) + sum prior(x)
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Generator, Tensor

from inversefed.attacks.labels import JointLabels, LabelRule, RecoveredLabels, granted_or_recovered
from inversefed.attacks.objectives import RelativeSquaredError
from inversefed.attacks.separate import separate
from inversefed.errors import ThreatModelError
from inversefed.fl.arithmetic import float32_products
from inversefed.fl.network import Network
from inversefed.fl.threat import Observation
from inversefed.types import Images, Labels, Params, Scalar

__all__ = ["Objective", "Prior", "Problem", "relative_matching_cost"]

Objective = Callable[[Params, Params], Scalar]
Prior = Callable[[Images, Observation], Scalar]

_NONE: Mapping[str, Tensor] = {}


def relative_matching_cost(observation: Observation, images: Images, labels: Tensor) -> float:
    """How far the update of a guess is from the one observed, `|g - g*|^2 / |g*|^2`; infinite if it is no number.

    It is the same for every attack, whatever that minimizes, and computed without TF32.
    """
    with torch.no_grad(), float32_products(observation.network.device):
        update = observation.client(observation.network, images, labels)
        cost = float(RelativeSquaredError()(update, observation.update))
    return cost if math.isfinite(cost) else math.inf


@dataclass(frozen=True, eq=False)
class Problem:
    """What is minimized, and how its variables are read.

    The variables are `images`, which the parametrization takes to the network's normalized input space, and `labels`,
    logits, where the labels are optimized too.

    Args:
        observation: what the server sees.
        objective: distance of two updates.
        priors: added to it.
        parametrization: from the search variable to network inputs. `of` binds to the network one that has a method
            `bound`; one that has `start(images, generator)` draws its own variables.
        joint: how open labels are decoded.
        labels: the labels, where they are known or were recovered.
        known: what went into the head, where that was solved for; how far a guess is from it is added to the distance.
    """

    observation: Observation
    objective: Objective
    priors: Sequence[Prior]
    parametrization: Callable[[Tensor], Tensor]
    joint: JointLabels
    labels: Labels | None
    known: "KnownFeatures | None" = None

    @classmethod
    def of(
        cls,
        observation: Observation,
        objective: Objective,
        priors: Sequence[Prior],
        parametrization: Callable[[Tensor], Tensor],
        rule: LabelRule | JointLabels,
        features: float = 0.0,
    ) -> "Problem":
        """Settle the labels first: granted, recovered by a rule, or left open.

        Where `RecoveredLabels` finds no rule that applies, they are left open too. With a weight for `features`, what
        went into the head is solved for, and labels with it.
        """
        known = KnownFeatures.of(observation, features) if features else None
        if known is not None:
            return cls(observation, objective, priors, parametrization, JointLabels(), known.labels, known)
        joint = rule if isinstance(rule, JointLabels) else JointLabels()
        try:
            labels = observation.labels if isinstance(rule, JointLabels) else granted_or_recovered(observation, rule)
        except ThreatModelError:
            if not isinstance(rule, RecoveredLabels):
                raise
            labels = None
        bound = getattr(parametrization, "bound", None)
        return cls(
            observation, objective, priors, bound(observation.network) if bound else parametrization, joint, labels
        )

    def functional(self) -> "Problem":
        """The same problem for `torch.func`: its loss is one function of tensors, without hidden graphs."""
        network = replace(self.observation.network, functional=True)
        known = None if self.known is None else self.known.functional()
        return replace(self, observation=replace(self.observation, network=network), known=known)

    def start(self, images: Tensor, generator: Generator) -> Mapping[str, Tensor]:
        """The variables of a restart."""
        drawn = getattr(self.parametrization, "start", None)
        images = images if drawn is None else drawn(images, generator)
        variables = {"images": images.to(self.observation.network.device)}
        if self.labels is None:
            variables["labels"] = self.joint.start(self.observation, generator)
        return variables

    def images(self, variables: Mapping[str, Tensor]) -> Images:
        """The pictures, in pixel space."""
        return self.observation.network.denormalize(self.parametrization(variables["images"]))

    def targets(self, variables: Mapping[str, Tensor]) -> Tensor:
        """The labels, hard or soft, that the simulated client trains on."""
        if self.labels is None:
            return self.joint.decode(variables["labels"], self.observation.num_examples)
        return self.labels

    def loss(self, variables: Mapping[str, Tensor], conditions: Mapping[str, Tensor] = _NONE) -> Scalar:
        """What is minimized.

        Args:
            variables: the guess.
            conditions: `noise`, added to the network inputs that the client sees but not to what the priors see; and
                `priors`, a factor of their weights; `consensus`, network inputs towards which the guess is pulled, and
                `pull`, how strongly. The pull has a gradient but adds nothing to the value, so that losses before and
                after restarts meet can be compared. Any may be missing.
        """
        images = self.images(variables)
        seen = images
        if "noise" in conditions:
            network = self.observation.network
            seen = network.denormalize(network.normalize(images) + conditions["noise"])
        loss = self.distance(seen, self.targets(variables))
        for prior in self.priors:
            value = prior(images, self.observation)
            loss = loss + (conditions["priors"] * value if "priors" in conditions else value)
        if "consensus" in conditions:
            away = self.observation.network.normalize(images) - conditions["consensus"]
            pull = conditions["pull"] * away.square().mean()
            loss = loss + pull - pull.detach()
        return loss

    def value(self, variables: Mapping[str, Tensor], conditions: Mapping[str, Tensor] = _NONE) -> float:
        """The loss as a number, without a graph."""
        with torch.no_grad():
            return float(self.loss(variables, conditions))

    def distance(self, images: Images, labels: Tensor) -> Scalar:
        """How far the update of a guess is from the one observed."""
        update = self.observation.client(self.observation.network, images, labels)
        distance = self.objective(update, self.observation.update)
        return distance if self.known is None else distance + self.known(images)

    def match(self, images: Images, labels: Tensor) -> float:
        """The distance as a number, without a graph."""
        with torch.no_grad():
            return float(self.distance(images, labels))


@dataclass(frozen=True, eq=False)
class KnownFeatures:
    """What went into the head, example by example, as a target beside the update.

        weight |f(x) - h| / |h|,    sums of absolute values

    Args:
        trunk: the network up to its head.
        features: `[n, d]`.
        labels: `[n]`, in the same order.
        weight: of the relative absolute error.
    """

    trunk: Network
    features: Tensor = field(repr=False)
    labels: Labels
    weight: float

    @classmethod
    def of(cls, observation: Observation, weight: float) -> "KnownFeatures | None":
        """Solve for them; nothing for one example, which needs no help, and where that does not work."""
        if observation.num_examples == 1:
            return None
        try:
            found = separate(observation)
        except ThreatModelError:
            return None
        network = observation.network
        features = found.features.to(network.device, network.dtype)
        return cls(network.without_head(), features, found.labels, weight)

    def functional(self) -> "KnownFeatures":
        """The same for `torch.func`."""
        return replace(self, trunk=replace(self.trunk, functional=True))

    def __call__(self, images: Images) -> Scalar:
        """Weighted relative absolute error."""
        seen = self.trunk.apply(self.trunk.params, images)
        return self.weight * (seen - self.features).abs().sum() / self.features.abs().sum()

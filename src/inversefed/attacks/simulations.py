"""How the attacker simulates the client, above all where something about the client is unknown.

    loss = match(predicted, observed) + penalty,    predicted = simulation(observation, z, x, y)

`z` are further variables, searched together with the images: a point between two weights, the pictures as each epoch
saw them, dropout's masks. With nothing unknown the client is run as it is. Zhu et al. (2023), "Surrogate model
extension (SME)", ICML, arXiv:2306.00127; Dimitrov et al. (2022), "Data leakage in federated averaging", TMLR,
arXiv:2206.12395; Scheliga et al. (2022), "Dropout is NOT all you need to prevent gradient leakage", arXiv:2208.06163.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, runtime_checkable

import torch
from scipy.optimize import linear_sum_assignment
from torch import Generator, Tensor
from torch.nn import functional as F

from inversefed.errors import ConfigError, ThreatModelError
from inversefed.fl.clients import FedAvg, loss_gradient
from inversefed.fl.dropout import dropout_layers, mask_shapes
from inversefed.fl.sharing import new_weights, trainer, with_trainer
from inversefed.fl.threat import Observation
from inversefed.types import Images, Params, Scalar

__all__ = ["AveragedMasks", "KnownClient", "OptimizedMasks", "PerEpoch", "Surrogate"]


@dataclass(frozen=True, eq=False)
class Compared:
    """Two updates that should agree, and what is added to their distance.

    Args:
        predicted: what the guess gives.
        observed: what came.
        penalty: a scalar.
    """

    predicted: Params = field(repr=False)
    observed: Params = field(repr=False)
    penalty: Scalar | float = 0.0


@runtime_checkable
class Simulation(Protocol):
    """How a guess becomes an update that can be compared with the one observed."""

    def copies(self, observation: Observation) -> int:
        """How many sets of pictures are searched; they lie one after the other in the images."""
        ...

    def start(self, observation: Observation, generator: Generator) -> Mapping[str, Tensor]:
        """The further variables of a restart, by name."""
        ...

    def __call__(
        self, observation: Observation, variables: Mapping[str, Tensor], images: Images, labels: Tensor
    ) -> Compared:
        """Simulate, with labels of one set of pictures; variables that are missing stand at their start."""
        ...

    def result(self, images: Images, labels: Tensor) -> Images:
        """One set of pictures from all that were searched."""
        ...


@dataclass(frozen=True)
class KnownClient:
    """Run the client as the attacker believes it to be; what it draws for itself is drawn once, with another seed."""

    def copies(self, observation: Observation) -> int:
        """One."""
        return 1

    def start(self, observation: Observation, generator: Generator) -> Mapping[str, Tensor]:
        """None."""
        return {}

    def __call__(
        self, observation: Observation, variables: Mapping[str, Tensor], images: Images, labels: Tensor
    ) -> Compared:
        """The client's update beside the one observed."""
        return Compared(observation.client(observation.network, images, labels), observation.update)

    def result(self, images: Images, labels: Tensor) -> Images:
        """The pictures themselves."""
        return images


@dataclass(frozen=True)
class Surrogate:
    """Match a whole FedAvg update with one gradient, at a point between the old weights and the new ones.

        w(a) = (1 - a) w_0 + a w_T,    w_0 - w_T  ~  grad L(w(a); x, y)

    SME, Zhu et al. (2023), arXiv:2306.00127: neither learning rate nor number of steps nor slices are needed. Only the
    direction means something, so the objective must not see scale: `Cosine()`.

    Args:
        rate: how far a unit step of the search moves `a` from where it starts, 0.5; the paper's `a` learns with 1e-3
            where its images learn with 1.

    Raises:
        ThreatModelError: when called on the update of a client that sends a gradient.
    """

    rate: float = 1e-3

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise ConfigError(f"Surrogate needs rate > 0, got {self.rate}")

    def copies(self, observation: Observation) -> int:
        """One."""
        return 1

    def start(self, observation: Observation, generator: Generator) -> Mapping[str, Tensor]:
        """`between`, zero where `a` is 0.5."""
        _ends(observation)
        like = next(iter(observation.network.params.values()))
        return {"between": torch.zeros((), dtype=like.dtype, device=like.device)}

    def __call__(
        self, observation: Observation, variables: Mapping[str, Tensor], images: Images, labels: Tensor
    ) -> Compared:
        """The gradient at w(a) beside the update read as a gradient."""
        network, ends = observation.network, _ends(observation)
        start = {name: weight.detach() for name, weight in network.params.items()}
        share = self.share(variables).to(next(iter(start.values())))
        between = {name: torch.lerp(start[name], ends[name], share) for name in start}
        if not network.functional:
            between = {name: weight.requires_grad_() for name, weight in between.items()}
        gradient = loss_gradient(network.at_step(0), between, images, labels)
        return Compared({name: gradient[name] for name in observation.update}, observation.gradient)

    def share(self, variables: Mapping[str, Tensor]) -> Tensor:
        """`a`, in (0, 1)."""
        return torch.sigmoid(4 * self.rate * variables.get("between", torch.zeros(())))

    def result(self, images: Images, labels: Tensor) -> Images:
        """The pictures themselves."""
        return images


@dataclass(frozen=True)
class PerEpoch:
    """Give each epoch of a client that shuffles its own pictures, and hold the epochs together.

        penalty = weight * mean over pairs of epochs of | r_a - r_b |^2,    r_e = pool over x in epoch e of phi(x)

    `phi` are fixed random convolution filters. At the end the pictures of each epoch are assigned to those of the
    first, within equal labels, and averaged. Dimitrov et al. (2022), arXiv:2206.12395, sections 4.2 to 4.4.

    Args:
        weight: of the penalty.
        pool: `"mean"` or `"max"` over the pictures of an epoch.
        filters: how many random 3x3 filters; the paper's code has 96.

    Raises:
        ConfigError: a negative weight, no filter, or another kind of pooling.
        ThreatModelError: when called for a client that is no FedAvg.
    """

    weight: float = 1.0
    pool: Literal["mean", "max"] = "mean"
    filters: int = 96

    def __post_init__(self) -> None:
        if self.weight < 0 or self.filters < 1 or self.pool not in ("mean", "max"):
            raise ConfigError(
                "PerEpoch needs weight >= 0, filters >= 1 and 'mean' or 'max'; "
                f"got {self.weight}, {self.filters} and {self.pool!r}"
            )

    def copies(self, observation: Observation) -> int:
        """As many as the client makes passes."""
        return len(_averaging(observation).orders(observation.num_examples, 0))

    def start(self, observation: Observation, generator: Generator) -> Mapping[str, Tensor]:
        """None: the epochs' pictures are the images."""
        return {}

    def __call__(
        self, observation: Observation, variables: Mapping[str, Tensor], images: Images, labels: Tensor
    ) -> Compared:
        """The update of a client that takes each epoch's own pictures in turn."""
        client, count = _averaging(observation), observation.num_examples
        epochs = self.copies(observation)
        images = images if len(images) == epochs * count else images.repeat(epochs, 1, 1, 1)
        order = tuple(tuple(range(epoch * count, (epoch + 1) * count)) for epoch in range(epochs))
        apart = with_trainer(observation.client, replace(client, shuffle=False, order=order))
        labels = labels.repeat(epochs, *(1,) * (labels.ndim - 1))
        predicted = apart(observation.network, images, labels)
        return Compared(predicted, observation.update, self.penalty(images.reshape(epochs, count, *images.shape[1:])))

    def penalty(self, epochs: Tensor) -> Scalar:
        """How far the epochs, `[e, n, c, h, w]`, are from holding the same pictures, whatever their order."""
        filters = _filters(self.filters, epochs)
        features = F.conv2d(epochs.flatten(0, 1), filters, padding=1)
        features = features.reshape(*epochs.shape[:2], *features.shape[1:])
        pooled = features.amax(dim=1) if self.pool == "max" else features.mean(dim=1)
        # Twice the variance is the mean over all pairs.
        spread: Scalar = (pooled - pooled.mean(dim=0)).square().mean()
        return 2 * self.weight * spread

    def result(self, images: Images, labels: Tensor) -> Images:
        """The mean over the epochs, after each is matched with the first; equal labels with equal labels only."""
        epochs = images.reshape(-1, labels.shape[0], *images.shape[1:])
        classes = labels.argmax(dim=1) if labels.is_floating_point() else labels
        return torch.stack([epoch[_matched(epoch, epochs[0], classes)] for epoch in epochs]).mean(dim=0)


@dataclass(frozen=True)
class AveragedMasks:
    """Average the client's update over several draws of dropout's masks (and of the order, where it shuffles).

    Args:
        draws: how many; each costs a simulation.
    """

    draws: int = 8

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ConfigError(f"AveragedMasks needs at least one draw, got {self.draws}")

    def copies(self, observation: Observation) -> int:
        """One."""
        return 1

    def start(self, observation: Observation, generator: Generator) -> Mapping[str, Tensor]:
        """None."""
        return {}

    def __call__(
        self, observation: Observation, variables: Mapping[str, Tensor], images: Images, labels: Tensor
    ) -> Compared:
        """The mean update beside the one observed."""
        network = observation.network
        seeds = [network.mask_seed + _APART * draw for draw in range(self.draws)]
        updates = [observation.client(network.with_masks(seed), images, labels) for seed in seeds]
        mean = {name: torch.stack([update[name] for update in updates]).mean(dim=0) for name in updates[0]}
        return Compared(mean, observation.update)

    def result(self, images: Images, labels: Tensor) -> Images:
        """The pictures themselves."""
        return images


@dataclass(frozen=True)
class OptimizedMasks:
    """Search dropout's masks together with the pictures, relaxed to [0, 1].

    The dropout inversion attack, Scheliga et al. (2022), arXiv:2208.06163: every layer, local step and example has a
    mask of its own, held to its layer's share of ones by `weight * (mean(m) - (1 - p))^2`. Here a mask starts at its
    mean, `1 - p`, and passes through a sigmoid instead of being clipped.

    Args:
        rate: how far a unit step of the search moves a mask's logit.
        weight: of the penalty.

    Raises:
        ThreatModelError: when called on a network without dropout that is on.
    """

    rate: float = 1.0
    weight: float = 1e-3

    def __post_init__(self) -> None:
        if not self.rate > 0 or self.weight < 0:
            raise ConfigError(f"OptimizedMasks needs rate > 0 and weight >= 0; got {self.rate} and {self.weight}")

    def copies(self, observation: Observation) -> int:
        """One."""
        return 1

    def start(self, observation: Observation, generator: Generator) -> Mapping[str, Tensor]:
        """`mask:` and the layer's name, `[steps, examples a step, ..]`, zero where every mask is at its mean."""
        network, client = observation.network, trainer(observation.client)
        gray = torch.full((2, *network.image_shape), 0.5)
        shapes = mask_shapes(network.module, lambda: network.features(gray))
        if not shapes:
            raise ThreatModelError(
                "the network has no dropout layer that is on, so no mask is unknown; leave the simulation out"
            )
        slices = client.slices(observation.num_examples) if isinstance(client, FedAvg) else []
        steps = len(slices) or 1
        size = max((part.stop - part.start for part in slices), default=observation.num_examples)
        like = next(iter(network.params.values()))
        return {
            f"mask:{name}": torch.zeros((steps, size, *shape), dtype=like.dtype, device=like.device)
            for name, shape in shapes.items()
        }

    def __call__(
        self, observation: Observation, variables: Mapping[str, Tensor], images: Images, labels: Tensor
    ) -> Compared:
        """The client's update with these masks, and how far their means are from what the layers say."""
        network, client = observation.network, trainer(observation.client)
        variables = variables if any(name.startswith("mask:") for name in variables) else self.start(observation, _NONE)
        masks, penalty = {}, images.new_zeros(())
        for name, layer in dropout_layers(network.module).items():
            if f"mask:{name}" in variables:
                kept = 1 - float(layer.p)
                masks[name] = torch.sigmoid(
                    self.rate * variables[f"mask:{name}"] + torch.logit(images.new_tensor(kept))
                )
                penalty = penalty + (masks[name].mean() - kept).square()
        if isinstance(client, FedAvg):
            # A step that runs again reaches nothing but images and labels: all graphs are kept for the masks' sake.
            client = replace(client, keep_graphs=len(client.slices(observation.num_examples)))
        simulated = with_trainer(observation.client, client)
        predicted = simulated(replace(network, masks=masks), images, labels)
        return Compared(predicted, observation.update, self.weight * penalty)

    def result(self, images: Images, labels: Tensor) -> Images:
        """The pictures themselves."""
        return images


_APART = 10_000
"""Between the seeds of two draws, for each local step takes the next one."""
_NONE = Generator()
"""For starts that draw nothing."""


def _ends(observation: Observation) -> Params:
    """The weights after the local steps."""
    ends = new_weights(observation.client, observation.network, observation.update)
    if ends is None:
        raise ThreatModelError(
            "the surrogate lies between the weights before and after local steps, and this client sends a gradient; "
            "match it directly, without simulation=Surrogate()"
        )
    return ends


def _averaging(observation: Observation) -> FedAvg:
    client = trainer(observation.client)
    if not isinstance(client, FedAvg):
        raise ThreatModelError(f"pictures of each epoch need a FedAvg client with known settings, not {client!r}")
    return client


def _filters(count: int, like: Tensor) -> Tensor:
    """Fixed random 3x3 filters, `[count, c, 3, 3]`, of unit norm."""
    drawn = torch.randn(count, like.shape[-3], 3, 3, generator=Generator().manual_seed(0), dtype=torch.float64)
    filters: Tensor = drawn / drawn.flatten(1).norm(dim=1)[:, None, None, None]
    return filters.to(like)


def _matched(pictures: Images, first: Images, labels: Tensor) -> Tensor:
    """For each picture of the first epoch, the position of its partner."""
    costs = (first[:, None] - pictures[None]).square().flatten(2).mean(dim=2)
    costs = costs + 1e6 * (labels[:, None] != labels[None, :])
    rows, columns = linear_sum_assignment(costs.detach().cpu().double().numpy())
    return torch.as_tensor(columns[rows.argsort()], device=pictures.device)

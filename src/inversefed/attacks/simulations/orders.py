"""Simulations of an unknown order of examples: separate images for each epoch, or the order searched."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import scipy
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from inversefed.attacks.simulations.known import KnownClient
from inversefed.attacks.simulations.simulation import Compared, Simulation
from inversefed.errors import ConfigError, ThreatModelError
from inversefed.fl.clients import LocalSteps
from inversefed.fl.clients.client import as_sent
from inversefed.fl.losses import is_plain_cross_entropy, reduction_of
from inversefed.fl.targets import kinds
from inversefed.fl.threat import Observation
from inversefed.types import Inputs, Params, Scalar

__all__ = ["PerEpoch", "RelaxedOrder"]


@dataclass(frozen=True)
class PerEpoch(Simulation):
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
        ThreatModelError: when called for a client whose settings are unknown.
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
        """As many as a client that shuffles makes passes, else one."""
        steps = _shuffling(observation)
        return 1 if steps is None else steps.num_passes

    def __call__(
        self, observation: Observation, variables: Mapping[str, Tensor], images: Inputs, labels: Tensor
    ) -> Compared:
        """The update of a client that takes each epoch's own pictures in turn."""
        steps, count = _shuffling(observation), observation.num_examples
        if steps is None:
            return KnownClient()(observation, variables, images, labels)
        epochs = self.copies(observation)
        images = images if len(images) == epochs * count else images.repeat(epochs, 1, 1, 1)
        order = tuple(tuple(range(epoch * count, (epoch + 1) * count)) for epoch in range(epochs))
        apart = replace(steps, examples=epochs * count, shuffles=False, order=order)
        labels = labels.repeat(epochs, *(1,) * (labels.ndim - 1))
        predicted = _sent(observation, apart, images, labels)
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

    def result(self, images: Tensor, labels: Tensor) -> Tensor:
        """The mean over the epochs, after each is matched with the first; equal labels with equal labels only."""
        epochs = images.reshape(-1, labels.shape[0], *images.shape[1:])
        soft = labels.is_floating_point() and labels.ndim == 2 and labels.shape[1] > 1
        classes = labels.argmax(dim=1) if soft else kinds(labels)
        return torch.stack([epoch[_matched(epoch, epochs[0], classes)] for epoch in epochs]).mean(dim=0)


@dataclass(frozen=True)
class RelaxedOrder(Simulation):
    """Search which examples each local step took, together with the pictures.

        loss of step s = 1/B sum_i a[s, i] loss(x_i, y_i),    sum_i a[s, i] = B,    sum over the steps of a pass = 1

    A share `a` in [0, 1] of each example in each step takes the place of the unknown order. At the start all are equal,
    and every step sees the whole batch, which is the mean over all orders; at the true order all are 0 or 1. Sinkhorn's
    iteration keeps the sums. A step costs as much as one on all examples. Own derivation; Sinkhorn (1967) for the sums.

    The order is unknown where the client shuffles, and where labels are not granted: what a rule finds are counts, and
    which step saw which label is as open as if the client had shuffled.

    Args:
        rate: how far a unit step of the search moves the logarithm of a share.
        noise: standard deviation of the logarithms at the start; equal shares in all steps would move alike.
        rounds: of Sinkhorn's iteration.

    Raises:
        ThreatModelError: when called for a client whose settings are unknown, or where the order is not known and
            the loss is another than plain cross entropy.
    """

    rate: float = 0.3
    noise: float = 0.01
    rounds: int = 10

    def __post_init__(self) -> None:
        if not self.rate > 0 or self.noise < 0 or self.rounds < 1:
            raise ConfigError(
                "RelaxedOrder needs rate > 0, noise >= 0 and at least one round; "
                f"got {self.rate}, {self.noise} and {self.rounds}"
            )

    def start(self, observation: Observation, generator: Generator) -> Mapping[str, Tensor]:
        """`order`, logarithms of the shares, `[passes, steps a pass, n]`."""
        steps, network = _unplaced(observation), observation.network
        if steps is None:
            return {}
        if not is_plain_cross_entropy(network.loss):
            raise ThreatModelError(f"shares of examples need plain cross entropy as the loss, not {network.loss!r}")
        shape = (steps.num_passes, len(steps.one_pass), observation.num_examples)
        drawn = torch.randn(shape, generator=generator, device=generator.device, dtype=network.dtype)
        return {"order": (self.noise * drawn).to(network.device)}

    def __call__(
        self, observation: Observation, variables: Mapping[str, Tensor], images: Inputs, labels: Tensor
    ) -> Compared:
        """The update of a client that takes every example in every step, by its share."""
        steps, network, count = _unplaced(observation), observation.network, observation.num_examples
        if steps is None:
            return KnownClient()(observation, variables, images, labels)
        order = variables["order"] if "order" in variables else self.start(observation, Generator())["order"]
        sizes = images.new_tensor([part.stop - part.start for part in steps.one_pass])
        shares = self.shares(order, sizes)
        if reduction_of(network.loss) == "mean":
            shares = shares * count / sizes[:, None]
        soft = labels if labels.is_floating_point() else F.one_hot(labels, network.num_classes).to(images)
        weighted = (shares.flatten(0, 1)[: steps.count, :, None] * soft).flatten(0, 1)
        every = tuple(slice(step * count, (step + 1) * count) for step in range(steps.count))
        whole = replace(steps, examples=steps.count * count, one_pass=every, shuffles=False, order=())
        update = _sent(observation, whole, images.repeat(steps.count, 1, 1, 1), weighted)
        return Compared(update, observation.update)

    def shares(self, order: Tensor, sizes: Tensor) -> Tensor:
        """From logarithms to shares: rows add up to the sizes of the steps, columns to what a pass takes of each."""
        log, rows = self.rate * order, sizes.log()[:, None]
        columns = (sizes.sum() / order.shape[-1]).log()
        for _ in range(self.rounds):
            log = log - log.logsumexp(dim=-1, keepdim=True) + rows
            log = log - log.logsumexp(dim=-2, keepdim=True) + columns
        return log.exp()


def _shuffling(observation: Observation) -> LocalSteps | None:
    """The local steps whose orders are unknown; `None` where the order is known, or there is but one step."""
    if not observation.client_known:
        raise ThreatModelError(
            "this simulation searches the order of the examples, and needs the client's other settings; without them "
            "use simulation=Surrogate()"
        )
    steps = observation.unrolled
    return steps if steps is not None and steps.shuffles else None


def _unplaced(observation: Observation) -> LocalSteps | None:
    """The local steps as those of a client that shuffles, where it is not known which saw which label; else `None`."""
    steps = observation.unrolled
    if observation.labels is None and steps is not None:
        return replace(steps, shuffles=True, order=())
    return _shuffling(observation)


def _sent(observation: Observation, steps: LocalSteps, images: Inputs, labels: Tensor) -> Params:
    """The tensors that a client would send that takes these steps instead."""
    for params in steps.walk(observation.network, images, labels):
        last = params
    update = as_sent(observation.network, last, observation.client.sends)
    return {name: update[name] for name in observation.update}


def _filters(count: int, like: Tensor) -> Tensor:
    """Fixed random 3x3 filters, `[count, c, 3, 3]`, of unit norm."""
    drawn = torch.randn(count, like.shape[-3], 3, 3, generator=Generator().manual_seed(0), dtype=torch.float64)
    filters: Tensor = drawn / drawn.flatten(1).norm(dim=1)[:, None, None, None]
    return filters.to(like)


def _matched(pictures: Inputs, first: Inputs, labels: Tensor) -> Tensor:
    """For each picture of the first epoch, the position of its partner."""
    costs = (first[:, None] - pictures[None]).square().flatten(2).mean(dim=2)
    costs = costs + 1e6 * (labels[:, None] != labels[None, :])
    rows, columns = scipy.optimize.linear_sum_assignment(costs.detach().cpu().double().numpy())
    return torch.as_tensor(columns[rows.argsort()], device=pictures.device)

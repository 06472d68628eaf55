"""Clients of federated SGD and federated averaging; the same function serves the world and the attack.

    FedSGD:  update = grad_w loss(f(w, x), y)
    FedAvg:  w_0 = w,  w_{i+1} = w_i - lr * step(grad loss(f(w_i, x_i), y_i)),  update = w_T - w or w_T
    FedProx: the same with  mu (w_i - w)  added to each gradient

Both can be differentiated with respect to the images, which is all that an attack needs.
Federated averaging: McMahan et al. (2017), arXiv:1602.05629. The proximal term: Li et al. (2020), arXiv:1812.06127.
"""

from dataclasses import dataclass, replace
from typing import Literal

from inversefed.errors import ConfigError
from inversefed.fl.clients.client import Client, as_sent
from inversefed.fl.clients.local_optimizers import LocalOptimizer, LocalSGD
from inversefed.fl.clients.local_steps import LocalSteps, loss_gradient
from inversefed.fl.network import Network
from inversefed.fl.threat_model import ThreatModel
from inversefed.types import Inputs, Params, Targets

__all__ = ["FedAvg", "FedSGD"]


@dataclass(frozen=True)
class FedSGD(Client):
    """Send the gradient of the loss over the whole batch.

    >>> import torch
    >>> from inversefed.fl.network import freeze
    >>> network = freeze(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5)), (3, 2, 2))
    >>> update = FedSGD()(network, torch.rand(1, 3, 2, 2), torch.tensor([2]))
    >>> {name: tuple(part.shape) for name, part in update.items()}
    {'1.weight': (5, 12), '1.bias': (5,)}
    """

    def __call__(self, network: Network, images: Inputs, labels: Targets) -> Params:
        """Compute the gradient of the loss with respect to the weights."""
        return loss_gradient(network.at_step(0), network.params, images, labels)

    @property
    def sends(self) -> Literal["gradient"]:
        """The gradient."""
        return "gradient"

    def steps(self, num_examples: int) -> LocalSteps:
        """One step on all examples, whose gradient is the update."""
        return LocalSteps(num_examples, (slice(0, num_examples),))


@dataclass(frozen=True)
class FedAvg(Client):
    """Train locally for some steps and send the weights' change, or the new weights.

    Args:
        local_steps: number of steps; they walk through the consecutive full slices of the batch,
            over and over. Not used where `epochs` is given.
        lr: learning rate.
        batch_size: examples a step; 0 for all of them.
        epochs: passes over the batch instead of a number of steps; a last, smaller slice counts as well.
        optimizer: the local update rule.
        sends: `"delta"` for new minus old weights, `"weights"` for the new ones.
        proximal: weight mu of FedProx's pull back to the weights that were sent out, `mu / 2 |w_i - w|^2`; 0 for none.
        shuffle: draw a new order of the examples before each pass, from the network's private seed, which no
            observation holds.
        order: the order of the examples in each pass, where it is fixed; empty for as they come.
        keep_graphs: how many of the last local steps keep their graph while the result is differentiated by
            autograd; it changes no number. An earlier step keeps its weights and moments and is run again, for less
            memory and more time; gradients then reach images and labels, once.
    """

    local_steps: int = 4
    lr: float = 1e-4
    batch_size: int = 0
    epochs: int | None = None
    optimizer: LocalOptimizer = LocalSGD()
    sends: Literal["delta", "weights"] = "delta"
    proximal: float = 0.0
    shuffle: bool = False
    order: tuple[tuple[int, ...], ...] = ()
    keep_graphs: int = 4

    def __post_init__(self) -> None:
        if self.local_steps < 1 or (self.epochs is not None and self.epochs < 1):
            raise ConfigError("FedAvg needs at least one local step and, where given, at least one epoch")
        if self.batch_size < 0 or self.lr <= 0:
            raise ConfigError(f"FedAvg needs lr > 0 and batch_size >= 0; got {self.lr} and {self.batch_size}")
        if self.proximal < 0 or (self.shuffle and self.order):
            raise ConfigError(
                "FedAvg needs proximal >= 0, and either shuffles or has a fixed order; "
                f"got proximal={self.proximal}, shuffle={self.shuffle} and order={self.order}"
            )
        if self.keep_graphs < 1:
            raise ConfigError(f"FedAvg keeps the graph of at least 1 step; got keep_graphs={self.keep_graphs}")
        if self.sends not in ("delta", "weights"):
            raise ConfigError(f"FedAvg sends 'delta' or 'weights', not {self.sends!r}")

    def __call__(self, network: Network, images: Inputs, labels: Targets) -> Params:
        """Train on slices of the batch and return what is sent."""
        for params in self.steps(images.shape[0]).walk(network, images, labels):
            last = params
        return as_sent(network, last, self.sends)

    def steps(self, num_examples: int) -> LocalSteps:
        """The local steps on so many examples.

        Raises:
            ConfigError: fewer examples than one slice holds.
        """
        one = self._one_pass(len(self.order[0]) if self.order else num_examples)
        return LocalSteps(
            num_examples,
            tuple(one),
            count=self.local_steps if self.epochs is None else self.epochs * len(one),
            lr=self.lr,
            optimizer=self.optimizer,
            proximal=self.proximal,
            shuffles=self.shuffle,
            order=self.order,
            keep_graphs=self.keep_graphs,
        )

    def slices(self, num_examples: int) -> list[slice]:
        """Which places of its pass's order each local step sees.

        Raises:
            ConfigError: fewer examples than one slice holds.
        """
        return self.steps(num_examples).slices

    def believed(self, threat: ThreatModel, num_examples: int, seed: int) -> "FedAvg":
        """The same client, its orders no longer drawn but written down, where the server knows them."""
        if threat.order == "unknown" or not self.shuffle:
            return self
        return replace(self, shuffle=False, order=self.steps(num_examples).orders(seed))

    def _one_pass(self, num_examples: int) -> list[slice]:
        size = self.batch_size or num_examples
        if size > num_examples:
            raise ConfigError(f"batch_size {size} is larger than the client's {num_examples} examples")
        whole = [slice(start, start + size) for start in range(0, num_examples - size + 1, size)]
        rest = [slice(len(whole) * size, num_examples)] if len(whole) * size < num_examples else []
        return whole if self.epochs is None else whole + rest

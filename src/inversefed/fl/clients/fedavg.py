"""Clients: (network, images, labels) -> update. The same function serves the world and the attack.

    FedSGD:  update = grad_w loss(f(w, x), y)
    FedAvg:  w_0 = w,  w_{i+1} = w_i - lr * step(grad loss(f(w_i, x_i), y_i)),  update = w_T - w or w_T
    FedProx: the same with  mu (w_i - w)  added to each gradient

Both can be differentiated with respect to the images, which is all that an attack needs. Of a long unrolling only
the last steps keep their graph; an earlier one keeps its weights w_i and is run again in the backward pass.
Federated averaging: McMahan et al. (2017), arXiv:1602.05629. The proximal term: Li et al. (2020), arXiv:1812.06127.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

from inversefed.errors import ConfigError
from inversefed.fl.clients.local_optimizers import LocalOptimizer, LocalSGD, State
from inversefed.fl.clients.recompute import recomputed
from inversefed.fl.foreign import foreign_code
from inversefed.fl.network import Network
from inversefed.types import Images, Labels, Params, SoftLabels

__all__ = ["FedAvg", "FedSGD"]


@runtime_checkable
class Client(Protocol):
    """What a client does, and how to read the update that it sends."""

    def __call__(self, network: Network, images: Images, labels: Labels | SoftLabels) -> Params:
        """Compute the update of a batch."""
        ...

    def as_gradient(self, network: Network, update: Params, num_examples: int) -> Params:
        """Read an update of this client as a gradient: its sign right, its scale as far as it is known."""
        ...


@dataclass(frozen=True)
class FedSGD:
    """Send the gradient of the loss over the whole batch.

    >>> from inversefed.fl.network import freeze
    >>> network = freeze(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5)), (3, 2, 2))
    >>> update = FedSGD()(network, torch.rand(1, 3, 2, 2), torch.tensor([2]))
    >>> {name: tuple(part.shape) for name, part in update.items()}
    {'1.weight': (5, 12), '1.bias': (5,)}
    """

    def __call__(self, network: Network, images: Images, labels: Labels | SoftLabels) -> Params:
        """Compute the gradient of the loss with respect to the weights."""
        return loss_gradient(network.at_step(0), network.params, images, labels)

    def as_gradient(self, network: Network, update: Params, num_examples: int) -> Params:
        """The update is a gradient already."""
        return update


@dataclass(frozen=True)
class FedAvg:
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

    def __call__(self, network: Network, images: Images, labels: Labels | SoftLabels) -> Params:
        """Train on slices of the batch and return what is sent."""
        for params in self._walk(network, images, labels):
            last = params
        return self.sent(network, last)

    def path(self, network: Network, images: Images, labels: Labels | SoftLabels) -> tuple[Params, ...]:
        """The weights that each local step sees, and behind them those after the last step."""
        return network.params, *self._walk(network, images, labels)

    def sent(self, network: Network, params: Params) -> Params:
        """What leaves the client whose weights have become these."""
        if self.sends == "weights":
            return params
        return {name: new - network.params[name].detach() for name, new in params.items()}

    def _walk(self, network: Network, images: Images, labels: Labels | SoftLabels) -> Iterator[Params]:
        """The weights after each step; they carry a graph only where images or labels require grad."""
        params: Params = network.params
        state: State = {}
        parts = self.parts(images.shape[0], network.mask_seed)
        differentiable = _differentiable(images, labels)
        again = differentiable and not network.functional
        for step, part in enumerate(parts):
            take = self._recomputed_step if again and step < len(parts) - self.keep_graphs else self._step
            params, state = take(network, params, state, step, images[part], labels[part])
            yield params if differentiable else {name: weight.detach() for name, weight in params.items()}

    def _step(
        self, network: Network, params: Params, state: State, step: int, images: Images, labels: Labels | SoftLabels
    ) -> tuple[Params, State]:
        gradients = loss_gradient(network.at_step(step), params, images, labels)
        if self.proximal:
            sent = network.params
            gradients = {
                name: g + self.proximal * (params[name] - sent[name].detach()) for name, g in gradients.items()
            }
        params, state = self.optimizer(params, gradients, state, self.lr, step)
        if _differentiable(images, labels):
            return params, state
        return {name: weight.detach().requires_grad_() for name, weight in params.items()}, state

    def _recomputed_step(
        self, network: Network, params: Params, state: State, step: int, images: Images, labels: Labels | SoftLabels
    ) -> tuple[Params, State]:
        """The same step; its graph is not kept."""
        names, before = list(params), {name: len(moments) for name, moments in state.items()}
        after: dict[str, int] = {}

        def run(tensors: Sequence[Tensor]) -> list[Tensor]:
            old, moments = _unpack(tensors[2:], names, before)
            old = {name: weight if weight.requires_grad else weight.requires_grad_() for name, weight in old.items()}
            new, moments = self._step(network, old, moments, step, tensors[0], tensors[1])
            after.update({name: len(part) for name, part in moments.items()})
            return _pack(new, moments)

        # The network's own weights are no variables of an attack: gradients of them would be computed in vain.
        start = {name: weight.detach() for name, weight in params.items()} if step == 0 else params
        return _unpack(recomputed(run, (images, labels, *_pack(start, state))), names, after)

    def slices(self, num_examples: int) -> list[slice]:
        """Which places of its pass's order each local step sees.

        Raises:
            ConfigError: fewer examples than one slice holds.
        """
        one = self.one_pass(num_examples)
        if self.epochs is not None:
            return one * self.epochs
        return list(islice((part for _ in range(self.local_steps) for part in one), self.local_steps))

    def parts(self, num_examples: int, seed: int) -> Sequence[slice | Tensor]:
        """Which examples each local step sees.

        Args:
            num_examples: how many there are.
            seed: of the orders, where the client shuffles.

        Raises:
            ConfigError: fewer examples than one slice holds, or an order that does not fit them.
        """
        if not self.shuffle and not self.order:
            return self.slices(num_examples)
        orders = [torch.tensor(order) for order in self.orders(num_examples, seed)]
        a_pass = len(self.one_pass(len(orders[0])))
        return [orders[step // a_pass][part] for step, part in enumerate(self.slices(len(orders[0])))]

    def orders(self, num_examples: int, seed: int) -> tuple[tuple[int, ...], ...]:
        """The order of the examples in each pass.

        Raises:
            ConfigError: a fixed order with too few passes, of unequal lengths, or of examples that are not there.
        """
        size = len(self.order[0]) if self.order else num_examples
        passes = math.ceil(len(self.slices(size)) / len(self.one_pass(size)))
        if not self.order:
            generator = Generator().manual_seed(seed)
            draws = [torch.randperm(num_examples, generator=generator) for _ in range(passes)]
            return tuple(tuple((draw if self.shuffle else draw.sort().values).tolist()) for draw in draws)
        fits = all(len(order) == size and set(order) <= set(range(num_examples)) for order in self.order)
        if len(self.order) < passes or not fits:
            raise ConfigError(
                f"FedAvg needs an order of the same length for each of {passes} passes, of examples 0 to "
                f"{num_examples - 1}; got {self.order}"
            )
        return self.order

    def in_order(self, num_examples: int, seed: int) -> "FedAvg":
        """The same client, its orders no longer drawn but written down."""
        return replace(self, shuffle=False, order=self.orders(num_examples, seed)) if self.shuffle else self

    def one_pass(self, num_examples: int) -> list[slice]:
        """The slices of one pass over the examples.

        Raises:
            ConfigError: fewer examples than one slice holds.
        """
        size = self.batch_size or num_examples
        if size > num_examples:
            raise ConfigError(f"batch_size {size} is larger than the client's {num_examples} examples")
        whole = [slice(start, start + size) for start in range(0, num_examples - size + 1, size)]
        rest = [slice(len(whole) * size, num_examples)] if len(whole) * size < num_examples else []
        return whole if self.epochs is None else whole + rest

    def as_gradient(self, network: Network, update: Params, num_examples: int) -> Params:
        """Read the update as the mean gradient of the local steps, `(old - new) / (lr * steps)`.

        Exact for one plain step; with momentum or Adam only the sign and direction are meant.
        """
        scale = self.lr * len(self.slices(num_examples))
        if self.sends == "weights":
            return {name: (network.params[name].detach() - new) / scale for name, new in update.items()}
        return {name: -change / scale for name, change in update.items()}


def loss_gradient(network: Network, params: Params, images: Images, labels: Labels | SoftLabels) -> Params:
    """Gradient of the batch loss with respect to `params`; zeros for weights that the loss does not use.

    It carries a graph only where images or labels require grad.

    Raises:
        UnsupportedNetworkError: the forward pass, the loss or torch's backward pass raises an error.
    """
    if network.functional:
        gradient: Params = torch.func.grad(lambda weights: network.loss(network.apply(weights, images), labels))(
            dict(params)
        )
        return gradient
    differentiable = _differentiable(images, labels)
    with torch.enable_grad():
        logits = network.apply(params, images)
        with foreign_code(f"the loss of logits {tuple(logits.shape)} and labels {tuple(labels.shape)}"):
            loss = network.loss(logits, labels)
        with foreign_code("the gradient of the loss with respect to the weights"):
            gradients = torch.autograd.grad(
                loss, list(params.values()), create_graph=differentiable, materialize_grads=True
            )
    return dict(zip(params, gradients, strict=True))


def _pack(params: Params, state: State) -> list[Tensor]:
    return [*params.values(), *(moment for moments in state.values() for moment in moments)]


def _unpack(tensors: Sequence[Tensor], names: Iterable[str], counts: Mapping[str, int]) -> tuple[Params, State]:
    """Undo `_pack`, for weights of these names and that many moments of each."""
    rest = iter(tensors)
    params = {name: next(rest) for name in names}
    return params, {name: tuple(islice(rest, count)) for name, count in counts.items()}


def _differentiable(images: Tensor, labels: Tensor) -> bool:
    return torch.is_grad_enabled() and (images.requires_grad or labels.requires_grad)

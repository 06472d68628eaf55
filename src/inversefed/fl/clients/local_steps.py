"""Local training as a value: which examples each step sees, in what order, and what it does with their gradient.

    g_i = grad_w loss(f(w_i, x_i), y_i) + mu (w_i - w_0),      w_{i+1}, m_{i+1} = optimizer(w_i, g_i, m_i, lr)

A client that trains so says it by a `LocalSteps`; an attack reads it, changes what it does not know (the order of the
examples), and takes the same steps itself. The result can be differentiated with respect to the images. Of a long
unrolling only the last steps keep their graph; an earlier one keeps its weights w_i and is run again in the backward
pass. The proximal term: Li et al. (2020), arXiv:1812.06127.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import torch
from torch import Generator, Tensor

from inversefed.errors import ConfigError
from inversefed.fl.clients.local_optimizers import LocalOptimizer, LocalSGD, State
from inversefed.fl.clients.recompute import recomputed
from inversefed.fl.foreign import foreign_code
from inversefed.fl.network import Network
from inversefed.types import Inputs, Params, Targets

__all__ = ["LocalSteps", "loss_gradient"]


@dataclass(frozen=True)
class LocalSteps:
    """The steps that a client takes on its examples, as far as another one could take them too.

    Args:
        examples: how many examples the client has.
        one_pass: the slices of one pass, in the order of the pass; step after step takes the next, over and over.
        count: how many steps.
        lr: learning rate.
        optimizer: the local update rule.
        proximal: weight mu of FedProx's pull back to the weights that were sent out; 0 for none.
        shuffles: whether the order of each pass is drawn from the client's private seed.
        order: the order of the examples in each pass, where it is fixed; empty for as they come.
        keep_graphs: how many of the last steps keep their graph while they are differentiated; `None` for all.
        additive: whether a step follows the sum of its examples' gradients; `False` where each is changed before it is
            added, as by clipping, so that nobody can take these steps from what is said here.
        noise: standard deviation of the noise on each entry of a step's gradient.
        clients: where the update is the sum of several clients', the steps of each; the other fields are then those of
            the client with the most examples.

    Raises:
        ConfigError: no step, or no slice.

    >>> LocalSteps(4, (slice(0, 2), slice(2, 4)), count=3, lr=0.1).slices
    [slice(0, 2, None), slice(2, 4, None), slice(0, 2, None)]
    """

    examples: int
    one_pass: tuple[slice, ...]
    count: int = 1
    lr: float = 1.0
    optimizer: LocalOptimizer = LocalSGD()
    proximal: float = 0.0
    shuffles: bool = False
    order: tuple[tuple[int, ...], ...] = ()
    keep_graphs: int | None = None
    additive: bool = True
    noise: float = 0.0
    clients: tuple["LocalSteps", ...] = ()

    def __post_init__(self) -> None:
        if self.count < 1 or not self.one_pass:
            raise ConfigError(f"LocalSteps needs at least one step and one slice of the examples; got {self!r}")

    @property
    def slices(self) -> list[slice]:
        """Which places of its pass's order each step sees."""
        return list(islice(cycle(self.one_pass), self.count))

    @property
    def num_passes(self) -> int:
        """How many passes are begun."""
        return math.ceil(self.count / len(self.one_pass))

    @property
    def recomputed(self) -> int:
        """How many of the first steps run again in the backward pass."""
        return 0 if self.keep_graphs is None else max(0, self.count - self.keep_graphs)

    @property
    def alone(self) -> bool:
        """Whether these steps are all there is to the update: of one client, no example's gradient changed."""
        return self.additive and not self.clients

    @property
    def gradients(self) -> int | None:
        """How many gradients of one example the update is a sum of; `None` where it is no such sum."""
        if self.clients:
            counts = [each.gradients for each in self.clients]
            return None if None in counts else sum(count or 0 for count in counts)
        plain = isinstance(self.optimizer, LocalSGD) and not self.optimizer.weight_decay and not self.proximal
        return sum(part.stop - part.start for part in self.slices) if plain and self.additive else None

    def orders(self, seed: int) -> tuple[tuple[int, ...], ...]:
        """The order of the examples in each pass.

        Args:
            seed: of the orders, where they are drawn.

        Raises:
            ConfigError: a fixed order with too few passes, of unequal lengths, or of examples that are not there.
        """
        if not self.order:
            generator = Generator().manual_seed(seed)
            draws = [torch.randperm(self.examples, generator=generator) for _ in range(self.num_passes)]
            return tuple(tuple((draw if self.shuffles else draw.sort().values).tolist()) for draw in draws)
        size = len(self.order[0])
        fits = all(len(order) == size and set(order) <= set(range(self.examples)) for order in self.order)
        if len(self.order) < self.num_passes or not fits:
            raise ConfigError(
                f"local steps need an order of the same length for each of {self.num_passes} passes, of examples 0 to "
                f"{self.examples - 1}; got {self.order}"
            )
        return self.order

    def parts(self, seed: int) -> Sequence[slice | Tensor]:
        """Which examples each step sees.

        Args:
            seed: of the orders, where they are drawn.

        Raises:
            ConfigError: an order that does not fit the examples.
        """
        if not self.shuffles and not self.order:
            return self.slices
        orders = [torch.tensor(order) for order in self.orders(seed)]
        return [orders[step // len(self.one_pass)][part] for step, part in enumerate(self.slices)]

    def walk(self, network: Network, images: Inputs, labels: Targets) -> Iterator[Params]:
        """The weights after each step; they carry a graph only where images or labels require grad."""
        params: Params = network.params
        state: State = {}
        differentiable = _differentiable(images, labels)
        # A step that is run again reaches images and labels only, and not the draws that a network was given.
        again = self.recomputed if differentiable and not network.functional and not network.masks else 0
        for step, part in enumerate(self.parts(network.mask_seed)):
            take = self._recomputed_step if step < again else self._step
            params, state = take(network, params, state, step, images[part], labels[part])
            yield params if differentiable else {name: weight.detach() for name, weight in params.items()}

    def _step(
        self, network: Network, params: Params, state: State, step: int, images: Inputs, labels: Targets
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
        self, network: Network, params: Params, state: State, step: int, images: Inputs, labels: Targets
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


def loss_gradient(network: Network, params: Params, images: Inputs, labels: Targets) -> Params:
    """Gradient of the batch loss with respect to `params`; zeros for weights that the loss does not use.

    A client of one's own computes with it what an attack can differentiate. It carries a graph only where images or
    labels require grad.

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
        params = {name: w if w.requires_grad else w.detach().requires_grad_() for name, w in params.items()}
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

"""An update that says nothing of anybody: random, but as long as the real one, tensor by tensor.

    u0[name] = |u[name]| z / |z|,    z normal

What an attack makes of it is what the attack makes of nothing: its prior, its starts and its luck. Given the lengths,
null updates are drawn independently from one distribution, and drawing one from a null update gives the same
distribution again; so among k + 1 of them the attack does best on any one with chance 1 / (k + 1).

Lengths are kept because attacks depend on the scale of what they match. One direction is kept too: the gradient of the
head's bias sums to zero under cross entropy, whatever the examples, and rules that recover labels lean on that; without
it they would refuse a null update, and the control would stand for less than the attack. The columns of the head's
weight have the same property, but there it is left out: with two classes it would make the tensor one of rank one,
which is what a single example leaves, and closed forms would read a picture off it that is nobody's.

The bound on false alarms that follows is that of Monte Carlo tests (Barnard 1963; Besag and Clifford 1989).
"""

from dataclasses import replace

import torch
from torch import Generator, Tensor

from inversefed.fl.threat import Observation
from inversefed.types import Params

__all__ = ["null_observation", "null_update"]

_SUMS_TO_ZERO = 1e-3
"""Share of its length below which the sum of a head's bias gradient is rounding."""


def null_update(observation: Observation, generator: Generator) -> Params:
    """Draw a random update with the length of every tensor of the one observed.

    Args:
        observation: whose update gives names, shapes and lengths; its numbers are used for nothing else.
        generator: on the CPU; the only source of randomness.

    >>> from torch import nn
    >>> from inversefed.fl.clients import FedSGD
    >>> from inversefed.fl.network import freeze
    >>> network = freeze(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), (3, 2, 2))
    >>> update = FedSGD()(network, torch.rand(1, 3, 2, 2), torch.tensor([1]))
    >>> null = null_update(Observation(network, FedSGD(), update, 1), Generator().manual_seed(0))
    >>> bool(torch.isclose(null["1.weight"].norm(), update["1.weight"].norm())), bool(null["1.bias"].sum().abs() < 1e-6)
    (True, True)
    """
    bias = f"{observation.network.head}.bias"
    return {name: _null(part, generator, name == bias) for name, part in observation.update.items()}


def null_observation(observation: Observation, generator: Generator) -> Observation:
    """The same observation with a null update, and with the server's own buffers where the client sent its own.

    Args:
        observation: what the server sees; labels that it was granted are kept, for it knows them without the update.
        generator: on the CPU; the only source of randomness.
    """
    own = {name: each.detach().clone() for name, each in observation.network.module.named_buffers()}
    buffers = None if observation.buffers is None else own
    return replace(observation, update=null_update(observation, generator), buffers=buffers)


def _null(part: Tensor, generator: Generator, balanced: bool) -> Tensor:
    exact = part.detach().double()
    length = exact.norm()
    random = torch.randn(part.shape, generator=generator, dtype=torch.float64).to(part.device)
    if balanced and bool(exact.sum().abs() <= _SUMS_TO_ZERO * length):
        random = random - random.mean()
    size = random.norm()
    return (random * (length / size if size > 0 else 0.0)).to(part.dtype)

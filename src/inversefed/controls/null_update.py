"""An update that says nothing of anybody: the real one's own numbers, out of place and with signs by lot.

    u0[name]_i = s_i u[name]_p(i),      p a random permutation of each tensor's entries, s_i = +1 or -1

What an attack makes of it is what the attack makes of nothing: its prior, its starts and its luck. A null keeps what a
defense leaves on every update, whatever the examples: the length of each tensor, its zeros (pruning), its levels
(quantization), its largest and smallest entries (clipping, noise). A control that lacked them would be no match: on a
pruned update an attack does better than on a dense one, though neither says anything.

"This update says nothing" means that its entries might as well stand elsewhere in their tensor, and with the other
sign: its distribution stays the same under all these shuffles, as that of noise does, whatever is then done to each
entry by itself or by its rank. They are a group, so an update that says nothing and k shuffled copies of it are
exchangeable, and the attack does best on any one of them with chance 1 / (k + 1): a randomization test (Lehmann and
Romano 2005, section 15.2; Hemerik and Goeman 2018).

Two kinds of tensors are shuffled without signs, which is exact too, for permutations are a group of their own:

- The gradient of the head's bias. It sums to zero under cross entropy, whatever the examples, and is negative for few
  classes; rules that recover labels lean on both, and would refuse a null update without them. So a null names labels
  as well, only not these. The columns of the head's weight also sum to zero, but there it is left out: with two classes
  it would make the tensor one of rank one, which is what a single example leaves, and closed forms would read a picture
  off it that is nobody's.
- All tensors of an update that stands on levels which are not mirrored at 0, such as those between the least and the
  greatest entry of a tensor. Another sign would take an entry off its level.

Of a client that sends new weights, what is shuffled is their change.
"""

from dataclasses import replace

import torch
from torch import Generator, Tensor

from inversefed.fl.threat import Observation
from inversefed.types import Params

__all__ = ["null_observation", "null_update"]

_DISTINCT = 0.9
"""Share of a tensor's entries, zeros left out, that differ in size where it does not stand on levels."""

_ROUNDING = 1e-6
"""Distance of two levels, over the greatest, that is rounding."""

_OFF = 0.01
"""Distance of a level from its place, over half the distance of two levels, that is rounding."""


def null_update(observation: Observation, generator: Generator) -> Params:
    """Draw an update with the numbers of the one observed, out of place, tensor by tensor.

    Args:
        observation: whose update gives names, shapes and numbers; where they stand, and their signs, go nowhere.
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
    bias, params = f"{observation.network.head}.bias", observation.network.params
    update = {name: part.detach() for name, part in observation.update.items()}
    if observation.client.sends != "weights":
        return _null(update, bias, generator)
    change = {name: part.double() - params[name].detach().double() for name, part in update.items()}
    null = _null(change, bias, generator)
    return {name: (params[name].detach().double() + null[name]).to(part.dtype) for name, part in update.items()}


def null_observation(observation: Observation, generator: Generator) -> Observation:
    """The same observation with a null update, and with the server's own buffers where the client sent its own.

    Args:
        observation: what the server sees; labels that it was granted are kept, for it knows them without the update.
        generator: on the CPU; the only source of randomness.
    """
    own = {name: each.detach().clone() for name, each in observation.network.module.named_buffers()}
    buffers = None if observation.buffers is None else own
    return replace(observation, update=null_update(observation, generator), buffers=buffers)


def _null(update: Params, bias: str, generator: Generator) -> Params:
    """Every tensor shuffled; with signs where that keeps all levels, but for the head's bias."""
    signed = all(_signed(part) for name, part in update.items() if name != bias)
    return {name: _shuffled(part, generator, signed and name != bias) for name, part in update.items()}


def _shuffled(part: Tensor, generator: Generator, signed: bool) -> Tensor:
    flat = part.flatten()
    shuffled = flat[torch.randperm(flat.numel(), generator=generator).to(flat.device)]
    if signed:
        signs = torch.randint(2, flat.shape, generator=generator).to(flat.device)
        shuffled = torch.where(signs.bool(), shuffled, -shuffled)
    return shuffled.view(part.shape)


def _signed(part: Tensor) -> bool:
    """Whether another sign leaves every entry on a level of its tensor, or there are no levels.

    Only sizes are looked at, which signs do not change, so that a null is judged as what it was drawn from. Levels that
    are mirrored at 0 are even or odd multiples of half their distance.
    """
    sizes = part[part != 0].abs()
    if _distinct(sizes).numel() > _DISTINCT * sizes.numel():
        return True
    if not sizes.numel():
        return True
    levels = _distinct((part.abs().double() / sizes.max() / _ROUNDING).round())
    if levels.numel() < 2:
        return True
    places = levels / (levels.diff().min() / 2)
    whole = places.round()
    return bool(((places - whole).abs() < _OFF).all() and (whole % 2 == whole[0] % 2).all())


def _distinct(values: Tensor) -> Tensor:
    """Each value once, in order."""
    ordered = values.flatten().sort().values
    return ordered[torch.cat([torch.ones_like(ordered[:1], dtype=torch.bool), ordered.diff() != 0])]

"""Conservation laws between neighboring layers, which tie each tensor of an update to its position.

    out_c = sum_j w_cj dL/dw_cj + b_c dL/db_c         of the layer in front,    c one of its channels
    in_c  = sum_o w_oc dL/dw_oc                       of the layer behind
    out_c = in_c

Both are `sum delta x` over the channel's values x, which whatever lies between them keeps (`graph`). It holds for every
loss, batch, sign and scale (Du, Hu and Lee 2018, arXiv:1806.00900). A BatchNorm with running mean m and deviation s
is a layer in front as it is, and behind has  in = gamma dL/dgamma + gamma m / s dL/dbeta  in eval mode; in train mode
it does not let the scale of its input matter, so in = 0.

What breaks it: noise, tensors in each other's place, other weights, another mode. Noise of standard deviation s leaves
s times the root of all squared weights in the relation, which measures s.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from inversefed.types import Params
from inversefed.updates.diagnosis.evidence import Subject, rms
from inversefed.updates.diagnosis.module_graph import Edge, edges

__all__ = ["Relation", "relations"]

_Norm = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True, eq=False)
class Term:
    """One side of a relation: `sum of coefficient x gradient` for each channel.

    Args:
        parts: tensor names, with the coefficients of their entries, each with the channels in front, `[c, ..]`.
    """

    parts: tuple[tuple[str, Tensor, int], ...] = field(repr=False)

    def value(self, update: Params) -> Tensor:
        """`[c]`."""
        return sum((_rows(a, update[name], axis).sum(dim=1) for name, a, axis in self.parts), start=torch.zeros(()))

    def squares(self, update: Params) -> Tensor:
        """Sum of the squared products, `[c]`: the square of what the sum would be if signs were drawn."""
        products = (_rows(a, update[name], axis).square().sum(dim=1) for name, a, axis in self.parts)
        return sum(products, start=torch.zeros(()))

    def weights(self) -> Tensor:
        """Sum of squared coefficients, `[c]`: what noise of variance 1 leaves."""
        return sum((_rows(a, torch.ones_like(a), x).square().sum(dim=1) for _, a, x in self.parts), torch.zeros(()))

    def path(self, update: Params) -> Tensor:
        """Sum of squared changes, `[c]`: what several steps may leave in a relation that is asked once."""
        return sum(
            (_rows(torch.ones_like(a), update[name], axis).square().sum(dim=1) for name, a, axis in self.parts),
            start=torch.zeros(()),
        )


@dataclass(frozen=True, eq=False)
class Relation:
    """What two neighboring layers owe each other.

    Args:
        edge: the layers.
        front: what the first one says.
        behind: what the second one says.
        normalized: whether the second one is a BatchNorm that is fed by a layer with weights.
        channels: how many there are.
    """

    edge: Edge
    front: Term = field(repr=False)
    behind: Term = field(repr=False)
    normalized: bool
    channels: int

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors that are in it."""
        return tuple(name for term in (self.front, self.behind) for name, _, _ in term.parts)

    def residual(self, update: Params) -> Tensor:
        """`out - in`, `[c]`."""
        behind = self.behind.value(update)
        return self.front.value(update) - behind.reshape(self.channels, -1).sum(dim=1)

    def violation(self, subject: Subject, update: Params | None = None) -> float:
        """Root mean square of what is left over what is there; rounding and further local steps are taken off."""
        update = subject.raw if update is None else update
        left = (self.residual(update).abs() - self.tolerance(subject, update)).clamp(min=0)
        size = float(self.size(update).square().mean().sqrt())
        return rms(left) / size if size else 0.0

    def size(self, update: Params) -> Tensor:
        """What a residual of unrelated tensors would be, `[c]`."""
        behind = self.behind.squares(update).reshape(self.channels, -1).sum(dim=1)
        return (self.front.squares(update) + behind).sqrt()

    def tolerance(self, subject: Subject, update: Params) -> Tensor:
        """What rounding and the way of several steps may leave, `[c]`."""
        rounding = {name: subject.rounding(name) for name in self.names}
        allowed = 6 * self.size(rounding)
        if subject.single:
            return allowed
        behind = self.behind.path(update).reshape(self.channels, -1).sum(dim=1)
        return allowed + self.front.path(update) + behind

    def noise(self, update: Params) -> float:
        """Standard deviation of noise that would leave this residual."""
        weights = self.front.weights() + self.behind.weights().reshape(self.channels, -1).sum(dim=1)
        return float((self.residual(update).square().mean() / weights.mean().clamp_min(1e-300)).sqrt())


def relations(subject: Subject) -> tuple[Relation, ...]:
    """The relations between layers whose tensors are all in the update, with BatchNorm in eval mode."""
    found = []
    for edge in edges(subject.network):
        front, behind = _front(subject, edge.front), _behind(subject, edge.behind)
        if front is not None and behind is not None:
            normalized = isinstance(subject.network.module.get_submodule(edge.behind), _Norm)
            found.append(Relation(edge, front, behind, normalized, len(front.weights())))
    return tuple(found)


def _front(subject: Subject, layer: str) -> Term | None:
    """Weights and bias, each times its own gradient."""
    module = subject.network.module.get_submodule(layer)
    names = [f"{layer}.{name}".lstrip(".") for name, _ in module.named_parameters(recurse=False)]
    if not names or any(name not in subject.raw for name in names):
        return None
    return Term(tuple((name, subject.middle[name], 0) for name in names))


def _behind(subject: Subject, layer: str) -> Term | None:
    module = subject.network.module.get_submodule(layer)
    weight, bias = f"{layer}.weight".lstrip("."), f"{layer}.bias".lstrip(".")
    if weight not in subject.raw:
        return None
    if not isinstance(module, _Norm):
        return Term(((weight, subject.middle[weight], 1),))
    if module.running_mean is None or module.running_var is None or bias not in subject.raw:
        return None
    scale, mean = subject.middle[weight], module.running_mean.detach().to("cpu", torch.float64)
    deviation = (module.running_var.detach().to("cpu", torch.float64) + module.eps).sqrt()
    return Term(((weight, scale, 0), (bias, scale * mean / deviation, 0)))


def _rows(coefficients: Tensor, part: Tensor, axis: int) -> Tensor:
    """Products, one row a channel."""
    return (
        (coefficients * part).transpose(0, axis).flatten(start_dim=1)
        if part.ndim > 1
        else (coefficients * part)[:, None]
    )

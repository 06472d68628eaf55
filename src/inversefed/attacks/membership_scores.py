"""Was a record in the update? By how much better the update is explained with the record's own gradient than without.

    u = sum_j a_j g_j + e,     S = sum_j g_j g_j' + r I,     score_j = c g_j' S_j^-1 u - c^2 g_j' S_j^-1 g_j / 2

g_j is the gradient of record j alone, S_j the sum S without it, c what one example weighs in the update: the logarithm
of a likelihood ratio where the rest of the update is normal, with the covariance of the other records' gradients. They
stand for the examples that nobody asks for, and those that are in the update themselves explain their own part of it.
Their Gram matrix K_ij = g_i' g_j is all that it takes: with H = K (K + r I)^-1 and the fit a = (K + r I)^-1 (g_j' u)_j,

    g_j' S_j^-1 u = a_j / (1 - H_jj),          g_j' S_j^-1 g_j = H_jj / (1 - H_jj)

The share r of what no record explains (noise, rounding, what a defense took) is where the likelihood of the update is
highest: between 1e-13 of a gradient's mean square for a plain gradient, where even records that the network is sure of
are told, and 10 behind strong noise.

Every record is treated alike, those that are known to be out among them, so that the scores of records that are out are
exchangeable, whatever network and client: ranks among them are exact. Membership by loss is Yeom et al.'s (2018,
arXiv:1709.01604), by gradients Nasr, Shokri and Houmansadr's (2019, arXiv:1812.00910); the whitening is the linear
discriminant's. Local steps count to second order, by gradients at two points of the straight line from the weights that
were sent out to those that came back, or to first order where that explains the update better. No gradient is kept:
each is hashed into few numbers, which keeps what is linear.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from inversefed.errors import ThreatModelError
from inversefed.fl.apart import apart
from inversefed.fl.clients.per_example import example_gradients
from inversefed.fl.network import Network
from inversefed.fl.privacy import dp_client
from inversefed.fl.targets import as_targets, class_count, forms
from inversefed.fl.threat import Observation
from inversefed.fl.train_mode import batchnorm_in_train_mode
from inversefed.numerics import float32_products
from inversefed.types import Batch, Inputs, Params, Scores, Targets

__all__ = ["Explained", "likelihood_ratios", "membership_scores"]

_PLACES = (0.5 - 3**-0.5 / 2, 0.5 + 3**-0.5 / 2)
"""On the line from the old weights to the new ones: the two-point rule of Gauss and Legendre."""

_CHANGE = 0.1
"""How much of a gradient's change along the line is taken for granted, beside the gradient; 0 and 1 do worse."""

_RIDGES = tuple(10.0**exponent for exponent in range(-13, 2))
"""Values of r that are tried, over the mean square of a gradient: from the rounding of single precision to noise that
drowns the update."""

_SKETCH = 2**15
"""Numbers that are kept of a gradient, at least 16 a tensor: many times more than there are records."""

_AT_ONCE = 2**26
"""Numbers of all gradients that are held before they are hashed: 256 MB in single precision."""

_CLASSES = 20
"""Most classes that are tried for a record whose label is not known, by what the network thinks likely."""


class Explained(NamedTuple):
    """How well all records together explain an update, and the score of each."""

    likelihood: float
    scores: Tensor


def membership_scores(observation: Observation, records: Batch) -> Scores:
    """Score records by how much better the update is explained with each than without.

    Args:
        observation: the update, and what the server knows.
        records: those that are asked for together with those that are known to be out, in any order; a label of -1 is
            not known, and the class that fits best counts.

    Returns:
        One number a record, `[n]`; what is higher is likelier in the update. Differences mean something among the
        records of one call alone.

    Raises:
        ThreatModelError: labels that are not known, of a loss that takes no classes.

    >>> from inversefed.fl.simulate import observed
    >>> images, labels = torch.rand(8, 1, 4, 4), torch.arange(8) % 4
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 4))
    >>> observation, _ = observed(net, images[:4], labels[:4])
    >>> scores = membership_scores(observation, Batch(images, labels))
    >>> bool(scores[:4].min() > scores[4:].max())
    True
    """
    if observation.network.dtype in (torch.float16, torch.bfloat16):
        observation = observation.to(torch.float32)
    network = observation.network
    images = network.held(records.images)
    network = _with_statistics(network, images)
    hypotheses = _hypotheses(network, images, records.labels)
    private, gradient = dp_client(observation.client), observation.gradient
    sketch = _Sketch.of(gradient, None if private is None else private.max_grad_norm)
    sent = sketch({name: part.detach()[None] for name, part in gradient.items()})[0]
    square, count = float(sent.square().sum()), observation.num_examples
    best, greatest = torch.empty(0), -math.inf
    with float32_products(network.device), torch.no_grad():
        for rows in _linear(observation, lambda params: sketch.of_each(network, params, images, hypotheses)):
            for chosen in hypotheses.sets:
                kept = rows[torch.cat([chosen + part for part in range(0, len(rows), len(hypotheses.record))])]
                found = likelihood_ratios(kept @ kept.T, kept @ sent, square, len(sent), count, len(chosen))
                if found.likelihood > greatest:
                    lowest = torch.full((len(images),), -math.inf, dtype=torch.float64)
                    best = lowest.scatter_reduce(0, hypotheses.record[chosen], found.scores.cpu(), "amax")
                    greatest = found.likelihood
    return best


def likelihood_ratios(
    gram: Tensor, overlap: Tensor, square: float, size: int, num_examples: int, asked: int
) -> Explained:
    """The scores of records whose gradients have these inner products.

    Args:
        gram: of the gradients with each other, `[n, n]`, in float64; and of what else may be in an update.
        overlap: of each with the update, `[n]`.
        square: of the update.
        size: how many numbers a gradient has.
        num_examples: how many examples made the update: where it is their mean, one weighs a share 1 / n of it. What
            that is in truth, behind a client that scales, is read off the fit.
        asked: how many of the first are records' gradients.

    Returns:
        The logarithm of the update's likelihood, up to a constant, and the scores, `[asked]`.
    """
    own, basis = torch.linalg.eigh(gram)
    seen = own > own[-1] * 1e-15
    own = torch.where(seen, own, 0.0)
    along = basis.T @ overlap
    parts = torch.where(seen, along.square() / own.clamp(min=1e-300), 0.0)
    rest = max(square - float(parts.sum()), 1e-15 * square)
    scale = float(gram.diagonal().mean()) or 1.0

    def evidence(ridge: float) -> float:
        fit = float((parts / (own + ridge)).sum()) + rest / ridge
        volume = float((own + ridge).log().sum()) + (size - len(own)) * math.log(ridge)
        return -(volume + size * math.log(fit or 1.0)) / 2

    likelihood, ridge = max((evidence(scale * each), scale * each) for each in _RIDGES)
    fitted = (basis @ (along / (own + ridge)))[:asked]
    without = (basis.square() @ (ridge / (own + ridge)))[:asked].clamp(1e-15, 1)  # 1 - H_jj
    common = float(overlap[:asked].mean()) / (float(gram[:asked, :asked].mean()) or 1.0)
    mass = max(float(fitted.sum()), min(common, 1.0))
    weight = (mass if mass > 0 else 1.0) / num_examples
    return Explained(likelihood, weight * fitted / without - weight**2 * (1 - without) / without / 2)


@dataclass(frozen=True, eq=False)
class _Hypotheses:
    """What is asked: record number `record` was in the update with the label `labels`, one entry each.

    Args:
        record: `[m]`.
        labels: `[m]`.
        sets: indices of those that are taken together, `[k]` each: all of them, or of each record the class that the
            network thinks likeliest. The classes of one record have gradients that add up to zero, so that one which
            the network is sure of is not told from the others among all; which set is right, the update says.
    """

    record: Tensor
    labels: Targets
    sets: tuple[Tensor, ...]


def _hypotheses(network: Network, images: Inputs, labels: Targets) -> _Hypotheses:
    """Each record with its label, or with every class that the network thinks likely."""
    places = torch.arange(len(images))
    unknown = torch.zeros(len(images), dtype=torch.bool) if labels.is_floating_point() else labels.cpu() == -1
    if not bool(unknown.any()):
        return _Hypotheses(places, as_targets(network, labels), (places,))
    if "classes" not in forms(network) or network.num_classes < 2:
        raise ThreatModelError(
            f"the loss {network.loss!r} takes no classes that could be tried: give the labels of all records"
        )
    known = int((~unknown).sum())
    likely = network.features(images[unknown]).topk(min(_CLASSES, class_count(network)), dim=1).indices.cpu()
    record = torch.cat([places[~unknown], places[unknown].repeat_interleave(likely.shape[1])])
    every, likeliest = torch.arange(len(record)), torch.arange(known, len(record), likely.shape[1])
    return _Hypotheses(
        record,
        as_targets(network, torch.cat([labels.cpu()[~unknown].long(), likely.flatten()])),
        (every, torch.cat([every[:known], likeliest])),
    )


def _with_statistics(network: Network, images: Inputs) -> Network:
    """The network as it treats one example of a batch: BatchNorm by the records' statistics, and nothing dropped."""
    module = apart(network.module)
    coupled = batchnorm_in_train_mode(module)
    for layer in coupled.values():
        layer.reset_running_stats()
        layer.momentum = None  # the plain mean over all that is seen
    if coupled:
        with torch.no_grad():
            module(network.normalize(images))
    return replace(network, module=module.eval(), masks={}, carried=None)


def _linear(observation: Observation, gradients: Callable[[Params], Tensor]) -> Iterator[Tensor]:
    """What an update may be a sum of: the records' gradients at the beginning, or along the local steps.

    There each record has a second row, by how much its gradient changes, which takes up what is not linear.
    """
    network, client, update = observation.network, observation.client, observation.update
    yield gradients(network.params)
    steps = observation.steps
    if client.sends == "gradient" or (steps is not None and steps.count == 1):
        return
    old = {name: weight.detach() for name, weight in network.params.items()}
    change = {name: part - old[name] if client.sends == "weights" else part for name, part in update.items()}
    first, last = (
        gradients({name: w + place * change[name] if name in change else w for name, w in old.items()})
        for place in _PLACES
    )
    yield torch.cat([(first + last) / 2, _CHANGE * (last - first)])


@dataclass(frozen=True, eq=False)
class _Sketch:
    """Hashes each tensor of a gradient into few numbers: entry i is added to bucket b(i) with sign s(i).

    Inner products are kept in expectation, sums exactly (Charikar, Chen and Farach-Colton 2002).

    Args:
        buckets: by name, of each entry; nothing for a tensor that is kept as it is.
        signs: by name, of each entry.
        size: buckets of a tensor.
        max_grad_norm: what the client clips each example's gradient to; `None` for no clipping.
    """

    buckets: dict[str, Tensor]
    signs: dict[str, Tensor]
    size: int
    max_grad_norm: float | None

    @classmethod
    def of(cls, gradient: Params, max_grad_norm: float | None) -> "_Sketch":
        size, buckets, signs = max(16, _SKETCH // len(gradient)), {}, {}
        random = Generator().manual_seed(0)
        for name, part in gradient.items():
            count = part.numel()
            if count > size:
                buckets[name] = torch.randint(size, (count,), generator=random).to(part.device)
                signs[name] = (2 * torch.randint(2, (count,), generator=random) - 1).to(part.device, torch.float64)
            else:
                buckets[name] = torch.arange(count, device=part.device)
                signs[name] = torch.ones(count, dtype=torch.float64, device=part.device)
        return cls(buckets, signs, size, max_grad_norm)

    def __call__(self, gradients: Params) -> Tensor:
        """Gradients of n examples, by name, `[n, ..]`, as `[n, k]`."""
        kept = []
        for name, buckets in self.buckets.items():
            rows = gradients[name].flatten(1).double() * self.signs[name]
            kept.append(rows.new_zeros(len(rows), min(self.size, rows.shape[1])).index_add_(1, buckets, rows))
        return torch.cat(kept, dim=1)

    def of_each(self, network: Network, params: Params, images: Inputs, asked: _Hypotheses) -> Tensor:
        """The gradients of all hypotheses, `[n, k]`, a few at a time."""
        many = max(1, _AT_ONCE // sum(weight.numel() for weight in params.values()))
        kept = []
        for record, labels in zip(torch.split(asked.record, many), torch.split(asked.labels, many), strict=True):
            gradients = example_gradients(network, params, images[record], labels)
            gradients = {name: part.detach() for name, part in gradients.items()}
            rows = self(gradients)
            if self.max_grad_norm is not None:
                norms = torch.stack([part.flatten(1).norm(dim=1) for part in gradients.values()]).norm(dim=0)
                rows = rows * (self.max_grad_norm / norms.double()).clamp(max=1.0)[:, None]
            kept.append(rows)
        return torch.cat(kept)

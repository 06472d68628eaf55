"""The rank-b decomposition of a linear layer's gradient, whose factors mix the b examples.

    gW = D^T X,  gb = D^T 1        X: the b normalized pictures as rows, D = dL/dZ, Z = X W^T + c

A thin singular value decomposition gives the space that the pictures span, `gW = C V^T` with orthonormal rows V^T. So
`X = Q^-1 V^T` and `D^T = C Q` for one matrix Q of b x b, which linear algebra alone leaves open (Dimitrov et al.
2024, arXiv:2403.03945, theorem 3.1). `spear` and `cocktail_party` find Q, each from what it knows of D or of X.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import scipy
import torch
from torch import Generator, Tensor

from inversefed.attacks.exact.linear import layer_on_the_picture
from inversefed.attacks.head.gradient import pulls
from inversefed.errors import ThreatModelError, UnsupportedNetworkError
from inversefed.fl.hooks import record
from inversefed.fl.losses import link_of
from inversefed.fl.network import Network
from inversefed.fl.recovered_targets import recovered_targets
from inversefed.fl.targets import as_targets, class_count, forms, loss_slope
from inversefed.fl.threat import Observation
from inversefed.types import Inputs, Targets

__all__ = ["Mixture", "assigned_labels", "mixture"]


@dataclass(frozen=True)
class Tolerances:
    """The numbers that it decides by, each with its reason.

    Args:
        spare: directions beyond b in the sketch, enough to see a rank that is higher.
        affine: how far a backward pass may be from affine in its labels, relative.
        hard: how near 0 or 1 an answer counts as that.
        zero: singular values up to this many roundings of the number format, times the largest, count as zero.
    """

    spare: int = 8
    affine: float = 1e-4
    hard: float = 1e-3
    zero: float = 32.0


TOLERANCES = Tolerances()


@dataclass(frozen=True, eq=False)
class Mixture:
    """A decomposed gradient, in double precision on the CPU.

    Args:
        layer: name of the linear layer.
        rows: C, the coordinates of each row of gW, `[m, b]`.
        basis: V^T, orthonormal, `[b, n]`.
        weight: W, `[m, n]`.
        bias: c, `[m]`.
        ones: coordinates of gb: `C ones = gb`, `[b]`.
        singular_values: of gW, `[b]`, falling.
        image_shape: `(c, h, w)` of the pictures, n values in all.
        eps: rounding of the number format that the gradient was computed in.
    """

    layer: str
    rows: Tensor = field(repr=False)
    basis: Tensor = field(repr=False)
    weight: Tensor = field(repr=False)
    bias: Tensor = field(repr=False)
    ones: Tensor = field(repr=False)
    singular_values: Tensor = field(repr=False)
    image_shape: tuple[int, int, int]
    eps: float

    @property
    def count(self) -> int:
        """How many pictures are mixed."""
        return self.rows.shape[1]

    @property
    def has_neighbors(self) -> bool:
        """Whether values stand beside each other, as those of a picture or a series do and those of a row do not."""
        return self.image_shape[1:] != (1, 1)


def mixture(observation: Observation) -> Mixture:
    """Decompose the gradient of the layer that sees the pictures.

    Raises:
        UnsupportedNetworkError: no linear layer with bias sees the flattened pictures, or it is too small for them.
        ThreatModelError: the gradient's rank is not the number of examples.
    """
    network, count = observation.network, observation.num_examples
    layer = layer_on_the_picture(network)
    if layer is None or not {f"{layer}.weight", f"{layer}.bias"} <= set(network.params):
        raise UnsupportedNetworkError(
            "no linear layer with bias sees the flattened pictures, so none holds a mixture of them; use an "
            "optimization attack such as geiping()"
        )
    gradient = {name: observation.gradient[f"{layer}.{name}"].detach().cpu().double() for name in ("weight", "bias")}
    outputs, inputs = gradient["weight"].shape
    if count > min(outputs, inputs):
        raise UnsupportedNetworkError(
            f"{count} pictures are more than layer {layer} with {inputs} inputs and {outputs} outputs can tell apart; "
            f"at most {min(outputs, inputs)} are"
        )
    eps = torch.finfo(network.dtype).eps
    values, basis = _row_space(gradient["weight"], count)
    _check_rank(values, count, eps, layer)
    rows = gradient["weight"] @ basis.T
    ones = torch.linalg.lstsq(rows, gradient["bias"][:, None], driver="gelsd").solution[:, 0]
    weight, bias = (network.params[f"{layer}.{name}"].detach().cpu().double() for name in ("weight", "bias"))
    return Mixture(layer, rows, basis, weight, bias, ones, values[:count], network.grid, eps)


def _row_space(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest singular values and right singular vectors; exact where the rank is no higher than `count`."""
    width = min(count + TOLERANCES.spare, *matrix.shape)
    mix = torch.randn((matrix.shape[1], width), generator=Generator().manual_seed(0), dtype=matrix.dtype)
    columns = torch.linalg.qr(matrix @ (matrix.T @ (matrix @ mix)))[0]
    _, values, right = torch.linalg.svd(columns.T @ matrix, full_matrices=False)
    return values, right[:count]


def _check_rank(values: Tensor, count: int, eps: float, layer: str) -> None:
    rank = int((values > TOLERANCES.zero * eps * values[0]).sum())
    if rank > count:
        raise ThreatModelError(
            f"the gradient of layer {layer} has rank {rank} or more and not {count}, so it is not that of {count} "
            "examples as it was computed: noise, pruning or quantization do that"
        )
    if rank < count:
        raise ThreatModelError(
            f"the gradient of layer {layer} has rank {rank}, fewer than the {count} examples: two of them are alike, "
            "or one of them does not move this layer"
        )


def assigned_labels(observation: Observation, layer: str, images: Inputs, deltas: Tensor) -> tuple[Targets, Tensor]:
    """The label of each picture: the class whose backward pass comes nearest to the picture's row of D.

    Labels that the threat model grants are dealt out to the pictures, for the least distance in all. Where no class
    explains D, and of a loss of other numbers, the derivative with respect to the outputs is solved for, and what the
    loss says of it is the target (see `fl.recovered_targets`).

    Args:
        observation: for the network, its loss, and labels that are granted.
        layer: name of the linear layer.
        images: `[b, c, h, w]`, pixel space.
        deltas: D, `[b, m]`.

    Returns:
        The labels, and the order `[b]` that pictures take to stand as the granted labels do; as they are without.

    Raises:
        ThreatModelError: no label is granted, and the loss does not tell them.
    """
    network, granted = observation.network, observation.labels
    backward, own = _backward(network, layer, images), torch.arange(len(images), device=images.device)
    if granted is not None:
        return dealt(granted, _distances(backward, granted, deltas).to(images.device))
    if not _has_classes(network):
        return _numbers(network, layer, images, deltas), own
    classes = as_targets(network, torch.arange(class_count(network)))
    distances = _distances(backward, classes, deltas)
    nearest = classes[distances.argmin(dim=1).to(classes.device)].to(images.device)
    limit = TOLERANCES.hard * deltas.norm(dim=1)
    if link_of(network.loss) and bool((distances.amin(dim=1) > limit).any()):
        with suppress(ThreatModelError):  # mixtures of classes explain it better, unless the pictures are wrong
            found = _numbers(network, layer, images, deltas)
            if bool(((backward(found) - deltas).norm(dim=1) <= limit).all()):
                return found, own
    return nearest, own


def dealt(granted: Targets, distances: Tensor) -> tuple[Targets, Tensor]:
    """Granted labels dealt out to examples for the least distance in all.

    Args:
        granted: b labels.
        distances: `[b, b]`, of each example from each label.

    Returns:
        The label of each example, and the order `[b]` that examples take to stand as the granted labels do.
    """
    _, columns = scipy.optimize.linear_sum_assignment(distances.cpu().numpy())
    places = torch.from_numpy(columns).to(distances.device)
    return granted[places], places.argsort()


def _distances(backward: Callable[[Tensor], Tensor], targets: Targets, deltas: Tensor) -> Tensor:
    alike = (target.expand(len(deltas), *target.shape) for target in targets)
    return torch.stack([(backward(each) - deltas).norm(dim=1) for each in alike], dim=1)


def _has_classes(network: Network) -> bool:
    """Whether labels are classes; those of a single output are only under binary cross entropy."""
    return pulls(network) is not None if network.num_classes == 1 else "classes" in forms(network)


def _backward(network: Network, layer: str, images: Inputs) -> Callable[[Tensor], Tensor]:
    """What labels make D to be, `[b, m]`."""
    logits, pulled = _pullback(network, layer, images)
    return lambda targets: pulled(loss_slope(network, logits, targets))


def _pullback(network: Network, layer: str, images: Inputs) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The outputs `[b, k]`, and what a derivative with respect to them makes D to be, `[b, k] -> [b, m]`."""
    layers = {layer: network.module.get_submodule(layer)}
    with torch.enable_grad():
        logits, runs = record(layers, lambda: network.apply(network.params, images), lambda *_: None)

    def pulled(slopes: Tensor) -> Tensor:
        delta: Tensor
        (delta,) = torch.autograd.grad(logits, runs[0].outputs, slopes, retain_graph=True)
        return delta.cpu().double()

    return logits, pulled


def _numbers(network: Network, layer: str, images: Inputs, deltas: Tensor) -> Targets:
    """The targets behind D, by the derivative with respect to the outputs, in double precision.

    Raises:
        ThreatModelError: D, or the loss, does not tell them.
    """
    double = network.to(torch.float64)
    outputs, pulled = _pullback(double, layer, double.held(images))
    columns = [pulled(each.expand_as(outputs)) for each in torch.eye(outputs.shape[1]).to(outputs)]
    jacobian = torch.stack(columns, dim=2)
    sizes = torch.linalg.svdvals(jacobian)
    if sizes.shape[1] < outputs.shape[1] or bool((sizes[:, -1] <= TOLERANCES.affine * sizes[:, 0]).any()):
        raise ThreatModelError(
            f"layer {layer} is moved in too few ways for the {outputs.shape[1]} outputs of several pictures to be told "
            "from it; hand the labels over (known labels)"
        )
    slopes = torch.linalg.lstsq(jacobian, deltas[..., None]).solution[..., 0]
    targets = recovered_targets(double, outputs.detach(), slopes.to(outputs))
    return targets.to(network.dtype) if targets.is_floating_point() else targets

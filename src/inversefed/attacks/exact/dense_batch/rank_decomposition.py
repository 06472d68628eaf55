"""The rank-b decomposition of a linear layer's gradient, whose factors mix the b examples.

    gW = D^T X,  gb = D^T 1        X: the b normalized pictures as rows, D = dL/dZ, Z = X W^T + c

A thin singular value decomposition gives the space that the pictures span, `gW = C V^T` with orthonormal rows V^T. So
`X = Q^-1 V^T` and `D^T = C Q` for one matrix Q of b x b, which linear algebra alone leaves open (Dimitrov et al.
2024, arXiv:2403.03945, theorem 3.1). `spear` and `cocktail_party` find Q, each from what it knows of D or of X.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import scipy
import torch
from torch import Generator, Tensor

from inversefed.attacks.exact.linear import layer_on_the_picture
from inversefed.attacks.head.gradient import pulls
from inversefed.errors import ThreatModelError, UnsupportedNetworkError
from inversefed.fl.hooks import record
from inversefed.fl.network import Network
from inversefed.fl.targets import as_targets, class_count, forms, loss_slope, made_up_outputs
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

    Labels that the threat model grants are dealt out to the pictures, for the least distance in all. Of a loss of other
    numbers, whose backward pass is affine in them, they are solved for.

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
    if granted is None and not _has_classes(network):
        return _solved(network, backward, deltas), own
    tried = as_targets(network, torch.arange(class_count(network))) if granted is None else granted
    distances = torch.stack([(backward(target) - deltas).square().sum(dim=1) for target in tried], dim=1)
    if granted is None:
        return tried[distances.argmin(dim=1).to(tried.device)].to(images.device), own
    _, dealt = scipy.optimize.linear_sum_assignment(distances.numpy())
    places = torch.from_numpy(dealt).to(images.device)
    return granted[places], places.argsort()


def _has_classes(network: Network) -> bool:
    """Whether labels are classes; those of a single output are only under binary cross entropy."""
    return pulls(network) is not None if network.num_classes == 1 else "classes" in forms(network)


def _backward(network: Network, layer: str, images: Inputs) -> Callable[[Tensor], Tensor]:
    """What a label, given to all pictures, makes D to be, `[b, m]`."""
    layers = {layer: network.module.get_submodule(layer)}
    with torch.enable_grad():
        logits, runs = record(layers, lambda: network.apply(network.params, images), lambda *_: None)

    def backward(target: Tensor) -> Tensor:
        slope = loss_slope(network, logits, target.expand(len(images), *target.shape))
        delta: Tensor
        (delta,) = torch.autograd.grad(logits, runs[0].outputs, slope, retain_graph=True)
        return delta.cpu().double()

    return backward


def _solved(network: Network, backward: Callable[[Tensor], Tensor], deltas: Tensor) -> Targets:
    """The numbers, `[b]` or `[b, k]`, whose backward pass is D.

    Raises:
        ThreatModelError: the backward pass is not affine in them, or not for them alone.
    """
    taken, width = forms(network), network.num_classes
    values = "values" in taken and width == 1
    own = torch.eye(width, device=network.device, dtype=network.dtype)
    own = own.flatten() if values else own
    refused = f"the loss {network.loss!r} does not tell the labels of several pictures; hand them over (known labels)"
    if not values and "rows" not in taken:
        raise ThreatModelError(refused)
    zero = backward(0 * own[0])
    jacobian = torch.stack([backward(each) - zero for each in own], dim=2)
    off = (backward(0.5 + 0 * own[0]) - zero - jacobian.sum(dim=2) / 2).norm()
    sizes = torch.linalg.svdvals(jacobian)
    if (
        off > TOLERANCES.affine * jacobian.norm()
        or sizes.shape[1] < width
        or bool((sizes[:, -1] <= TOLERANCES.affine * sizes[:, 0]).any())
    ):
        raise ThreatModelError(refused)
    found = torch.linalg.lstsq(jacobian, (deltas - zero)[..., None]).solution[..., 0]
    answers = found.clamp(0, 1).round()  # of yes or no, where they come out so
    found = answers if bool(((found - answers).abs() < TOLERANCES.hard).all()) else found
    targets: Targets = (found[:, 0] if values else found).to(network.device, network.dtype)
    return targets if _is_taken(network, targets) else targets.clamp(0, 1)


def _is_taken(network: Network, targets: Targets) -> bool:
    """Whether the loss takes these numbers: that of probabilities refuses those outside [0, 1]."""
    outputs = made_up_outputs(network)
    try:
        loss_slope(network, outputs[torch.arange(len(targets), device=outputs.device) % len(outputs)], targets)
    except UnsupportedNetworkError:
        return False
    return True

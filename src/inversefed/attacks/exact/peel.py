"""Peel a network from its head to its image: at every layer the input solves *linear* equations.

For one example and a chain of layers,

    head:        a = gb^T gW / |gb|^2,  delta = W^T gb
    activation:  z = act^{-1}(a),  delta <- delta * act'(z)
    BatchNorm:   x = (z - t) / s,  delta <- s * delta             (eval mode)
    convolution: solve for a (see `convolution`),  delta <- W^T delta

A smooth activation is peeled down to the image. Under ReLU and LeakyReLU the side of the kink is known exactly at the
head's input (a zero is a zero), but not below the first layer that was solved from rounded numbers; there peeling
stops and the image is found from the features it reached, `min |features(x) - a|^2`, by L-BFGS through the shallow
layers alone. The result is called exact only if the forward operator, run once, reproduces the update.
"""

from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor, nn

from inversefed.attacks.exact.convolution import solve_convolution, transposed
from inversefed.attacks.labels import granted_or_recovered
from inversefed.attacks.objectives import RelativeSquaredError
from inversefed.errors import ThreatModelError, UnsupportedNetworkError
from inversefed.fl.chain import Layer, chain, run
from inversefed.fl.threat import Observation
from inversefed.types import Budget, Candidate, Finding, Params, Reconstruction, Status

__all__ = ["Peel"]

EXACT = 1e-8
"""Relative matching cost below which a result is called exact."""


@dataclass(frozen=True, eq=False)
class _Front:
    """How far the peeling is: what is known between two layers.

    Args:
        values: the numbers there, `[c, h, w]` or `[features]`.
        delta: the loss gradient with respect to them.
        weight: how much each is to be believed: the slopes of the activations above it.
    """

    values: Tensor = field(repr=False)
    delta: Tensor = field(repr=False)
    weight: Tensor = field(repr=False)


@dataclass(frozen=True)
class Peel:
    """Recover one picture exactly, layer by layer.

    Args:
        evaluations: most evaluations of the shallow layers where their features have to be inverted.
    """

    evaluations: int = 1500

    def __call__(self, observation: Observation, generator: Generator, budget: Budget = Budget()) -> Reconstruction:
        """Peel; no randomness is used, and the budget is not needed.

        Raises:
            ThreatModelError: the update is not that of one example.
            UnsupportedNetworkError: the network is no chain, or a layer cannot be peeled.
        """
        if observation.num_examples != 1:
            raise ThreatModelError(f"peeling needs the update of one example; this one has {observation.num_examples}")
        network = observation.network
        layers, gradient = chain(network), _double(observation.gradient)
        eps = torch.finfo(network.dtype).eps
        depth, inputs = peel(layers, gradient, network.image_shape, eps)
        if depth > 0:
            inputs = invert_features(layers[:depth], inputs, network.image_shape, eps, self.evaluations)
        images = network.denormalize(inputs[None].to(network.device, network.dtype))
        labels = granted_or_recovered(observation)
        return _verified(observation, images, labels, depth, len(layers))


def peel(
    layers: tuple[Layer, ...], gradient: Params, image_shape: tuple[int, int, int], eps: float
) -> tuple[int, Tensor]:
    """Go down from the head as far as the numbers can be trusted.

    Args:
        layers: the network as a chain.
        gradient: of the loss of one example, double precision.
        image_shape: `(c, h, w)`.
        eps: rounding of the numbers that the gradient was computed in.

    Returns:
        How many layers are left, and the numbers that come out of them: the normalized image for 0.

    Raises:
        UnsupportedNetworkError: the last layer is not linear with bias, or nothing below it can be peeled.
    """
    depth, front, rounded = len(layers) - 1, _head(layers[-1], gradient), False
    while depth > 0:
        layer = layers[depth - 1]
        if isinstance(layer.module, nn.ReLU | nn.LeakyReLU) and rounded:
            return depth, front.values
        shape = layers[depth - 2].shape if depth > 1 else image_shape
        front = _below(layer, front, gradient, shape, eps)
        rounded = rounded or isinstance(layer.module, nn.Conv2d)
        depth -= 1
    return 0, front.values


def _head(layer: Layer, gradient: Params) -> _Front:
    weight, bias = gradient.get(f"{layer.name}.weight"), gradient.get(f"{layer.name}.bias")
    if not isinstance(layer.module, nn.Linear) or weight is None or bias is None or not bool(bias.any()):
        raise UnsupportedNetworkError(
            "peeling starts at a last linear layer with bias, and this network ends otherwise"
        )
    features = (bias @ weight) / bias.square().sum()
    return _Front(features, bias @ layer.module.weight.detach(), torch.ones_like(features))


def _below(layer: Layer, front: _Front, gradient: Params, shape: tuple[int, ...], eps: float) -> _Front:
    """What is known in front of a layer, from what is known behind it."""
    module = layer.module
    match module:
        case nn.Flatten() | nn.Identity() | nn.Dropout() | nn.Dropout2d():
            return _Front(*(part.reshape(shape) for part in (front.values, front.delta, front.weight)))
        case nn.Sigmoid() | nn.Tanh() | nn.LeakyReLU() | nn.ReLU():
            values, slope = _inverse(module, front.values, eps)
            return _Front(values, front.delta * slope, front.weight * slope)
        case nn.BatchNorm2d() if module.running_var is not None and module.running_mean is not None:
            scale, shift = _affine(module)
            return _Front((front.values - shift) / scale, front.delta * scale, front.weight * scale.abs())
        case nn.Linear():
            values = (front.delta @ gradient[f"{layer.name}.weight"]) / front.delta.square().sum()
            return _Front(values, front.delta @ module.weight.detach(), torch.ones_like(values))
        case nn.Conv2d():
            return _below_convolution(layer.name, module, front, gradient, shape, eps)
    raise UnsupportedNetworkError(f"peeling stops at {module}: what went into it is not determined by linear equations")


def _below_convolution(
    name: str, module: nn.Conv2d, front: _Front, gradient: Params, shape: tuple[int, ...], eps: float
) -> _Front:
    channels, height, width = shape
    values = solve_convolution(
        module,
        (channels, height, width),
        gradient[f"{name}.weight"],
        front.delta,
        front.values,
        front.weight,
        tolerance=eps * 1e-3,
    )
    delta = transposed(module, module.weight, shape, front.delta[None])
    return _Front(values, delta, torch.ones_like(values))


def _inverse(module: nn.Module, outputs: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """What went into an activation, and its slope there; a slope of zero marks what is not known."""
    match module:
        case nn.Sigmoid():
            inside = outputs.clamp(eps, 1 - eps)
            return torch.logit(inside), inside * (1 - inside)
        case nn.Tanh():
            inside = outputs.clamp(-1 + eps, 1 - eps)
            return torch.atanh(inside), 1 - inside.square()
        case nn.LeakyReLU():
            slope = torch.where(outputs > 0, 1.0, module.negative_slope).to(outputs)
            return outputs / slope, slope
    return outputs, (outputs > 0).to(outputs)


def _affine(module: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """BatchNorm in eval mode as `scale * x + shift`, `[c, 1, 1]` each."""
    assert module.running_var is not None and module.running_mean is not None
    scale = (module.running_var + module.eps).rsqrt()
    if module.affine:
        scale = scale * module.weight.detach()
    shift = -module.running_mean * scale
    if module.affine:
        shift = shift + module.bias.detach()
    return scale[:, None, None], shift[:, None, None]


def invert_features(
    layers: tuple[Layer, ...], features: Tensor, image_shape: tuple[int, int, int], eps: float, evaluations: int
) -> Tensor:
    """Find the normalized image whose shallow features are these: `min |f(x) - a|^2 / |a|^2` from the mean color.

    Args:
        layers: the shallow layers.
        features: what comes out of them.
        image_shape: `(c, h, w)`.
        eps: rounding of the features; the search ends when a step gains less than it could.
        evaluations: most evaluations.
    """
    x = torch.zeros((1, *image_shape), dtype=features.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [x], max_iter=evaluations, max_eval=evaluations, history_size=50, tolerance_grad=0,
        tolerance_change=max(1e-26, 1e-2 * eps**2),
        line_search_fn="strong_wolfe",
    )  # fmt: skip
    scale = features.square().sum()

    def closure() -> Tensor:
        loss = (run(layers, x)[0] - features).square().sum() / scale
        (x.grad,) = torch.autograd.grad(loss, x)
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return x.detach()[0]


def _double(gradient: Params) -> Params:
    return {name: part.detach().to("cpu", torch.float64) for name, part in gradient.items()}


def _verified(observation: Observation, images: Tensor, labels: Tensor, depth: int, count: int) -> Reconstruction:
    """Run the client on what was found: only an update that comes out the same makes it exact."""
    with torch.no_grad():
        predicted = observation.client(observation.network, images, labels)
        loss = float(RelativeSquaredError()(predicted, observation.update))
    how = "down to the image" if depth == 0 else f"down to layer {depth} of {count}, and inverted the features there"
    evidence = {"relative_matching_cost": loss, "layers": count, "layers_inverted": depth}
    if loss < EXACT:
        finding = Finding(
            "exact", "info", f"Exact: the network was peeled {how}, and the update comes out the same.", evidence
        )
    else:
        finding = Finding("not-exact", "warning", f"The network was peeled {how}, but the update differs.", evidence)
    candidate = Candidate(images, labels, loss, Status.FINISHED, iterations=1)
    return Reconstruction(images, labels, loss, Status.FINISHED, (candidate,), (finding,))

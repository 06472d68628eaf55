"""Input normalization: whether it was as stated, from the first BatchNorm layer's statistics.

    running mean of channel o  ~  b_o + sum_c (sum_k W_ock) m_c        m_c: mean input of channel c, in network space

so m_c follows by least squares, and `m_c std_c + mean_c` must be a pixel's mean. The running variance over that of
stand-in pictures gives the contrast. With one example, a first linear layer holds its input exactly, as dW_r / db_r. An
untrained network without such a layer tells nothing.
"""

from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from inversefed.findings import Code
from inversefed.fl.batchnorm import moments
from inversefed.fl.hooks import record
from inversefed.fl.network import Network
from inversefed.networks.natural_noise import STD, natural_noise
from inversefed.types import Finding
from inversefed.updates.diagnosis.evidence import Subject

__all__ = ["normalized_in_training", "normalized_otherwise"]

_Norm: TypeAlias = nn.BatchNorm1d | nn.BatchNorm2d

_PIXELS = (0.05, 0.95)
"""Mean pixels that a set of pictures may have."""
_CONTRAST = 2.8
"""Standard deviation over that of photographs, either way, from which on it is none of pictures."""
_MARGIN = 0.02


def normalized_otherwise(subject: Subject) -> tuple[Finding, ...]:
    """Compare --mean and --std with what the network and the update remember.

    Returns:
        A warning `normalization`, or nothing.
    """
    return normalized_in_training(subject.network) or _by_first_layer(subject)


def normalized_in_training(network: Network) -> tuple[Finding, ...]:
    """Compare --mean and --std with what the first BatchNorm layer of a trained network was fed with.

    Returns:
        A warning or an info `normalization`, or nothing.
    """
    first = _first_norm(network)
    if first is None:
        return ()
    name, layer = first
    inputs = _mean_input(network, name, layer)
    if inputs is None:
        return ()
    scale, offset = (part.flatten().to("cpu", torch.float64) for part in (network.std, network.mean))
    pixels = inputs * scale + offset
    spread = _contrast(network, name, layer)
    evidence = {"mean_input": inputs.tolist(), "mean_pixel": pixels.tolist(), "contrast": spread}
    if _PIXELS[0] < float(pixels.mean()) < _PIXELS[1] and 1 / _CONTRAST < spread < _CONTRAST:
        message = (
            f"By the running statistics of {name}, the network was trained on pixels of a mean of {_shown(pixels)}."
        )
        return (Finding(Code.NORMALIZATION, "info", message + " --mean and --std are plausible.", evidence),)
    message = (
        f"The network was trained on other inputs than --mean and --std give: by the running statistics of {name}, its "
        f"inputs had a mean of about {_shown(inputs)}, which would be pixels of {_shown(pixels)}, with {spread:.2g} "
        f"times the contrast of photographs. {_advice(inputs, float(spread * STD / scale.mean()))}"
    )
    return (Finding(Code.NORMALIZATION, "warning", message, evidence),)


def _advice(inputs: Tensor, deviation: float) -> str:
    if 0.1 < float(inputs.mean()) < 0.9 and deviation < 0.6:
        return "It seems to take pixels as they are: set --mean 0 --std 1."
    return "Set --mean and --std to those of its training."


def _shown(values: Tensor) -> str:
    return "(" + ", ".join(f"{float(value):.2f}" for value in values[:4]) + ")"


def _first_norm(network: Network) -> tuple[str, _Norm] | None:
    """The first layer of the network that keeps statistics, if it has seen any and one layer is before it."""
    leaves = {name: layer for name, layer in network.module.named_modules() if not list(layer.children())}
    _, runs = record(leaves, lambda: network.features(natural_noise(network, 2)), lambda *_: None)
    order = [(run.name, run.layer) for run in runs]
    if len(order) < 2 or not isinstance(order[0][1], nn.Conv2d | nn.Linear):
        return None
    name, layer = order[1]
    if not isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) or layer.running_mean is None:
        return None
    return (name, layer) if bool(layer.running_mean.any()) else None


def _mean_input(network: Network, name: str, layer: _Norm) -> Tensor | None:
    """The mean of each input channel that explains the running mean best; `None` if none does."""
    plain = _as_is(network)
    channels, height, width = network.image_shape
    flat = torch.eye(channels, dtype=network.dtype, device=network.device)[:, :, None, None]
    # Each of them twice: further on, BatchNorm in train mode may refuse a single one.
    pictures = [torch.zeros(2, channels, height, width, dtype=network.dtype, device=network.device)]
    pictures += [each.expand(2, channels, height, width) for each in torch.split(flat, 1)]
    with torch.no_grad():
        answers = [moments(plain, picture)[name].mean.to("cpu", torch.float64) for picture in pictures]
    matrix = torch.stack([answer - answers[0] for answer in answers[1:]], dim=1)
    target = torch.as_tensor(layer.running_mean).to("cpu", torch.float64) - answers[0]
    solution = torch.linalg.lstsq(matrix, target[:, None]).solution.flatten()
    left = float((matrix @ solution - target).norm())
    # Filters that see no mean leave it open: what the fit leaves, seen through them, has to be small.
    weakest = float(torch.linalg.svdvals(matrix).max()) * len(target) ** -0.5
    return solution if left * len(target) ** -0.5 < 0.3 * weakest else None


def _contrast(network: Network, name: str, layer: _Norm) -> float:
    """Standard deviation of what the layer was fed with, over that of stand-in pictures."""
    with torch.no_grad():
        variance = moments(network, natural_noise(network, 16))[name].variance.to("cpu", torch.float64)
    running = torch.as_tensor(layer.running_var).to("cpu", torch.float64)
    return float((running / variance.clamp_min(1e-12)).median().sqrt())


def _as_is(network: Network) -> Network:
    return replace(network, mean=torch.zeros_like(network.mean), std=torch.ones_like(network.std))


def _by_first_layer(subject: Subject) -> tuple[Finding, ...]:
    """The input of a first linear layer, where one example and one step made the update."""
    layers = subject.network.linear_layers()
    if not layers or not subject.single or subject.examples != 1 or not _sees_pictures(subject.network, layers[0]):
        return ()
    weight, bias = (f"{layers[0]}.{kind}".lstrip(".") for kind in ("weight", "bias"))
    channels, height, width = subject.network.image_shape
    if weight not in subject.raw or bias not in subject.raw or not bool(subject.raw[bias].any()):
        return ()
    rows, loss = subject.raw[weight], subject.raw[bias]
    row = int(loss.abs().argmax())
    inputs = (rows[row] / loss[row]).reshape(channels, height, width)
    scale, offset = (part.to("cpu", torch.float64) for part in (subject.network.std, subject.network.mean))
    return _pixels(inputs, inputs * scale + offset, bool((scale == 1).all()))


def _sees_pictures(network: Network, layer: str) -> bool:
    """Whether a linear layer is fed with the flattened picture itself."""
    pictures = natural_noise(network, 2)  # BatchNorm in train mode may refuse one
    flat = network.normalize(pictures).flatten(start_dim=1)
    seen = network.linear_inputs(pictures).get(layer)
    return seen is not None and seen.shape == flat.shape and bool(torch.equal(seen, flat))


def _pixels(inputs: Tensor, pixels: Tensor, plain: bool) -> tuple[Finding, ...]:
    low, high = (float(each) for each in pixels.aminmax())
    evidence = {"least_pixel": low, "greatest_pixel": high}
    if low < -_MARGIN or high > 1 + _MARGIN:
        message = (
            f"By --mean and --std the private picture would have pixels from {low:.2g} to {high:.2g}, not in 0..1: the "
            "client normalizes otherwise. Set --mean and --std to its own."
        )
        return (Finding(Code.NORMALIZATION, "warning", message, evidence),)
    if not plain and float(inputs.min()) > -1e-3 and float(inputs.max()) < 1 + 1e-3:
        message = (
            f"The network was fed with numbers in 0..1, which by --mean and --std would be pixels from {low:.2g} to "
            f"{high:.2g} only. If the client does not normalize, set --mean 0 --std 1."
        )
        return (Finding(Code.NORMALIZATION, "warning", message, evidence),)
    return ()

"""LPIPS: how different two pictures look, by the features of a trained network whose weights the user brings.

Features of several depths are scaled to unit length at each pixel; their squared differences are weighed by channel,
with weights that were fitted to what people see, averaged over the picture, and summed over depths:

    d(x, x*) = sum over l of mean over pixels of w_l . ( f_l(x)/|f_l(x)| - f_l(x*)/|f_l(x*)| )^2

0 is the same picture. Nothing is ever downloaded: a file is named, its SHA-256 stands in the report, and without one
the report says "not computed (no weights)". Which network it is, is told by the names of the tensors.

R. Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric", CVPR 2018 (arXiv 1801.03924);
A. Ghildyal and F. Liu, "Shift-tolerant perceptual similarity metric", ECCV 2022 (arXiv 2207.13686) for ST-LPIPS.
"""

import hashlib
import io
import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from inversefed.errors import InputError
from inversefed.evaluation.lpips_networks import TRUNKS, Trunk
from inversefed.types import Images, Scores

__all__ = ["Perceptual", "read_perceptual"]

METRIC = "learned_perceptual_image_patch_similarity"

MOST_BYTES = 2**30
"""VGG-16 with its classifier, the largest that is known here, has 553 MB."""

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Of the authors' code: ImageNet's normalization for pixels in [-1, 1]."""


@dataclass(frozen=True, eq=False)
class Perceptual:
    """A distance of pictures, lower is more alike.

    Args:
        name: what to call it, such as `"LPIPS (alex)"`.
        trunk: the network that the features come from.
        weights: the tensors by name, convolutions under `features.` and channel weights under `lin0`, `lin1`, ...
        sha256: of the files that they were read from, in order.
    """

    name: str
    trunk: Trunk = field(repr=False)
    weights: Mapping[str, Tensor] = field(repr=False)
    sha256: tuple[str, ...] = ()

    def __call__(self, images: Images, target: Images) -> Scores:
        """One distance an image.

        Args:
            images: reconstructions, pixels in [0, 1]; gray ones are taken as color.
            target: the truths, of the same shape.

        Raises:
            InputError: neither one channel nor three, or pictures too small for the network.
        """
        reason = self.refuses(images)
        if reason:
            raise InputError(f"{self.name} cannot be computed: {reason}")
        with torch.no_grad():
            pairs = zip(self._features(images), self._features(target), strict=True)
            layers = [
                (weight * (found - true).square()).sum(dim=1).mean(dim=(1, 2))
                for (found, true), weight in zip(pairs, self._channels(images), strict=True)
            ]
        return torch.stack(layers).sum(dim=0).to(images.dtype)

    def refuses(self, images: Images) -> str:
        """Why such pictures have no distance, or nothing."""
        channels, height, width = images.shape[1:]
        if channels not in (1, 3):
            return f"pictures of {channels} channels are neither gray nor color"
        if min(height, width) < self.trunk.least:
            return f"pictures of {height}x{width} are smaller than {self.trunk.least} pixels"
        return ""

    def _features(self, images: Images) -> list[Tensor]:
        pixels = images.detach().float().clamp(0, 1)
        shift, scale = (torch.tensor(each, device=pixels.device).view(1, 3, 1, 1) for each in (_SHIFT, _SCALE))
        weights = {name: value.to(pixels.device) for name, value in self.weights.items()}
        layers = self.trunk.features(weights, (2 * pixels - 1 - shift) / scale)
        return [layer / (layer.square().sum(dim=1, keepdim=True).sqrt() + 1e-10) for layer in layers]

    def _channels(self, images: Images) -> list[Tensor]:
        return [self.weights[f"lin{depth}"].to(images.device).view(1, -1, 1, 1) for depth in range(self.trunk.depths)]


def read_perceptual(paths: Sequence[str | Path]) -> Perceptual:
    """Read a network and its channel weights.

    Args:
        paths: one file with both, as the package lpips saves them, or an ST-LPIPS file for AlexNet; or torchvision's
            AlexNet, VGG-16 or SqueezeNet 1.1, alone or with a file of channel weights. Alone, it gets those that the
            installed torchmetrics brings. Files of torch or safetensors.

    Raises:
        InputError: files that cannot be read, or that hold another network.
    """
    if not paths:
        raise InputError("LPIPS needs the file of a network; nothing is downloaded")
    contents = [_bytes(Path(path)) for path in paths]
    tensors: dict[str, Tensor] = {}
    for path, content in zip(paths, contents, strict=True):
        tensors |= _tensors(Path(path), content)
    kind, trunk = _recognized(tensors, paths)
    hashes = tuple(hashlib.sha256(content).hexdigest() for content in contents)
    if trunk.heads and not any(name.startswith("lin") for name in tensors):
        tensors |= _packaged(trunk.heads)
    return Perceptual(kind, trunk, _named(trunk, tensors, paths), hashes)


def _bytes(path: Path) -> bytes:
    try:
        with path.expanduser().open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read the weights {path}: {error.strerror or error}") from error
    if len(content) > MOST_BYTES:
        raise InputError(f"{path} has more than {MOST_BYTES} bytes; no network that LPIPS knows is as large")
    return content


def _tensors(path: Path, content: bytes) -> dict[str, Tensor]:
    """The tensors of a file, as numbers: nothing in it is run."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        if path.suffix == ".safetensors":
            found: object = load(content)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of foreign pickles, which are refused in the next moment
                found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(f"{path} holds no weights that can be read without running code; save a state dict") from error
    if not isinstance(found, Mapping) or not all(isinstance(each, Tensor) for each in found.values()):
        raise InputError(f"{path} holds {type(found).__name__}, not tensors by name; save a state dict")
    return {str(name): tensor.detach().float() for name, tensor in found.items()}


def _recognized(tensors: Mapping[str, Tensor], paths: Sequence[str | Path]) -> tuple[str, Trunk]:
    for kind, trunk in TRUNKS.items():
        if trunk.fits(tensors):
            return kind, trunk
    raise InputError(
        f"{', '.join(map(str, paths))}: no network that LPIPS knows ({', '.join(TRUNKS)}); "
        f"its tensors begin with {', '.join(sorted(tensors)[:3]) or 'nothing'}"
    )


def _packaged(heads: str) -> dict[str, Tensor]:
    """The channel weights that torchmetrics has in its package; they were fitted to torchvision's networks."""
    import torchmetrics

    file = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models" / f"{heads}.pth"
    return _tensors(file, _bytes(file))


def _named(trunk: Trunk, tensors: Mapping[str, Tensor], paths: Sequence[str | Path]) -> dict[str, Tensor]:
    """What the distance needs, under its own names, with the shapes held to the trunk's."""
    found = trunk.convolutions(tensors)
    for depth in range(trunk.depths):
        weight = tensors.get(f"lin{depth}.model.1.weight")
        if weight is None or weight.numel() != trunk.channels[depth]:
            raise InputError(
                f"{', '.join(map(str, paths))}: no channel weights lin{depth}.model.1.weight for "
                f"{trunk.channels[depth]} channels; name the file that has them as well"
            )
        found[f"lin{depth}"] = weight.flatten()
    return found

"""The metrics of 2020, for notebooks that call them; new code takes `report.scores`."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inversefed.attacks.pieces.priors import total_variation
from inversefed.errors import InputError

__all__ = ["InceptionScore", "activation_errors", "psnr", "total_variation"]


def psnr(img_batch: Tensor, ref_batch: Tensor, batched: bool = False, factor: float | int | Tensor = 1.0) -> float:
    """PSNR in the space and range that the caller chose; for comparable figures use `report.scores`.

    Args:
        img_batch: pictures `[n, c, h, w]`.
        ref_batch: what they should be.
        batched: one error over the whole batch instead of the mean over the pictures.
        factor: the greatest value of a pixel; notebooks hand in `1 / ds`, one a channel, for normalized pictures.
    """
    errors = (img_batch.detach() - ref_batch).square()
    mse = errors.mean().reshape(1) if batched else errors.flatten(start_dim=1).mean(dim=1)
    return float((10 * torch.log10(factor**2 / mse)).mean())


def activation_errors(model: nn.Module, x1: Tensor, x2: Tensor) -> Mapping[str, dict[str, float]]:
    """How far the inputs of every module are apart for two batches: `se`, `mse` and `sim` by module name.

    Args:
        model: the network; it is run in eval mode and left in its own.
        x1: normalized pictures.
        x2: as many others.
    """
    errors: dict[str, dict[str, float]] = defaultdict(dict)
    names = {module: name for name, module in model.named_modules()}

    def compare(module: nn.Module, inputs: tuple[Any, ...], _: Any) -> None:
        first, second = inputs[0].detach().tensor_split([len(x1)])
        residual = (first - second).square()
        errors["se"][names[module]] = float(residual.sum())
        errors["mse"][names[module]] = float(residual.mean())
        errors["sim"][names[module]] = float(F.cosine_similarity(first.flatten(), second.flatten(), dim=0))

    modes = {module: module.training for module in model.modules()}
    hooks = [module.register_forward_hook(compare) for module in model.modules()]
    try:
        with torch.no_grad():
            model.eval()(torch.cat((x1, x2)).to(next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    return errors


class InceptionScore(nn.Module):
    """Inception score (Salimans et al. 2016) by torchvision's trained Inception network, which it fetches once.

    Args:
        batch_size: pictures at a time.
        setup: device and dtype.

    Raises:
        InputError: the trained weights cannot be had.
    """

    def __init__(self, batch_size: int = 32, setup: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        from inversefed.zoo import networks

        self.batch_size = batch_size
        self.setup = dict(setup or {"dtype": torch.float32})
        try:
            self.model = networks.build("inception_v3", num_classes=1000, weights="DEFAULT").to(**self.setup).eval()
        except InputError as error:
            raise InputError(f"the Inception score needs torchvision's trained Inception network: {error}") from error

    def forward(self, image_batch: Tensor) -> Tensor:
        """Score of a batch; higher for pictures that are distinct and each clearly of one class."""
        resized = F.interpolate(image_batch.to(**self.setup), size=(299, 299), mode="bilinear")
        with torch.no_grad():
            p = torch.cat([self.model(part).softmax(dim=1) for part in torch.split(resized, self.batch_size)])
        marginal = p.mean(dim=0, keepdim=True)
        return (p * (p.log() - marginal.log())).sum(dim=1).mean().exp()

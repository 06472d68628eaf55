"""Which layers do in train mode what they do not in eval mode: BatchNorm couples a batch, dropout draws."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

__all__ = ["batchnorm_by_batch", "batchnorm_in_train_mode", "dropout_in_train_mode"]


def batchnorm_in_train_mode(module: nn.Module) -> dict[str, _BatchNorm]:
    """The BatchNorm layers in train mode, by name, which normalize by the batch and move their running statistics.

    >>> list(batchnorm_in_train_mode(nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4).eval())))
    ['0']
    """
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, _BatchNorm) and layer.training}


def batchnorm_by_batch(module: nn.Module) -> dict[str, _BatchNorm]:
    """The BatchNorm layers that normalize by the batch: in train mode, or in any where they keep no statistics.

    >>> list(batchnorm_by_batch(nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4, track_running_stats=False)).eval()))
    ['1']
    """
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, _BatchNorm)}
    return {name: layer for name, layer in layers.items() if layer.training or layer.running_mean is None}


def dropout_in_train_mode(module: nn.Module) -> dict[str, _DropoutNd]:
    """The dropout layers of any kind that drop something, by name.

    >>> list(dropout_in_train_mode(nn.Sequential(nn.Dropout(0.0), nn.AlphaDropout(0.5))))
    ['1']
    """
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, _DropoutNd)}
    return {name: layer for name, layer in layers.items() if layer.training and layer.p > 0}

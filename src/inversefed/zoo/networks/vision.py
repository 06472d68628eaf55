"""torchvision's classification networks: for small pictures by their names of 2020, for ImageNet by their own.

Pretrained weights go through torchvision's weights API, which fetches them once and checks their hash; nothing is
fetched unless weights are asked for.
"""

from typing import Any

from torch import nn

from inversefed.errors import ConfigError, InputError, unknown_name
from inversefed.zoo.networks.shapes import require_channels

__all__ = ["crop_size", "densenet121", "mnasnet", "mobilenet", "names", "pretrained", "resolve", "untrained"]

# expansion, channels, blocks, stride: Sandler et al. 2018, table 2, with the second stride 1 instead of 2
MOBILENET_STAGES = [
    [1, 16, 1, 1],
    [6, 24, 2, 1],
    [6, 32, 3, 2],
    [6, 64, 4, 2],
    [6, 96, 3, 1],
    [6, 160, 3, 2],
    [6, 320, 1, 1],
]


def names() -> tuple[str, ...]:
    """Return torchvision's names of its classification networks."""
    import torchvision

    return tuple(torchvision.models.list_models(module=torchvision.models))


def resolve(name: str) -> str:
    """Return torchvision's spelling of `name`: letter case, dashes and underscores do not count.

    Raises:
        ConfigError: torchvision has no such network.

    >>> resolve("ResNet18"), resolve("MobileNetV2")
    ('resnet18', 'mobilenet_v2')
    """
    known = {_plain(candidate): candidate for candidate in names()}
    if _plain(name) not in known:
        raise unknown_name("ImageNet network", name, names())
    return known[_plain(name)]


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def untrained(name: str, num_classes: int) -> nn.Module:
    """Build a torchvision network with fresh weights, without auxiliary heads, so that it returns logits only."""
    import torchvision

    extra = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    module: nn.Module = torchvision.models.get_model(name, num_classes=num_classes, **extra)
    return module


def pretrained(name: str, weights: str, num_classes: int) -> nn.Module:
    """Build a torchvision network with published weights, fetching them if they are not on this machine.

    Raises:
        ConfigError: there are no such weights, or they have another number of classes.
        InputError: the weights could not be fetched.
    """
    import torchvision

    entry = _weights(name, weights)
    classes = len(entry.meta["categories"])
    if num_classes != classes:
        raise ConfigError(f"{name}: the weights {weights} have {classes} classes; pass num_classes={classes}")
    try:
        module: nn.Module = torchvision.models.get_model(name, weights=entry, progress=False)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"the weights {weights} of {name} could not be fetched from {entry.url}: {error}. "
            f"Go online, or put the file into torch's hub folder (TORCH_HOME), or build it without weights"
        ) from error
    if name == "inception_v3":  # its auxiliary head comes with the weights; without it only logits are returned
        module.aux_logits, module.AuxLogits = False, None  # type: ignore[assignment]
    return module


def _weights(name: str, weights: str) -> Any:
    import torchvision

    known = torchvision.models.get_model_weights(name)
    try:
        return known[weights.rpartition(".")[2]]
    except KeyError:
        raise unknown_name(f"weights of {name}", weights, known.__members__) from None


def crop_size(name: str, weights: str | None = None) -> int:
    """Return the side in pixels of the pictures that a torchvision network is meant for.

    >>> crop_size("resnet18"), crop_size("inception_v3")
    (224, 299)
    """
    import torchvision

    known = torchvision.models.get_model_weights(name).__members__
    if weights is None and "IMAGENET1K_V1" not in known:
        return 224
    entry = _weights(name, weights or "IMAGENET1K_V1")
    return int(entry.transforms().crop_size[0])


def mobilenet(num_classes: int, num_channels: int) -> nn.Module:
    """Build MobileNetV2 for small pictures: two strides of 2 fewer (Sandler et al., CVPR 2018)."""
    import torchvision
    from torchvision.ops import Conv2dNormActivation

    module = torchvision.models.MobileNetV2(num_classes, inverted_residual_setting=MOBILENET_STAGES)
    module.features[0] = Conv2dNormActivation(num_channels, 32, stride=1, activation_layer=nn.ReLU6)
    network: nn.Module = module
    return network


def mnasnet(num_classes: int, num_channels: int) -> nn.Module:
    """Build torchvision's MNASNet of depth 1.0 (Tan et al., CVPR 2019)."""
    import torchvision

    require_channels("MNASNet", num_channels, 3)
    module: nn.Module = torchvision.models.MNASNet(1.0, num_classes=num_classes, dropout=0.2)
    return module


def densenet121(num_classes: int, num_channels: int) -> nn.Module:
    """Build torchvision's DenseNet121 (Huang et al., CVPR 2017)."""
    import torchvision

    require_channels("DenseNet121", num_channels, 3)
    module: nn.Module = torchvision.models.DenseNet(32, (6, 12, 24, 16), 64, num_classes=num_classes)
    return module

"""The networks: those of "Inverting Gradients" (2020) by their names there, three more, and torchvision's by theirs.

The same seed gives the same weights as in 2020, because layers are created in the same order. `ResNet18` is the CIFAR
form; `resnet18` is torchvision's, for ImageNet.

>>> network = build("LeNetZhu", num_classes=10, seed=0)
>>> sum(parameter.numel() for parameter in network.parameters())
15826
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from inversefed.errors import ConfigError, UnsupportedNetworkError, unknown_name
from inversefed.zoo.networks import attention, densenet, irevnet, language, plain, resnet, vision
from inversefed.zoo.networks.seeding import draw_seed, seeded
from inversefed.zoo.networks.shapes import require_channels

__all__ = [
    "TRANSFORMERS",
    "build",
    "build_imagenet",
    "draw_seed",
    "input_shape",
    "is_perceptron",
    "is_transformer",
    "names",
    "transformer",
]

_WIDEST = 100_000
"""Outputs of a perceptron's layer."""

Builder = Callable[[int, int], nn.Module]
"""From the number of classes and the number of channels to a network."""


def _irevnet(num_classes: int, num_channels: int) -> nn.Module:
    require_channels("iRevNet", num_channels, 3)
    return irevnet.IRevNet(num_classes)


def _never_defined(name: str, *_: int) -> nn.Module:
    raise UnsupportedNetworkError(
        f"{name} was named in 2020 but its layers were never defined, so there is nothing to build; "
        f"take a network of inversefed.zoo.networks.names(), such as ConvNet64 or ResNet20-4"
    )


_DIALECT: dict[str, Builder] = {
    "ConvNet": partial(plain.convnet, 64),
    **{f"ConvNet{width}": partial(plain.convnet, width) for width in (8, 16, 32, 64)},
    "BeyondInferringMNIST": lambda classes, _: plain.beyond_inferring("BeyondInferringMNIST", 1, classes, 1),
    "BeyondInferringCifar": partial(plain.beyond_inferring, "BeyondInferringCifar", 3),
    "MLP": partial(plain.mlp, (1024, 1024, 1024), "MLP"),
    "TwoLP": partial(plain.mlp, (2048,), "TwoLP"),
    **{name: partial(resnet.resnet, spec) for name, spec in resnet.SPECS.items()},
    "MobileNet": vision.mobilenet,
    "MNASNet": vision.mnasnet,
    "DenseNet121": vision.densenet121,
    "DenseNet40": partial(densenet.densenet40, 12),
    "DenseNet40-4": partial(densenet.densenet40, 48),
    "SRNet3": partial(_never_defined, "SRNet3"),
    "SRNet1": partial(_never_defined, "SRNet1"),
    "iRevNet": _irevnet,
    "LeNetZhu": plain.lenet_zhu,
}

_LATER: dict[str, Builder] = {"AllConv": plain.all_conv, "McMahan": plain.mcmahan, "BareViT": attention.BareViT}

_SMALL = {**_DIALECT, **_LATER}
"""Everything that is meant for 32x32 pictures (but BeyondInferringMNIST)."""


def names() -> tuple[str, ...]:
    """Return every name that `build` knows: the 35 of 2020, AllConv, McMahan, BareViT, then torchvision's.

    >>> names()[:3], "resnet18" in names()
    (('ConvNet', 'ConvNet8', 'ConvNet16'), True)
    """
    return (*_SMALL, *vision.names())


def build(
    name: str,
    num_classes: int = 10,
    num_channels: int = 3,
    seed: int | None = None,
    weights: str | None = None,
    shape: Sequence[int] | None = None,
) -> nn.Module:
    """Build a network on the CPU, in training mode, its weights drawn from `seed` without touching global state.

    Args:
        name: one of `names()`; torchvision's, in lower case, are the ImageNet forms. Or a perceptron with the outputs
            of its layers, such as `"mlp:200,200"`, and an activation other than ReLU: `"mlp:200,200,gelu"`.
        num_classes: number of logits.
        num_channels: channels of the pictures; BeyondInferringMNIST always takes one.
        seed: the same seed gives the same weights; `None` draws a fresh one.
        weights: for torchvision's names only: pretrained weights, such as `"DEFAULT"`, fetched if need be.
        shape: of one example, for a perceptron; `None` for pictures of 32x32.

    Raises:
        ConfigError: an unknown name, or an option that this network cannot take.
        InputError: the weights could not be fetched.
        UnsupportedNetworkError: SRNet3 and SRNet1, which were never defined.

    >>> build("ResNet20", seed=0).fc
    Linear(in_features=64, out_features=10, bias=True)
    >>> [tuple(weights.shape) for weights in build("mlp:200", num_classes=2, shape=(57,)).parameters()]
    [(200, 57), (200,), (2, 200), (2,)]
    """
    if num_classes < 1 or num_channels < 1:
        raise ConfigError(
            f"{name}: at least 1 class and 1 channel are needed, not num_classes={num_classes} "
            f"and num_channels={num_channels}"
        )
    if not is_perceptron(name):
        _require_known(name)
    with seeded(draw_seed() if seed is None else seed):
        if is_perceptron(name):
            _require_no_weights(name, weights)
            features = math.prod((num_channels, 32, 32) if shape is None else shape)
            return plain.perceptron(*_layers_of(name), features, num_classes)
        if name in _SMALL:
            _require_no_weights(name, weights)
            return _SMALL[name](num_classes, num_channels)
        require_channels(name, num_channels, 3)
        return vision.pretrained(name, weights, num_classes) if weights else vision.untrained(name, num_classes)


def is_perceptron(name: str) -> bool:
    """Whether a name is that of a perceptron, such as `mlp:200,200`, which takes examples of any shape."""
    return re.match(r"mlp:\d", name) is not None


TRANSFORMERS: Mapping[str, type[nn.Module]] = {"Bert": language.Bert, "Gpt": language.Gpt, "Llama": language.Llama}
"""Networks for sentences, by name."""


def is_transformer(name: str) -> bool:
    """Whether a name is that of a network for sentences, such as `Bert`, or `Gpt:128` with its width."""
    return name.partition(":")[0] in TRANSFORMERS


def transformer(
    name: str,
    vocabulary: int,
    length: int,
    pad: int,
    num_classes: int | None,
    seed: int | None = None,
    weights: str | None = None,
) -> nn.Module:
    """Build a network for sentences on the CPU, in training mode, as `build` does others.

    Args:
        name: one of `TRANSFORMERS`, with a width or without, which is 64 then: `"Gpt:128"`.
        vocabulary: how many tokens there are.
        length: places of a sentence.
        pad: the id that fills sentences up.
        num_classes: number of logits; `None` for those of the next token at every place.
        seed: the same seed gives the same weights; `None` draws a fresh one.
        weights: refused, for there are no published ones.

    Raises:
        ConfigError: a width that the heads do not share, weights, or an encoder that is to tell the next token.

    >>> transformer("Gpt:32", 500, length=12, pad=0, num_classes=3, seed=0).head
    Linear(in_features=32, out_features=3, bias=True)
    """
    kind, _, width = name.partition(":")
    _require_no_weights(name, weights)
    if width and (not width.isdecimal() or int(width) not in range(8, _WIDEST, 8)):
        raise ConfigError(f"{kind} takes a width, a multiple of 8, as {kind}:128; got {name[:80]!r}")
    settings: dict[str, Any] = {"vocabulary": vocabulary, "length": length, "pad": pad}
    settings |= {"width": int(width)} if width else {}
    if num_classes is None:
        if not issubclass(TRANSFORMERS[kind], language.Gpt):
            raise ConfigError(f"{kind} tells classes and no next token; take Gpt or Llama, or the loss CrossEntropy")
        settings["every_place"] = True
    else:
        settings["num_classes"] = num_classes
    with seeded(draw_seed() if seed is None else seed):
        return TRANSFORMERS[kind](**settings)


def _layers_of(name: str) -> tuple[tuple[int, ...], str]:
    """The widths of a perceptron's hidden layers, and its activation."""
    found = re.fullmatch(r"mlp:(\d+(?:,\d+)*)(?:,([a-z]+))?", name)
    widths = tuple(map(int, found[1].split(","))) if found else ()
    activation = (found and found[2]) or "relu"
    if not widths or not all(0 < width <= _WIDEST for width in widths) or activation not in plain.ACTIVATIONS:
        raise ConfigError(
            f"a perceptron is written with the outputs of its layers, from 1 to {_WIDEST:,}, and one of "
            f"{', '.join(plain.ACTIVATIONS)}, such as mlp:200,200 or mlp:200,200,gelu; got {name[:80]!r}"
        )
    return widths, activation


def _require_known(name: str) -> None:
    if is_transformer(name):
        raise ConfigError(f"{name} takes sentences and no pictures: give --text FILE --tokenizer FILE")
    if name not in _SMALL and name not in names():
        if "." in name:
            module, _, factory = name.rpartition(".")
            raise ConfigError(
                f"{name!r} is no network of the zoo; one of your own is written with a colon before its factory: "
                f"{module}:{factory}. `inversefed list networks` has the zoo's"
            )
        raise unknown_name("network", name, (*names(), "mlp:200,200"))


def _require_no_weights(name: str, weights: str | None) -> None:
    if weights is not None:
        raise ConfigError(
            f"{name} has no published weights ({weights!r} was asked for); train it, "
            f"or take a torchvision network by its lower-case name, such as resnet18"
        )


def build_imagenet(
    name: str, weights: str | None = None, num_classes: int = 1000, seed: int | None = None
) -> nn.Module:
    """Build torchvision's ImageNet network for a name in any spelling, as 2020 did for ImageNet data.

    Args:
        name: such as `"ResNet152"` or `"MobileNetV2"`.
        weights: pretrained weights, such as `"DEFAULT"`; `None` for fresh ones.
        num_classes: number of logits; with `weights`, theirs.
        seed: as for `build`.

    Raises:
        ConfigError: torchvision has no such network or weights.
        InputError: the weights could not be fetched.
    """
    return build(vision.resolve(name), num_classes, 3, seed, weights)


def input_shape(name: str, num_channels: int = 3, weights: str | None = None) -> tuple[int, int, int]:
    """Return the `(channels, height, width)` of the pictures that a network is meant for.

    Args:
        name: one of `names()`, or a perceptron, which takes any; 32x32 stands for them.
        num_channels: channels that the network was built with.
        weights: pretrained weights of a torchvision network, which may be meant for larger pictures.

    Raises:
        ConfigError: an unknown name.

    >>> input_shape("ResNet20"), input_shape("resnet18"), input_shape("BeyondInferringMNIST")
    ((3, 32, 32), (3, 224, 224), (1, 28, 28))
    """
    if is_perceptron(name):
        return (num_channels, 32, 32)
    _require_known(name)
    if name == "BeyondInferringMNIST":
        return (1, 28, 28)
    side = 32 if name in _SMALL else vision.crop_size(name, weights)
    return (num_channels, side, side)

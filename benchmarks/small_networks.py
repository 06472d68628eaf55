"""Small networks of every kind that people bring: layers, wrappers, parts without a gradient, heads and losses.

    name -> what builds it, with the loss that goes with its outputs

All take pictures of 3x16x16 and are drawn from a seed without touching the global random state. They are as small as
their kind allows; what they have in common is that somebody's network has it. Benchmarks and tests share them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from inversefed.fl.network import Loss
from inversefed.zoo.networks.seeding import seeded

__all__ = ["SHAPE", "SMALL_NETWORKS", "SmallNetwork"]

SHAPE = (3, 16, 16)
"""Of their pictures."""
WIDTH = 12
CLASSES = 10

Padding = Literal["zeros", "reflect", "replicate", "circular"]
Layer = Callable[[int], nn.Module]
"""From a number of channels to a layer."""


@dataclass(frozen=True)
class SmallNetwork:
    """How one of them is made, and with which loss it is trained.

    Args:
        make: draws the network from torch's global random state.
        loss: of its outputs and class indices; `None` for cross entropy.
        classes: how many labels there are, from 0 on.
        dtype: of its weights and pictures.

    >>> SMALL_NETWORKS["relu"].build()(torch.rand(2, *SHAPE)).shape
    torch.Size([2, 10])
    """

    make: Callable[[], nn.Module]
    loss: Loss | None = None
    classes: int = CLASSES
    dtype: torch.dtype = torch.float32

    def build(self, seed: int = 0) -> nn.Module:
        """The network, in train mode; the same seed gives the same weights."""
        with seeded(seed):
            return self.make().to(self.dtype)


class Function(nn.Module):
    """A function of the features as a layer, as people write it into `forward`."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Call it."""
        return self.function(x)


class Residual(nn.Module):
    """A body beside the identity, and what joins both."""

    def __init__(self, body: nn.Module, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.join = body, join

    def forward(self, x: Tensor) -> Tensor:
        """Join the body's output and its input."""
        return self.join(self.body(x), x)


# --- convolutions with one layer exchanged -----------------------------------------------------------------------


def no_layer(_: int) -> nn.Module:
    """Nothing in this place."""
    return nn.Identity()


def head(features: int) -> nn.Module:
    """The classes of flattened features."""
    return nn.Sequential(nn.Flatten(), nn.Linear(features, CLASSES))


def convolutions(norm: Layer = no_layer, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Two convolutions, the second with stride, each with norm and activation; features as many as pixels."""
    return nn.Sequential(
        nn.Conv2d(3, WIDTH, 3, padding=1), norm(WIDTH), activation(),
        nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1), norm(WIDTH), activation(),
        head(WIDTH * 64),
    )  # fmt: skip


def with_layer(layer: nn.Module, features: int, channels: int = WIDTH) -> nn.Module:
    """One layer between a convolution with ReLU, which keeps 16x16, and a second of 3x3 with padding."""
    return nn.Sequential(
        nn.Conv2d(3, WIDTH, 3, padding=1), nn.ReLU(), layer,
        nn.Conv2d(channels, WIDTH, 3, padding=1), nn.ReLU(), head(features),
    )  # fmt: skip


def pooled_norm(norm: Layer, norm_first: bool) -> nn.Module:
    """A norm in front of a pooling layer, or behind it."""
    pair = [norm(WIDTH), nn.MaxPool2d(2)]
    return with_layer(nn.Sequential(*(pair if norm_first else reversed(pair))), WIDTH * 64)


def averaged(pool: nn.Module, behind: Layer = no_layer) -> nn.Module:
    """Averages of all places as features, and a layer of as many channels behind them."""
    return nn.Sequential(convolutions()[:-1], pool, behind(WIDTH), head(WIDTH))


class RootMeanSquare(nn.Module):
    """RMSNorm over channels (Zhang and Sennrich 2019), written by hand as in many repositories."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Divide by the root of the mean square."""
        return self.weight * x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-6)


class ChannelsLast(nn.Module):
    """LayerNorm over the channels of each place, as in ConvNeXt."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Permute, normalize, permute back."""
        normalized: Tensor = self.norm(x.permute(0, 2, 3, 1))
        return normalized.permute(0, 3, 1, 2)


class OnlyPositive(torch.autograd.Function):
    """A ReLU whose author wrote a backward that cannot be differentiated again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Cut negative values."""
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Pass on where the input was positive."""
        (x,) = ctx.saved_tensors
        positive: Tensor = gradient * (x > 0)
        return positive


def positive(x: Tensor) -> Tensor:
    """`OnlyPositive` as a function."""
    found: Tensor = OnlyPositive.apply(x)
    return found


# --- blocks ------------------------------------------------------------------------------------------------------


def block() -> nn.Module:
    """Convolution, BatchNorm, ReLU, convolution, BatchNorm."""
    convolution = (nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, WIDTH, 3, padding=1))
    return nn.Sequential(convolution[0], nn.BatchNorm2d(WIDTH), nn.ReLU(), convolution[1], nn.BatchNorm2d(WIDTH))


def squeeze_excitation() -> nn.Module:
    """Channels weighted by a small network of their averages (Hu et al. 2018)."""
    gate = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(WIDTH, 4, 1), nn.ReLU(), nn.Conv2d(4, WIDTH, 1), nn.Sigmoid()
    )
    return with_layer(Residual(gate, torch.mul), WIDTH * 256)


class SelfAttention(nn.Module):
    """Queries, keys and values of the tokens `[n, t, d]` by one fused layer, as in timm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend and project."""
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        found = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, width)
        projected: Tensor = self.proj(found)
        return projected


class VisionTransformer(nn.Module):
    """Patches of 4, a class token or the mean of all tokens, learned positions, two blocks with the norm first."""

    def __init__(self, width: int = 48, class_token: bool = True) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02) if class_token else None
        self.positions = nn.Parameter(torch.randn(1, 16 + class_token, width) * 0.02)
        self.blocks = nn.Sequential(*(self._block(width) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    @staticmethod
    def _block(width: int) -> nn.Module:
        mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        attention = nn.Sequential(nn.LayerNorm(width), SelfAttention(width, 4))
        return nn.Sequential(Residual(attention, torch.add), Residual(mlp, torch.add))

    def forward(self, x: Tensor) -> Tensor:
        """Embed, attend, and read one token."""
        x = self.embed(x).flatten(2).transpose(1, 2)
        if self.token is not None:
            x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)
        x = self.norm(self.blocks(x + self.positions))
        logits: Tensor = self.head(x[:, 0] if self.token is not None else x.mean(1))
        return logits


class Transposed(nn.Module):
    """A layer over tokens in place of channels."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """Transpose, call, transpose back."""
        found: Tensor = self.body(x.transpose(1, 2))
        return found.transpose(1, 2)


def mixer(width: int = 48) -> nn.Module:
    """One block of MLP-Mixer (Tolstikhin et al. 2021) on patches of 4."""

    def mlp(size: int) -> nn.Module:
        return nn.Sequential(nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, size))

    return nn.Sequential(
        nn.Conv2d(3, width, 4, 4), nn.Flatten(2), Function(lambda x: x.transpose(1, 2)),
        Residual(nn.Sequential(nn.LayerNorm(width), Transposed(mlp(16))), torch.add),
        Residual(nn.Sequential(nn.LayerNorm(width), mlp(width)), torch.add),
        nn.LayerNorm(width), Function(lambda x: x.mean(1)), nn.Linear(width, CLASSES),
    )  # fmt: skip


class AttentionOverPlaces(nn.Module):
    """`nn.MultiheadAttention` over the places of a feature map."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Attend, and keep the map's shape."""
        tokens = x.flatten(2).transpose(1, 2)
        found: Tensor = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return found.transpose(1, 2).reshape(x.shape)


def perceptron(*widths: int, bias: bool = True) -> nn.Module:
    """Linear layers with ReLU between them; the last one's bias can be left out."""
    layers: list[nn.Module] = [nn.Flatten()]
    sizes = (3 * 256, *widths)
    for taken, given in pairwise(sizes):
        layers += [nn.Linear(taken, given), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], CLASSES, bias=bias))


# --- wrappers ----------------------------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    """A first convolution, and a body whose activations are computed again in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        whole = convolutions()
        self.stem, self.body, self.reentrant = whole[0], whole[1:], reentrant

    def forward(self, x: Tensor) -> Tensor:
        """Run the body under `torch.utils.checkpoint`."""
        found: Tensor = checkpoint(self.body, self.stem(x), use_reentrant=self.reentrant)
        return found


class MixedPrecision(nn.Module):
    """A body that casts itself, with logits in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.body = convolutions()

    def forward(self, x: Tensor) -> Tensor:
        """Run under autocast."""
        with torch.autocast(x.device.type, torch.bfloat16):
            found: Tensor = self.body(x)
        return found.float()


def compiled() -> nn.Module:
    """Compiled by the back end that needs no compiler."""
    module: Any = torch.compile(convolutions(), backend="eager")
    assert isinstance(module, nn.Module)
    return module


# --- parts without a gradient ------------------------------------------------------------------------------------


def frozen(*places: int, norm: Layer = no_layer) -> nn.Sequential:
    """Convolutions some of whose layers, by their place, are not trained."""
    module = convolutions(norm)
    for place in places:
        module[place].requires_grad_(False)
    return module


class Adapter(nn.Module):
    """A frozen layer and a trained change of low rank beside it (Hu et al. 2021)."""

    def __init__(self, layer: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Linear(layer.in_features, rank, bias=False)
        self.up = nn.Linear(rank, layer.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Add the change."""
        found: Tensor = self.layer(x) + self.up(self.down(x))
        return found


def adapters() -> nn.Module:
    """Frozen convolutions, and a head that only its adapter and a last layer train."""
    layers = (Adapter(nn.Linear(WIDTH * 64, 32)), nn.ReLU(), nn.Linear(32, CLASSES))
    return nn.Sequential(frozen(0, 3)[:-1], nn.Flatten(), *layers)


def tied() -> nn.Module:
    """One convolution used twice."""
    twice = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
    return nn.Sequential(nn.Conv2d(3, WIDTH, 3, 2, 1), nn.ReLU(), twice, nn.ReLU(), twice, nn.ReLU(), head(WIDTH * 64))


class TiedWeight(nn.Module):
    """Two layers that hold the same parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = convolutions()[:-1]
        self.first, self.second = nn.Linear(WIDTH * 64, WIDTH * 64), nn.Linear(WIDTH * 64, WIDTH * 64)
        self.second.weight = self.first.weight
        self.head = nn.Linear(WIDTH * 64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Go through both."""
        logits: Tensor = self.head(self.second(F.relu(self.first(self.stem(x).flatten(1)))))
        return logits


class Unused(nn.Module):
    """Layers that `forward` leaves out: an auxiliary head, and a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.auxiliary = convolutions(), nn.Linear(WIDTH, 5)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        """Run the body only."""
        logits: Tensor = self.body(x)
        return logits


def parametrized(how: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Weights that are computed from others."""
    module = convolutions()
    for place in (0, 3):
        how(module[place])
    return module


def lazy() -> nn.Module:
    """Layers that learned their shapes from a first batch."""
    module = nn.Sequential(nn.LazyConv2d(WIDTH, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.LazyLinear(CLASSES))
    module(torch.zeros(1, *SHAPE))
    return module


# --- heads and losses --------------------------------------------------------------------------------------------


def with_head(*layers: nn.Module) -> nn.Module:
    """Other layers behind the flattened features."""
    return nn.Sequential(convolutions()[:-1], nn.Flatten(), *layers)


def one_logit_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross entropy of the one logit."""
    return F.binary_cross_entropy_with_logits(logits.squeeze(1), labels.to(logits.dtype))


def nll_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Of log-probabilities, with class indices only."""
    return F.nll_loss(logits, labels)


def nll_of_softmax(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Of probabilities, as a beginner writes it."""
    return F.nll_loss(probabilities.clamp(min=1e-8).log(), labels)


def focal_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Lin et al. (2017), by a gather, which takes class indices only."""
    picked = F.log_softmax(logits, 1).gather(1, labels[:, None]).squeeze(1)
    return -((1 - picked.exp()).square() * picked).mean()


def weighted_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy with a weight a class."""
    return F.cross_entropy(logits, labels, weight=torch.linspace(0.5, 2.0, CLASSES, dtype=logits.dtype))


def regression_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    """Squared error of one output against the label as a number."""
    return F.mse_loss(outputs.squeeze(1), labels.to(outputs.dtype) / CLASSES)


# --- all of them -------------------------------------------------------------------------------------------------


def _norms() -> dict[str, SmallNetwork]:
    norms: dict[str, Layer] = {
        "batchnorm": nn.BatchNorm2d,
        "groupnorm": lambda channels: nn.GroupNorm(4, channels),
        "groupnorm-channelwise": lambda channels: nn.GroupNorm(channels, channels),
        "instancenorm": nn.InstanceNorm2d,
        "instancenorm-affine": lambda channels: nn.InstanceNorm2d(channels, affine=True),
        "layernorm-channels": ChannelsLast,
        "layernorm-whole": lambda channels: nn.GroupNorm(1, channels),
        "local-response-norm": lambda _: nn.LocalResponseNorm(3),
        "rmsnorm": RootMeanSquare,
        "batchnorm-without-statistics": lambda channels: nn.BatchNorm2d(channels, track_running_stats=False),
    }
    single = {name: SmallNetwork(partial(convolutions, norm)) for name, norm in norms.items()}
    pooled = {
        f"{name}-{place}-pool": SmallNetwork(partial(pooled_norm, norms[name], place == "before"))
        for name in ("batchnorm", "groupnorm", "instancenorm")
        for place in ("before", "behind")
    }
    at_one_place: dict[str, Callable[[], nn.Module]] = {
        "batchnorm-at-1x1": lambda: averaged(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d),
        "groupnorm-at-1x1": lambda: averaged(nn.AdaptiveAvgPool2d(1), lambda c: nn.GroupNorm(c, c)),
        "instancenorm-at-1x1": lambda: averaged(nn.AdaptiveAvgPool2d(1), nn.InstanceNorm2d),
        "batchnorm-1d": lambda: with_head(nn.Linear(WIDTH * 64, 64), nn.BatchNorm1d(64), nn.ReLU(), head(64)),
        "layernorm-1d": lambda: with_head(nn.LayerNorm(WIDTH * 64), nn.Linear(WIDTH * 64, CLASSES)),
        "layernorm-of-map": lambda: with_layer(nn.LayerNorm([WIDTH, 16, 16]), WIDTH * 256),
    }
    return single | pooled | {name: SmallNetwork(make) for name, make in at_one_place.items()}


def _activations() -> dict[str, SmallNetwork]:
    modules: dict[str, Callable[[], nn.Module]] = {
        "relu": nn.ReLU,
        "relu-in-place": lambda: nn.ReLU(inplace=True),
        "leaky-relu": nn.LeakyReLU,
        "prelu": lambda: nn.PReLU(WIDTH),
        "elu": nn.ELU,
        "selu": nn.SELU,
        "gelu": nn.GELU,
        "silu": nn.SiLU,
        "mish": nn.Mish,
        "hardswish": nn.Hardswish,
        "hardsigmoid": nn.Hardsigmoid,
        "softplus": nn.Softplus,
        "sigmoid": nn.Sigmoid,
        "tanh": nn.Tanh,
        "f-gelu": lambda: Function(F.gelu),
        "f-silu": lambda: Function(F.silu),
        "f-hardswish": lambda: Function(F.hardswish),
        "x-times-sigmoid": lambda: Function(lambda x: x * torch.sigmoid(x)),
        "no-second-derivative": lambda: Function(positive),
    }
    return {name: SmallNetwork(partial(convolutions, activation=activation)) for name, activation in modules.items()}


def _places() -> dict[str, SmallNetwork]:
    """Pooling, padding, and other convolutions."""

    def padded(layer: nn.Module, padding: int = 0, mode: Padding = "zeros") -> nn.Module:
        stem = nn.Conv2d(3, WIDTH, 3, padding=padding, padding_mode=mode)
        return nn.Sequential(layer, stem, nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 3, 2, 1), nn.ReLU(), head(WIDTH * 64))

    makes: dict[str, Callable[[], nn.Module]] = {
        "max-pool": lambda: with_layer(nn.MaxPool2d(2), WIDTH * 64),
        "average-pool": lambda: with_layer(nn.AvgPool2d(2), WIDTH * 64),
        "adaptive-pool": lambda: with_layer(nn.AdaptiveAvgPool2d(6), WIDTH * 36),
        "global-pool": lambda: averaged(nn.AdaptiveAvgPool2d(1)),
        "f-max-pool": lambda: with_layer(Function(lambda x: F.max_pool2d(x, 2)), WIDTH * 64),
        "mean-of-places": lambda: averaged(Function(lambda x: x.mean((2, 3)))),
        "reflect-padding": lambda: padded(nn.Identity(), 1, "reflect"),
        "circular-padding": lambda: padded(nn.Identity(), 1, "circular"),
        "replicate-padding": lambda: padded(nn.Identity(), 1, "replicate"),
        "zero-pad": lambda: padded(nn.ZeroPad2d(1)),
        "f-pad": lambda: padded(Function(lambda x: F.pad(x, (1, 1, 1, 1)))),
        "dilated": lambda: with_layer(nn.Conv2d(WIDTH, WIDTH, 3, padding=2, dilation=2), WIDTH * 256),
        "grouped": lambda: with_layer(nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=3), WIDTH * 256),
        "depthwise": lambda: with_layer(nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH), WIDTH * 256),
        "strided": lambda: with_layer(nn.Conv2d(WIDTH, WIDTH, 3, 2, 1), WIDTH * 64),
        "transposed": lambda: with_layer(nn.ConvTranspose2d(WIDTH, WIDTH, 2, 2), WIDTH * 1024),
        "pixel-shuffle": lambda: with_layer(nn.PixelUnshuffle(2), WIDTH * 64, WIDTH * 4),
        "dropout": lambda: with_layer(nn.Dropout(0.3), WIDTH * 256),
    }
    return {name: SmallNetwork(make) for name, make in makes.items()}


def _blocks() -> dict[str, SmallNetwork]:
    """Heads, blocks, and functions in forward."""
    makes: dict[str, Callable[[], nn.Module]] = {
        "convolution-head": lambda: nn.Sequential(
            convolutions()[:-1],
            nn.Conv2d(WIDTH, CLASSES, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ),
        "no-bias-head": lambda: with_head(nn.Linear(WIDTH * 64, CLASSES, bias=False)),
        "two-linear": lambda: with_head(nn.Linear(WIDTH * 64, 64), nn.Linear(64, CLASSES)),
        "zero-head": zero_head,
        "linear": lambda: perceptron(),
        "mlp": lambda: perceptron(96, 48),
        "mlp-no-bias-head": lambda: perceptron(96, bias=False),
        "residual": lambda: with_layer(nn.Sequential(Residual(block(), torch.add), nn.ReLU()), WIDTH * 256),
        "dense": lambda: with_layer(Residual(block(), lambda y, x: torch.cat([x, y], 1)), WIDTH * 256, 2 * WIDTH),
        "gated-chunk": lambda: with_layer(
            Function(lambda x: torch.mul(x.chunk(2, 1)[0], x.chunk(2, 1)[1].sigmoid())), WIDTH * 256, WIDTH // 2
        ),
        "gated-glu": lambda: with_layer(nn.GLU(1), WIDTH * 256, WIDTH // 2),
        "interpolate": lambda: with_layer(Function(lambda x: F.interpolate(x, scale_factor=0.5)), WIDTH * 64),
        "indexing": lambda: with_layer(Function(lambda x: x[:, ::2, ::2, 1:]), WIDTH * 8 * 15, WIDTH // 2),
        "constants": lambda: nn.Sequential(Function(lambda x: (x - 0.5) * 2 / 0.9), convolutions()),
        "squeeze-excitation": squeeze_excitation,
        "self-attention": lambda: with_layer(AttentionOverPlaces(), WIDTH * 256),
        "vit": VisionTransformer,
        "vit-mean-token": lambda: VisionTransformer(class_token=False),
        "mixer": mixer,
    }
    return {name: SmallNetwork(make) for name, make in makes.items()}


def zero_head() -> nn.Module:
    """A last layer that starts at zero, so that nothing below it has a gradient."""
    module = convolutions()
    for parameter in module[-1].parameters():
        nn.init.zeros_(parameter)
    return module


def _wrappers() -> dict[str, SmallNetwork]:
    makes: dict[str, Callable[[], nn.Module]] = {
        "data-parallel": lambda: nn.DataParallel(convolutions()),
        "compiled": compiled,
        "checkpointed": lambda: Checkpointed(reentrant=False),
        "checkpointed-reentrant": lambda: Checkpointed(reentrant=True),
        "autocast": MixedPrecision,
        "channels-last": lambda: convolutions().to(memory_format=torch.channels_last),
        "frozen-backbone": lambda: frozen(0, 3),
        "frozen-backbone-batchnorm": lambda: frozen(0, 1, 3, 4, norm=nn.BatchNorm2d),
        "frozen-first": lambda: frozen(0),
        "frozen-middle": lambda: frozen(3),
        "frozen-head": lambda: frozen(-1),
        "adapters": adapters,
        "weight-norm": lambda: parametrized(parametrizations.weight_norm),
        "spectral-norm": lambda: parametrized(parametrizations.spectral_norm),
        "tied-layer": tied,
        "tied-weight": TiedWeight,
        "unused": Unused,
        "lazy": lazy,
    }
    formats = {"float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return {
        **{name: SmallNetwork(make) for name, make in makes.items()},
        **{name: SmallNetwork(convolutions, dtype=dtype) for name, dtype in formats.items()},
    }


def _losses() -> dict[str, SmallNetwork]:
    features = WIDTH * 64

    def classes(*behind: nn.Module) -> nn.Module:
        return with_head(nn.Linear(features, CLASSES), *behind)

    def one() -> nn.Module:
        return with_head(nn.Linear(features, 1))

    return {
        "one-logit": SmallNetwork(one, one_logit_loss, classes=2),
        "regression": SmallNetwork(one, regression_loss),
        "log-softmax": SmallNetwork(lambda: classes(nn.LogSoftmax(1)), nll_loss),
        "softmax": SmallNetwork(lambda: classes(nn.Softmax(1)), nll_of_softmax),
        "softmax-cross-entropy": SmallNetwork(lambda: classes(nn.Softmax(1))),
        "focal-loss": SmallNetwork(convolutions, focal_loss),
        "weighted-loss": SmallNetwork(convolutions, weighted_loss),
    }


SMALL_NETWORKS: Mapping[str, SmallNetwork] = {
    **_norms(), **_activations(), **_places(), **_blocks(), **_wrappers(), **_losses(),
}  # fmt: skip
"""By name."""

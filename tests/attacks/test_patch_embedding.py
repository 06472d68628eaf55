"""Transformers with learned positions: their patches by linear equations, whatever the network is built like."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import SwinTransformer, VisionTransformer
from torchvision.models.maxvit import MaxVit

import inversefed
from inversefed import FedAvg, FedSGD, Observation, recipes
from inversefed.attacks.exact.transformer.embedded_patches import patch_map
from inversefed.attacks.exact.transformer.patch_embedding import EmbeddedPatches
from inversefed.attacks.identifiability.identify import identify
from inversefed.errors import ThreatModelError, UnsupportedNetworkError
from inversefed.fl.clients import Client
from inversefed.fl.clients.local_optimizers import LocalAdam, LocalSGD
from inversefed.fl.clients.partial import Shares
from inversefed.fl.clients.views import UnknownClient
from inversefed.zoo import networks

WIDTH, PATCHES = 96, 64


class Block(nn.Module):
    """Norm first, query, key and value in one matrix, as in timm; `norm_first=False` for the order of 2017."""

    def __init__(self, width: int, norm_first: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm_first = nn.LayerNorm(width), nn.LayerNorm(width), norm_first
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, width))

    def attend(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
        seen = (q @ k.mT / math.sqrt(width // 4)).softmax(dim=-1) @ v
        return self.proj(seen.transpose(1, 2).reshape(n, tokens, width))

    def forward(self, x: Tensor) -> Tensor:
        if not self.norm_first:
            x = self.norm1(x + self.attend(x))
            return self.norm2(x + self.mlp(x))
        x = x + self.attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Embedded(nn.Module):
    """Patches by a convolution, `unfold` or rearranged pixels (channels last), in front of a linear layer."""

    def __init__(self, how: str, width: int, patch: int = 4) -> None:
        super().__init__()
        self.how, self.patch = how, patch
        if how == "convolution":
            self.proj: nn.Module = nn.Conv2d(3, width, patch, patch)
        else:
            self.proj = nn.Linear(3 * patch * patch, width, bias=how == "unfold")

    def forward(self, images: Tensor) -> Tensor:
        if self.how == "convolution":
            return self.proj(images).flatten(2).mT
        if self.how == "unfold":
            return self.proj(nn.functional.unfold(images, self.patch, stride=self.patch).mT)
        n, c, h, w = images.shape
        cut = images.reshape(n, c, h // self.patch, self.patch, w // self.patch, self.patch)
        return self.proj(cut.permute(0, 2, 4, 3, 5, 1).reshape(n, -1, self.patch * self.patch * c))


class ViT(nn.Module):
    """A small vision transformer, as many kinds of which go around.

    Args:
        extra: tokens that are no patches: 1 for a class token, 2 for one of distillation as well; 0 for the mean.
        all_positions: whether the extra tokens have positions as well.
        layout: of the positions: `"tokens"`, `"map"` for [1, d, h, w], `"table"` for an `nn.Embedding`.
        embed: how patches are cut.
        norm: in front of the blocks, as in CLIP.
        between: what stands between patches and positions.
    """

    def __init__(
        self,
        extra: int = 1,
        all_positions: bool = True,
        layout: str = "tokens",
        embed: str = "convolution",
        norm: bool = False,
        norm_first: bool = True,
        between: Callable[[int], nn.Module] = lambda _: nn.Identity(),
        dropout: float = 0.0,
        width: int = WIDTH,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.extra, self.all_positions, self.layout, self.gain = extra, all_positions, layout, gain
        self.embed, self.between = Embedded(embed, width), between(width)
        self.tokens = nn.Parameter(0.02 * torch.randn(1, extra, width)) if extra else None
        count = PATCHES + (extra if all_positions else 0)
        if layout == "table":
            self.positions = nn.Embedding(count + 5, width)
        elif layout == "map":
            self.positions = nn.Parameter(0.02 * torch.randn(1, width, 8, 8))
        else:
            self.positions = nn.Parameter(0.02 * torch.randn(1, count, width))
        self.start = nn.LayerNorm(width) if norm else nn.Identity()
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(width, norm_first, dropout) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def added(self, count: int) -> Tensor:
        if isinstance(self.positions, nn.Embedding):
            return self.positions(torch.arange(count))
        return self.positions.flatten(2).mT if self.layout == "map" else self.positions

    def forward(self, images: Tensor) -> Tensor:
        x = self.between(self.embed(images)) * self.gain
        if not self.all_positions:
            x = x + self.added(PATCHES)
        if self.tokens is not None:
            x = torch.cat([self.tokens.expand(len(x), -1, -1), x], dim=1)
        if self.all_positions:
            x = x + self.added(PATCHES + self.extra)
        x = self.norm(self.blocks(self.start(self.drop(x))))
        return self.head(x[:, : self.extra].mean(dim=1) if self.extra else x.mean(dim=1))


def torchvisions(width: int = 128, zero: bool = False) -> VisionTransformer:
    torch.manual_seed(0)
    module = VisionTransformer(32, 4, num_layers=2, num_heads=4, hidden_dim=width, mlp_dim=128, num_classes=10)
    if not zero:
        nn.init.normal_(module.heads.head.weight, std=0.02)
    return module.eval()


def seen(module: nn.Module, images: Tensor, client: Client = FedSGD(), **network: object) -> Observation:
    frozen = inversefed.freeze(module, (3, 32, 32), mean=0.5, std=0.25, **network)
    labels = torch.arange(len(images)) + 4
    return Observation(frozen, client, client(frozen, images.to(frozen.dtype), labels), len(images))


def solved(observation: Observation) -> inversefed.Reconstruction:
    return EmbeddedPatches()(observation, torch.Generator())


def decibels(found: inversefed.Reconstruction, image: Tensor) -> float:
    error = (found.images.detach().clamp(0, 1) - image.to(found.images)).square().mean()
    return float(-10 * torch.log10(error.clamp(min=1e-30)))


KINDS = {
    "torchvision": torchvisions,
    "timm": ViT,
    "a token of distillation": lambda: ViT(extra=2),
    "no class token": lambda: ViT(extra=0),
    "positions of the patches alone": lambda: ViT(all_positions=False),
    "positions as a map": lambda: ViT(all_positions=False, layout="map"),
    "positions in a longer table": lambda: ViT(layout="table"),
    "unfold": lambda: ViT(embed="unfold"),
    "rearranged pixels": lambda: ViT(embed="rearranged"),
    "a norm in front": lambda: ViT(norm=True, extra=0),
    "norms behind": lambda: ViT(norm_first=False),
    "scaled patches": lambda: ViT(gain=math.sqrt(WIDTH)),
    "dropout in eval mode": lambda: ViT(dropout=0.1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_patches_of_every_kind_are_exact(kind: str, photos: Tensor) -> None:
    found = solved(seen(KINDS[kind]().eval(), photos[:1]))
    assert found.findings[0].code == "exact" and decibels(found, photos[:1]) > 60
    assert found.labels.tolist() == [4] and found.findings[0].evidence["unseen"] == 0


def test_it_works_where_gradients_are_switched_off(photos: Tensor) -> None:
    observation = seen(ViT().eval(), photos[:1])
    with torch.no_grad():
        assert solved(observation).findings[0].code == "exact"


def test_double_precision_leaves_nothing_but_its_rounding(photos: Tensor) -> None:
    assert decibels(solved(seen(ViT().eval().double(), photos[:1].double() ** 1.1)), photos[:1].double() ** 1.1) > 200


@pytest.mark.parametrize(
    "client",
    [
        FedAvg(local_steps=1, lr=0.1),
        FedAvg(local_steps=1, lr=0.1, sends="weights"),
        FedAvg(local_steps=3, lr=0.01),
        FedAvg(local_steps=3, lr=0.01, optimizer=LocalSGD(momentum=0.9)),
        Shares(FedSGD(), ("tokens", "positions", "embed.*", "head.*")),
    ],
    ids=["delta", "weights", "several steps", "momentum", "a part"],
)
def test_local_steps_of_one_example_see_the_same_patches(client: Client, photos: Tensor) -> None:
    found = solved(seen(ViT().eval().double(), photos[:1], client))
    assert found.findings[0].code == "exact" and decibels(found, photos[:1]) > 100


def test_what_cannot_be_run_again_is_proven_by_equations_beyond_the_unknowns(photos: Tensor) -> None:
    drawing = seen(ViT(dropout=0.3).train(), photos[:1])
    drawing = replace(drawing, network=drawing.network.with_masks(17))
    hidden = seen(ViT().eval(), photos[:1], FedAvg(local_steps=2, lr=0.05))
    hidden = replace(hidden, client=UnknownClient("delta"))
    for observation in (drawing, hidden):
        found = solved(observation)
        assert found.findings[0].code == "exact" and "cannot be run again" in found.findings[0].message
        assert decibels(found, photos[:1]) > 60


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_rounded_update_gives_a_rough_picture_and_says_so(dtype: torch.dtype, photos: Tensor) -> None:
    observation = seen(torchvisions(), photos[:1])
    rounded = {name: part.to(dtype).float() for name, part in observation.update.items()}
    found = solved(replace(observation, update=rounded))
    assert found.findings[0].code == "not-exact" and found.images.isfinite().all()
    assert decibels(found, photos[:1]) > 20


def test_what_too_few_equations_leave_open_is_looked_for_through_the_network(photos: Tensor) -> None:
    observation = seen(ViT(width=60, extra=0).eval(), photos[:1])
    plain = solved(observation)
    assert plain.findings[0].code == "not-exact" and 20 < decibels(plain, photos[:1]) < 45
    found = recipes.patch_embedding()(observation, torch.Generator(), inversefed.Budget(max_iterations=10))
    assert decibels(found, photos[:1]) > decibels(plain, photos[:1]) + 10
    assert math.isclose(found.findings[0].evidence["unseen"], 5 / 64) and "stays open" in found.findings[0].message
    said = identify(observation)
    assert said.verdict == "open" and "59 independent equations for the 64 patches" in said.methods[3].reason
    assert "7.8% of that stays open" in said.methods[3].reason


def test_a_search_brings_a_rounded_update_nearer(photos: Tensor) -> None:
    observation = seen(ViT(extra=0).eval(), photos[:1])
    observation = replace(observation, update={name: part.half().float() for name, part in observation.update.items()})
    found = recipes.patch_embedding()(observation, torch.Generator(), inversefed.Budget(max_iterations=10))
    assert found.findings[0].code == "not-exact"
    assert decibels(found, photos[:1]) > decibels(solved(observation), photos[:1]) + 5


@pytest.mark.parametrize(("dtype", "floor"), [(torch.float16, 30), (torch.bfloat16, 20)])
def test_a_network_of_16_bits_is_solved_in_single_precision(dtype: torch.dtype, floor: float, photos: Tensor) -> None:
    found = solved(seen(torchvisions().to(dtype), photos[:1]))
    assert found.findings[0].code == "not-exact" and found.images.dtype == dtype
    assert decibels(found, photos[:1]) > floor


def test_an_update_that_equations_say_nothing_of_is_not_searched(photos: Tensor) -> None:
    observation = seen(ViT().eval(), photos[:1])
    noise = {name: torch.randn_like(part) for name, part in observation.update.items()}
    found = recipes.patch_embedding()(replace(observation, update=noise, labels=torch.tensor([4])), torch.Generator())
    assert found.candidates[0].iterations == 1 and found.findings[0].code == "not-exact"


def test_a_label_that_no_rule_tells_is_the_one_that_matches(photos: Tensor) -> None:
    frozen = ViT().eval()
    frozen.head.requires_grad_(False)
    found = solved(seen(frozen, photos[:1]))
    assert found.labels.tolist() == [4] and found.findings[0].code == "exact"


class Fixed(ViT):
    """Positions that are a buffer, as sines are."""

    def __init__(self) -> None:
        super().__init__(extra=0)
        positions = self.positions.detach()
        del self.positions
        self.register_buffer("positions", positions)


class Twice(ViT):
    """Positions that are added in front of the second block once more."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images) + self.added(PATCHES)
        return self.head(self.norm(self.blocks[1](self.blocks[0](x) + self.added(PATCHES))).mean(dim=1))


def frozen_embedding() -> nn.Module:
    module = ViT()
    module.embed.proj.weight.requires_grad_(False)
    return module


class Standardized(ViT):
    """Pictures are divided by their own contrast first, and one of a single color has none."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward((images - images.mean()) / images.std())


def grouped() -> nn.Module:
    module = ViT(extra=0)
    module.embed.proj = nn.Conv2d(3, WIDTH, 4, 4, groups=3)
    return module


def parametrized_embedding() -> nn.Module:
    module = ViT()
    nn.utils.parametrizations.weight_norm(module.embed.proj)
    return module


def maxvit() -> nn.Module:
    return MaxVit((64, 64), 16, 2, [16, 32], [1, 1], 8, 0.0, num_classes=10)


def swin() -> nn.Module:
    return SwinTransformer([4, 4], 32, [1, 1], [2, 4], [4, 4], stochastic_depth_prob=0.0, num_classes=10)


REFUSED = {
    "fixed positions": (Fixed, "positions, which may be the tokens' positions, is not trained"),
    "positions added twice": (lambda: Twice(extra=0), "positions is not what comes back to each patch's token"),
    "a norm between": (lambda: ViT(between=nn.LayerNorm), "a norm stands between"),
    "a frozen embedding": (frozen_embedding, "the patch embedding, embed.proj, are frozen"),
    "a parametrized embedding": (parametrized_embedding, "embed.proj, are made of others, or shared"),
    "pictures of their own contrast": (Standardized, "sees pixels that are mixed or normalized before it"),
    "channels in groups": (grouped, "takes its channels in groups"),
    "too narrow": (lambda: ViT(width=24), "24 equations, the tokens' width, for 64 patches, so 40 of every 64"),
    "Swin": (swin, "could be added to each of the 64 patches"),
    "MaxViT": (maxvit, "could be added to each of the 1024 patches"),
    "convolutions": (lambda: networks.build("LeNetZhu", seed=0), "could be added to each of the 256 patches"),
    "a perceptron": (lambda: networks.build("MLP", seed=0), "sees all of it at once, and no patches"),
    "a head of zeros": (lambda: torchvisions(zero=True), "as where the head's weights are all zero"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_refusal_names_the_obstacle(kind: str) -> None:
    make, message = REFUSED[kind]
    torch.manual_seed(0)
    shape = (3, 64, 64) if kind == "MaxViT" else (3, 32, 32)
    network = inversefed.freeze(make().eval(), shape)
    update = FedSGD()(network, torch.rand(1, *shape), torch.tensor([4]))
    observation = Observation(network, FedSGD(), update, 1)
    with pytest.raises(UnsupportedNetworkError, match=message):
        solved(observation)
    (method,) = [each for each in identify(observation).methods if each.name == "patch_embedding"]
    assert not method.applies and message in method.reason


def test_an_update_of_another_kind_is_refused(photos: Tensor) -> None:
    module = ViT().eval()
    for client in (FedAvg(local_steps=2, lr=0.01, optimizer=LocalAdam()), FedAvg(1, 0.1, proximal=0.1)):
        with pytest.raises(ThreatModelError, match="changes or mixes them"):
            solved(seen(module, photos[:1], client))
    with pytest.raises(ThreatModelError, match="one example are solved for; this update has 2"):
        solved(seen(module, photos))
    with pytest.raises(ThreatModelError, match=r"gradient of embed\.proj\.weight, and the update lacks it"):
        solved(seen(module, photos[:1], Shares(FedSGD(), ("positions", "head.*"))))


class Raises(ViT):
    """A network that refuses single pictures."""

    def forward(self, images: Tensor) -> Tensor:
        if len(images) == 1:
            raise ValueError("two at least")
        return super().forward(images)


def test_a_network_that_does_not_run_is_refused_in_our_words(photos: Tensor) -> None:
    network = inversefed.freeze(Raises().eval(), (3, 32, 32))
    update = FedSGD()(inversefed.freeze(ViT().eval(), (3, 32, 32)), photos[:1], torch.tensor([4]))
    with pytest.raises(UnsupportedNetworkError, match="two at least"):
        solved(Observation(network, FedSGD(), update, 1))


def test_the_map_finds_pixels_through_padding_overlap_and_a_normalization_inside() -> None:
    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 5, 3, padding=2, padding_mode="reflect"), nn.Linear(8, 4)

        def forward(self, images: Tensor) -> Tensor:
            return self.head(self.conv((images.flip(3) - 0.4) / 0.3).mean(dim=(2, 3)))

    found = patch_map(inversefed.freeze(Inside(), (3, 10, 8), mean=0.5, std=0.25))
    image = torch.rand((1, 3, 10, 8), generator=torch.Generator().manual_seed(3))
    assert found.layer == "conv" and found.index.shape == (12, 75) and found.unseen == 0
    assert torch.allclose(found.image(found.entries(image)).float(), image, atol=1e-5)


def test_pixels_outside_of_all_patches_are_left_open(photos: Tensor) -> None:
    module = ViT().eval()
    image = nn.functional.pad(photos[:1], (0, 2, 0, 1))
    network = inversefed.freeze(module, (3, 33, 34), mean=0.5, std=0.25)
    observation = Observation(network, FedSGD(), FedSGD()(network, image, torch.tensor([4])), 1)
    found, share = solved(observation), 1 - 32 * 32 / (33 * 34)
    assert found.findings[0].code == "exact" and "stays open" in found.findings[0].message
    assert math.isclose(found.findings[0].evidence["unseen"], share)
    assert (found.images[..., :32, :32] - photos[:1]).abs().max() < 1e-3
    said = identify(observation)
    assert said.verdict == "open" and f"{share:.1%} of the picture is in no patch" in said.methods[3].reason


def test_it_says_beforehand_what_it_would_do_and_that_it_suffices(photos: Tensor) -> None:
    found = identify(seen(torchvisions(), photos[:1]))
    assert found.verdict == "determined" and "3072 values that go into conv_proj" in found.reason
    (method,) = [each for each in found.methods if each.name == "patch_embedding"]
    assert method.applies and method.reason == (
        "solves for 64 patches of 48 values from the gradients of encoder.pos_embedding and conv_proj.weight: 64 "
        "independent equations for the 64 patches, value by value"
    )


def test_the_default_attack_takes_it(photos: Tensor) -> None:
    report = inversefed.audit(torchvisions(), photos[:1], torch.tensor([4]), mean=0.5, std=0.25, nulls=0)
    assert "EmbeddedPatches was chosen" in report.findings[0].message
    assert float(report.scores["peak_signal_noise_ratio"]) > 60

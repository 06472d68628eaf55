"""One picture from a transformer with learned positions, in closed form, whatever follows the patch embedding.

    z_p = E a_p + position_p   =>   dL/dposition_p = dL/dz_p,   dL/dE = sum_p (dL/dz_p) a_p^T = (dL/dpositions)^T A

Positions are added token by token, so their gradient is that of each token, and the patch embedding's gradient is their
sum with the patches `a_p`: one linear system, `width` equations for the patches of each value. Lu et al. (2022,
arXiv:2112.14087) use what positions tell at the first attention; here nothing behind the tokens matters, be it norms,
skips, fused projections, a class token or none. Needs one example and no more patches than the tokens are wide. All
local steps of plain SGD see the same patches, so their sum does as well.

Which weights are positions is measured: with a made-up picture the identity holds for them, and for no others.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Generator, Tensor, nn

from inversefed.attacks.equations import passes
from inversefed.attacks.exact.patches import PatchMap, foreign_code, patch_map
from inversefed.attacks.exact.verify import EXACT, exactness, matched
from inversefed.attacks.labels import granted_or_recovered
from inversefed.attacks.problem import relative_matching_cost
from inversefed.errors import ThreatModelError, UnsupportedNetworkError
from inversefed.fl.arithmetic import float32_products
from inversefed.fl.network import Network
from inversefed.fl.sharing import UnknownClient, trainer
from inversefed.fl.threat import Observation
from inversefed.types import Budget, Candidate, Finding, Images, Params, Reconstruction, Status

__all__ = ["PatchEmbedding", "TokenEntry", "token_entry"]

_HOLDS = 1e-4
"""Relative error up to which the identity counts as holding on a made-up picture: both sides are sums of the same
numbers, rounded in single precision."""
_MOST_OFFSETS = 4096
"""Most places in a table of positions at which the first patch is looked for."""
_STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Shares of the greatest singular value below which a rounded update tells less than that a patch is gray."""
_SURE = 1e-2
"""Relative error of the patches, by rounding and condition, up to which their own equations prove them: 40 dB."""


@dataclass(frozen=True)
class PatchEmbedding:
    """Solve for the patches from the gradients of positions and patch embedding."""

    def __call__(self, observation: Observation, generator: Generator, budget: Budget = Budget()) -> Reconstruction:
        """Solve; randomness is not used, nor is the budget.

        Raises:
            ThreatModelError: the update is not that of one example in plain steps, or lacks what is needed.
            UnsupportedNetworkError: no learned positions are added to patches of the picture, or there are more
                patches than the tokens are wide.
        """
        entry = token_entry(observation)
        system = _System.of(entry, observation.gradient)
        labels = granted_or_recovered(observation)
        images = entry.image(system.solution(0.0), observation.network)
        images, loss = matched(observation, images, labels)
        sure = system.proves(observation.network.dtype) and loss >= EXACT and not _repeats(observation, images, labels)
        if loss >= EXACT and not sure:
            images, loss = _steadied(observation, entry, system, (images, loss), labels)
        how = f"the patches were solved for from the gradients of {entry.positions} and {entry.embed}, without a search"
        figures = {
            "condition": system.condition,
            "residual": system.residual,
            "unseen": max(entry.patches.unseen, system.free),
        }
        finding = _proven(how, loss, figures) if sure else exactness(loss, how, figures)
        chosen = Candidate(images, labels, loss, Status.FINISHED, iterations=1)
        return Reconstruction(images, labels, loss, Status.FINISHED, (chosen,), (finding,))

    def check(self, observation: Observation) -> str:
        """Say what it would do.

        Raises:
            ThreatModelError: as when it is called.
            UnsupportedNetworkError: likewise.
        """
        return token_entry(observation).told()


@dataclass(frozen=True, eq=False)
class TokenEntry:
    """How a picture becomes tokens.

    Args:
        patches: which pixels the patch embedding sees.
        embed: name of its weights.
        positions: name of the weights that are added to the tokens.
        leading: whether the first axis of the positions is the width, not the last.
        first: which of them belongs to the first patch.
        scale: what the embedding is multiplied by before they are added.
        width: of a token.
    """

    patches: PatchMap
    embed: str
    positions: str
    leading: bool
    first: int
    scale: float
    width: int

    def told(self) -> str:
        """What can be solved for, in words."""
        count, values = self.patches.index.shape
        missed = f"; {self.patches.unseen:.1%} of the picture is in no patch" if self.patches.unseen else ""
        return (
            f"solves for {count} patches of {values} values from the gradients of {self.positions} and {self.embed}: "
            f"{self.width} equations for the {count} patches, value by value{missed}"
        )

    def tokens(self, gradient: Params) -> Tensor:
        """The loss gradient at the patches' tokens, `[patches, width]`."""
        part = _as_tokens(gradient[self.positions], self.width, self.leading)
        return part[self.first : self.first + len(self.patches.index)]

    def image(self, entries: Tensor, network: Network) -> Images:
        """The picture whose patches are these."""
        return self.patches.image(entries).to(network.device, network.dtype)


def token_entry(observation: Observation) -> TokenEntry:
    """Measure how pictures enter the network, where its update can be solved for them.

    Args:
        observation: made-up pictures go through a private copy of its network, in eval mode.

    Raises:
        ThreatModelError: the update is not that of one example in plain steps, or lacks what is needed.
        UnsupportedNetworkError: no learned positions are added to patches of the picture, or there are more patches
            than the tokens are wide.
    """
    _check_update(observation)
    dtype = torch.promote_types(observation.network.dtype, torch.float32)
    network = observation.network.to(dtype)
    network.module.eval()  # the copy that `to` made
    patches = patch_map(network)
    embed = f"{patches.layer}.weight".lstrip(".")
    if embed not in network.params:
        raise _unsuited(f"the weights of the patch embedding, {patches.layer}, are frozen, and so have no gradient")
    count, width = len(patches.index), len(network.params[embed])
    if count == 1:
        raise _unsuited(f"the first layer on the picture, {patches.layer}, sees all of it at once, and no patches")
    candidates = tuple(_candidates(network, width, count))
    if not candidates:
        raise _unsuited(_without_positions(network, width, count))
    entry = _identified(network, patches, embed, candidates)
    _check_sent(entry, observation.gradient)
    if count > width:
        raise _unsuited(
            f"the gradient gives {width} equations, the tokens' width, for {count} patches, so {count - width} of "
            f"every {count} numbers stay free"
        )
    return entry


def _check_update(observation: Observation) -> None:
    if observation.num_examples != 1:
        raise ThreatModelError(
            f"the patches of one example are solved for; this update has {observation.num_examples}, whose tokens' "
            "gradients are summed"
        )
    if passes(observation) is None and not isinstance(trainer(observation.client), UnknownClient):
        raise ThreatModelError(
            f"patches are solved for from sums of gradients; {trainer(observation.client)!r} changes or mixes them "
            "with weights entry by entry"
        )


def _check_sent(entry: TokenEntry, gradient: Params) -> None:
    for name in (entry.positions, entry.embed):
        if name not in gradient:
            raise ThreatModelError(f"patches are solved for from the gradient of {name}, and the update lacks it")
    if not bool(entry.tokens(gradient).any()) or not bool(gradient[entry.embed].any()):
        raise _unsuited(
            f"the gradients of {entry.positions} and {entry.embed} are zero: nothing comes back to the patches, as "
            "where the head's weights are all zero"
        )


def _candidates(network: Network, width: int, count: int) -> Iterator[tuple[str, bool]]:
    """Weights that could be added to `count` tokens, and whether their first axis is the width."""
    layers = {name.rpartition(".")[0]: name for name in network.params}
    owned = {name for name in layers if isinstance(network.module.get_submodule(name), _MULTIPLY)}
    for name, weight in network.params.items():
        if name.rpartition(".")[0] not in owned:
            yield from ((name, leading) for leading in (False, True) if _fits(weight, width, count, leading))


_MULTIPLY = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention, nn.LayerNorm, nn.modules.batchnorm._NormBase)
"""Layers whose weights are no positions: asking only spares time, for the identity would tell."""


def _fits(weight: Tensor, width: int, count: int, leading: bool) -> bool:
    sides = [side for side in weight.shape if side > 1] or [1]
    return sides[0 if leading else -1] == width and weight.numel() >= count * width


def _as_tokens(part: Tensor, width: int, leading: bool) -> Tensor:
    """Positions or their gradient as rows, `[tokens, width]`, in double precision."""
    part = part.detach().cpu().double()
    return part.reshape(width, -1).T if leading else part.reshape(-1, width)


def _without_positions(network: Network, width: int, count: int) -> str:
    frozen = ((name, part) for name, part in network.module.named_parameters() if name not in network.params)
    for name, part in (*frozen, *network.module.named_buffers()):
        if _fits(part, width, count, False) or _fits(part, width, count, True):
            return f"{name}, which may be the tokens' positions, is not trained, so no token's gradient is sent"
    return (
        f"no trained weights could be added to each of the {count} patches (positions that are fixed or relative, or "
        "none, send no gradient of single tokens)"
    )


def _identified(
    network: Network, patches: PatchMap, embed: str, candidates: tuple[tuple[str, bool], ...]
) -> TokenEntry:
    """The positions for which the identity holds with a made-up picture."""
    picture = torch.rand((1, *network.image_shape), generator=Generator().manual_seed(1))
    gradient = _probe_gradient(network, picture, [embed, *dict.fromkeys(name for name, _ in candidates)])
    weights, entries = gradient[embed].detach().cpu().double().flatten(1), patches.entries(picture)
    count, width = len(entries), len(weights)
    if not bool(weights.any()):
        raise _unsuited(
            f"no gradient comes back to {embed}, whatever the picture, as where the head's weights are all zero"
        )
    for name, leading in candidates:
        tokens = _as_tokens(gradient[name], width, leading)
        for first in range(min(len(tokens) - count + 1, _MOST_OFFSETS)):
            product = tokens[first : first + count].T @ entries
            scale = float((weights * product).sum() / product.square().sum().clamp(min=1e-300))
            if (weights - scale * product).norm() <= _HOLDS * weights.norm():
                return TokenEntry(patches, embed, name, leading, first, scale, width)
    names = ", ".join(dict.fromkeys(name for name, _ in candidates))
    raise _unsuited(
        f"what comes back to {names} is not what comes back to each patch's token, as where a norm stands between the "
        "patch embedding and the positions, or where they are added more than once"
    )


def _probe_gradient(network: Network, picture: Tensor, names: list[str]) -> Params:
    """The gradient of a made-up mixture of the logits: which loss the client takes does not matter here."""
    mixture = torch.randn(network.num_classes, generator=Generator().manual_seed(2))

    def parts() -> tuple[Tensor, ...]:
        logits = network.apply(network.params, picture.to(network.device, network.dtype))
        value = (logits * mixture.to(logits)).sum()
        return torch.autograd.grad(value, [network.params[name] for name in names], materialize_grads=True)

    with torch.enable_grad(), float32_products(network.device):
        return dict(zip(names, foreign_code(parts), strict=True))


@dataclass(frozen=True, eq=False)
class _System:
    """`tokens^T A = weights` by its singular values.

    Args:
        right: singular vectors over the patches, `[patches, rank]`.
        values: singular values, falling.
        told: which of them are more than the number format's rounding.
        turned: `left^T weights`, `[rank, values]`.
        gray: entries of a gray picture, `[patches, values]`, from which the solution departs.
        residual: the share of the weights' squared norm that no patches explain.
        spare: equations beyond the unknowns, of each value.
    """

    right: Tensor = field(repr=False)
    values: Tensor = field(repr=False)
    told: Tensor = field(repr=False)
    turned: Tensor = field(repr=False)
    gray: Tensor = field(repr=False)
    residual: float
    spare: int

    @classmethod
    def of(cls, entry: TokenEntry, gradient: Params) -> "_System":
        """Take the system of an update apart."""
        tokens = entry.tokens(gradient) * entry.scale
        weights = gradient[entry.embed].detach().cpu().double().flatten(1)
        left, values, right = torch.linalg.svd(tokens.T, full_matrices=False)
        gray = entry.patches.gain * 0.5 + entry.patches.offset
        turned = left.T @ weights
        residual = float((weights - left @ turned).square().sum() / weights.square().sum())
        told = values > torch.finfo(gradient[entry.positions].dtype).eps * values[0]
        return cls(right.T, values, told, turned - left.T @ (tokens.T @ gray), gray, residual, len(weights) - len(gray))

    @property
    def free(self) -> float:
        """The share of the patches that the equations leave open."""
        return 1 - int(self.told.sum()) / len(self.gray)

    @property
    def condition(self) -> float:
        """Greatest singular value over the least that tells something."""
        return float(self.values[0] / self.values[self.told][-1])

    def solution(self, strength: float) -> Tensor:
        """The patches, `[patches, values]`; what has singular values below a share of the greatest stays near gray."""
        inverse = self.values / (self.values.square() + (strength * self.values[0]) ** 2)
        return self.gray + self.right @ (inverse.where(self.told, 0.0)[:, None] * self.turned)

    def proves(self, dtype: torch.dtype) -> bool:
        """Whether more equations than unknowns hold, and leave the patches no room."""
        return (
            self.spare > 0
            and not self.free
            and self.residual < EXACT
            and self.condition * torch.finfo(dtype).eps < _SURE
        )


def _steadied(
    observation: Observation, entry: TokenEntry, system: _System, best: tuple[Images, float], labels: Tensor
) -> tuple[Images, float]:
    """Of solutions that a rounded update disturbs less and less, the one that matches it best."""
    for strength in _STRENGTHS:
        images = entry.image(system.solution(strength), observation.network)
        loss = relative_matching_cost(observation, images, labels)
        best = min(best, (images, loss), key=lambda pair: pair[1])
    return best


def _repeats(observation: Observation, images: Images, labels: Tensor) -> bool:
    """Whether the client can be run again: its settings are known, and it draws nothing at random."""
    again = replace(observation, network=observation.network.with_masks(observation.network.mask_seed + 1))
    costs = [relative_matching_cost(each, images, labels) for each in (observation, again)]
    return costs[0] == costs[1] < float("inf")


def _proven(how: str, loss: float, figures: dict[str, float]) -> Finding:
    message = (
        f"Exact: {how}, and more equations hold than there are unknowns. The client cannot be run again to compare, "
        "for it draws at random or its settings are not known."
    )
    return Finding("exact", "info", message, {"relative_matching_cost": loss, **figures})


def _unsuited(why: str) -> UnsupportedNetworkError:
    return UnsupportedNetworkError(
        f"the picture's patches cannot be solved for: {why}; use an optimization attack such as geiping()"
    )

"""BatchNorm mode: whether it ran in train or in eval mode, from the gradient of the layer before it.

    train:  sum_j w_cj dL/dw_cj = 0  and  dL/db_c = 0          the scale and offset of its input do not matter
    eval:   the same sum + b dL/db = gamma dL/dgamma + gamma m / s dL/dbeta

Both are exact for a gradient (Ioffe and Szegedy 2015, arXiv:1502.03167, section 3.3). Running buffers that came back
changed tell of train mode too.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from inversefed.findings import Code
from inversefed.fl.train_mode import batchnorm_in_train_mode
from inversefed.types import Finding
from inversefed.updates.diagnosis.conservation import Relation
from inversefed.updates.diagnosis.evidence import Subject, rms
from inversefed.updates.split_state_dict import buffers_after

__all__ = ["Mode", "believed_mode", "check_mode", "seen_mode"]

Mode = Literal["train", "eval"]

_CLEAR = 0.3
"""How much better one mode's relation must hold than the other's."""


def believed_mode(subject: Subject) -> Mode:
    """As stated; unstated, that of the network."""
    if subject.metadata.bn_mode is not None:
        return subject.metadata.bn_mode
    return "train" if batchnorm_in_train_mode(subject.network.module) else "eval"


def check_mode(subject: Subject, related: Sequence[Relation]) -> tuple[Finding, ...]:
    """Compare the mode that the numbers show with the one that is stated.

    Returns:
        `batchnorm-train-mode`: a warning if they differ, an info in train mode, nothing in eval mode.
    """
    if not _norms(subject):
        return ()
    seen, believed = seen_mode(subject, related), believed_mode(subject)
    evidence = {"seen": seen, "stated": believed, **_evidence(subject, related)}
    if seen is not None and seen != believed:
        return (Finding(Code.BATCHNORM_TRAIN_MODE, "warning", _message(seen), evidence),)
    if believed == "train":
        shown = "as the update shows" if seen else "which the update neither shows nor denies"
        message = f"BatchNorm runs in train mode, {shown}: the examples of a batch are coupled through its statistics."
        return (Finding(Code.BATCHNORM_TRAIN_MODE, "info", message, evidence),)
    return ()


def seen_mode(subject: Subject, related: Sequence[Relation]) -> Mode | None:
    """The mode that the numbers show; `None` if they do not tell."""
    moved = _moved(subject)
    if moved:
        return "train"
    figures = _figures(subject, related)
    if figures is None:
        return None
    in_train, in_eval = figures
    if in_train < _CLEAR * in_eval and in_eval > 0.05:
        return "train"
    return "eval" if in_eval < _CLEAR * in_train and in_train > 0.05 else None


def _message(seen: Mode) -> str:
    if seen == "train":
        return (
            "BatchNorm ran in train mode at the client, but eval mode is stated: an attack would simulate another one. "
            "Set --bn-mode train (and --train-mode for a simulated update), and --sent-buffers if the buffers came too."
        )
    return "BatchNorm ran in eval mode at the client, but train mode is stated. Set --bn-mode eval."


def _figures(subject: Subject, related: Sequence[Relation]) -> tuple[float, float] | None:
    """What is left of the relations of either mode, over what is there: medians over the layers."""
    # A BatchNorm in front has one weight a channel: its sum cannot cancel, so it does not tell the modes apart.
    told = [relation for relation in related if relation.normalized and relation.front.parts[0][1].ndim > 1]
    pairs = [_pair(subject, relation) for relation in told]
    if not pairs:
        return None
    both = torch.tensor(pairs, dtype=torch.float64).median(dim=0).values
    return float(both[0]), float(both[1])


def _pair(subject: Subject, relation: Relation) -> tuple[float, float]:
    weight = relation.front.parts[0]
    own = weight[1] * subject.raw[weight[0]]
    products = own.flatten(start_dim=1)
    allowed = relation.tolerance(subject, subject.raw)
    left = (products.sum(dim=1).abs() - allowed).clamp(min=0)
    size = products.norm(dim=1).square().mean().sqrt().clamp_min(1e-300)
    return rms(left) / float(size), rms((relation.residual(subject.raw).abs() - allowed).clamp(min=0)) / float(size)


def _evidence(subject: Subject, related: Sequence[Relation]) -> dict[str, object]:
    figures = _figures(subject, related)
    left = {} if figures is None else {"left_in_train_mode": figures[0], "left_in_eval_mode": figures[1]}
    return {**left, "moved_buffers": _moved(subject)[:5]}


def _moved(subject: Subject) -> list[str]:
    """Running buffers that are not those that were sent out."""
    own = {name: buffer.detach().to("cpu", torch.float64) for name, buffer in subject.network.module.named_buffers()}
    after = buffers_after(own, subject.buffers, subject.kind)
    names = [name for name in subject.buffers if name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    return [name for name in names if _differ(after[name], own[name])]


def _differ(ours: Tensor, theirs: Tensor) -> bool:
    return bool(((ours - theirs).abs() > 0.02 * theirs.abs() + 1e-4).any())


def _norms(subject: Subject) -> dict[str, nn.Module]:
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    return {name: layer for name, layer in subject.network.module.named_modules() if isinstance(layer, kinds)}

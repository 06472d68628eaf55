"""Split a state dict: what the client trained, what is frozen, and the running buffers after training.

People save whole state dicts. An update is its trained parameters; a frozen one may be there if it did not move; the
buffers are what BatchNorm kept of the private batches.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from inversefed.errors import InputError, UpdateMismatchError, shown
from inversefed.fl.formats import is_rounding, is_single, number_format
from inversefed.fl.network import Network, first_names
from inversefed.types import Params
from inversefed.updates.metadata import Kind

__all__ = ["buffers_after", "parted"]


def parted(network: Network, tensors: Params, kind: Kind) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """Take a file's tensors apart.

    Args:
        network: the network as it was sent out.
        tensors: by name; tied weights under any of their names.
        kind: what they are.

    Returns:
        The part of the trained parameters, in the network's order, number format and on its device, with whatever else
        is in the file at its end; and the running buffers after training, or `None` where the file has none.

    Raises:
        UpdateMismatchError: a frozen parameter was changed, by more than rounding.
        InputError: running buffers that are not finite, or of another shape.
    """
    first = first_names(network.module)
    own = dict(network.module.named_parameters())
    running = dict(network.module.named_buffers())
    params, buffers, frozen = {}, {}, {}
    for given, tensor in tensors.items():
        name = first.get(given, given)
        if name in running:
            buffers[name] = tensor
        elif name in own and name not in network.params:
            frozen[name] = tensor
        else:
            params[name] = tensor.to(network.device, network.dtype)
    _check_frozen({name: own[name].detach() for name in frozen}, frozen, kind)
    order = [*(name for name in network.params if name in params), *(n for n in params if n not in network.params)]
    _check_buffers(running, buffers)
    return {name: params[name] for name in order}, buffers_after(running, buffers, kind) if buffers else None


def _check_frozen(own: Params, given: Params, kind: Kind) -> None:
    """Refuse a change of what the network does not train; rounding is none."""
    other = [name for name, part in given.items() if part.shape != own[name].shape]
    shapes = [f"{shown(n)} has shape {tuple(given[n].shape)}, expected {tuple(own[n].shape)}" for n in other]
    if shapes:
        raise UpdateMismatchError(f"the update does not fit the network: {'; '.join(shapes[:3])}")
    start = own if kind != "gradient" else {name: torch.zeros_like(weight) for name, weight in own.items()}
    after = _after(own, given) if kind == "weight_delta" else dict(given)
    saved = number_format(after)
    moved = [name for name in after if not is_rounding(after[name], start[name], saved)]
    if moved:
        changes = [_most(after[name], start[name]) for name in moved]
        more = f" ({len(moved)} such parameters, {shown(moved[0])} first)" if len(moved) > 1 else ""
        raise UpdateMismatchError(
            f"{shown(moved[0])} is frozen in the network, but the update changes it, by up to {max(changes):.2g}, more "
            f"than rounding{more}; build the network with requires_grad_(True) on what the client "
            "trains, or leave out of the file what it does not train"
        )


def _most(after: Tensor, before: Tensor) -> float:
    return float((after.to("cpu", torch.float64) - before.to("cpu", torch.float64)).abs().max())


def _after(own: Params, change: Params) -> dict[str, Tensor]:
    """Weights or buffers and their change, added up without an error of its own, in the format they are kept in."""
    sums = {name: own[name].to("cpu", torch.float64) + part.to("cpu", torch.float64) for name, part in change.items()}
    return {name: part.float() if own[name].dtype is torch.float32 else part for name, part in sums.items()}


def buffers_after(own: Mapping[str, Tensor], given: Mapping[str, Tensor], kind: Kind) -> dict[str, Tensor]:
    """The client's buffers after its update.

    Args:
        own: those that were sent out, by name.
        given: those of the file: in a weight delta what was added to them, else the new ones themselves.
        kind: of the update.

    Returns:
        In the format of `own`. Buffers are the network's own where the file has none, where it has the same but for
        rounding, and where a gradient's file has zeros, as one does that was filled up to a whole state dict.
    """
    told = {name: new for name, part in given.items() if name in own and (new := _shaped(part, own[name])) is not None}
    real = {name: new for name, new in told.items() if not own[name].is_complex()}
    added = _after(own, real) if kind == "weight_delta" else {}
    after = {**told, **added}
    same = {*_unmoved(own, real), *_unmoved(own, added)}
    same |= {name for name, new in told.items() if kind == "gradient" and not bool(new.any())}
    moved = {name: part.to(own[name].device, own[name].dtype) for name, part in after.items() if name not in same}
    return {**own, **moved}


def _unmoved(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> set[str]:
    saved = number_format({name: part for name, part in given.items() if own[name].is_floating_point()})
    return {name for name, part in given.items() if is_rounding(part, own[name], saved)}


def _shaped(given: Tensor, own: Tensor) -> Tensor | None:
    """A buffer in the shape of the network's own; nothing where it is a counter that no number was read for."""
    if not is_single(own):
        return given
    return given.reshape(own.shape) if given.numel() == 1 and bool(given.isfinite().all()) else None


def _check_buffers(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    arrays = {name: tensor for name, tensor in given.items() if not is_single(own[name])}
    bad = [name for name, tensor in arrays.items() if tensor.shape != own[name].shape]
    bad += [name for name, tensor in arrays.items() if name not in bad and not bool(tensor.isfinite().all())]
    if bad:
        raise InputError(
            f"the update's running buffers are not finite or of another shape: {', '.join(map(shown, bad[:3]))}; save "
            "them as they are in the network's state dict, in float32, or leave them out"
        )

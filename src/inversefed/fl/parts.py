"""A state dict taken apart: what the client trained, what is frozen, and the running buffers after training.

People save whole state dicts. An update is its trained parameters; a frozen one may be there if it did not move; the
buffers are what BatchNorm kept of the private batches.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from inversefed.errors import InputError, UpdateMismatchError, shown
from inversefed.fl.metadata import Kind
from inversefed.fl.network import Network
from inversefed.types import Params

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
        UpdateMismatchError: a frozen parameter was changed.
        InputError: running buffers that are not finite, or of another shape.
    """
    first = _first_names(network.module)
    own = dict(network.module.named_parameters())
    running = dict(network.module.named_buffers())
    params, buffers = {}, {}
    for given, tensor in tensors.items():
        name = first.get(given, given)
        if name in running:
            buffers[name] = tensor
        elif name in own and name not in network.params:
            _check_frozen(name, own[name], tensor, kind)
        else:
            params[name] = tensor.to(network.device, network.dtype)
    order = [*(name for name in network.params if name in params), *(n for n in params if n not in network.params)]
    _check_buffers(running, buffers)
    return {name: params[name] for name in order}, buffers_after(running, buffers, kind) if buffers else None


def _first_names(module: nn.Module) -> dict[str, str]:
    """Every name of a tied parameter to the one that the network knows it by."""
    first: dict[int, str] = {}
    both = module.named_parameters(remove_duplicate=False)
    return {name: first.setdefault(id(weight), name) for name, weight in both}


def _check_frozen(name: str, own: Tensor, given: Tensor, kind: Kind) -> None:
    """Refuse a change of what the network does not train."""
    expected = own.detach().to(given.device) if kind == "new_weights" else torch.zeros_like(own, device=given.device)
    near = 4 * torch.finfo(given.dtype).eps if given.is_floating_point() else 0.0
    if given.shape != own.shape or not torch.allclose(given.double(), expected.double(), rtol=near, atol=1e-12):
        raise UpdateMismatchError(
            f"{shown(name)} is frozen in the network, but the update changes it; build the network with "
            "requires_grad_(True) on what the client trains"
        )


def buffers_after(own: Mapping[str, Tensor], given: Mapping[str, Tensor], kind: Kind) -> dict[str, Tensor]:
    """The client's buffers after its update.

    Args:
        own: those that were sent out, by name.
        given: those of the file: in a weight delta what was added to them, else the new ones themselves.
        kind: of the update.

    Returns:
        In the format of `own`. Buffers are the network's own where the file has none, where it has the same, and where
        a gradient's file has zeros, as one does that was filled up to a whole state dict.
    """
    found = {}
    for name, buffer in own.items():
        new = buffer if name not in given else given[name].to(buffer.device, torch.float64)
        if torch.equal(new.to(buffer.dtype), buffer) or (kind == "gradient" and not bool(new.any())):
            found[name] = buffer
        else:
            found[name] = (buffer + new if kind == "weight_delta" else new).to(buffer.dtype)
    return found


def _check_buffers(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    shapes: Iterable[str] = (name for name, tensor in given.items() if tensor.shape != own[name].shape)
    bad = [*shapes, *(name for name, tensor in given.items() if not bool(tensor.isfinite().all()))]
    if bad:
        raise InputError(
            f"the update's running buffers are not finite or of another shape: {', '.join(map(shown, bad[:3]))}"
        )

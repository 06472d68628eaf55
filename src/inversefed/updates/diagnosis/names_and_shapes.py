"""Names, shapes and values: whether an update fits the network at all."""

import difflib
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from inversefed.findings import Code
from inversefed.fl.clients import Client, FedSGD
from inversefed.fl.formats import is_single
from inversefed.fl.network import Network
from inversefed.types import Finding, Params
from inversefed.updates.files.axes import advice, in_order
from inversefed.updates.files.axes import fits as same_shape
from inversefed.updates.left_out import left_out

__all__ = ["fits"]

_READABLE = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
}
"""Number formats that an update may come in."""
_MOST = 1e30
"""Magnitude from which on squares, which every attack takes, overflow or nearly do."""
_SHOWN = 3
"""How many names a message gives; the evidence has up to ten."""


def fits(
    network: Network,
    tensors: Mapping[str, Tensor],
    expected: Sequence[str] | None = None,
    client: Client = FedSGD(),
) -> tuple[Finding, ...]:
    """Compare an update with the weights that the network trains.

    Args:
        network: as it was sent out.
        tensors: by name; running buffers may be among them.
        expected: the names that have to be there; `None` for all that the network trains.
        client: how it was made, as far as that is known, for the option that fits an update of a part.

    Returns:
        Errors `names`, `shapes`, `quantized` and `non-finite`; none if the update can be read.

    >>> from inversefed.fl.network import freeze
    >>> network = freeze(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5)), (3, 2, 2))
    >>> [finding.code for finding in fits(network, {"1.weight": torch.zeros(5, 12)})]
    ['names']
    """
    known = {**dict(network.module.named_buffers()), **network.params}
    both = network.module.named_parameters(remove_duplicate=False)
    frozen = {name for name, _ in both if name not in network.params}
    missing = [name for name in (network.params if expected is None else expected) if name not in tensors]
    extra = [name for name in tensors if name not in known and name not in frozen]
    found = [_names(missing, extra, network, tensors, client)] if missing or extra else []
    shared = {name: part for name, part in tensors.items() if name in known}
    wrong = [name for name, part in shared.items() if not _is_readable(part, known[name])]
    if wrong:
        found.append(_shapes(wrong, tensors, known))
    whole = [name for name, part in shared.items() if _is_whole(part, known[name]) and name not in wrong]
    if whole:
        found.append(_integers(whole, tensors))
    # Only what has the right shape: a view may claim any number of entries.
    bad = [name for name, part in shared.items() if name not in wrong and not _is_usable(part, known[name])]
    if bad:
        found.append(_non_finite(bad, tensors))
    return tuple(found)


def _is_readable(part: object, own: Tensor) -> bool:
    """Whether these are numbers in memory in the network's shape; a mask of the network's own may be one of bits."""
    if not isinstance(part, Tensor) or not same_shape(part.shape, own):
        return False
    return _is_dense(part) or (part.dtype is own.dtype is torch.bool and part.layout is torch.strided)


def _is_usable(part: Tensor, own: Tensor) -> bool:
    """Whether all numbers are ones to compute with; counters, which nothing is computed from, may have overflowed."""
    return is_single(own) or part.dtype is torch.bool or bool((part.abs() < _MOST).all())


def _is_dense(part: object) -> bool:
    """Whether these are real numbers that lie in memory."""
    return (
        isinstance(part, Tensor)
        and part.layout is torch.strided
        and not part.is_meta
        and not part.is_quantized
        and part.dtype in _READABLE
    )


def _is_whole(part: Tensor, own: Tensor) -> bool:
    """Whether these are whole numbers in place of a parameter."""
    return isinstance(part, Tensor) and own.is_floating_point() and not part.is_floating_point()


def _integers(whole: list[str], tensors: Mapping[str, Tensor]) -> Finding:
    kinds = ", ".join(sorted({str(tensors[name].dtype).removeprefix("torch.") for name in whole}))
    message = (
        f"{_listed(whole)} of whole numbers ({kinds}), and a parameter is made of floating-point numbers: their scale "
        "is not in the file. Turn them into floats first, times the scale that the client quantized with."
    )
    return Finding(Code.QUANTIZED, "error", message, {"tensors": whole[:10]}, unfit=True)


def _names(
    missing: list[str], extra: list[str], network: Network, tensors: Mapping[str, Tensor], client: Client
) -> Finding:
    params = network.params
    said = [f"{_listed(missing)} missing from the update"] if missing else []
    said += [f"{_listed(extra)} not known to the network"] if extra else []
    there = [name for name in params if name in tensors]
    if there and not extra and (partly := left_out(network, there, client)):
        message = f"The names do not fit the network: {said[0]}. {partly}"
        return Finding(Code.NAMES, "error", message, {"missing": missing[:10], "extra": [], "renamed": {}}, unfit=True)
    in_turn, turned = _in_turn(extra, network, tensors) if not there else ({}, "")
    renamed = in_turn or {n: near for n in missing if (near := _nearest(n, extra, params[n], tensors)) is not None}
    hint = turned or _under_a_prefix(renamed)
    if renamed and (in_turn or not hint):
        pairs = ", ".join(f"{ours!r} may be {theirs!r} of the file" for ours, theirs in list(renamed.items())[:_SHOWN])
        hint += f" {pairs}: rename the tensors."
    message = (
        f"The names do not fit the network: {'; '.join(said)}.{hint} Check that --network builds the network that the "
        "client trained, and that the update holds every parameter that it trains, by its name in the state dict."
    )
    return Finding(
        Code.NAMES, "error", message, {"missing": missing[:10], "extra": extra[:10], "renamed": renamed}, unfit=True
    )


def _in_turn(extra: list[str], network: Network, tensors: Mapping[str, Tensor]) -> tuple[dict[str, str], str]:
    """Names of another framework, whose tensors are the network's in its order once their axes are in torch's."""
    running = {name: own for name, own in network.module.named_buffers() if own.is_floating_point()}
    state = [name for name in network.module.state_dict() if name in network.params or name in running]
    for names in (list(network.params), state):
        own = [network.params.get(name, running.get(name)) for name in names]
        shapes = [tuple(getattr(tensors[name], "shape", ())) for name in extra]
        if in_order(shapes, [each for each in own if each is not None]):
            pairs = zip(shapes, (tuple(each.shape) for each in own if each is not None), strict=True)
            return dict(zip(names, extra, strict=True)), advice(pairs)
    return {}, ""


def _under_a_prefix(renamed: Mapping[str, str]) -> str:
    """The advice where one prefix before all names is the difference; else nothing."""
    if len(renamed) < 2:
        return ""
    theirs = {other.removesuffix(name) if other.endswith(f".{name}") else "" for name, other in renamed.items()}
    ours = {name.removesuffix(other) if name.endswith(f".{other}") else "" for name, other in renamed.items()}
    if len(theirs) == 1 and (prefix := theirs.pop()):
        return f" The file has them under {prefix!r}: take that off the names, and leave out what is not the network's."
    if len(ours) == 1 and (prefix := ours.pop()):
        return (
            f" The network has them under {prefix!r}: put that before the names, or let --network build what is in it."
        )
    return ""


def _nearest(name: str, extra: list[str], weight: Tensor, tensors: Mapping[str, Tensor]) -> str | None:
    """Which unknown tensor of the same shape may be meant by a missing name."""
    same = [other for other in extra if getattr(tensors[other], "shape", None) == weight.shape]
    endings = [other for other in same if other.endswith(f".{name}") or name.endswith(f".{other}")]
    near = endings or difflib.get_close_matches(name, same, n=1, cutoff=0.5) or (same if len(same) == 1 else [])
    return near[0] if near else None


def _shapes(wrong: list[str], tensors: Mapping[str, Tensor], known: Params) -> Finding:
    parts = [f"{name} {_describe(tensors[name])}, expected {tuple(known[name].shape)}" for name in wrong[:_SHOWN]]
    more = f", and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    shapes = [(tuple(getattr(tensors[name], "shape", ())), tuple(known[name].shape)) for name in wrong]
    hint = advice(shapes)
    message = (
        f"The shapes do not fit the network: {'; '.join(parts)}{more}.{hint} Check --network, --num-classes and "
        "--image-shape, or the order of the tensors if they were mapped by position."
    )
    evidence = {name: [list(getattr(tensors[name], "shape", ())), list(known[name].shape)] for name in wrong[:10]}
    return Finding(Code.SHAPES, "error", message, evidence, unfit=True)


def _describe(part: object) -> str:
    if not isinstance(part, Tensor):
        return f"is a {type(part).__name__}"
    if not _is_dense(part):
        return f"is a tensor of {part.dtype} in the layout {part.layout}, not of dense real numbers"
    return f"has shape {tuple(part.shape)}"


def _non_finite(bad: list[str], tensors: Mapping[str, Tensor]) -> Finding:
    counts = {name: int((~(tensors[name].abs() < _MOST)).sum()) for name in bad[:10]}
    message = (
        f"{_listed(bad)} with NaN, infinite or gigantic values: nothing can be computed from this update. Check the "
        "client's learning rate and its weights, or whether numbers overflowed when the update was saved in float16."
    )
    return Finding(Code.NON_FINITE, "error", message, counts, unfit=True)


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return ", ".join(repr(name) for name in every[:_SHOWN]) + more

"""Whether what a file describes fits a network, asked of names and sizes before a tensor is read.

The network is the bound: whatever a file claims, no more is read than the network's own tensors could take.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from inversefed.errors import UpdateMismatchError, shown
from inversefed.updates.files import axes
from inversefed.updates.files.layout import Entry, Layout
from inversefed.updates.files.opening import Source

__all__ = ["fitted"]

_SPARE = 65_536
"""Numbers that a file may hold beyond twice those of the network, so that a wrong file can still be looked at."""
_PREFIXES = ("module.", "_orig_mod.", "_module.")
"""What DataParallel, torch.compile and Opacus put before every name."""
_MOST_PARTS = 8
"""How many parts of a name may be a prefix of another kind."""


def fitted(source: Source, layout: Layout, expected: Mapping[str, Tensor], strict: bool) -> Layout:
    """The same layout under the network's own names.

    Args:
        source: what messages call the file.
        layout: what it describes.
        expected: the network's tensors by name; those that an update consists of require grad.
        strict: refuse tensors that the network does not have; else only their size is bounded.

    Raises:
        UnsafeFileError: more numbers than the network could need.
        UpdateMismatchError: with the first three names, shapes or number formats that differ.
    """
    bound = 2 * sum(tensor.numel() for tensor in expected.values()) + _SPARE
    total = sum(entry.numel for entry in layout.entries)
    if total > bound:
        raise source.unsafe(
            f"its tensors claim {total:.3g} numbers, and {bound:.3g} is more than this network could need; check "
            "--network, or which file this is"
        )
    layout = replace(layout, entries=tuple(_placed(source, layout, expected, strict)))
    if strict:
        _check(source, layout.entries, expected)
    return layout


def _placed(source: Source, layout: Layout, expected: Mapping[str, Tensor], strict: bool) -> Sequence[Entry]:
    """Entries by the network's names: positions become names, and prefixes go."""
    entries = layout.entries
    if layout.positional and entries[0].name not in expected:
        names = _by_position(entries, expected)
        if names is not None:
            return [replace(entry, name=name) for entry, name in zip(entries, names, strict=True)]
        if not strict:
            return entries
        raise UpdateMismatchError(
            f"{source.path} has {len(entries)} tensors without names, and their shapes are not those of the network's "
            f"{len(expected)} tensors in order, nor of those that it trains; save them by name"
        )
    prefix = _prefix([entry.name for entry in entries], expected)
    return [replace(entry, name=entry.name.removeprefix(prefix)) for entry in entries] if prefix else entries


def _prefix(names: Sequence[str], expected: Mapping[str, Tensor]) -> str:
    """What stands before every name: whatever leaves the network's names, or what a known wrapper puts there.

    The former is how a network is called inside another module, such as `model.` in checkpoints of Lightning.
    """
    if not names or all(name in expected for name in names):
        return ""
    parts = names[0].split(".")
    tried = [".".join(parts[:end]) + "." for end in range(1, min(len(parts), _MOST_PARTS))]
    found = [each for each in tried if all(_under(each, name) in expected for name in names)]
    known = [each for each in _PREFIXES if all(name.startswith(each) for name in names)]
    return next(iter((*found, *(each for each in known if not any(name.startswith(each) for name in expected)), "")))


def _under(prefix: str, name: str) -> str:
    """A name without its prefix; nothing where it has another one."""
    return name[len(prefix) :] if name.startswith(prefix) else ""


def _by_position(entries: Sequence[Entry], expected: Mapping[str, Tensor]) -> list[str] | None:
    """The names that tensors have in the network's order, if their shapes fit one to one.

    Shapes fit as they are, or, so that what is wrong can be said, with their axes in another order.
    """
    orders = _orders(expected)
    shapes = [entry.shape for entry in entries]
    plain = (names for names in orders if _one_to_one(shapes, [expected[name] for name in names]))
    turned = (names for names in orders if axes.in_order(shapes, [expected[name] for name in names]))
    return next(plain, None) or next(turned, None)


def _one_to_one(shapes: Sequence[tuple[int, ...]], own: Sequence[Tensor]) -> bool:
    return len(shapes) == len(own) and all(axes.fits(shape, each) for shape, each in zip(shapes, own, strict=True))


def _orders(expected: Mapping[str, Tensor]) -> list[list[str]]:
    """The tensors that a list may be of: all, what is trained, or all but counters; of the whole or of some layers.

    Layers that clients keep to themselves are those that normalize (FedBN), or the last one; or it alone is sent.
    """
    whole = (
        list(expected),
        [name for name, tensor in expected.items() if tensor.requires_grad],
        [name for name, tensor in expected.items() if tensor.is_floating_point()],
    )
    layers = {name: name.rpartition(".")[0] for name in expected}
    running = {layer for name, layer in layers.items() if name.endswith("running_mean")}
    flat = {layers[name] for name, tensor in expected.items() if name.endswith("weight") and tensor.ndim == 1}
    last = {layers[name] for name in [name for name, tensor in expected.items() if tensor.requires_grad][-1:]}
    left_out = (running, running | flat, last, set(layers.values()) - last)
    parts = [[name for name in names if layers[name] not in each] for each in left_out for names in whole]
    return [*whole, *(names for names in parts if names)]


def _check(source: Source, entries: Sequence[Entry], expected: Mapping[str, Tensor]) -> None:
    wrong = [f"{shown(entry.name)} is not in the network" for entry in entries if entry.name not in expected]
    known = [(entry, expected[entry.name]) for entry in entries if entry.name in expected]
    other = [(entry, tensor) for entry, tensor in known if not axes.fits(entry.shape, tensor)]
    wrong += [
        f"{shown(entry.name)} has shape {entry.shape}, the network's has {tuple(tensor.shape)}"
        for entry, tensor in other
    ]
    wrong += [
        f"{shown(entry.name)} is {_plain(entry.dtype)}, and a parameter is made of floating-point numbers: "
        "turn it into floats"
        for entry, tensor in known
        if tensor.is_floating_point() and not entry.dtype.is_floating_point
    ]
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        hint = axes.advice([(entry.shape, tuple(tensor.shape)) for entry, tensor in other]) or _renaming(
            entries, expected
        )
        end = f".{hint}" if hint else ""
        raise UpdateMismatchError(f"{source.path} does not fit the network: {'; '.join(wrong[:3])}{more}{end}")


def _renaming(entries: Sequence[Entry], expected: Mapping[str, Tensor]) -> str:
    """The advice where names are those of another framework, and so are the axes."""
    if any(entry.name in expected for entry in entries):
        return ""
    shapes = [entry.shape for entry in entries]
    orders = (each for each in _orders(expected) if axes.in_order(shapes, [expected[name] for name in each]))
    names = next(orders, None)
    if names is None:
        return ""
    advice = axes.advice(zip(shapes, (tuple(expected[name].shape) for name in names), strict=True))
    return f"{advice} In their order they are the network's: rename {shown(entries[0].name)} to {names[0]}, and so on."


def _plain(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")

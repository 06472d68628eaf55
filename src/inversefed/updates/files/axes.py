"""Kernels and matrices whose axes are in the order of another framework.

    torch       kernel [out, in, h, w]       matrix [out, in]
    Keras, JAX  kernel [h, w, in, out]       matrix [in, out]       depthwise kernel [h, w, in, multiplier]

Reversing all axes of such a kernel would exchange height and width as well. So what is advised is the order of the
axes, and only one that leads to the network's shape.
"""

from collections.abc import Iterable, Sequence

from torch import Tensor

from inversefed.fl.formats import is_single

__all__ = ["advice", "fits", "in_order", "turned"]

_Shape = tuple[int, ...]


def fits(shape: Sequence[int], own: Tensor) -> bool:
    """Whether a shape is that of the network's tensor; of a single whole number, a counter, any shape is."""
    return is_single(own) or tuple(shape) == tuple(own.shape)


def turned(given: Sequence[int], own: Sequence[int]) -> str:
    """What turns a tensor of one shape into one of the other by the order of its axes; empty where nothing does.

    >>> turned((5, 3, 16, 32), (32, 16, 5, 3)), turned((64, 10), (10, 64)), turned((3, 3, 16, 2), (32, 1, 3, 3))
    ('permute(3, 2, 0, 1)', '.T', 'permute(2, 3, 0, 1).flatten(0, 1).unsqueeze(1)')
    """
    theirs, ours = tuple(given), tuple(own)
    if len(theirs) != len(ours) or len(ours) < 2:
        return ""
    if len(ours) == 2:
        return ".T" if theirs[::-1] == ours else ""
    places = tuple(range(len(ours) - 2))
    orders = ((len(ours) - 1, len(ours) - 2, *places), (0, len(ours) - 1, *(place + 1 for place in places)))
    for order in orders:
        if tuple(theirs[axis] for axis in order) == ours:
            return f"permute({', '.join(map(str, order))})"
    if (theirs[-2] * theirs[-1], 1, *theirs[:-2]) == ours:
        order = (len(ours) - 2, len(ours) - 1, *places)
        return f"permute({', '.join(map(str, order))}).flatten(0, 1).unsqueeze(1)"
    if theirs[::-1] == ours:
        return f"permute({', '.join(map(str, reversed(range(len(ours)))))})"
    return ""


def in_order(shapes: Sequence[Sequence[int]], own: Sequence[Tensor]) -> bool:
    """Whether tensors fit the network's one to one once axes are in another order, some of which are not in torch's."""
    if len(shapes) != len(own):
        return False
    others = [(shape, tensor) for shape, tensor in zip(shapes, own, strict=True) if not fits(shape, tensor)]
    return bool(others) and all(turned(shape, tensor.shape) for shape, tensor in others)


def advice(pairs: Iterable[tuple[Sequence[int], Sequence[int]]]) -> str:
    """How to turn tensors whose shapes differ, as (the file's, the network's), into torch's; empty where nothing does.

    >>> advice([((3, 3, 8, 16), (16, 8, 3, 3))])[:59]
    ' The axes are in another order (kernels are [h, w, in, out]'
    """
    both = [(tuple(given), tuple(own)) for given, own in pairs if tuple(given) != tuple(own)]
    ways = {(way, len(own)) for given, own in both if (way := turned(given, own))}
    if not ways:
        return ""
    kernels = sorted(way for way, sides in ways if sides > 2)
    matrices = any(sides == 2 for _, sides in ways)
    keras = any("flatten" in way or way.startswith(f"permute({n - 1}, {n - 2}, 0") for way, n in ways if n > 2)
    whose = " (kernels are [h, w, in, out], as Keras, TensorFlow and JAX keep them)" if keras else ""
    how = [f"kernels by {' or '.join(kernels)}"] if kernels else []
    how += ["matrices by .T, since torch keeps [out, in]"] if matrices or keras else []
    flat = " A matrix behind flattened features has its inputs in another order as well." if keras else ""
    return (
        f" The axes are in another order{whose}: transpose them, and also those of equal sides, whose shape does not "
        f"show it: {', '.join(how)}.{flat}"
    )

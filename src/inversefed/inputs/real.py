"""What examples of real numbers have in common: a shape, and the range [0, 1]."""

from torch import Tensor

from inversefed.errors import InputError

__all__ = ["check_real", "mean_of", "own_level"]


def check_real(inputs: object, shape: tuple[int, ...], what: str, hint: str) -> None:
    """Refuse anything but real numbers `[n, *shape]` in [0, 1].

    Args:
        inputs: what came.
        shape: of one example.
        what: their name, in the plural.
        hint: what their range means, and what to do about numbers outside it.

    Raises:
        InputError: wrong shape or type, no example, NaN, or numbers outside [0, 1].
    """
    sides = ", ".join(map(str, shape))
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point() or tuple(inputs.shape[1:]) != shape:
        came = f"shape {tuple(inputs.shape)} of {inputs.dtype}" if isinstance(inputs, Tensor) else type(inputs).__name__
        raise InputError(f"{what} are a floating-point tensor [n, {sides}] in [0, 1]; got {came}")
    if inputs.shape[0] == 0:
        raise InputError(f"an audit needs at least one example, got none: {what} [n, {sides}] with n from 1")
    low, high = inputs.detach().aminmax()
    if not bool((low >= 0) & (high <= 1)):
        raise InputError(f"{what} must lie in [0, 1] ({hint}); got {float(low):.3g} to {float(high):.3g}")


def own_level(truth: Tensor) -> Tensor:
    """Each example's own mean, channel by channel, at all its places: of all constants the one of least squared error.

    Args:
        truth: `[n, c, *places]`.
    """
    return truth.mean(dim=tuple(range(2, truth.ndim)), keepdim=True).expand_as(truth).clone()


def mean_of(others: Tensor, like: Tensor) -> Tensor:
    """The mean of other examples, as often as there are examples.

    Args:
        others: `[m, *shape]`, m from 1.
        like: `[n, *shape]`, whose number, device and number format it has.
    """
    return others.to(like).mean(dim=0, keepdim=True).expand_as(like).clone()

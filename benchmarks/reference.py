"""The paper's recipe once more, written as one plain loop that shares no code with the package's attacks.

    x^ = argmin_x  1 - <g(x), g*> / (|g(x)| |g*|) + alpha TV(x),    g(x) = grad_w loss(f_w(x), y)

by Adam on the signs of the gradient, lr 0.1, a tenth at 3/8, 5/8 and 7/8 of the iterations, from normal noise, every
pixel kept in its range (Geiping et al. 2020, arXiv:2003.14053, eq. 4 and Table 1; the milestones are the formulas of
the paper's code). A test holds it against `recipes.geiping()`.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

__all__ = ["gradient_of", "invert"]

Look = Callable[[Callable[[], Tensor]], object]


def gradient_of(module: nn.Module, inputs: Tensor, labels: Tensor, create_graph: bool = False) -> tuple[Tensor, ...]:
    """Gradient of the cross entropy with respect to the weights, in their order.

    Args:
        module: a classifier.
        inputs: normalized pictures, `[n, c, h, w]`.
        labels: their classes, `[n]`.
        create_graph: keep what is needed to differentiate it again.
    """
    loss = F.cross_entropy(module(inputs), labels)
    return torch.autograd.grad(loss, list(module.parameters()), create_graph=create_graph)


def invert(
    module: nn.Module,
    gradient: Sequence[Tensor],
    labels: Tensor,
    shape: Sequence[int],
    normalization: tuple[Tensor, Tensor],
    generator: Generator,
    *,
    iterations: int,
    total_variation: float,
    look: Look = lambda _: None,
) -> Tensor:
    """Find the pictures behind a gradient.

    Args:
        module: the network that made it, in the same mode.
        gradient: as from `gradient_of`.
        labels: the classes, which are known.
        shape: `(n, c, h, w)` of what is looked for.
        normalization: mean and standard deviation, `[c, 1, 1]` each.
        generator: draws the start.
        iterations: number of steps.
        total_variation: the prior's weight.
        look: called after each step with a function that returns the best pictures so far.

    Returns:
        The iterate of lowest loss, in pixel space.
    """
    mean, std = normalization
    low, high = (0 - mean) / std, (1 - mean) / std
    x = torch.randn(tuple(shape), generator=generator, dtype=mean.dtype).requires_grad_()
    adam = torch.optim.Adam([x], lr=0.1)
    decay = torch.optim.lr_scheduler.MultiStepLR(adam, [int(iterations // part) for part in (2.667, 1.6, 1.142)])
    best, lowest = x.detach().clone(), math.inf

    def pictures() -> Tensor:
        return best * std + mean

    for step in range(iterations + 1):
        loss = _cosine(gradient_of(module, x, labels, create_graph=True), gradient) + total_variation * _variation(x)
        if loss.item() < lowest:
            best, lowest = x.detach().clone(), loss.item()
        if step == iterations:  # the last look only judges where the last step led
            break
        (derivative,) = torch.autograd.grad(loss, x)
        x.grad = derivative.sign()
        adam.step()
        decay.step()
        with torch.no_grad():
            x.copy_(torch.max(torch.min(x, high), low))
        look(pictures)
    return pictures()


def _cosine(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Tensor:
    product, one, other = (
        sum(((a * b).sum() for a, b in zip(left, right, strict=True)), start=torch.zeros(()))
        for left, right in ((ours, theirs), (ours, ours), (theirs, theirs))
    )
    return 1 - product / one.sqrt() / other.sqrt()


def _variation(x: Tensor) -> Tensor:
    return (x[..., 1:] - x[..., :-1]).abs().mean() + (x[..., 1:, :] - x[..., :-1, :]).abs().mean()

"""Recomputation: a function of tensors that keeps its inputs, not its graph, and runs again in the backward pass.

    forward:   y = run(x), without a graph
    backward:  y = run(x) once more, with one;  (dy/dx)^T v

Memory is traded for time (Griewank and Walther 2000, doi:10.1145/347837.347846). `torch.utils.checkpoint` does the same
for modules, but unpacks, and so recomputes, already in the forward pass where the function itself calls
`torch.autograd.grad`, as a client does.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["recomputed"]

Run: TypeAlias = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def recomputed(run: Run, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Call a function so that no graph of it is held until the backward pass.

    Values and gradients are those of `run(inputs)`, to the bit where `run` itself is deterministic.

    Args:
        run: a function of the inputs alone; gradients reach nothing that it takes from elsewhere. It is handed
            detached copies, and may ask them to require grad.
        inputs: what it is called with.

    Raises:
        RuntimeError: by torch, where the result is differentiated twice.

    >>> x = torch.tensor(3.0, requires_grad=True)
    >>> (y,) = recomputed(lambda inputs: [inputs[0] ** 2], [x])
    >>> torch.autograd.grad(y, x)
    (tensor(6.),)
    """
    return cast(tuple[Tensor, ...], _Recomputed.apply(run, *inputs))


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, run: Run, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.run = run
        ctx.save_for_backward(*inputs)
        ctx.set_materialize_grads(False)  # a sum with zeros would not be the plain graph's sum
        outputs = tuple(output.detach() for output in run([value.detach() for value in inputs]))
        ctx.mark_non_differentiable(*(output for output in outputs if not output.is_floating_point()))
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor | None) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        inputs = [value.detach().requires_grad_(need) for value, need in zip(ctx.saved_tensors, needed, strict=True)]
        wanted = [value for value, need in zip(inputs, needed, strict=True) if need]
        with torch.enable_grad():
            outputs = ctx.run(inputs)
        reached = [
            (output, slope)
            for output, slope in zip(outputs, slopes, strict=True)
            if slope is not None and output.requires_grad
        ]
        del outputs
        if not reached:
            return (None,) * (1 + len(needed))
        ends, weights = zip(*reached, strict=True)
        found = iter(torch.autograd.grad(ends, wanted, weights, allow_unused=True))
        return (None, *(next(found) if need else None for need in needed))

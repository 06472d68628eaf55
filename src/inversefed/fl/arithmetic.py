"""How a GPU multiplies: full float32 products unless TF32 is asked for.

PyTorch lets cuDNN round the inputs of convolutions to TF32, 10 bits, by default. That is fine for training and too
coarse for inverting: a gradient that is right to three digits hides what an exact method needs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["float32_products"]


@contextmanager
def float32_products(device: torch.device, tf32: bool = False) -> Iterator[None]:
    """Within it, products on a CUDA device are computed in float32, or in TF32 where asked; a CPU has no TF32."""
    if device.type != "cuda":
        yield
        return
    products: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)  # type: ignore[attr-defined]
    before = [kind.fp32_precision for kind in products]
    for kind in products:
        kind.fp32_precision = "tf32" if tf32 else "ieee"
    try:
        yield
    finally:
        for kind, value in zip(products, before, strict=True):
            kind.fp32_precision = value

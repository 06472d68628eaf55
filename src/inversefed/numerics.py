"""How a processor multiplies: full float32 products on a GPU unless TF32 is asked for, and whether it has bfloat16.

PyTorch lets cuDNN round the inputs of convolutions to TF32, 10 bits, by default. That is fine for training and too
coarse for inverting: a gradient that is right to three digits hides what an exact method needs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["computes_bfloat16", "float32_products"]


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


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the processor has bfloat16 arithmetic; without, such products are converted, and slower than float32.

    A CPU says so by AVX512_BF16 or AMX, where this PyTorch can tell.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, name, bool)() for name in asked)

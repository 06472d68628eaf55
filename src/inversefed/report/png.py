"""Images as PNG files, at their own size, for a folder and for a page without a network.

Pixels are clamped to [0, 1] and rounded to 8 bits; a pixel that is not a number is black. One channel
is shown as gray, three as color, and any other number by its mean.
"""

import base64
import io

from PIL import Image
from torch import Tensor

__all__ = ["data_uri", "difference", "png", "preview"]


def png(image: Tensor) -> bytes:
    """Write one image as a PNG file of its own size, 8 bits a channel.

    Args:
        image: `[c, h, w]`, pixels in [0, 1]; clamped, and NaN is black.

    >>> import torch
    >>> png(torch.zeros(3, 4, 5))[1:4]
    b'PNG'
    """
    channels = image if image.shape[0] in (1, 3) else image.mean(dim=0, keepdim=True)
    pixels = (channels.detach().cpu().float().nan_to_num(nan=0.0).clamp(0, 1) * 255).round().byte()
    array = pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).contiguous().numpy()
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def preview(example: Tensor) -> bytes | None:
    """A picture `[c, h, w]` as a PNG file; nothing for what is no picture, such as a row of a table."""
    return png(example) if example.ndim == 3 else None


def data_uri(image: Tensor) -> str:
    """Write one image `[c, h, w]` as a `data:` address, so that a page carries it within itself.

    >>> import torch
    >>> data_uri(torch.zeros(3, 4, 5))[:22]
    'data:image/png;base64,'
    """
    return "data:image/png;base64," + base64.b64encode(png(image)).decode("ascii")


def difference(image: Tensor, target: Tensor) -> Tensor:
    """Absolute difference of two images `[c, h, w]` as they are shown: black where they agree.

    >>> import torch
    >>> difference(torch.full((1, 1, 1), 2.0), torch.full((1, 1, 1), 0.25)).item()
    0.75
    """
    return (image.detach().cpu().clamp(0, 1) - target.detach().cpu().clamp(0, 1)).abs()

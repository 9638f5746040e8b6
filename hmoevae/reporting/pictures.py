"""Sheets of small pictures: one file for all pictures of a kind, as text that the page holds.

Axes: `picture` counts pictures, `height`, `width` and `channel` those of one.
"""

import base64
import io
import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

LARGEST = 64
"""Longest side of a picture in the page, in its own pixels; larger ones are made smaller."""
LONGEST_SHEET = 16_000
"""Longest side of a sheet, which WebP bounds."""
QUALITY = 70


class Sheet(NamedTuple):
    """Pictures side by side.

    Attributes:
        data: The file, as base64.
        mime: Its type.
        columns: Number of pictures in a row.
        rows: Number of rows.

    >>> Sheet("", "image/png", 3, 2).columns
    3
    """

    data: str
    mime: str
    columns: int
    rows: int


class Scale(NamedTuple):
    """How values of pixels become bytes: the same for all pictures of a report.

    >>> Scale(0.0, 2.0).bytes_of(torch.tensor([0.0, 1.0, 2.0]))
    tensor([  0, 128, 255], dtype=torch.uint8)
    """

    low: float
    high: float

    def bytes_of(self, values: Tensor) -> Tensor:
        """Values from `low` to `high` as bytes from 0 to 255.

        >>> Scale(0.0, 1.0).bytes_of(torch.tensor([9.0]))
        tensor([255], dtype=torch.uint8)
        """
        scaled = (values.float() - self.low) / max(self.high - self.low, 1e-12)
        return (scaled.nan_to_num(0.5).clamp(0, 1) * 255).round().to(torch.uint8)


def scale_of(x: Float[Tensor, "n *input_shape"]) -> Scale:
    """From 0 to 1 if all samples lie there, otherwise the range of the samples.

    >>> scale_of(torch.tensor([[0.2]])), scale_of(torch.tensor([[-1.0], [1.0]]))
    (Scale(low=0.0, high=1.0), Scale(low=-1.0, high=1.0))
    """
    known = x if not x.sum().isnan() else x[~x.isnan()]
    if known.numel() == 0:
        return Scale(0.0, 1.0)
    low, high = (float(end) for end in known.aminmax())
    return Scale(0.0, 1.0) if low >= 0 and high <= 1 else Scale(low, high)


def size_of(shape: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of the pictures of samples of a shape.

    >>> size_of((1, 28, 28)), size_of((3, 128, 256))
    ((28, 28), (32, 64))
    """
    height, width = shape[-2:]
    by = max(1, math.ceil(max(height, width) / LARGEST))
    return max(1, height // by), max(1, width // by)


def pictures(
    samples: Float[Tensor, "picture *input_shape"], scale: Scale
) -> UInt8[Tensor, "picture channel height width"]:
    """Samples as pictures of one or three channels; cells that were not observed are grey.

    Args:
        samples: Images, `(picture, h, w)` or `(picture, channel, h, w)`.
        scale: How values become bytes.

    >>> pictures(torch.rand(5, 28, 28), Scale(0.0, 1.0)).shape
    torch.Size([5, 1, 28, 28])
    """
    images = samples.unsqueeze(1) if samples.ndim == 3 else samples
    size = size_of(tuple(images.shape[1:]))
    if size != tuple(images.shape[2:]):
        images = F.adaptive_avg_pool2d(images.float(), size)
    return scale.bytes_of(images)


def sheet(images: UInt8[Tensor, "picture channel height width"], *, lossless: bool) -> Sheet:
    """One file of all pictures.

    Args:
        images: The pictures; one at least.
        lossless: PNG, whose pixels can be computed with; otherwise WebP, which is smaller.

    >>> found = sheet(torch.zeros(5, 1, 4, 4, dtype=torch.uint8), lossless=True)
    >>> found.columns, found.rows, found.mime
    (3, 2, 'image/png')
    """
    from PIL import Image

    n, channels, height, width = images.shape
    columns = min(max(1, math.ceil(math.sqrt(n * height / width))), LONGEST_SHEET // width)
    rows = -(-n // columns)
    padded = F.pad(images, (0, 0, 0, 0, 0, 0, 0, rows * columns - n))
    tiled = padded.reshape(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    pixels: np.ndarray = tiled.reshape(rows * height, columns * width, channels).numpy()
    buffer = io.BytesIO()
    image = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
    if lossless:
        image.save(buffer, "PNG", optimize=False, compress_level=9)
    else:
        image.save(buffer, "WEBP", quality=QUALITY, method=2)
    return Sheet(base64.b64encode(buffer.getvalue()).decode(), f"image/{'png' if lossless else 'webp'}", columns, rows)

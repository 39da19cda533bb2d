"""An image that tokens are patches of."""

import base64
import dataclasses
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ..foundation.arrays import describe

_KINDS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}


@dataclasses.dataclass(frozen=True)
class Picture:
    """An image, and the grid of patches that it is cut into.

    Attributes:
        url: a data URL.
        rows, columns: of the grid.
        first: the number of the token that is the first patch; by default the number of tokens before the last
            `rows * columns`.
    """

    url: str
    rows: int
    columns: int
    first: int | None = None

    def grid_for(self, places: tuple[int, ...], length: int | None) -> dict[str, int] | None:
        """Where the patches are among tokens, or None if these are not all there."""
        patches, count = self.rows * self.columns, len(places) if length is None else length
        first = count - patches if self.first is None else self.first
        if first < 0 or first + patches > count or places != tuple(range(len(places))):
            return None
        if self.first is None and first > 16:  # so many tokens beside patches are text of their own
            return None
        return {"rows": self.rows, "columns": self.columns, "first": first}


def picture(image: Any, grid: Any, first: int | None) -> Picture | None:
    """The checked arguments `image` and `grid` of `view`.

    Raises:
        ValueError: one without the other; not an image; not two sizes.
    """
    if image is None and grid is None:
        if first is not None:
            raise ValueError(f"`first_patch` must be left out without `image` and `grid`; got {describe(first)}.")
        return None
    sizes = tuple(grid) if isinstance(grid, list | tuple) else ()
    if len(sizes) != 2 or not all(type(one) is int and one > 0 for one in sizes):
        raise ValueError(f"`grid` must be the rows and columns of patches of `image`, such as (14, 14); got {grid!r}.")
    if image is None:
        raise ValueError("`image` must be given with `grid`: an array [height, width, 3], or a file.")
    if first is not None and (type(first) is not int or first < 0):
        raise ValueError(f"`first_patch` must be the number of a token, an int of at least 0; got {describe(first)}.")
    return Picture(_url(image), *sizes, first)


def _url(image: Any) -> str:
    data = _bytes(image)
    kind = next((kind for start, kind in _KINDS.items() if data.startswith(start)), None)
    if kind is None:
        raise ValueError("`image` must be a PNG, JPEG, GIF or WebP file; got bytes of another kind.")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _bytes(image: Any) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        if not Path(image).is_file():
            raise ValueError(f"`image` must be a file that exists; got {str(image)!r}.")
        return Path(image).read_bytes()
    if hasattr(image, "save") and hasattr(image, "mode"):  # of Pillow
        file = io.BytesIO()
        image.save(file, "PNG")
        return file.getvalue()
    array = np.asarray(image)
    right = array.ndim in (2, 3) and (array.ndim == 2 or array.shape[2] in (1, 3, 4)) and array.dtype.kind in "buif"
    if right and 0 not in array.shape:
        finite = np.nan_to_num(array) if array.dtype.kind == "f" else array
        right = finite.min() >= 0 and finite.max() <= (1 if array.dtype.kind == "f" else 255)
    if not right or 0 in array.shape:
        raise ValueError(
            "`image` must be an array [height, width], or [height, width, 1, 3 or 4], of 0 to 255 or 0.0 to 1.0, an "
            f"image of Pillow, or a file; got {describe(image)}."
        )
    if array.dtype.kind in "fb":
        array = np.nan_to_num(array) * 255.0
    return png(np.rint(array).astype(np.uint8))


def png(pixels: np.ndarray) -> bytes:
    """A PNG file of uint8 pixels `[height, width]` or `[height, width, 1, 3 or 4]`.

    >>> png(np.zeros((2, 2), np.uint8))[:4]
    b'\\x89PNG'
    """
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    height, width, channels = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], 1)  # each of filter 0

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows.tobytes()))
        + chunk(b"IEND", b"")
    )

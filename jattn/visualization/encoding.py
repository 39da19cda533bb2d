"""How a page stores arrays: weights as the square root in a few bits, vectors as int8, masks as bits; deflated, base64.

A weight w of a map whose largest is s (1 for softmax) is stored as the integer

    code = round(L sqrt(w / s)),    read back as    s (code / L)²,    L = 2^bits - 1.

The square root keeps faint weights: of twelve heads of a BERT over 256 tokens, eight bits store a tenth of all weights
as 0, where linear codes store two thirds. Its error is largest at w = s, about s / L.
"""

import base64
import math
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

BITS = (8, 7, 6, 5, 4)
"""The quantizations, finest first."""
_SAMPLE = 6  # heads whose compressed size predicts that of all
_LEVEL = 6  # of zlib; 9 takes 2 to 25 times as long for 0 to 10% less


def packed(data: bytes) -> str:
    """Bytes as the page reads them: deflated, in base64, and nowhere in it the text "http", even by chance.

    >>> packed(b"")
    'eJwDAAAAAAE='
    """
    return base64.b64encode(zlib.compress(data, _LEVEL)).decode().replace("http", "ht\ntp")  # spaces are not read


def packed_all(arrays: Sequence[np.ndarray]) -> list[str]:
    """`packed` of each array's bytes, on several threads."""
    with ThreadPoolExecutor() as threads:
        return list(threads.map(lambda array: packed(np.ascontiguousarray(array).tobytes()), arrays))


def scale_of(weights: np.ndarray) -> float:
    """What the weights of a map are divided by: 1, or the largest where it is above 1. NaN and inf do not count.

    >>> scale_of(np.array([[0.25, 4.0, np.nan]])), scale_of(np.array([[0.25]]))
    (4.0, 1.0)
    """
    finite = weights[np.isfinite(weights)]
    return max(1.0, float(finite.max())) if finite.size else 1.0


def codes(weights: np.ndarray, bits: int) -> np.ndarray:
    """The uint8 codes of a map. NaN and inf are stored as 0; the page is told of them apart.

    >>> codes(np.array([[0.0, 0.01, 0.25, 1.0]]), 8).tolist()
    [[0, 26, 128, 255]]
    """
    shares = np.where(np.isfinite(weights), weights, 0) / scale_of(weights)
    return np.rint(np.sqrt(np.clip(shares, 0, 1)) * (2**bits - 1)).astype(np.uint8)


def largest_error(bits: int) -> float:
    """A bound of the error of a weight, as a share of the scale: codes are off by up to 1 / (2 L), so w = 1 by 1 / L.

    >>> [round(largest_error(bits), 4) for bits in BITS]
    [0.0039, 0.0079, 0.0159, 0.0323, 0.0667]
    """
    return 1 / (2**bits - 1)


def smallest_shown(bits: int) -> float:
    """The weight, as a share of the scale, below which a code is 0.

    >>> f"{smallest_shown(8):.1e}, {smallest_shown(4):.1e}"
    '3.8e-06, 1.1e-03'
    """
    return (0.5 / (2**bits - 1)) ** 2


def predicted_size(maps: Sequence[np.ndarray], bits: int) -> int:
    """About how many bytes the maps take in the page, from a few of them."""
    if not maps:
        return 0
    chosen = maps[:: -(-len(maps) // _SAMPLE)]
    cells = sum(one.size for one in chosen)
    size = sum(map(len, packed_all([codes(one, bits) for one in chosen])))
    return math.ceil(size * sum(one.size for one in maps) / max(cells, 1))


def finest(maps: Sequence[np.ndarray], limit: int) -> int | None:
    """The most bits with which the maps take at most `limit` bytes; None if four are too many."""
    cells = sum(one.size for one in maps)
    if cells / 64 > limit:  # no map of attention has been seen to take less than a bit for eight weights
        return None
    return next((bits for bits in BITS if predicted_size(maps, bits) <= limit), None)


def bits_of(flags: np.ndarray) -> np.ndarray:
    """Booleans as bits, eight to a byte, the first the highest.

    >>> bits_of(np.array([[True, False], [True, True]])).tolist()
    [176]
    """
    return np.packbits(np.ascontiguousarray(flags, bool).reshape(-1))


def vectors(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vectors `[length, features]` as int8 with one scale each: `values / 127 * scale` reads them back.

    Returns:
        Bytes: float32 scales `[length]`, little-endian, then int8 `[length, features]`; and what the page reads back,
        float32.

    >>> stored, read = vectors(np.array([[1.0, -2.0]]))
    >>> len(stored), bool(abs(read - [[1.0, -2.0]]).max() < 0.01)
    (6, True)
    """
    array = np.asarray(array, np.float32)
    scales = np.abs(array).max(-1, initial=0).astype("<f4")
    values = np.rint(array / np.where(scales > 0, scales, 1)[:, None] * 127).astype(np.int8)
    stored = np.frombuffer(scales.tobytes() + values.tobytes(), np.uint8)
    return stored, values.astype(np.float32) / 127 * scales[:, None]

"""Scenes: several digits on one sheet."""

import numpy as np

from .digits import LEVELS, SIDE


def compose(digits: np.ndarray, corners: np.ndarray, side: int) -> np.ndarray:
    """Square images `[scenes, side, side, 1]` from 0 (paper) to 1 (ink).

    Args:
        digits: `[scenes, count, 8, 8]`, from 0 to 16.
        corners: the row and the column of the upper left pixel of each digit, `[scenes, count, 2]`. A digit whose row
            is negative is left out.
        side: of the sheet, in pixels.

    >>> one = np.full((1, 1, 8, 8), 16)
    >>> compose(one, np.array([[[1, 2]]]), 10)[0, :, :, 0].sum(0)
    array([0., 0., 8., 8., 8., 8., 8., 8., 8., 8.], dtype=float32)
    """
    scenes, count = digits.shape[:2]
    images = np.zeros((scenes, side, side), np.float32)
    for scene in range(scenes):
        for one in range(count):
            row, column = corners[scene, one]
            if row >= 0:
                at = images[scene, row : row + SIDE, column : column + SIDE]
                np.maximum(at, digits[scene, one] / (LEVELS - 1), out=at)
    return images[..., None]

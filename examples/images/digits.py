"""The 1,797 handwritten digits of 8x8 pixels that scikit-learn has, split so that nobody trains on the test."""

import dataclasses

import numpy as np
from sklearn.datasets import load_digits

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIDE = 8  # pixels
LEVELS = 17  # of a pixel: 0 is paper, 16 is ink
HELD_OUT = 297  # images


@dataclasses.dataclass(frozen=True)
class Digits:
    """Images `[count, 8, 8]` of integers from 0 to 16, and what they show, `[count]` from 0 to 9."""

    images: np.ndarray
    labels: np.ndarray

    def draw(self, random: np.random.Generator, labels: np.ndarray) -> np.ndarray:
        """A random image of each of these digits, `[..., 8, 8]`."""
        drawn = np.empty((*labels.shape, SIDE, SIDE), self.images.dtype)
        for digit in np.unique(labels):
            at = labels == digit
            drawn[at] = self.images[random.choice(np.flatnonzero(self.labels == digit), at.sum())]
        return drawn


def load() -> tuple[Digits, Digits]:
    """1,500 digits to train on and 297 held out, always the same."""
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = pixels[order].reshape(-1, SIDE, SIDE).astype(np.int32), labels[order]
    return Digits(images[HELD_OUT:], labels[HELD_OUT:]), Digits(images[:HELD_OUT], labels[:HELD_OUT])

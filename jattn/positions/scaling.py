"""Rotary frequencies, and the ways to stretch them to contexts longer than those trained on.

A scaling is frozen data; `frequencies(base, dims)` gives the `dims / 2` angles per position, computed once in float64
NumPy, and `factor_on_features()` is a factor on the rotated features of both query and key.
"""

import abc
import dataclasses
import math
from typing import Any, Literal

import numpy as np


def rotary_frequencies(base: float, dims: int) -> np.ndarray:
    """base^(-2i/dims) for i = 0 .. dims/2 - 1 (Su et al. 2021, arXiv:2104.09864), float64."""
    return np.power(float(base), -np.arange(0, dims, 2) / dims)


def check_above(name: str, value: Any, bound: float) -> None:
    """A Python number above a bound.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not bound < value < math.inf:
        raise ValueError(f"`{name}` must be a finite number above {bound}; got {value!r}.")


class Scaling(abc.ABC):
    """How rotary frequencies are changed for a longer context."""

    @abc.abstractmethod
    def frequencies(self, base: float, dims: int) -> np.ndarray:
        """Angles per position `[dims / 2]`, float64."""

    def factor_on_features(self) -> float:
        """The factor on the rotated features."""
        return 1.0


@dataclasses.dataclass(frozen=True)
class Linear(Scaling):
    """Position interpolation: every frequency divided by `factor` (Chen et al. 2023, arXiv:2306.15595).

    >>> from jattn.positions import Linear
    >>> print(Linear(2.0).frequencies(10000.0, 4))
    [0.5   0.005]
    """

    factor: float

    def __post_init__(self):
        check_above("factor", self.factor, 0)

    def frequencies(self, base, dims):
        return rotary_frequencies(base, dims) / self.factor


@dataclasses.dataclass(frozen=True)
class NTK(Scaling):
    """ "NTK-aware": the base times factor^(dims/(dims-2)), so that the lowest frequency is divided by `factor`.

    The highest stays as it is. As quoted in the YaRN paper (arXiv:2309.00071, section 3.1).

    >>> from jattn.positions import NTK
    >>> print(NTK(2.0).frequencies(10000.0, 4))
    [1.    0.005]
    """

    factor: float

    def __post_init__(self):
        check_above("factor", self.factor, 0)

    def frequencies(self, base, dims):
        if dims <= 2:
            raise ValueError(
                f"`scaling` NTK needs more than 2 rotated dims: one frequency cannot stay and change; got {dims}."
            )
        return rotary_frequencies(base * self.factor ** (dims / (dims - 2)), dims)


@dataclasses.dataclass(frozen=True)
class YaRN(Scaling):
    """Interpolate slow frequencies, keep fast ones, blend between, and sharpen (Peng et al. 2023, arXiv:2309.00071).

    θ' = (1 - γ) θ / factor + γ θ, γ a ramp from 0 at `slow` to 1 at `fast` turns within the original length; query and
    key are each multiplied by 0.1 ln(factor) + 1, so that the scores are multiplied by its square, 1/t.

    Args:
        factor: how many times longer the context is, at least 1.
        original_length: the length trained on.
        fast: turns from which on a frequency is kept (the paper's β).
        slow: turns up to which a frequency is interpolated (the paper's α).
        ramp: `"turns"` is the paper's equation, linear in the number of turns. `"index"` is the authors' code, which
            published checkpoints were trained with: linear in the index of the frequency, between rounded bounds.
        attention_factor: None for the paper's 0.1 ln(factor) + 1, or a number. It applies to rotated features only,
            so with partial rotary to their part of the score.

    >>> from jattn.positions import YaRN
    >>> print(YaRN(4.0, original_length=4096).frequencies(10000.0, 8).round(5))
    [1.00e+00 1.00e-01 3.84e-03 2.50e-04]
    """

    factor: float
    original_length: int
    fast: float = 32.0
    slow: float = 1.0
    ramp: Literal["turns", "index"] = "turns"
    attention_factor: float | None = None

    def __post_init__(self):
        if self.factor != 1:
            check_above("factor", self.factor, 1)
        check_above("original_length", self.original_length, 0)
        check_above("slow", self.slow, 0)
        check_above("fast", self.fast, self.slow)
        if self.ramp not in ("turns", "index"):
            raise ValueError(f"`ramp` must be 'turns' or 'index'; got {self.ramp!r}.")
        if self.attention_factor is not None:
            check_above("attention_factor", self.attention_factor, 0)

    def frequencies(self, base, dims):
        plain = rotary_frequencies(base, dims)
        if self.ramp == "turns":
            turns = self.original_length * plain / (2 * math.pi)
            keep = np.clip((turns - self.slow) / (self.fast - self.slow), 0, 1)
        else:

            def index_of(turns):
                return dims * math.log(self.original_length / (turns * 2 * math.pi)) / (2 * math.log(base))

            low = max(math.floor(index_of(self.fast)), 0)
            high = min(math.ceil(index_of(self.slow)), dims - 1)
            width = high - low if high != low else 0.001
            keep = 1 - np.clip((np.arange(dims // 2) - low) / width, 0, 1)
        return (1 - keep) * plain / self.factor + keep * plain

    def factor_on_features(self):
        return 0.1 * math.log(self.factor) + 1 if self.attention_factor is None else float(self.attention_factor)


@dataclasses.dataclass(frozen=True)
class Llama3(Scaling):
    """Llama 3.1's scaling by wavelength (Grattafiori et al. 2024, arXiv:2407.21783, as in the published model code).

    With λ = 2π/θ and L the original length: θ where λ < L / high; θ / factor where λ > L / low; between them
    (1 - s) θ / factor + s θ with s = (L/λ - low) / (high - low).

    Args:
        factor: how many times longer the context is (8 in Llama 3.1).
        low_frequency_factor: `low` above.
        high_frequency_factor: `high` above.
        original_length: the length trained on.

    >>> from jattn.positions import Llama3
    >>> print(Llama3(8.0).frequencies(500000.0, 8).round(6))
    [1.0000e+00 3.7606e-02 5.2500e-04 7.0000e-06]
    """

    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_length: int = 8192

    def __post_init__(self):
        check_above("factor", self.factor, 0)
        check_above("low_frequency_factor", self.low_frequency_factor, 0)
        check_above("high_frequency_factor", self.high_frequency_factor, self.low_frequency_factor)
        check_above("original_length", self.original_length, 0)

    def frequencies(self, base, dims):
        plain = rotary_frequencies(base, dims)
        turns = self.original_length * plain / (2 * math.pi)  # L / λ
        low, high = self.low_frequency_factor, self.high_frequency_factor
        keep = np.clip((turns - low) / (high - low), 0, 1)
        return (1 - keep) * plain / self.factor + keep * plain

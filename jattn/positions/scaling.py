"""Rotary frequencies, and scalings that adapt them to contexts longer than those of training.

A scaling is frozen data. `frequencies(base, dims)` returns the `dims / 2` frequencies, computed in float64 NumPy, and
`factor_on_features()` a factor that multiplies the rotated features of both query and key.
"""

import abc
import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from ..foundation.arguments import check_above, check_choice, check_number


def rotary_frequencies(base: float, dims: int) -> np.ndarray:
    """θ_i = base^(-2i/dims) for i = 0 .. dims/2 - 1 (Su et al. 2021, arXiv:2104.09864).

    Args:
        base: a number above 1.
        dims: number of rotated features, even. Neither is checked.

    Returns:
        float64 `[dims / 2]`, of NumPy, in radians per position.

    >>> from jattn.positions import rotary_frequencies
    >>> print(rotary_frequencies(10000.0, 4))
    [1.   0.01]
    """
    return np.power(float(base), -np.arange(0, dims, 2) / dims)


class Scaling(abc.ABC):
    """How the rotary frequencies change for a longer context. Subclass it to add a scaling.

    A subclass should be hashable and compare by value, such as a frozen dataclass of Python numbers, so that it can be
    a static argument of jitted functions.

    >>> import dataclasses, numpy as np
    >>> from jattn.positions import Scaling, rotary, rotary_frequencies
    >>> @dataclasses.dataclass(frozen=True)
    ... class Halved(Scaling):
    ...     def frequencies(self, base, dims):
    ...         return rotary_frequencies(base, dims) / 2
    >>> rotary(np.ones((5, 2, 4), np.float32), np.arange(5), scaling=Halved()).shape
    (5, 2, 4)
    """

    @abc.abstractmethod
    def frequencies(self, base: float, dims: int) -> np.ndarray:
        """The frequencies `[dims / 2]` in radians per position, float64."""

    def factor_on_features(self) -> float:
        """The factor on the rotated features of queries and of keys; scores are multiplied by its square."""
        return 1.0


@dataclasses.dataclass(frozen=True)
class Linear(Scaling):
    """Position interpolation: all frequencies are divided by `factor` (Chen et al. 2023, arXiv:2306.15595).

    Args:
        factor: how many times longer the context is, above 0.

    Raises:
        ValueError: `factor` is not a finite number above 0.

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
    """NTK-aware scaling: the base is multiplied by factor^(dims/(dims-2)).

    This divides the lowest frequency by `factor` and leaves the highest unchanged. Source: the YaRN paper
    (arXiv:2309.00071), section 3.1.

    Args:
        factor: how many times longer the context is, above 0.

    Raises:
        ValueError: `factor` is not a finite number above 0; or, at the call, there are fewer than 4 rotated dims.

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
    """YaRN: interpolate low frequencies, keep high ones, blend in between (Peng et al. 2023, arXiv:2309.00071).

    θ' = (1 - γ) θ / factor + γ θ, where γ ramps from 0 to 1 as the number of turns within the original length goes from
    `slow` to `fast`. Query and key are each multiplied by 0.1 ln(factor) + 1, so the scores are multiplied by its
    square, the paper's 1/t.

    Args:
        factor: how many times longer the context is, at least 1.
        original_length: the context length of training.
        fast: frequencies with at least this many turns are kept (the paper's β).
        slow: frequencies with at most this many turns are interpolated (the paper's α).
        ramp: `"turns"` is the paper's equation, linear in the number of turns. `"index"` is the authors' code, which
            published checkpoints were trained with, linear in the index of the frequency.
        attention_factor: a number in place of the paper's 0.1 ln(factor) + 1. It applies only to rotated features, so
            with partial rotary only to their share of the score.
        rounded: whether the ends of the `"index"` ramp are rounded outward to integers, as in the authors' code.
            gpt-oss (arXiv:2508.10925) does not round (`truncate=False` in its configuration).
        mscale: with `mscale_all_dim`, DeepSeek's attention factor (arXiv:2405.04434),
            (0.1 mscale ln(factor) + 1) / (0.1 mscale_all_dim ln(factor) + 1). Used if neither is None or 0. DeepSeek's
            models then multiply all scores by the square of the denominator: `similarity=Dot(scale)`.
        mscale_all_dim: see `mscale`.

    Raises:
        ValueError: a number is out of range, `ramp` is unknown, `rounded` is not a flag, or the attention factor is
            given twice.

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
    rounded: bool = True
    mscale: float | None = None
    mscale_all_dim: float | None = None

    def __post_init__(self):
        check_number("factor", self.factor, 1)
        check_above("original_length", self.original_length, 0)
        check_above("slow", self.slow, 0)
        check_above("fast", self.fast, self.slow)
        check_choice("ramp", self.ramp, ("turns", "index"))
        if not isinstance(self.rounded, bool):
            raise ValueError(f"`rounded` must be True or False; got {self.rounded!r}.")
        if self.attention_factor is not None:
            check_above("attention_factor", self.attention_factor, 0)
        for name in ("mscale", "mscale_all_dim"):
            value = getattr(self, name)
            if value is None:
                continue
            check_number(name, value, 0)
            if value and self.attention_factor is not None:
                raise ValueError(f"`{name}` and `attention_factor` exclude each other: each is the attention factor.")

    def frequencies(self, base, dims):
        plain = rotary_frequencies(base, dims)
        if self.ramp == "turns":
            turns = self.original_length * plain / (2 * math.pi)
            keep = np.clip((turns - self.slow) / (self.fast - self.slow), 0, 1)
        else:

            def index_of(turns):
                return dims * math.log(self.original_length / (turns * 2 * math.pi)) / (2 * math.log(base))

            low, high = index_of(self.fast), index_of(self.slow)
            if self.rounded:
                low, high = math.floor(low), math.ceil(high)
            low, high = max(low, 0), min(high, dims - 1)
            width = high - low if high != low else 0.001
            keep = 1 - np.clip((np.arange(dims // 2) - low) / width, 0, 1)
        return (1 - keep) * plain / self.factor + keep * plain

    def factor_on_features(self):
        if self.attention_factor is not None:
            return float(self.attention_factor)
        growth = 0.1 * math.log(self.factor)
        if self.mscale and self.mscale_all_dim:
            return (growth * self.mscale + 1) / (growth * self.mscale_all_dim + 1)
        return growth + 1


@dataclasses.dataclass(frozen=True)
class Llama3(Scaling):
    """Llama 3.1's scaling by wavelength (Grattafiori et al. 2024, arXiv:2407.21783, as in its published code).

    Let λ = 2π/θ and L the original length. A frequency with λ < L / high is kept, one with λ > L / low is divided by
    `factor`. In between it is (1 - s) θ / factor + s θ, with s = (L/λ - low) / (high - low).

    Args:
        factor: how many times longer the context is (8 in Llama 3.1).
        low_frequency_factor: `low` above.
        high_frequency_factor: `high` above.
        original_length: the context length of training.

    Raises:
        ValueError: a number is out of range.

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


@dataclasses.dataclass(frozen=True)
class DynamicNTK(Scaling):
    """NTK scaling with a factor that depends on the sequence length; within the original length nothing changes.

    The base is multiplied by (factor * n / original_length - (factor - 1))^(dims/(dims-2)), with n the larger of
    `length` and `original_length`, as in the model code of Hugging Face (`rope_type="dynamic"`).

    All queries and keys that meet must be rotated with the same `length`. With a cache, set it to the largest length
    that the sequence may reach, or cache unrotated keys.

    Args:
        factor: at least 1.
        original_length: the context length of training.
        length: the sequence length, a Python number; by default `original_length`, which changes nothing.

    Raises:
        ValueError: a number is out of range; or, at the call, there are fewer than 4 rotated dims.

    >>> from jattn.positions import DynamicNTK
    >>> print(DynamicNTK(2.0, original_length=100, length=150).frequencies(10000.0, 4))
    [1.    0.005]
    """

    factor: float
    original_length: int
    length: int | None = None

    def __post_init__(self):
        check_number("factor", self.factor, 1)
        check_above("original_length", self.original_length, 0)
        if self.length is not None:
            check_above("length", self.length, 0)

    def frequencies(self, base, dims):
        stretch = max(self.length or 0, self.original_length) / self.original_length
        return NTK(self.factor * stretch - (self.factor - 1)).frequencies(base, dims)


@dataclasses.dataclass(frozen=True)
class LongRoPE(Scaling):
    """LongRoPE: each frequency has its own divisor (Ding et al. 2024, arXiv:2402.13753).

    θ'_i = θ_i / short_i for sequences within the original length, and θ_i / long_i for longer ones. Query and key are
    each multiplied by √(1 + ln(factor) / ln(original_length)), as in the published code of Phi-3.

    Args:
        short: `dims / 2` numbers above 0, for sequences up to `original_length`.
        long: `dims / 2` numbers above 0, for longer sequences.
        original_length: the context length of training.
        factor: how many times longer the context is (the model's maximum length over `original_length`).
        length: the sequence length, a Python number. `long` is used if it exceeds `original_length`; by default `short`
            is. All queries and keys that meet must use the same.
        attention_factor: a number in place of the factor above.

    Raises:
        ValueError: a number is out of range; or, at the call, a list does not have `dims / 2` numbers.

    >>> from jattn.positions import LongRoPE
    >>> scaling = LongRoPE((1.0, 1.0), (1.0, 4.0), original_length=4096, factor=32.0, length=10000)
    >>> print(scaling.frequencies(10000.0, 4))
    [1.     0.0025]
    """

    short: Sequence[float]
    long: Sequence[float]
    original_length: int
    factor: float
    length: int | None = None
    attention_factor: float | None = None

    def __post_init__(self):
        for name in ("short", "long"):
            given = getattr(self, name)
            numbers = given.tolist() if isinstance(given, np.ndarray) else given
            if not isinstance(numbers, (tuple, list)) or not numbers:
                raise ValueError(f"`{name}` must be a sequence of numbers, one for each frequency; got {given!r}.")
            for index, one in enumerate(numbers):
                check_above(f"{name}[{index}]", one, 0)
            object.__setattr__(self, name, tuple(float(one) for one in numbers))  # a tuple is hashable
        check_above("original_length", self.original_length, 1)
        check_above("factor", self.factor, 0)
        if self.length is not None:
            check_above("length", self.length, 0)
        if self.attention_factor is not None:
            check_above("attention_factor", self.attention_factor, 0)

    def frequencies(self, base, dims):
        name = "long" if (self.length or 0) > self.original_length else "short"
        divisors = getattr(self, name)
        if len(divisors) != dims // 2:
            raise ValueError(f"`{name}` must have {dims // 2} numbers for {dims} rotated dims; got {len(divisors)}.")
        return rotary_frequencies(base, dims) / np.asarray(divisors)

    def factor_on_features(self):
        if self.attention_factor is not None:
            return float(self.attention_factor)
        return math.sqrt(1 + math.log(max(self.factor, 1.0)) / math.log(self.original_length))


@dataclasses.dataclass(frozen=True)
class Proportional(Scaling):
    """Only the highest frequencies rotate: θ_i for i < proportion * dims / 2, and 0 for the rest.

    This keeps the frequencies and pairs of all `dims` (with `pairs="half"`, features i and i + dims/2). In contrast,
    `dims=` of `jattn.positions.rotary` rotates the leading features with frequencies computed for their number. Hugging
    Face's `rope_type="proportional"`, with its `partial_rotary_factor`.

    Args:
        proportion: the share of pairs that rotate, above 0 and at most 1; rounded down to whole pairs.
        factor: all frequencies are divided by it.

    Raises:
        ValueError: a number is out of range.

    >>> from jattn.positions import Proportional
    >>> print(Proportional(0.5).frequencies(10000.0, 8))
    [1.  0.1 0.  0. ]
    """

    proportion: float
    factor: float = 1.0

    def __post_init__(self):
        check_above("proportion", self.proportion, 0)
        if self.proportion > 1:
            raise ValueError(f"`proportion` must be at most 1; got {self.proportion}.")
        check_above("factor", self.factor, 0)

    def frequencies(self, base, dims):
        turning = np.arange(dims // 2) < int(self.proportion * dims // 2)
        return np.where(turning, rotary_frequencies(base, dims) / self.factor, 0)

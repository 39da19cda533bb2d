"""Log-mel features of sound, as Whisper takes them."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.arguments import check_positive
from ..foundation.arrays import as_array, describe, dtype_of, known_values

RATE = 16000
"""Samples a second."""
WINDOW, HOP = 400, 160
"""Samples of a frame, 25 ms, and between the beginnings of two frames, 10 ms."""


def log_mel(samples: Any, rate: int, *, mels: int = 80, seconds: float | None = 30.0) -> jax.Array:
    """The logarithm of the energy in each mel band and frame, scaled as Whisper was trained (arXiv:2212.04356).

        energy[band, frame] = Σ_frequency filter[band, frequency] |DFT(hann * samples around 160 frame)|²
        x = log10(max(energy, 1e-10))
        features = (max(x, max(x) - 8) + 4) / 4                with the maximum of each sound

    Frames are centered, and the samples mirrored at both ends. Equal to Hugging Face's `WhisperFeatureExtractor` to
    1e-4, which cuts longer sounds silently and only warns if no rate is given; here both are refused.

    Args:
        samples: floating-point numbers `[..., samples]` between -1 and 1, of one channel; or a list of such arrays
            `[samples]` of several lengths.
        rate: samples a second: 16000.
        mels: number of bands; 80, or 128 for Whisper's third large model.
        seconds: sounds are padded with silence to this duration; None for no padding.

    Returns:
        float32 `[..., mels, frames]`, 100 frames a second.

    Raises:
        ValueError: the rate is another; samples are integers, not finite, of several channels, longer than `seconds`,
            or, without padding, too few.

    >>> import numpy as np
    >>> tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(8000) / 16000)
    >>> log_mel(tone, 16000, seconds=1.0).shape
    (80, 100)
    >>> log_mel(tone, 8000)
    Traceback (most recent call last):
    ...
    ValueError: `rate` must be 16000 samples a second; got 8000. Resample first, as by scipy.signal.resample_poly.
    """
    if rate != RATE:
        raise ValueError(
            f"`rate` must be {RATE} samples a second; got {rate!r}. Resample first, as by scipy.signal.resample_poly."
        )
    check_positive(mels=mels)
    most = None if seconds is None else _samples_of(seconds)
    if isinstance(samples, list | tuple) and samples and not np.isscalar(samples[0]):
        parts = [_checked(one, most) for one in samples]
        longest = max(one.shape[-1] for one in parts) if most is None else most
        return _features(jnp.stack([_padded(one, longest) for one in parts]), mels)
    checked = _checked(samples, most)
    return _features(checked if most is None else _padded(checked, most), mels)


def mel_filters(mels: int) -> np.ndarray:
    """The share of each frequency in each band, float32 `[mels, 201]`: triangles of area 1 on Slaney's mel scale.

    The scale is linear below 1000 Hz, where a mel is 200/3 Hz, and logarithmic above, 27 mels for a factor of 6.4
    (Slaney 1998, "Auditory Toolbox"). Band i rises from edge i to edge i + 1 and falls to edge i + 2, where edges are
    equally many mels apart from 0 to 8000 Hz.

    >>> mel_filters(80).shape
    (80, 201)
    """
    top = 15 + 27 * math.log(RATE / 2 / 1000) / math.log(6.4)
    at = np.linspace(0, top, mels + 2)
    edges = np.where(at < 15, at * 200 / 3, 1000 * np.exp((at - 15) * math.log(6.4) / 27))
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    frequencies = np.arange(WINDOW // 2 + 1) * (RATE / WINDOW)
    triangles = np.minimum((frequencies - low) / (middle - low), (high - frequencies) / (high - middle))
    return (np.maximum(triangles, 0) * 2 / (high - low)).astype(np.float32)


@functools.partial(jax.jit, static_argnums=1)
def _features(samples: jax.Array, mels: int) -> jax.Array:
    count = samples.shape[-1] // HOP
    around = [(0, 0)] * (samples.ndim - 1) + [(WINDOW // 2, WINDOW // 2)]
    padded = jnp.pad(samples, around, mode="reflect")
    frames = padded[..., np.arange(count)[:, None] * HOP + np.arange(WINDOW)]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    spectrum = jnp.fft.rfft(frames * window.astype(np.float32))
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    energy = jnp.einsum("mf,...tf->...mt", mel_filters(mels), power, precision=jax.lax.Precision.HIGHEST)
    logarithm = jnp.log10(jnp.maximum(energy, 1e-10))
    floor = logarithm.max((-1, -2), keepdims=True) - 8
    return (jnp.maximum(logarithm, floor) + 4) / 4


def _samples_of(seconds: float) -> int:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not WINDOW <= seconds * RATE < math.inf:
        raise ValueError(f"`seconds` must be None or a duration of at least {WINDOW / RATE}; got {seconds!r}.")
    return round(seconds * RATE)


def _checked(samples: Any, most: int | None) -> jax.Array:
    """Samples of one sound or several, as float32.

    Raises:
        ValueError: as in `log_mel`.
    """
    samples = as_array(samples)
    dtype = dtype_of(samples)
    if dtype is None or not samples.ndim or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            "`samples` must be floating-point numbers [..., samples] between -1 and 1, such as 16-bit integers "
            f"divided by 32768; got {describe(samples)}."
        )
    if samples.ndim > 1 and samples.shape[-1] <= 2:
        raise ValueError(
            f"`samples` must be [..., samples] of one channel; got shape {samples.shape}. Take the mean of the "
            "channels: `samples.mean(-1)`."
        )
    if most is not None and samples.shape[-1] > most:
        raise ValueError(
            f"`samples` must be at most {most} samples, {most / RATE:g} seconds; got {samples.shape[-1]}. Cut the "
            "sound, or change `seconds`."
        )
    if most is None and samples.shape[-1] <= WINDOW // 2:
        raise ValueError(
            f"`samples` must be more than {WINDOW // 2} samples without padding; got shape {samples.shape}."
        )
    known = known_values(samples)
    if known is not None and not np.isfinite(known).all():
        raise ValueError("`samples` must be finite; got NaN or infinity.")
    return jnp.asarray(samples, jnp.float32)


def _padded(samples: jax.Array, length: int) -> jax.Array:
    return jnp.pad(samples, [(0, 0)] * (samples.ndim - 1) + [(0, length - samples.shape[-1])])

"""Hyena: gated long convolutions with implicit filters, instead of attention."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...foundation.arguments import check_number, check_positive
from ...foundation.numerics import seen_so_far, split_nonfinite, widen
from ...foundation.shapes import check_shapes
from ...layers.generation import Generative
from ...layers.layer import bias, kernel, normal, ones
from ...layers.short_convolution import ShortConvolution
from ...ops.convolution.long import long_convolution

TAIL = 1e-2  # what is left of the window at its nominal length


class HyenaState(NamedTuple):
    """The decoding state: O(max_len) numbers per feature and order.

    recent: the last `short - 1` projections, `[..., short - 1, (order + 1) features]`, float32 (float64).
    past: inputs of the long convolutions, the newest first, `[..., order, max_len, features]`, likewise.
    filters: `[order, max_len, features]`, computed once from the parameters.
    """

    recent: jax.Array
    past: jax.Array
    filters: jax.Array


@dataclasses.dataclass(frozen=True)
class Hyena(Generative):
    """Hyena: gated convolutions as long as the sequence, in O(n log n).

        v, x¹, ..., xᴺ = short(inputs W + b)                 N + 1 projections, each convolved with `short` taps
        z = v;    z ← xⁿ ⊙ (hⁿ * z + Dₙ z)    n = 1 ... N
        out = z W_o + b_o
        hⁿ_t = exp(-α t / max_len) FFN(t)ₙ    FFN: two hidden layers of sin(f (...)), f learned, then a linear one

    Poli et al. 2023 (arXiv:2302.10866). The inputs of the FFN are t / max_len and sines and cosines of its first
    multiples. α varies over the features, so that the windows fall to 1/100 between `fast` and `slow` times `max_len`.
    The filters have `max_len` taps whatever the length of the call, so inputs further back are not seen, and a call on
    the first part of a sequence gives the first part of the output. As in the paper, order N has N long convolutions;
    at order 2 the authors' code has one, and two gates.

    The filters are initialized differently from the authors' `HyenaFilter`, so training may differ at first. Kernels
    are LeCun normal and biases 0; theirs are uniform, PyTorch's default, with kernels 1/√3 as wide. There are two
    hidden layers of sin; theirs has three. f starts at 10; theirs (`w`) at 1. The inputs of the FFN are the multiples 1
    to `bands` of 2πt / max_len; theirs are 0 to `bands` - 1, so that with their default of one band only time is left.
    Time is t / max_len; theirs is t / (max_len - 1). Here the lengths of the windows are evenly spaced over the
    features; in their code the rates α are. D is initialized as theirs, normal.

    `step` keeps the inputs of each long convolution, so decoding takes O(max_len) time and memory per token, not O(1).
    A NaN or inf makes all outputs from its position on NaN, and no earlier one. Packed segments are rejected, because
    an FFT mixes the whole row.

    Demonstrated in `examples/experiments/associative_recall.py`.

    Args:
        features: features of inputs and output.
        max_len: taps of the filters; at least the training length.
        order: N; 2 is the paper's.
        short: taps of the short convolution.
        width: width of the FFN.
        bands: how many multiples of t the FFN sees.
        frequency: the initial value of f. Higher values fit sharper filters.
        fast, slow: where the windows end, as fractions of `max_len`.

    Raises:
        ValueError: a size is below 1; `frequency` is negative; `fast` and `slow` are out of order; at the call, shapes
            do not match.

    >>> import jax
    >>> layer = Hyena(16, max_len=64)
    >>> parameters = layer.init(jax.random.key(0))
    >>> x = jax.random.normal(jax.random.key(1), (2, 50, 16))
    >>> out = jax.jit(layer)(parameters, x)
    >>> start, state = jax.jit(layer.prefill)(parameters, x[:, :49])
    >>> last, state = jax.jit(layer.step)(parameters, x[:, 49], state)
    >>> bool(jax.numpy.allclose(last, out[:, 49], atol=1e-5))
    True
    """

    features: int
    max_len: int
    order: int = 2
    short: int = 3
    width: int = 16
    bands: int = 2
    frequency: float = 10.0
    fast: float = 0.3
    slow: float = 1.5

    def __post_init__(self):
        sizes = ("features", "max_len", "order", "short", "width", "bands")
        check_positive(**{name: getattr(self, name) for name in sizes})
        check_number("frequency", self.frequency, least=0)
        numbers = all(isinstance(one, int | float) for one in (self.fast, self.slow))
        if not numbers or not 0 < self.fast <= self.slow:
            raise ValueError(f"`fast` must be positive and at most `slow`; got {self.fast!r} and {self.slow!r}.")

    def parameters(self) -> dict[str, Any]:
        """Projections, short kernels, the FFN of the filters, D, and the output projection."""
        made = (self.order + 1) * self.features
        size = 1 + 2 * self.bands
        return {
            "in": {"kernel": kernel(self.features, made), "bias": bias(made)},
            "short": self._short.parameters(),
            "filters": {
                "first": {"kernel": kernel(size, self.width), "bias": bias(self.width)},
                "second": {"kernel": kernel(self.width, self.width), "bias": bias(self.width)},
                "last": {"kernel": kernel(self.width, self.order * self.features)},
                "frequency": bias(self.width, init=_times(self.frequency)),
            },
            "skip": bias(self.order, self.features, init=normal(1.0)),
            "out": {"kernel": kernel(self.features, self.features), "bias": bias(self.features)},
        }

    def initial_state(
        self, parameters: Mapping[str, Any], batch: tuple[int, ...] = (), dtype: Any = jnp.float32
    ) -> HyenaState:
        """As in `Generative`: no inputs."""
        recent = jnp.zeros((*batch, self.short - 1, self._short.channels), dtype)
        past = jnp.zeros((*batch, self.order, self.max_len, self.features), dtype)
        return HyenaState(recent, past, self.filters(parameters, self.max_len))

    def prefill(
        self,
        parameters: Mapping[str, Any],
        inputs: jax.Array,
        state: HyenaState | None = None,
        *,
        segment_ids: Any = None,
    ) -> tuple[jax.Array, HyenaState]:
        """As in `Generative`, without segments; any length."""
        length = check_shapes({"features": self.features}, inputs=(inputs, "... length features"))["length"]
        if segment_ids is not None:
            raise ValueError("`segment_ids` are not for Hyena, whose FFT mixes a whole row: give each sequence a row.")
        before = self.checked(parameters, inputs, inputs.shape[:-2], state)
        clean, nonfinite = split_nonfinite(inputs)
        nonfinite = seen_so_far(nonfinite.any(-1, keepdims=True))
        value, gates, recent = self._gated(parameters, clean, before.recent)
        past = []
        for n, gate in enumerate(gates):
            seen = value
            if state is not None:  # previous inputs are prepended, the oldest first
                seen = jnp.concatenate([before.past[..., n, ::-1, :].astype(value.dtype), value], -2)
            convolved = long_convolution(seen, before.filters[n], parameters["skip"][n])
            past.append(self._newest_first(seen, before.past.dtype))
            value = gate * convolved[..., convolved.shape[-2] - length :, :]
        after = HyenaState(recent, jnp.stack(past, -3), before.filters)
        if length:  # everything after NaN is NaN
            last = nonfinite[..., -1:, :]
            recent, seen = jnp.where(last, jnp.nan, recent), jnp.where(last[..., None], jnp.nan, after.past)
            after = HyenaState(recent, seen, before.filters)
        return jnp.where(nonfinite, jnp.nan, _dense(parameters["out"], value)), after

    def step(self, parameters: Mapping[str, Any], inputs: jax.Array, state: HyenaState) -> tuple[jax.Array, HyenaState]:
        """As in `Generative`, in O(max_len) time: a sum over the past inputs of each long convolution."""
        check_shapes({"features": self.features}, inputs=(inputs, "... features"))
        before = self.checked(parameters, inputs, inputs.shape[:-1], state)
        nonfinite = ~(jnp.isfinite(before.past).all((-3, -2, -1)) & jnp.isfinite(inputs).all(-1))
        value, gates, recent = self._gated(parameters, inputs[..., None, :], before.recent)
        past = []
        for n, gate in enumerate(gates):
            seen = jnp.concatenate([value.astype(before.past.dtype), before.past[..., n, :-1, :]], -2)
            past.append(seen)
            wide = seen.astype(before.filters.dtype)
            convolved = (wide * before.filters[n]).sum(-2, keepdims=True) + parameters["skip"][n] * wide[..., :1, :]
            value = gate * convolved.astype(gate.dtype)
        out = jnp.where(nonfinite[..., None], jnp.nan, _dense(parameters["out"], value[..., 0, :]))
        # Everything after NaN is NaN, even when the NaN is out of reach of the filters.
        recent, seen = (
            jnp.where(nonfinite.reshape(*nonfinite.shape, *[1] * axes), jnp.nan, one)
            for one, axes in ((recent, 2), (jnp.stack(past, -3), 3))
        )
        return out, HyenaState(recent, seen, before.filters)

    def filters(self, parameters: Mapping[str, Any], length: int) -> jax.Array:
        """The first taps of all filters, `[order, min(length, max_len), features]`, at least float32."""
        weights = parameters["filters"]
        weights = jax.tree.map(widen, weights)
        at = jnp.arange(min(length, self.max_len), dtype=weights["frequency"].dtype)[:, None] / self.max_len
        angles = 2 * math.pi * at * jnp.arange(1, self.bands + 1)
        hidden = jnp.concatenate([at, jnp.cos(angles), jnp.sin(angles)], -1)
        for name in ("first", "second"):
            hidden = jnp.sin(weights["frequency"] * _dense(weights[name], hidden))
        made = (hidden @ weights["last"]["kernel"]).reshape(-1, self.order, self.features)
        decay = -math.log(TAIL) / jnp.linspace(self.fast, self.slow, self.features)
        return jnp.moveaxis(made * jnp.exp(-decay * at)[:, None], 0, 1)

    @property
    def _short(self) -> ShortConvolution:
        return ShortConvolution((self.order + 1) * self.features, self.short)

    def _gated(self, parameters: Mapping[str, Any], inputs: jax.Array, recent: jax.Array) -> tuple[Any, Any, jax.Array]:
        """The first value, the gates of each order, and the projections that the next call needs."""
        projected = _dense(parameters["in"], inputs)
        made, after = self._short(parameters["short"], projected, recent)
        value, *gates = jnp.split(made, self.order + 1, -1)
        return value, gates, after.astype(recent.dtype)

    def _newest_first(self, seen: jax.Array, dtype: Any) -> jax.Array:
        """The last `max_len` of `[..., length, features]`, zeros where there were none."""
        last = seen[..., ::-1, :][..., : self.max_len, :].astype(dtype)
        return jnp.pad(last, [(0, 0)] * (last.ndim - 2) + [(0, self.max_len - last.shape[-2]), (0, 0)])


def _dense(group: Mapping[str, Any], inputs: jax.Array) -> jax.Array:
    return inputs @ group["kernel"] + group["bias"]


def _times(number: float) -> Any:
    return lambda key, shape, dtype: number * ones(key, shape, dtype)

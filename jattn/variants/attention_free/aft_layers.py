"""The attention-free transformers as layers that generate (Zhai et al. 2021)."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...foundation.arguments import check_multiple, check_positive
from ...foundation.arrays import known_values
from ...foundation.shapes import check_shapes
from ...layers.generation import Generative
from ...layers.layer import bias, kernel, normal
from ...masks import SlidingWindow
from ...ops.attention.partial import Partial, merge
from .aft import at_positions, gate, prefixes, split_nonfinite_keys, windowed


class AFTState(NamedTuple):
    """The decoding state: a window of keys and values, and one sum over everything before it.

    keys: the last `window - 1`, `[..., window - 1, features]`, float32 (float64); -inf where there are none yet.
    values: likewise.
    older: the earlier tokens, as attention over their keys: `Partial(out [..., features, 1], lse [..., features])`.
    position: position of the next token, an integer.
    """

    keys: jax.Array
    values: jax.Array
    older: Partial
    position: jax.Array


@dataclasses.dataclass(frozen=True)
class AFT(Generative):
    """Base of the layers: projections as in multi-head attention, and one of the attention-free sums.

        q, k, v = x W_q, x W_k, x W_v
        out_t = (σ(q_t) ⊙ Σ_{s ≤ t} exp(k_s + w_ts) ⊙ v_s / Σ_{s ≤ t} exp(k_s + w_ts)) W_o

    Subclasses define w, which is 0 for positions `window` or more apart. For decoding, the keys in the window are kept,
    and all older ones are summed. Packed segments are rejected.

    Args:
        features: features of inputs and outputs.

    Raises:
        ValueError: a size is below 1; at the call, shapes do not match; `segment_ids`.
    """

    features: int

    def __post_init__(self):
        check_positive(features=self.features)

    @property
    @abc.abstractmethod
    def _window(self) -> int:
        """How many positions w reaches, the token's own included; 0 without w."""

    @abc.abstractmethod
    def _bias(self, parameters: Mapping[str, Any], query_at: jax.Array, key_at: jax.Array) -> jax.Array:
        """w within the window, `[heads, queries, keys]`, at these positions; consecutive features share a head."""

    def parameters(self) -> dict[str, Any]:
        """`query`, `key`, `value` and `out`."""
        return {name: {"kernel": kernel(self.features, self.features)} for name in ("query", "key", "value", "out")}

    def initial_state(
        self, parameters: Mapping[str, Any], batch: tuple[int, ...] = (), dtype: Any = jnp.float32
    ) -> AFTState:
        """As in `Generative`: no keys."""
        del parameters
        empty = jnp.zeros((*batch, max(self._window - 1, 0), self.features), dtype)
        older = Partial.empty(jax.ShapeDtypeStruct((*batch, self.features, 1), dtype))
        return AFTState(jnp.full_like(empty, -jnp.inf), empty, older, jnp.zeros((), jnp.int32))

    def prefill(
        self,
        parameters: Mapping[str, Any],
        inputs: jax.Array,
        state: AFTState | None = None,
        *,
        segment_ids: Any = None,
    ) -> tuple[jax.Array, AFTState]:
        """As in `Generative`, without segments."""
        length = check_shapes({"features": self.features}, inputs=(inputs, "... length features"))["length"]
        if segment_ids is not None:
            raise ValueError(
                "`segment_ids` are not for AFT, whose w is of a row's positions: give each sequence a row."
            )
        before = self.checked(parameters, inputs, inputs.shape[:-2], state)
        self._check_end(0 if state is None else known_values(before.position), length)
        query, key, value = (inputs @ parameters[name]["kernel"] for name in ("query", "key", "value"))
        key, wide_value = (one.astype(before.values.dtype) for one in (key, value))
        joined = jnp.concatenate([before.keys, key], -2), jnp.concatenate([before.values, wide_value], -2)
        keys, values, nonfinite = split_nonfinite_keys(*((key, wide_value) if state is None else joined), True)
        recent = keys.shape[-2] - length  # of the state

        # `older` plus the first 0, 1, ... keys that leave the window.
        left = max(recent + length - max(self._window - 1, 0), 0)
        sums = prefixes(keys[..., :left, :], values[..., :left, :], before.older)
        counts = np.maximum(np.arange(length) + recent - self._window + 1, 0)
        mean = at_positions(sums, counts)
        if self._window and length:
            at = before.position - recent + jnp.arange(recent + length)
            bias = self._bias(parameters, at[recent:], at)
            bias = jnp.repeat(bias, self.features // bias.shape[0], 0) if bias.shape[0] > 1 else bias
            mean = merge(mean, windowed(keys, values, bias, SlidingWindow(self._window - 1, 0), length))
        heads = gate(query, mean.out[..., 0].astype(value.dtype))
        out = jnp.where(nonfinite[..., recent:, :], jnp.nan, heads) @ parameters["out"]["kernel"]

        older = at_positions(sums, -1)
        if left:
            evicted = nonfinite[..., left - 1, :, None]
            older = dataclasses.replace(older, out=jnp.where(evicted, jnp.nan, older.out))
        keys, values = (one[..., length:, :] if self._window else one[..., :0, :] for one in joined)
        return out, AFTState(keys, values, older, before.position + length)

    def _check_end(self, position: Any, length: int) -> None:
        """Check that w is defined for this many tokens; `position` is None if it is not known."""


@dataclasses.dataclass(frozen=True)
class AFTSimple(AFT):
    """AFT-simple: w = 0, in linear time, O(1) per token when decoding (`aft_simple`).

    Zhai et al. 2021 (arXiv:2105.14103).

    Arguments, errors and the equation as in `AFT`.

    >>> import jax
    >>> layer = AFTSimple(16)
    >>> jax.jit(layer)(layer.init(jax.random.key(0)), jax.numpy.ones((3, 10, 16))).shape
    (3, 10, 16)
    """

    @property
    def _window(self) -> int:
        return 0

    def _bias(self, parameters, query_at, key_at):
        raise NotImplementedError("AFT-simple has no w")


@dataclasses.dataclass(frozen=True)
class AFTLocal(AFT):
    """AFT-local: w_ts = u_t·r_s for positions less than `window` apart, in O(n window) (`aft_local`).

    Zhai et al. 2021 (arXiv:2105.14103).

    u and r have `rank` features for each position, the paper's factorized form of w. Decoding takes O(window) time per
    token. Positions from `max_len` on raise where they are known, and give NaN where they are traced.

    Args:
        features: features of inputs and outputs.
        max_len: length of the longest sequence.
        window: s in the paper.
        rank: rank of w.

    Equation and errors as in `AFT`.

    >>> import jax
    >>> layer = AFTLocal(16, max_len=100, window=4)
    >>> jax.jit(layer)(layer.init(jax.random.key(0)), jax.numpy.ones((3, 10, 16))).shape
    (3, 10, 16)
    """

    max_len: int
    window: int
    rank: int = 128

    def __post_init__(self):
        super().__post_init__()
        check_positive(max_len=self.max_len, window=self.window, rank=self.rank)

    @property
    def _window(self) -> int:
        return self.window

    def parameters(self) -> dict[str, Any]:
        """The parameters of `AFT`, plus `bias` with `query` (u) and `key` (r), `[max_len, rank]`."""
        factors = {name: bias(self.max_len, self.rank, init=normal(0.1)) for name in ("query", "key")}
        return {**super().parameters(), "bias": factors}

    def _bias(self, parameters, query_at, key_at):
        rows, columns = (
            jnp.take(parameters["bias"][name], jnp.maximum(at, 0), axis=0, mode="fill", fill_value=jnp.nan)
            for name, at in (("query", query_at), ("key", key_at))
        )
        return (rows @ columns.T)[None]

    def _check_end(self, position: Any, length: int) -> None:
        if position is not None and position + length > self.max_len:
            raise ValueError(
                f"`inputs` must end before position `max_len` = {self.max_len}, the length of w; they end at "
                f"{position + length}."
            )


@dataclasses.dataclass(frozen=True)
class AFTFull(AFTLocal):
    """AFT-full: w_ts = u_t·r_s for all positions (`aft_full`); decoding takes O(max_len) time per token.

    Zhai et al. 2021 (arXiv:2105.14103).

    Args:
        features: features of inputs and outputs.
        max_len: length of the longest sequence.
        rank: rank of w.

    Everything else as in `AFTLocal`, with `window` = `max_len`.

    >>> import jax
    >>> layer = AFTFull(16, max_len=100)
    >>> jax.jit(layer)(layer.init(jax.random.key(0)), jax.numpy.ones((3, 10, 16))).shape
    (3, 10, 16)
    """

    window: int = dataclasses.field(default=0, init=False)

    def __post_init__(self):
        object.__setattr__(self, "window", self.max_len)
        super().__post_init__()


@dataclasses.dataclass(frozen=True)
class AFTConv(AFT):
    """AFT-conv: w depends on the head and the distance, and is 0 for distances from `window` on.

    Zhai et al. 2021 (arXiv:2105.14103).

    Args:
        features: features of inputs and outputs.
        window: number of distances, 0 included.
        heads: number of heads of w; consecutive features share one. `features` is a multiple of it.

    In the paper this is a convolution over images, or over both directions; here it is causal, `aft_local` with a
    `relative_bias`. Equation and errors as in `AFT`.

    >>> import jax
    >>> layer = AFTConv(16, window=4, heads=2)
    >>> jax.jit(layer)(layer.init(jax.random.key(0)), jax.numpy.ones((3, 10, 16))).shape
    (3, 10, 16)
    """

    window: int
    heads: int = 1

    def __post_init__(self):
        super().__post_init__()
        check_positive(window=self.window, heads=self.heads)
        check_multiple("heads", features=self.features, heads=self.heads)

    @property
    def _window(self) -> int:
        return self.window

    def parameters(self) -> dict[str, Any]:
        """The parameters of `AFT`, plus `bias [heads, window]`, distance 0 first."""
        return {**super().parameters(), "bias": bias(self.heads, self.window, init=normal(0.1))}

    def _bias(self, parameters, query_at, key_at):
        distance = query_at[:, None] - key_at
        return parameters["bias"][:, jnp.clip(distance, 0, self.window - 1)]

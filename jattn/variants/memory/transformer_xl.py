"""Transformer-XL: relative attention over the segment and the states of segments before it."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...foundation.arguments import check_multiple, check_positive, check_record, leave_out
from ...foundation.arrays import of_rank
from ...foundation.fields import integers
from ...foundation.numerics import accumulation_dtype
from ...foundation.shapes import check_shapes
from ...layers.layer import OWN_AXES, Layer, bias, kernel, normal
from ...masks import Causal, Sinks
from ...masks.base import as_mask
from ...ops.attention.api import attention
from ...ops.attention.by_example import by_example
from ...ops.attention.call import check_positions
from ...positions.angles import turned_angles
from ...similarities import Dot

BASE = 10000.0


@by_example(query="length heads dim", key="length heads dim", value="length heads dim")
def relative_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    position_kernel: jax.Array,
    content_bias: jax.Array,
    position_bias: jax.Array,
    query_positions: Any = None,
    key_positions: Any = None,
    **pieces: Any,
) -> jax.Array:
    """Attention by content and by distance. It reduces to a dot product, so it streams and skips tiles.

        score_ij = ((q_i + u)·k_j + (q_i + v)·W_r R_{i-j}) / √dim,  R_δ = [sin(δ θ), cos(δ θ)]

    Dai et al. 2019 (arXiv:1901.02860), section 3.3; θ_f = 10000^(-f / frequencies), sines before cosines as in the
    authors' code. With a = W_rᵀ(q_i + v) = [a_s, a_c], the angle addition formulas split the second term by position:

        a·R_{i-j} = (a_c cos iθ + a_s sin iθ)·cos jθ + (a_c sin iθ - a_s cos iθ)·sin jθ

    so a query is [q + u, a rotated by i] and a key is [k, cos jθ, sin jθ]. There is no table of distances and no shift,
    and keys after the query (δ < 0) need no special treatment. Angles of positions known at trace time are exact; those
    of traced positions are float32, with an error of about 1e-7 times the position.

    Args:
        query: `[..., q_len, q_heads, dim]`.
        key: `[..., kv_len, kv_heads, dim]`.
        value: `[..., kv_len, kv_heads, v_dim]`.
        position_kernel: W_r `[position_dim, q_heads, dim]`, an even `position_dim`.
        content_bias: u `[q_heads, dim]`.
        position_bias: v `[q_heads, dim]`.
        query_positions: integers `[q_len]` or `[..., q_len]`; by default those of the last keys, for a memory that
            precedes the segment.
        key_positions: likewise `[kv_len]`; by default 0, 1, ...
        **pieces: arguments of `jattn.attention`: `mask`, `scores`, `normalizer`, ... No `similarity`.

    Returns:
        `[..., q_len, q_heads, v_dim]`, in the dtype of `value`.

    Raises:
        ValueError: shapes do not match; `position_dim` is odd; there are more queries than keys without
            `query_positions`; as in `attention`.

    >>> import jax
    >>> q, k, v, w = (jax.random.normal(jax.random.key(i), (5, 2, 4)) for i in range(4))
    >>> u = jax.numpy.zeros((2, 4))
    >>> relative_attention(q, k, v, position_kernel=w[:4], content_bias=u, position_bias=u).shape
    (5, 2, 4)
    """
    sizes = check_shapes(
        query=(query, "... q_len q_heads dim"),
        key=(key, "... kv_len kv_heads dim"),
        content_bias=(content_bias, "q_heads dim"),
        position_bias=(position_bias, "q_heads dim"),
        position_kernel=(position_kernel, "position_dim q_heads dim"),
    )
    pieces = leave_out(pieces, "content and distance are its own", "similarity")
    if sizes["position_dim"] % 2:
        raise ValueError(f"`position_kernel` must have an even position_dim; got {position_kernel.shape}.")
    lengths = {"query": sizes["q_len"], "key": sizes["kv_len"]}
    query_positions, key_positions = (
        None if given is None else _positions(f"{of}_positions", given, query.shape[:-3], lengths[of], of)
        for of, given in (("query", query_positions), ("key", key_positions))
    )
    if query_positions is None:
        if sizes["q_len"] > sizes["kv_len"]:
            raise ValueError(
                f"`query_positions` are needed for more queries than keys; got q_len {sizes['q_len']} and kv_len "
                f"{sizes['kv_len']}. By default queries are at the last positions of the keys."
            )
        query_positions = np.arange(sizes["kv_len"] - sizes["q_len"], sizes["kv_len"])
        if key_positions is not None:
            query_positions = key_positions[..., sizes["kv_len"] - sizes["q_len"] :]
    key_positions = np.arange(sizes["kv_len"]) if key_positions is None else key_positions
    dtype = accumulation_dtype(query, key, position_kernel)
    frequencies = sizes["position_dim"] // 2
    query_sin, query_cos = _sinusoids(query_positions, frequencies, dtype)
    key_sin, key_cos = _sinusoids(key_positions, frequencies, dtype)

    wide = query.astype(dtype)
    along = jnp.einsum("...hd,fhd->...hf", wide + of_rank(position_bias, wide.ndim), position_kernel.astype(dtype))
    sine, cosine = along[..., :frequencies], along[..., frequencies:]
    query_sin, query_cos = of_rank(query_sin, sine.ndim), of_rank(query_cos, sine.ndim)
    turned = (cosine * query_cos + sine * query_sin, cosine * query_sin - sine * query_cos)
    waves = jnp.concatenate([key_cos, key_sin], -1)
    whole_query = jnp.concatenate([wide + of_rank(content_bias, wide.ndim), *turned], -1)
    whole_key = jnp.concatenate(
        [key.astype(dtype), jnp.broadcast_to(waves, (*key.shape[:-1], sizes["position_dim"]))], -1
    )
    return attention(
        whole_query,
        whole_key,
        value,
        similarity=Dot(sizes["dim"] ** -0.5),  # the scale comes after the sum
        query_positions=query_positions,
        key_positions=key_positions,
        **pieces,
    )


def _positions(name: str, positions: Any, batch: tuple[int, ...], length: int, of: str) -> Any:
    """Positions as an array, a NumPy array if they are known."""
    positions = positions if isinstance(positions, jax.Array) else np.asarray(positions)
    check_positions(name, positions, batch, length, of)
    return positions


def _sinusoids(positions: Any, frequencies: int, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """sin and cos of position * θ, `[..., length, 1, frequencies]`; NumPy positions by float64 angles."""
    theta = BASE ** -(np.arange(frequencies) / frequencies)
    if isinstance(positions, jax.Array):
        angles = turned_angles(positions, theta, dtype)[..., None, :]
        return jnp.sin(angles), jnp.cos(angles)
    angles = np.asarray(positions, np.float64)[..., None, None] * theta
    return jnp.asarray(np.sin(angles), dtype), jnp.asarray(np.cos(angles), dtype)


class SegmentMemory(NamedTuple):
    """The memory that a segment leaves for the next one.

    states: `[..., memory_len, features]`, the newest last; no gradient flows into them.
    filled: int32 `[]`, how many of them, counted from the end, are filled.
    """

    states: jax.Array
    filled: jax.Array


def empty_segment_memory(inputs: jax.Array, memory_len: int) -> SegmentMemory:
    """The memory before the first segment `inputs [..., q_len, features]`."""
    *batch, _, features = inputs.shape
    return SegmentMemory(jnp.zeros((*batch, memory_len, features), inputs.dtype), jnp.zeros((), jnp.int32))


def append_segment(memory: SegmentMemory, inputs: jax.Array) -> SegmentMemory:
    """The last `memory_len` of the previous states and the inputs."""
    memory_len = memory.states.shape[-2]
    joined = jnp.concatenate([memory.states, inputs.astype(memory.states.dtype)], -2)
    states = jax.lax.stop_gradient(joined[..., joined.shape[-2] - memory_len :, :])
    return SegmentMemory(states, jnp.minimum(memory.filled + inputs.shape[-2], memory_len))


@dataclasses.dataclass(frozen=True)
class TransformerXL(Layer):
    """Transformer-XL: relative attention over a segment and a memory of the inputs of earlier segments.

        out = relative_attention(h W_q, [m; h] W_k, [m; h] W_v | causal) W_o,    next m = the last of [m; h]

    Dai et al. 2019 (arXiv:1901.02860), with h the inputs and m the memory, of `memory_len` places. No gradient flows
    into the memory. With a memory that covers all previous inputs, processing segment by segment equals one full pass
    over the same inputs. Feed-forward layers, norms, residual connections and one memory per layer are up to the
    caller.

    Args:
        features: features of inputs and output.
        heads: number of heads.
        memory_len: how many states are kept.
        head_dim: by default `features / heads`.

    Raises:
        ValueError: a size is below 1; without `head_dim`, `features` is not a multiple of `heads`, or odd; at the call,
            shapes do not match.

    >>> import jax
    >>> layer = TransformerXL(16, heads=2, memory_len=8)
    >>> parameters = layer.init(jax.random.key(0))
    >>> out, memory = jax.jit(layer)(parameters, jax.numpy.ones((2, 5, 16)))
    >>> out, memory = jax.jit(layer)(parameters, jax.numpy.ones((2, 5, 16)), memory)
    >>> out.shape, memory.states.shape, int(memory.filled)
    ((2, 5, 16), (2, 8, 16), 8)
    """

    own_axes = OWN_AXES

    features: int
    heads: int
    memory_len: int
    head_dim: int | None = None

    def __post_init__(self):
        check_positive(features=self.features, heads=self.heads, memory_len=self.memory_len, head_dim=self.dim)
        if self.head_dim is None:
            check_multiple("heads", features=self.features, heads=self.heads, unless="head_dim")
        if self.features % 2:
            raise ValueError(f"`features` must be even, for sines and cosines of distances; got {self.features}.")

    @property
    def dim(self) -> int:
        """Features of a head."""
        return max(self.features // self.heads, 1) if self.head_dim is None else self.head_dim

    def parameters(self) -> dict[str, Any]:
        """Kernels of `query`, `key`, `value`, `position` (W_r) and `out`; `content_bias` u, `position_bias` v."""
        into = (self.features, self.heads, self.dim)
        return {
            **{name: {"kernel": kernel(*into)} for name in ("query", "key", "value", "position")},
            "content_bias": bias(self.heads, self.dim, init=normal(0.02)),
            "position_bias": bias(self.heads, self.dim, init=normal(0.02)),
            "out": {"kernel": kernel(self.heads, self.dim, self.features, inputs=2)},
        }

    def __call__(
        self,
        parameters: Mapping[str, Any],
        inputs: jax.Array,
        memory: SegmentMemory | None = None,
        *,
        mask: Any = None,
        **pieces: Any,
    ) -> tuple[jax.Array, SegmentMemory]:
        """`(out [..., q_len, features], memory for the next segment)`.

        Args:
            parameters: the layer's parameters.
            inputs: `[..., q_len, features]`.
            memory: the memory returned by the previous segment; None for the first.
            mask: an additional mask; the attention is causal anyway and ignores unfilled memory. Positions count from
                the oldest place of the memory, so the first input is at `memory_len`.
                `masks.SlidingWindow(memory_len, 0)` lets every query see equally many keys.
            **pieces: arguments of `jattn.attention`.
        """
        memory = self.check(inputs, memory)
        out = self.attend(parameters, inputs, memory.states, memory.filled, mask, **pieces)
        return out, append_segment(memory, inputs)

    def check(self, inputs: jax.Array, memory: SegmentMemory | None) -> SegmentMemory:
        """Check the shapes of a call; returns the memory, an empty one if there is none."""
        check_shapes({"features": self.features}, inputs=(inputs, "... q_len features"))
        memory = empty_segment_memory(inputs, self.memory_len) if memory is None else memory
        check_record("memory", memory, SegmentMemory)
        known: Any = {"...": inputs.shape[:-2], "memory_len": self.memory_len, "features": self.features}
        check_shapes(known, memory=(memory.states, "... memory_len features"))
        return memory

    def attend(
        self, parameters: Mapping[str, Any], inputs: jax.Array, before: jax.Array, filled: Any, mask: Any, **pieces: Any
    ) -> jax.Array:
        """Causal attention of the inputs over `before [..., length, features]`, its last `filled`, and themselves."""
        length = before.shape[-2]
        context = jnp.concatenate([jax.lax.stop_gradient(before).astype(inputs.dtype), inputs], -2)
        query, key, value = (
            jnp.einsum("...tf,fhd->...thd", source, parameters[name]["kernel"])
            for name, source in (("query", inputs), ("key", context), ("value", context))
        )
        seen = Causal() & ~Sinks(integers("filled", length - filled, -length))
        attended = relative_attention(
            query,
            key,
            value,
            position_kernel=parameters["position"]["kernel"],
            content_bias=parameters["content_bias"],
            position_bias=parameters["position_bias"],
            mask=seen if mask is None else seen & as_mask(mask),
            **pieces,
        )
        return jnp.einsum("...thd,hdf->...tf", attended, parameters["out"]["kernel"])

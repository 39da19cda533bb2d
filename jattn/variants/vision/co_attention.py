"""Co-attention: two streams, of an image and a text, each of which attends to the other."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...foundation.arguments import check_positive
from ...foundation.numerics import accumulation_dtype
from ...foundation.shapes import check_shapes
from ...layers.layer import OWN_AXES, Layer, bias, kernel, ones
from ...layers.multi_head import multi_head


@dataclasses.dataclass(frozen=True)
class CoAttention(Layer):
    """Co-attention: two streams, each of which attends to the keys and values of the other.

        x' = norm(x + attention(x W_q, y W_k, y W_v) W_o),    y' = norm(y + attention(y W_q, x W_k, x W_v) W_o)
        each:    out = norm(x' + W₂ gelu(W₁ x' + b₁) + b₂)

    Lu et al. 2019 (arXiv:1908.02265). Every stream has its own projections: its queries meet keys and values computed
    from the other stream by the *other* stream's projections. Both attend to the inputs, not to each other's results.
    As in BERT, norms come after the sums, with ε = 1e-12, and GELU is exact (erf). There is no dropout.

    Args:
        first_features, second_features: features of x and y, which may differ.
        heads: number of heads of the attention.
        head_dim: features of a head.
        first_hidden, second_hidden: hidden features of the feed-forward networks.

    Raises:
        ValueError: a size is below 1; at the call, shapes do not match; as in `jattn.attention`.

    >>> import jax
    >>> layer = CoAttention(16, 8, heads=2, head_dim=4, first_hidden=32, second_hidden=16)
    >>> parameters = layer.init(jax.random.key(0))
    >>> first, second = jax.jit(layer)(parameters, jax.numpy.ones((2, 9, 16)), jax.numpy.ones((2, 5, 8)))
    >>> first.shape, second.shape
    ((2, 9, 16), (2, 5, 8))
    """

    own_axes = OWN_AXES

    first_features: int
    second_features: int
    heads: int
    head_dim: int
    first_hidden: int
    second_hidden: int

    def __post_init__(self):
        check_positive(**dataclasses.asdict(self))

    def parameters(self) -> dict[str, Any]:
        """`first` and `second`, each: `query`, `key`, `value`, `out`, `up`, `down` (kernel, bias), two norms."""
        return {
            "first": self._stream(self.first_features, self.first_hidden),
            "second": self._stream(self.second_features, self.second_hidden),
        }

    def _stream(self, features: int, hidden: int) -> dict[str, Any]:
        heads = (self.heads, self.head_dim)
        projection = {"kernel": kernel(features, *heads), "bias": bias(*heads)}
        norm = {"scale": bias(features, init=ones), "bias": bias(features)}
        return {
            "query": dict(projection),
            "key": dict(projection),
            "value": dict(projection),
            "out": {"kernel": kernel(*heads, features, inputs=2), "bias": bias(features)},
            "attention_norm": dict(norm),
            "up": {"kernel": kernel(features, hidden), "bias": bias(hidden)},
            "down": {"kernel": kernel(hidden, features), "bias": bias(features)},
            "out_norm": dict(norm),
        }

    def __call__(
        self,
        parameters: Mapping[str, Any],
        first: jax.Array,
        second: jax.Array,
        *,
        first_mask: Any = None,
        second_mask: Any = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Both streams, `[..., first_len, first_features]` and `[..., second_len, second_features]`.

        Args:
            parameters: the layer's parameters.
            first: x, `[..., first_len, first_features]`.
            second: y, `[..., second_len, second_features]`.
            first_mask: a mask of `jattn.attention` for x's queries and y's keys: `jattn.masks.Lengths(key_lengths=...)`
                of padded y.
            second_mask: likewise for y's queries and x's keys.
        """
        known = {"first_features": self.first_features, "second_features": self.second_features}
        check_shapes(
            known, first=(first, "... first_len first_features"), second=(second, "... second_len second_features")
        )
        one, other = parameters["first"], parameters["second"]
        return (
            _stream(one, other, first, second, first_mask),
            _stream(other, one, second, first, second_mask),
        )


def _stream(
    own: Mapping[str, Any], other: Mapping[str, Any], inputs: jax.Array, others: jax.Array, mask: Any
) -> jax.Array:
    dtype = accumulation_dtype(inputs, others)
    crossed = {"query": own["query"], "key": other["key"], "value": other["value"], "out": own["out"]}
    seen = multi_head(crossed, inputs, others, mask=mask)
    x = _normed(own["attention_norm"], inputs.astype(dtype) + seen.astype(dtype))
    up, down = ({name: leaf.astype(dtype) for name, leaf in own[part].items()} for part in ("up", "down"))
    hidden = gelu(x @ up["kernel"] + up["bias"])
    out = _normed(own["out_norm"], x + hidden @ down["kernel"] + down["bias"])
    return out.astype(inputs.dtype)


def _normed(parameters: Mapping[str, Any], x: jax.Array) -> jax.Array:
    x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-12)
    return x * parameters["scale"].astype(x.dtype) + parameters["bias"].astype(x.dtype)


@jax.custom_jvp
def gelu(x: jax.Array) -> jax.Array:
    """x Φ(x), with the derivative written out: inside `shard_map` JAX 0.12 cannot differentiate `erf`."""
    return jax.nn.gelu(x, approximate=False)


@gelu.defjvp
def _gelu_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    cumulated = jax.lax.erfc(-x * np.sqrt(0.5).astype(x.dtype)) / 2
    density = jnp.exp(-(x**2) / 2) * np.sqrt(0.5 / np.pi).astype(x.dtype)
    return gelu(x), dx * (cumulated + x * density)

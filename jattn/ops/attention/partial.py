"""Partial attention: attention over some keys, and `merge`, which combines partial results over disjoint keys."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
from jaxtyping import Float

from ...foundation.arrays import as_jax, describe, dtype_of
from ...foundation.numerics import accumulation_dtype, where
from ...foundation.pieces import unique_name


@dataclasses.dataclass(frozen=True, eq=False)
class Partial:
    """Attention over some of the keys, in a form that can be merged. Unpacks as `out, lse = partial`.

        lse_i = log Σ_j exp(score_ij),    out_i = Σ_j exp(score_ij - lse_i) value_j

    `remainder` is the rounding error of `lse`. A float32 near -1e9 has neighbors 64 apart, so an lse of that size has
    no room for the log of the number of keys; lse + remainder has about twice the precision. To slice or reshape all
    three arrays alike, use `jax.tree.map`.

    Args:
        out: `[..., q_len, q_heads, v_dim]`, the softmax-weighted mean of the values of these keys.
        lse: `[..., q_len, q_heads]`, float32 (float64 for float64 inputs); -inf for a query that may attend to none of
            these keys (its `out` is 0).
        remainder: the rounding error of `lse`, of the same shape, without a gradient of its own: the gradient of `lse`
            is that of the sum. By default 0. (In a tree of axes or partition specs, by default the same as `lse`.)

    >>> import jax.numpy as jnp, jattn
    >>> q, v = jnp.ones((1, 1, 2)), jnp.ones((5, 1, 2))
    >>> far = jattn.scores.Bias(jnp.full((1, 1, 5), -1e9))
    >>> partial = jattn.partial_attention(q, v, v, scores=far)
    >>> print(partial.lse, partial.remainder)  # log 5 = 1.609
    [[-1.e+09]] [[1.609438]]
    """

    out: Float[jax.Array, "*batch q_len q_heads v_dim"]
    lse: Float[jax.Array, "*batch q_len q_heads"]
    remainder: Any = None

    def __post_init__(self):
        if self.remainder is None:
            shaped = hasattr(self.lse, "dtype") and hasattr(self.lse, "shape")
            zero = jnp.zeros_like(self.lse) if shaped and not isinstance(self.lse, jax.ShapeDtypeStruct) else self.lse
            object.__setattr__(self, "remainder", zero)

    def __iter__(self) -> Iterator[jax.Array]:
        return iter((self.out, self.lse))

    @classmethod
    def empty(cls, out: jax.Array | jax.ShapeDtypeStruct) -> "Partial":
        """The identity of `merge`, for outputs shaped like `out`: attention over no keys.

        >>> import jax, jattn
        >>> jattn.Partial.empty(jax.ShapeDtypeStruct((2, 3, 4), "float32")).lse.shape
        (2, 3)
        """
        dtype = accumulation_dtype(out)
        return cls(jnp.zeros(out.shape, out.dtype), jnp.full(out.shape[:-1], -jnp.inf, dtype))

    def log_share(self, score: jax.Array) -> jax.Array:
        """score - lse: the log of the weight of a key with this score. Exact even if both are huge.

        Args:
            score: broadcastable to `lse`. Where `lse` is -inf there is no weight, and the result is as for an lse of 0.

        >>> import jax.numpy as jnp, jattn
        >>> print(jattn.Partial(jnp.zeros((1, 1, 2)), jnp.full((1, 1), 3.0)).log_share(2.0))
        [[-1.]]
        """
        empty = jnp.isneginf(self.lse)
        return (score - where(empty, 0, self.lse)) - jax.lax.stop_gradient(self.remainder)


jax.tree_util.register_dataclass(Partial, data_fields=["out", "lse", "remainder"], meta_fields=[])
jax.export.register_pytree_node_serialization(
    Partial, serialized_name=unique_name(Partial), serialize_auxdata=lambda _: b"", deserialize_auxdata=lambda _: ()
)


def log_of_sum(top: jax.Array, mass: jax.Array) -> tuple[jax.Array, jax.Array]:
    """top + log(mass) and its rounding error (without a gradient); -inf and 0 where the mass is 0.

    Args:
        top: the maximum score of a row, without a gradient; -inf if there is none.
        mass: the sum of exp(score - top).

    >>> import jax.numpy as jnp
    >>> lse, remainder = log_of_sum(jnp.float32(1e9), jnp.float32(5.0))
    >>> print(lse, remainder)
    1e+09 1.609438
    """
    empty = mass == 0
    top = where(jnp.isneginf(top), 0, top)
    log_mass = jnp.log(where(empty, 1, mass))
    lse = log_mass + top
    remainder = where(empty | ~jnp.isfinite(lse), 0, log_mass - (lse - top))
    return where(empty, -jnp.inf, lse), jax.lax.stop_gradient(remainder)


def merge(*partials: Partial | Iterable[Partial]) -> Partial:
    """Combine attention over disjoint sets of keys, as if all keys had been attended to together.

        lse = log Σ_i exp(lse_i),    out = Σ_i exp(lse_i - lse) out_i

    Associative and commutative, with the identity `Partial.empty`. Computed in float32 (float64 for float64).
    Differentiable in every `out` and `lse`. A row that is empty in all partials stays empty, with zero gradients.

    Args:
        partials: results of `partial_attention`, of equal shapes, as arguments or in one list.

    Raises:
        ValueError: there are no partials, one is something else, or their shapes differ.

    >>> import jax, jax.numpy as jnp, jattn
    >>> q, k, v = (jax.random.normal(jax.random.key(i), (8, 2, 4)) for i in range(3))
    >>> halves = [jattn.partial_attention(q, k[s], v[s]) for s in (slice(0, 3), slice(3, 8))]
    >>> whole = jattn.attention(q, k, v)
    >>> bool(jnp.allclose(jattn.merge(*halves).out, whole, atol=1e-6))
    True
    """
    parts = _listed(partials)
    for place, part in enumerate(parts):
        _check(place, part)
    shapes = [(part.out.shape, part.lse.shape) for part in parts]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"`partials` must all have the same shapes of (out, lse); got {shapes}.")
    lse = jnp.stack([part.lse for part in parts])
    remainder = jax.lax.stop_gradient(jnp.stack([part.remainder for part in parts]))
    top = jax.lax.stop_gradient(lse.max(0))
    mass = jnp.exp(lse - where(jnp.isneginf(top), 0, top)[None] + remainder)  # 0 where a partial is empty
    total = mass.sum(0)
    share = mass / where(total == 0, 1, total)[None]
    out = sum(part.out.astype(lse.dtype) * weight[..., None] for part, weight in zip(parts, share, strict=True))
    return Partial(jnp.asarray(out).astype(as_jax(parts[0].out)[0].dtype), *log_of_sum(top, total))


def _check(place: int, part: Partial) -> None:
    """The arrays of a partial fit each other."""
    arrays = {"out": part.out, "lse": part.lse, "remainder": part.remainder}
    for name, array in arrays.items():
        if dtype_of(array) is None or not jnp.issubdtype(dtype_of(array), jnp.floating):
            raise ValueError(f"`partials[{place}].{name}` must be a floating-point array; got {describe(array)}.")
    if not part.out.shape[:-1] == part.lse.shape == part.remainder.shape:
        shapes = ", ".join(f"`{name}` {array.shape}" for name, array in arrays.items())
        raise ValueError(
            f"`partials[{place}]` must have `out` [..., q_len, q_heads, v_dim], and `lse` and `remainder` [..., q_len, "
            f"q_heads]; got {shapes}. To slice or reshape all three alike, use `jax.tree.map`."
        )


def _listed(partials: tuple[Any, ...]) -> list[Partial]:
    """The partials, given as arguments or in one list."""
    if len(partials) == 1 and isinstance(partials[0], Iterable) and not isinstance(partials[0], (Partial, jax.Array)):
        partials = tuple(partials[0])
    if not partials:
        raise ValueError("`merge` needs at least one partial; an empty one is `Partial.empty(out)`.")
    for place, partial in enumerate(partials):
        if not isinstance(partial, Partial):
            raise ValueError(
                f"`partials[{place}]` must be a `Partial(out, lse)`, as `jattn.partial_attention` returns it; got "
                f"{describe(partial)}. `attention` returns the output alone, which does not merge."
            )
    return list(partials)

"""Partial attention over some of the keys is a monoid: `merge` joins partial results over disjoint keys."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp

from ..foundation.arrays import describe


class Partial(NamedTuple):
    """Attention over some keys.

    out: `[..., q_len, q_heads, v_dim]`, the softmax-weighted mean of the values of these keys.
    lse: `[..., q_len, q_heads]`, the log of the sum of the exponentials of the scores, float32 (float64 for float64
        inputs); -inf where a query may attend to none of these keys (`out` is 0 there).
    """

    out: jax.Array
    lse: jax.Array

    @classmethod
    def empty(cls, out: jax.Array | jax.ShapeDtypeStruct) -> "Partial":
        """The identity of `merge`, for outputs shaped like `out`: attention over no keys.

        >>> import jax, jattn
        >>> jattn.Partial.empty(jax.ShapeDtypeStruct((2, 3, 4), "float32")).lse.shape
        (2, 3)
        """
        dtype = jnp.promote_types(out.dtype, jnp.float32)
        return cls(jnp.zeros(out.shape, out.dtype), jnp.full(out.shape[:-1], -jnp.inf, dtype))


jax.export.register_namedtuple_serialization(Partial, serialized_name="jattn.Partial")


def merge(*partials: Partial | Iterable[Partial]) -> Partial:
    """Join attention over disjoint sets of keys, as if they had been attended together.

    lse = log Σ_i exp(lse_i),  out = Σ_i exp(lse_i - lse) out_i

    Associative and commutative; `Partial.empty` is its identity. Computed in float32 (float64). Differentiable in
    every `out` and `lse`; a row that is empty in all partials stays empty, with zero gradients.

    Args:
        partials: results of `partial_attention`, of equal shapes, one by one or in a list.

    Raises:
        ValueError: no partials, something else, or shapes that differ.

    >>> import jax, jax.numpy as jnp, jattn
    >>> q, k, v = (jax.random.normal(jax.random.key(i), (8, 2, 4)) for i in range(3))
    >>> halves = [jattn.partial_attention(q, k[s], v[s]) for s in (slice(0, 3), slice(3, 8))]
    >>> whole = jattn.attention(q, k, v)
    >>> bool(jnp.allclose(jattn.merge(*halves).out, whole, atol=1e-6))
    True
    """
    parts = _listed(partials)
    shapes = [(part.out.shape, part.lse.shape) for part in parts]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"`partials` must all have the same shapes of (out, lse); got {shapes}.")
    lse = jnp.stack([part.lse for part in parts])
    top = jax.lax.stop_gradient(lse.max(0))
    top = jnp.where(jnp.isneginf(top), 0, top)
    mass = jnp.exp(lse - top)  # 0 where a partial is empty
    total = mass.sum(0)
    occupied = total > 0
    safe_total = jnp.where(occupied, total, 1)
    share = mass / safe_total
    out = sum(part.out.astype(lse.dtype) * weight[..., None] for part, weight in zip(parts, share, strict=True))
    return Partial(
        jnp.asarray(out).astype(parts[0].out.dtype),
        jnp.where(occupied, jnp.log(safe_total) + top, -jnp.inf),
    )


def _listed(partials: tuple[Any, ...]) -> list[Partial]:
    """The partials, whether they came one by one or in a list."""
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

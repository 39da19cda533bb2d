"""What attention moves, rather than where it looks: weights together with the values that they multiply.

A key with a large weight and a small value contributes little. All functions take the values v_j = x_j W_V
`[..., keys, heads, head_dim]` (fewer heads are shared, as in grouped-query attention) and the output projection W_O
`[heads, head_dim, features]`, and are functions of JAX. Their equations write f_hj = v_hj W_O,h for what head h adds to
the output per weight on key j. Arrays of other shapes raise a `ValueError`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.arrays import as_array, describe, dtype_of
from .rows import checked


def norms(weights: Any, values: Any, output: Any, *, joined: bool = False) -> jax.Array:
    """‖A_ij f_j‖ of each head, or ‖Σ_h A_hij f_hj‖ of all (Kobayashi et al. 2020, arXiv:2004.10102).

    Args:
        weights: `[..., heads, queries, keys]`.
        values: `[..., keys, heads, head_dim]`.
        output: `[heads, head_dim, features]`.
        joined: of all heads together.

    Returns:
        `[..., heads, queries, keys]`, or `[..., queries, keys]` if joined.

    >>> import numpy as np
    >>> weights = np.array([[[0.5, 0.5]]])
    >>> norms(weights, np.array([[[3.0]], [[1.0]]]), np.array([[[1.0]]])).tolist()
    [[[1.5, 0.5]]]
    """
    weights, moved = _moved(weights, values, output)
    if not joined:
        return weights * _root((moved**2).sum(-1))[..., None, :]
    # ‖Σ_h A_h f_h‖² = Σ_hg A_h A_g ⟨f_h, f_g⟩, so that no array [queries, keys, features] is made.
    products = jnp.einsum("...hkf,...gkf->...hgk", moved, moved, precision="highest")
    squares = jnp.einsum("...hqk,...hgk,...gqk->...qk", weights, products, weights, precision="highest")
    return _root(squares)


def value_zeroing(weights: Any, values: Any, output: Any, finish: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """How much the output of a layer at i changes without the value of j (Mohebbi et al. 2023, arXiv:2301.12971).

        C_ij = 1 - cos(y_i, y_i without j), divided by the sum of its row        y = finish(Σ_j Σ_h A_hij f_hj)

    Args:
        weights, values, output: as in `norms`.
        finish: the rest of the layer, from what attention adds, `[..., queries, features]`, to the layer's output of
            the same sizes: the bias, the residual connection, norms, and the feed-forward network.

    Returns:
        `[..., queries, keys]`; rows sum to 1, or are 0 where no value changes anything.

    >>> import numpy as np
    >>> weights, values = np.array([[[0.5, 0.5]]]), np.array([[[3.0, 0.0]], [[0.0, 4.0]]])
    >>> print(value_zeroing(weights, values, np.eye(2)[None], lambda x: x))
    [[0.3333... 0.6666...]]
    """
    if not callable(finish):
        raise ValueError(f"`finish` must be a function, the rest of the layer; got {describe(finish)}.")
    weights, moved = _moved(weights, values, output)
    whole = jnp.einsum("...hqk,...hkf->...qf", weights, moved, precision="highest")
    before = finish(whole)
    if dtype_of(before) is None or before.shape[:-1] != whole.shape[:-1]:
        raise ValueError(
            f"`finish` must return [..., queries, features] as it is given, {whole.shape}; got {describe(before)}."
        )

    def without(one: tuple[jax.Array, jax.Array]) -> jax.Array:
        column, row = one  # [..., heads, queries], [..., heads, features]
        after = finish(whole - jnp.einsum("...hq,...hf->...qf", column, row, precision="highest"))
        # 1 - cos(a, b) = ‖a/‖a‖ - b/‖b‖‖² / 2, which is exactly 0 where a = b.
        return ((_unit(before) - _unit(after)) ** 2).sum(-1) / 2

    columns = jax.lax.map(without, (jnp.moveaxis(weights, -1, 0), jnp.moveaxis(moved, -2, 0)))
    found = jnp.moveaxis(columns, 0, -1)
    total = found.sum(-1, keepdims=True)
    return found / jnp.where(total == 0, 1, total)


def effective_attention(weights: Any, values: Any, output: Any = None, *, tolerance: float = 1e-5) -> jax.Array:
    """The part of the weights that the output depends on (Brunner et al. 2020, arXiv:1908.04211).

        A_eff = A U Uᵀ        f = U S Wᵀ, without the singular values that are 0

    The rest of A multiplies the values to 0: with more keys than features of a head, weights are not determined by what
    they do. A_eff f = A f, and no weights of smaller norm have that property. Its rows need not sum to 1.

    Args:
        weights, values: as in `norms`.
        output: as in `norms`; None for the values themselves.
        tolerance: singular values below this share of the largest are 0.

    Returns:
        `[..., heads, queries, keys]`.
    """
    weights, _ = checked(weights)
    if output is None:
        moved = jnp.moveaxis(_checked_values(weights, values), -2, -3)
    else:
        weights, moved = _moved(weights, values, output)
    if type(tolerance) not in (int, float) or not 0 <= tolerance < 1:
        raise ValueError(f"`tolerance` must be a share of the largest singular value, in [0, 1); got {tolerance!r}.")
    left, sizes, _ = jnp.linalg.svd(moved, full_matrices=False)
    left = left * (sizes > tolerance * sizes.max(-1, keepdims=True, initial=0))[..., None, :]
    through = jnp.einsum("...qk,...kr->...qr", weights, left, precision="highest")
    return jnp.einsum("...qr,...kr->...qk", through, left, precision="highest")


def _checked_values(weights: jax.Array, values: Any) -> jax.Array:
    heads, keys = weights.shape[-3], weights.shape[-1]
    shape = np.shape(values)
    fits = len(shape) == weights.ndim and shape[:-2] == (*weights.shape[:-3], keys)
    if not fits or shape[-2] == 0 or heads % shape[-2]:
        wanted = [*weights.shape[:-3], keys, heads]
        raise ValueError(f"`values` must have shape {str(wanted)[:-1]}, head_dim]; got {describe(values)}.")
    if dtype_of(as_array(values)) is None:
        raise ValueError(f"`values` must be numbers; got {describe(values)}.")
    return jnp.repeat(jnp.asarray(values, jnp.float32), heads // shape[-2], axis=-2)


def _root(squares: jax.Array) -> jax.Array:
    """The square root, whose gradient at 0 is 0; of what is below 0 by rounding, 0."""
    return jnp.where(squares <= 0, 0, jnp.sqrt(jnp.where(squares <= 0, 1, squares)))


def _unit(vectors: jax.Array) -> jax.Array:
    """Vectors of length 1; those of length 0 stay."""
    length = _root((vectors**2).sum(-1, keepdims=True))
    return vectors / jnp.where(length == 0, 1, length)


def _moved(weights: Any, values: Any, output: Any) -> tuple[jax.Array, jax.Array]:
    """The weights, and f `[..., heads, keys, features]`."""
    weights, _ = checked(weights)
    values = _checked_values(weights, values)
    if len(np.shape(output)) != 3 or np.shape(output)[:2] != values.shape[-2:]:
        raise ValueError(
            f"`output` must have shape [{values.shape[-2]}, {values.shape[-1]}, features]; got {describe(output)}."
        )
    return weights, jnp.einsum("...khd,hdf->...hkf", values, jnp.asarray(output, jnp.float32), precision="highest")

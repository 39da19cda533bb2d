"""Unit lower triangular systems, solved by matrix products."""

import functools

import jax
import jax.numpy as jnp

LEAF = 8
"""The size of the blocks that are inverted by a finite Neumann series; a power of two."""


@jax.custom_jvp
def unit_lower_inverse(strict: jax.Array) -> jax.Array:
    """(I + N)⁻¹ for strictly lower triangular N, `[..., size, size]`.

    Small blocks by (I - N)(I + N²)(I + N⁴), exact because N⁸ = 0; larger ones block by block, as in forward
    substitution,

        [[A, 0], [B, D]]⁻¹ = [[A⁻¹, 0], [-D⁻¹ B A⁻¹, D⁻¹]].

    Batched solves of small triangular systems are slow on most devices; matrix products are fast.

    >>> import jax.numpy as jnp
    >>> unit_lower_inverse(jnp.array([[0.0, 0.0], [3.0, 0.0]]))
    Array([[ 1.,  0.],
           [-3.,  1.]], dtype=float32)
    """
    size = strict.shape[-1]
    full = LEAF
    while full < size:
        full *= 2
    missing = [(0, 0)] * (strict.ndim - 2) + [(0, full - size)] * 2
    padded = jnp.pad(strict, missing)
    blocks = jnp.stack([padded[..., at : at + LEAF, at : at + LEAF] for at in range(0, full, LEAF)], -3)
    one = jnp.eye(LEAF, dtype=strict.dtype)
    squared = blocks @ blocks
    found = (one - blocks) @ (one + squared) @ (one + squared @ squared)
    block = LEAF
    while block < full:
        left = [padded[..., at + block : at + 2 * block, at : at + block] for at in range(0, full, 2 * block)]
        first, second = found[..., 0::2, :, :], found[..., 1::2, :, :]
        corner = -(second @ jnp.stack(left, -3) @ first)
        above = jnp.concatenate([first, jnp.zeros_like(first)], -1)
        found = jnp.concatenate([above, jnp.concatenate([corner, second], -1)], -2)
        block *= 2
    return found[..., 0, :size, :size]


@unit_lower_inverse.defjvp
def _tangent(primals, tangents):
    inverse = unit_lower_inverse(*primals)
    return inverse, -(inverse @ tangents[0] @ inverse)


def unit_lower_solve(strict: jax.Array, right: jax.Array, *, refine: bool) -> jax.Array:
    """Solve (I + N) X = R for strictly lower triangular N, `[..., size, size]`, and R `[..., size, columns]`.

    If entries of N are well above 1, so are its powers, whose sum is the inverse, and precision is lost. `refine`
    applies one step of iterative refinement to the solution and to its derivative, at the cost of two more products
    each.

    >>> import jax.numpy as jnp
    >>> print(unit_lower_solve(jnp.array([[0.0, 0.0], [3.0, 0.0]]), jnp.ones((2, 1)), refine=True))
    [[ 1.]
     [-2.]]
    """
    return _solve(strict, right, unit_lower_inverse(strict), refine)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _solve(strict: jax.Array, right: jax.Array, inverse: jax.Array, refine: bool) -> jax.Array:
    return _by_inverse(strict, right, inverse, refine)


@_solve.defjvp
def _solve_tangent(refine, primals, tangents):
    strict, _, inverse = primals  # the solution does not depend on how it was found
    found = _solve(*primals, refine)
    return found, _by_inverse(strict, tangents[1] - tangents[0] @ found, inverse, refine)


def _by_inverse(strict: jax.Array, right: jax.Array, inverse: jax.Array, refine: bool) -> jax.Array:
    found = inverse @ right
    return found + inverse @ (right - found - strict @ found) if refine else found

"""Nonprojective dependency trees by the matrix-tree theorem, with a determinant by subtraction-free elimination."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from ...foundation.arguments import check_flags
from ...foundation.numerics import log_sum_exp
from ...foundation.sharding import vary, varying_axes
from .log_space import log_add
from .trees import TreeMarginals, marginals_of, over_examples


def nonprojective_log_partition(
    arcs: jax.Array, roots: jax.Array | None = None, *, single_root: bool = True, lengths: Any = None
) -> jax.Array:
    """log Σ over all dependency trees of exp(Σ scores of the tree's arcs), where arcs may cross.

    With weights w = exp(θ), r = exp(roots), the matrix-tree theorem (Tutte; Koo et al. 2007) says

        Z = det L,  L_jj = r_j + Σ_i w_ij,  L_ij = -w_ij        (any number of children of the root)

    and that with a single root Z is the part linear in r. The determinant is the product of the pivots of Gaussian
    elimination. The off-diagonal entries of L are negative and its columns sum to r, so the elimination of word m can
    be written without subtraction:

        d_m = r_m + Σ_i w_im,  w_ij += w_im w_mj / d_m,  r_j += r_m w_mj / d_m,  Z = Π d_m

    and hence in log space. This is accurate for weights of any size, for near-cycles, which cancel in a floating-point
    determinant, and for forbidden arcs (-inf). O(length³) work in `length` steps of a `lax.scan`.

    Arguments, result and errors as in `projective_log_partition`.

    >>> import jax.numpy as jnp
    >>> print(f"{jnp.exp(nonprojective_log_partition(jnp.zeros((3, 3)))):.2f}")  # Cayley: n^(n-1)
    9.00
    """

    check_flags(single_root=single_root)

    def one(arcs: jax.Array, roots: jax.Array, length: jax.Array) -> jax.Array:
        return _eliminate(arcs, roots, length, single_root)

    return over_examples(one, arcs, roots, lengths)


def nonprojective_marginals(
    arcs: jax.Array, roots: jax.Array | None = None, *, single_root: bool = True, lengths: Any = None
) -> TreeMarginals:
    """Nonprojective tree marginals: p(parent -> child), the gradient of `nonprojective_log_partition`.

    Over all trees, with the arguments of `nonprojective_log_partition`. Koo et al. 2007.

    Returns:
        As in `projective_marginals`.

    Raises:
        ValueError: as in `projective_log_partition`.

    >>> import jax.numpy as jnp
    >>> print(nonprojective_marginals(jnp.zeros((3, 3))).roots.round(4))
    [0.3333 0.3333 0.3333]
    """
    return marginals_of(nonprojective_log_partition, arcs, roots, single_root=single_root, lengths=lengths)


# Without this, every call outside of `jit` would compile its loop again.
@functools.partial(jax.jit, static_argnames="single_root")
def _eliminate(arcs: jax.Array, roots: jax.Array, length: jax.Array, single_root: bool) -> jax.Array:
    """Eliminate one word after another. `arcs` is -inf on the diagonal and beyond the length.

    With a single root, r is infinitesimal: it is dropped from the pivot of a word that others can reach. A word that
    none can reach anymore must be the child of the root; its pivot is r_m, and from then on its arcs act as the roots
    of the remaining words, of which there may be several.
    """

    if not arcs.shape[0]:
        return jnp.full((), -jnp.inf if single_root else 0.0, arcs.dtype)

    def step(state, word):
        weights, roots, placed, total = state
        into = jnp.take(weights, word, axis=1)
        out = jnp.take(weights, word, axis=0)
        root = jnp.take(roots, word)
        reached = log_sum_exp(into, 0)
        is_root = ~placed & jnp.isneginf(reached)
        pivot = jnp.where(placed, log_add(reached, root), jnp.where(is_root, root, reached))
        share = out - jnp.where(jnp.isneginf(pivot), 0, pivot)
        others = jnp.arange(len(roots)) != word
        through = jnp.where(others[:, None] & others, log_add(weights, into[:, None] + share), -jnp.inf)
        # A word can be its own parent by a detour; such a loop is in no tree.
        through = jnp.where(jnp.eye(len(roots), dtype=bool), -jnp.inf, through)
        via = jnp.where(is_root, out, log_add(roots, root + share))
        new = (through, jnp.where(others, via, -jnp.inf), placed | is_root, total + pivot)
        return jax.tree.map(lambda after, before: jnp.where(word < length, after, before), new, state), None

    begin = (arcs, roots, jnp.asarray(not single_root), jnp.zeros((), arcs.dtype))
    begin = vary(begin, varying_axes(arcs, roots, length))
    (_, _, placed, total), _ = jax.lax.scan(step, begin, jnp.arange(arcs.shape[0]))
    return jnp.where(placed & ~jnp.isneginf(total), total, -jnp.inf)  # without a tree no score matters

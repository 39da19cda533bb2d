"""Projective dependency trees: Eisner's inside algorithm, with all spans of one length at once."""

from typing import Any

import jax
import jax.numpy as jnp

from ...foundation.arguments import check_flags
from ...foundation.sharding import vary, varying_axes
from .log_space import NOTHING, Log, combined, multiplied, separated, summed
from .trees import TreeMarginals, marginals_of, over_examples


def projective_log_partition(
    arcs: jax.Array, roots: jax.Array | None = None, *, single_root: bool = True, lengths: Any = None
) -> jax.Array:
    """log Σ over projective dependency trees of exp(Σ scores of the tree's arcs).

    A tree assigns every word a parent, another word or the root, without cycles. It is projective if no arcs cross when
    they are drawn above the sentence, with the root on the left. Eisner 1996, as used by Kim et al. 2017
    (arXiv:1702.00887). O(length³) work in log space, in `length - 1` steps of a `lax.scan`, one for each span length;
    its gradient stores O(length³) numbers per example.

    Args:
        arcs: θ `[..., parent, child]`, floating-point; the diagonal is ignored, and -inf forbids an arc.
        roots: scores of the root as the parent, `[..., child]`; by default 0.
        single_root: whether the root must have exactly one child, rather than any number.
        lengths: number of words of each example, integers `[...]`, or one for all; entries beyond are ignored.

    Returns:
        `[...]`, float32 (float64 for float64); -inf if there is no tree, with zero gradients. Differentiable to
        any order.

    Raises:
        ValueError: shapes do not match; `lengths` are not integers, have another shape, or are too long;
            `single_root` is not a boolean.

    >>> import jax.numpy as jnp
    >>> print(f"{jnp.exp(projective_log_partition(jnp.zeros((3, 3)))):.2f}")  # of 9 trees, 2 cross
    7.00
    """
    check_flags(single_root=single_root)
    return over_examples(_single_root if single_root else _multi_root, arcs, roots, lengths)


def projective_marginals(
    arcs: jax.Array, roots: jax.Array | None = None, *, single_root: bool = True, lengths: Any = None
) -> TreeMarginals:
    """Projective tree marginals: p(parent -> child), the gradient of `projective_log_partition`.

    Over projective trees, with the arguments of `projective_log_partition`. Eisner 1996, as used by Kim et al. 2017
    (arXiv:1702.00887).

    Demonstrated in `examples/experiments/eisner.py`.

    Returns:
        `TreeMarginals(arcs [..., parent, child], roots [..., child])`, which sum to 1 for each child; 0 beyond an
        example's length, and everywhere in an example without a tree. Differentiable.

    Raises:
        ValueError: as in `projective_log_partition`.

    >>> import jax.numpy as jnp
    >>> print(projective_marginals(jnp.zeros((2, 2))).arcs)
    [[0.  0.5]
     [0.5 0. ]]
    """
    return marginals_of(projective_log_partition, arcs, roots, single_root=single_root, lengths=lengths)


# Without this, every call outside of `jit` would compile their loop again.
@jax.jit
def _single_root(arcs: jax.Array, roots: jax.Array, length: jax.Array) -> jax.Array:
    """One child of the root, j: a span [0, j] and a span [j, length), both headed by j."""
    if not arcs.shape[0]:
        return jnp.full((), -jnp.inf, arcs.dtype)
    headed_right, headed_left = _spans(arcs)
    last = jax.tree.map(lambda chart: jnp.take(chart, jnp.maximum(length - 1, 0), axis=1), headed_right)
    first = jax.tree.map(lambda chart: chart[0], headed_left)
    return combined(summed(multiplied(separated(roots), first, last), 0))


@jax.jit
def _multi_root(arcs: jax.Array, roots: jax.Array, length: jax.Array) -> jax.Array:
    """The root is an additional leftmost word without a parent."""
    whole = jnp.pad(arcs, ((1, 0), (1, 0)), constant_values=-jnp.inf).at[0, 1:].set(roots)
    return jnp.take(combined(_spans(whole)[0])[0], length)


def _spans(arcs: jax.Array) -> tuple[Log, Log]:
    """Complete spans [i, j]: all trees of its words headed by i (right), and by j (left); `[n, n]` each, -inf below.

    open_right[i, j] = θ_ij + log Σ_{i<=k<j} right[i, k] left[k+1, j]; open_left[i, j] the same with θ_ji; right[i, j] =
    log Σ_{i<k<=j} open_right[i, k] right[k, j]; left[i, j] = log Σ_{i<=k<j} left[i, k] open_left[k, j] (products in log
    space). Entries not computed yet are -inf, so that sums over all k are sums over these. The logarithms grow with the
    length of the span: they are stored as a whole number and a fraction to keep full precision.
    """
    n = arcs.shape[0]
    # Columns after the last are -inf, for spans that would end outside.
    nothing = separated(jnp.full((n, 2 * n), -jnp.inf, arcs.dtype))
    apart = jnp.arange(2 * n) - jnp.arange(n)[:, None]
    single = separated(jnp.where(apart == 0, 0, jnp.full((n, 2 * n), -jnp.inf, arcs.dtype)))
    ends = jnp.arange(1, n)[:, None] + jnp.arange(n)
    starts, inside = jnp.arange(n), ends < n
    ends = jnp.minimum(ends, n - 1)
    rightward = separated(jnp.where(inside, arcs[starts, ends], -jnp.inf))  # [length of span, start]
    leftward = separated(jnp.where(inside, arcs[ends, starts], -jnp.inf))

    def step(charts, given):
        right, left, open_right, open_left = charts
        width, score_right, score_left = given

        def starting(chart):  # [i, k] -> chart[i, k]
            return jax.tree.map(lambda one: one[:, :n], chart)

        def ending(chart):  # [i, k] -> chart[k, i + width]
            return jax.tree.map(lambda one: jax.lax.dynamic_slice(one, (0, width), (n, n)).T, chart)

        def write(chart, numbers):
            return jax.tree.map(lambda one, new: jnp.where(apart == width, new[:, None], one), chart, numbers)

        after = ending(left)
        after = Log(
            *(
                jnp.pad(one[:, 1:], ((0, 0), (0, 1)), constant_values=fill)
                for one, fill in zip(after, NOTHING, strict=True)
            )
        )
        joined = summed(multiplied(starting(right), after), 1)
        open_right = write(open_right, multiplied(joined, score_right))
        open_left = write(open_left, multiplied(joined, score_left))
        longer_right = summed(multiplied(starting(open_right), ending(right)), 1)
        longer_left = summed(multiplied(starting(left), ending(open_left)), 1)
        return (write(right, longer_right), write(left, longer_left), open_right, open_left), None

    begin = vary((single, single, nothing, nothing), varying_axes(rightward, leftward))
    (right, left, _, _), _ = jax.lax.scan(step, begin, (jnp.arange(1, n), rightward, leftward))
    return jax.tree.map(lambda one: one[:, :n], (right, left))

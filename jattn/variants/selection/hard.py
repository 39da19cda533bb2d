"""Hard attention: one key, sampled from the weights."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...foundation.arguments import check_baseline, check_flags, check_key, leave_out
from ...foundation.arrays import describe, dtype_of
from ...ops.attention.api import attention, partial_attention
from ...ops.attention.by_example import by_example
from ...ops.attention.call import Pieces, check_arrays, prepare
from .best_keys import best_keys, score_chosen, take_chosen


class Drawn(NamedTuple):
    """The result of hard attention.

    out: `[..., q_len, q_heads, v_dim]`, the value of the sampled key; 0 where a query may attend to nothing.
    index: int32 `[..., q_len, q_heads]`, the index of that key; -1 where there is none.
    log_probability: `[..., q_len, q_heads]`, the log of its weight, float32 (float64); 0 where there is none.
    """

    out: jax.Array
    index: jax.Array
    log_probability: jax.Array


def hard(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    sample: jax.Array | None,
    straight_through: bool,
    **pieces: Any,
) -> Drawn:
    """Hard attention: each query takes the value of one key, sampled from its softmax weights.

        j ~ softmax(score_i),    out_i = value_j

    Xu et al. 2015 (arXiv:1502.03044). Keys are sampled with the Gumbel-max trick over scores computed tile by tile; the
    probability comes from the log-sum-exp of `jattn.partial_attention`. Time is quadratic, memory linear.

    Two estimators of a gradient through the choice:

    - REINFORCE (`straight_through=False`): only `value_j` passes a gradient to `out`. Add
      `reinforce(loss, log_probability, baseline)` to the loss; the sum is unbiased.
    - straight-through (`straight_through=True`; Bengio et al. 2013, arXiv:1308.3432): `out` has the gradient of soft
      attention, in all arrays. Biased, with low variance.

    Args:
        query: `[..., q_len, q_heads, qk_dim]`.
        key: `[..., kv_len, kv_heads, qk_dim]`.
        value: `[..., kv_len, kv_heads, v_dim]`.
        sample: a random key; None takes the likeliest key, as at test time, and the first of ties.
        straight_through: which estimator.
        **pieces: arguments of `jattn.attention`, except the normalizer, which is the softmax: `mask`, `similarity`,
            `scores`, positions.

    Raises:
        ValueError: a normalizer or dropout is given; `sample` is not a random key; `straight_through` is not a boolean;
            as in `jattn.attention`.

    >>> import jax
    >>> q, k, v = (jax.random.normal(jax.random.key(i), (2, 10, 4, 16)) for i in range(3))
    >>> drawn = hard(q, k, v, sample=jax.random.key(3), straight_through=False)
    >>> drawn.out.shape, drawn.log_probability.shape
    ((2, 10, 4, 16), (2, 10, 4))
    """
    pieces = leave_out(pieces, "hard attention draws from the softmax", "normalizer", "dropout")
    check_flags(straight_through=straight_through)
    keys = None
    if sample is not None:
        check_key("sample", sample)
        check_arrays(query, key, value)
        typed = jnp.issubdtype(sample.dtype, jax.dtypes.prng_key)
        keys = jax.random.split(
            sample if typed else jax.random.wrap_key_data(sample), (*query.shape[:-3], query.shape[-2])
        )
    return _hard(query, key, value, keys, straight_through, **pieces)


@by_example(
    ("length head dim", "length head", "length head"),
    query="length head dim",
    key="length head dim",
    value="length head dim",
    sample="head",
)
def _hard(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    sample: jax.Array | None,
    straight_through: bool,
    **pieces: Any,
) -> Drawn:
    """`hard`, with a random key for each example and head."""
    plain = {name: pieces.get(name) for name in ("mask", "similarity", "query_positions", "key_positions")}
    unknown = pieces.keys() - plain.keys() - {"scores", "implementation"}
    if unknown:
        raise ValueError(f"`{min(unknown)}` is not an argument of `jattn.attention`.")
    call, rewritten, keys = prepare(query, key, value, Pieces(**plain, scores=pieces.get("scores", ())))
    if 0 in (call.q_len, call.kv_len):
        rows = (*call.batch, call.q_len, call.q_heads)
        return Drawn(jnp.zeros((*rows, call.v_dim), value.dtype), jnp.full(rows, -1, jnp.int32), jnp.zeros(rows))
    chosen, found = best_keys(call, rewritten, keys, 1, sample)
    found = jnp.swapaxes(found[..., 0], -2, -1)
    taken = jnp.where(found[..., None], take_chosen(value, chosen)[..., 0, :, :], 0)
    if straight_through:
        soft = attention(query, key, value, **pieces)
        taken = jax.lax.stop_gradient(taken) + (soft - jax.lax.stop_gradient(soft))
    _, scores, _ = score_chosen(call, rewritten, keys, chosen)
    whole = partial_attention(query, key, jnp.zeros_like(value[..., :1]), **pieces)
    apart = jnp.where(found, whole.log_share(jnp.where(found, scores[..., 0, 0], 0)), 0)
    return Drawn(taken, jnp.where(found, jnp.swapaxes(chosen[..., 0], -2, -1), -1), apart)


def reinforce(loss: jax.Array, log_probability: jax.Array, baseline: Any = 0.0) -> jax.Array:
    """A term of value 0 whose gradient is the REINFORCE gradient of `loss` through the samples.

        (loss - baseline) ∇ log p,    with expectation ∇ E[loss] - E[∇ loss]

    Williams 1992. A baseline that does not depend on the samples, such as a moving mean of losses, changes only the
    variance.

    Args:
        loss: loss of each example, any shape.
        log_probability: log-probability of the samples of each example, summed over its queries and heads; the shape of
            `loss`.
        baseline: a number, or an array of the shape of `loss`.

    Raises:
        ValueError: `loss` or `log_probability` is not floating-point, their shapes differ, or `baseline` is neither one
            number nor of their shape.

    >>> import jax, jax.numpy as jnp
    >>> jax.grad(lambda logits: reinforce(jnp.array(3.0), jax.nn.log_softmax(logits)[0], 1.0))(jnp.zeros(2))
    Array([ 1., -1.], dtype=float32)
    """
    for name, value in (("loss", loss), ("log_probability", log_probability)):
        dtype = dtype_of(value)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"`{name}` must be a floating-point array, a number for each example; got {describe(value)}."
            )
    if jnp.shape(loss) != jnp.shape(log_probability):
        raise ValueError(
            f"`log_probability` must have the shape of `loss`, {jnp.shape(loss)}: sum it over the queries and heads of "
            f"each example; got {jnp.shape(log_probability)}."
        )
    check_baseline(baseline, "loss", loss)
    return jax.lax.stop_gradient(loss - baseline) * (log_probability - jax.lax.stop_gradient(log_probability))

"""Pointer-generator: the next word is generated from the vocabulary or copied from the source."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ...foundation.arguments import check_positive
from ...foundation.arrays import known_range
from ...foundation.numerics import accumulation_dtype, log_sum_exp
from ...foundation.shapes import check_shapes
from ...layers.layer import Layer, bias, kernel


@dataclasses.dataclass(frozen=True)
class GenerationGate(Layer):
    """Generation gate: the logit of p_gen, the probability of generating a word rather than copying one.

        p_gen = σ(w_h · context + w_s · state + w_x · input + b)

    See, Liu & Manning 2017 (arXiv:1704.04368), equation 8. `pointer_log_probabilities` takes the logit rather than
    p_gen, so that log p_gen and log (1 - p_gen) are accurate even if the gate saturates.

    Args:
        context_features: features of the attention's output.
        state_features: features of the decoder's state.
        input_features: features of the decoder's input.

    Raises:
        ValueError: a size is below 1; at the call, shapes do not match.

    >>> import jax, jax.numpy as jnp
    >>> gate = GenerationGate(16, 8, 4)
    >>> parameters = gate.init(jax.random.key(0))
    >>> jax.jit(gate)(parameters, jnp.ones((2, 5, 16)), jnp.ones((2, 5, 8)), jnp.ones((2, 5, 4))).shape
    (2, 5)
    """

    own_axes: ClassVar[Mapping[str, str] | None] = {"__call__": "features"}

    context_features: int
    state_features: int
    input_features: int

    def __post_init__(self):
        check_positive(**dataclasses.asdict(self))

    def parameters(self) -> dict[str, Any]:
        """`context`, `state` and `input`, each a vector of its features, and the `bias []`."""
        return {
            "context": kernel(self.context_features),
            "state": kernel(self.state_features),
            "input": kernel(self.input_features),
            "bias": bias(),
        }

    def __call__(
        self, parameters: Mapping[str, Any], context: jax.Array, state: jax.Array, inputs: jax.Array
    ) -> jax.Array:
        """`[...]`, float32 (float64).

        Args:
            parameters: the layer's parameters.
            context: `[..., context_features]`.
            state: `[..., state_features]`.
            inputs: `[..., input_features]`.
        """
        check_shapes(
            dataclasses.asdict(self),
            context=(context, "... context_features"),
            state=(state, "... state_features"),
            inputs=(inputs, "... input_features"),
        )
        dtype = accumulation_dtype(context, state, inputs)
        parts = {"context": context, "state": state, "input": inputs}
        logit = parameters["bias"].astype(dtype)
        for name, part in parts.items():
            logit = logit + part.astype(dtype) @ parameters[name].astype(dtype)
        return logit


def pointer_log_probabilities(
    vocabulary_logits: jax.Array,
    generation_logit: jax.Array,
    attention_scores: jax.Array,
    source_ids: jax.Array,
    extended_size: int,
) -> jax.Array:
    """Pointer-generator: log P of every word, generated from the vocabulary or copied from the source.

        P(w) = p_gen P_vocab(w) + (1 - p_gen) Σ_{i: source_i = w} a_i
        P_vocab = softmax(vocabulary_logits),  p_gen = σ(generation_logit),  a = softmax(attention_scores)

    See, Liu & Manning 2017 (arXiv:1704.04368), equation 9. The extended vocabulary is the vocabulary followed by the
    words that only the source has; for these P_vocab is 0. Everything is computed in logarithms, so that no probability
    underflows: the scatter of a is a scattered logsumexp.

    Demonstrated in `examples/experiments/copying_unknown.py`.

    Args:
        vocabulary_logits: `[..., steps, vocabulary]`.
        generation_logit: logit of p_gen, `[..., steps]`, as in `GenerationGate`; `inf` only generates, `-inf` only
            copies.
        attention_scores: before the softmax, `[..., steps, kv_len]`; -inf where a position may not be copied.
        source_ids: the source's words in the extended vocabulary, integers `[..., kv_len]`. A negative id is padding:
            it is never copied and is excluded from the softmax over the scores.
        extended_size: size of the extended vocabulary.

    Returns:
        `[..., steps, extended_size]`, float32 (float64), -inf for an impossible word. P sums to 1, or to p_gen if the
        source is all padding.

    Raises:
        ValueError: shapes do not match; `extended_size` is below the size of the vocabulary; a source id is at least
            `extended_size`, where ids are known. Under `jit` they are not, and such an id counts as padding.

    >>> import jax.numpy as jnp
    >>> scores, ids = jnp.zeros((1, 4)), jnp.array([0, 5, 5, -1])
    >>> log_p = pointer_log_probabilities(jnp.zeros((1, 4)), jnp.zeros(1), scores, ids, 6)
    >>> print((24 * jnp.exp(log_p)).round(2))
    [[7. 3. 3. 3. 0. 8.]]
    """
    sizes = _check(vocabulary_logits, generation_logit, attention_scores, source_ids)
    check_positive(extended_size=extended_size)
    if extended_size < sizes["vocabulary"]:
        raise ValueError(
            f"`extended_size` must be at least the vocabulary of `vocabulary_logits`, {sizes['vocabulary']}; got "
            f"{extended_size}."
        )
    _check_ids("source_ids", source_ids, extended_size)
    dtype = accumulation_dtype(vocabulary_logits, generation_logit, attention_scores)
    ids = source_ids.astype(jnp.int32)  # of a narrower dtype, `extended_size` and -1 might be other numbers
    ids = jnp.where(ids < extended_size, ids, -1)
    copied = _log_weights(attention_scores.astype(dtype), ids)
    scatter = jnp.vectorize(_scatter_logsumexp, signature="(s,k),(k),(e)->(s,e)")
    copied = scatter(copied, ids, jnp.zeros(extended_size, dtype))
    made = jax.nn.log_softmax(vocabulary_logits.astype(dtype), -1)
    room = [(0, 0)] * (made.ndim - 1) + [(0, extended_size - sizes["vocabulary"])]
    made = jnp.pad(made, room, constant_values=-jnp.inf)
    return _mix(generation_logit.astype(dtype)[..., None], made, copied)


def pointer_log_probability(
    vocabulary_logits: jax.Array,
    generation_logit: jax.Array,
    attention_scores: jax.Array,
    source_ids: jax.Array,
    targets: jax.Array,
) -> jax.Array:
    """log P of one word for each step, as needed in training, without materializing the extended vocabulary.

    It is the entry of `pointer_log_probabilities` at the target; arguments as there.

    Args:
        vocabulary_logits, generation_logit, attention_scores, source_ids: as in `pointer_log_probabilities`.
        targets: words of the extended vocabulary, integers `[..., steps]`.

    Returns:
        `[..., steps]`, float32 (float64). A target that is neither in the vocabulary nor in the source, or negative,
        gets -inf and zero gradients; leave such steps out of a loss by `jnp.where`.

    Raises:
        ValueError: shapes do not match.

    >>> import jax.numpy as jnp
    >>> scores, ids = jnp.zeros((1, 4)), jnp.array([0, 5, 5, -1])
    >>> print(jnp.exp(pointer_log_probability(jnp.zeros((1, 4)), jnp.zeros(1), scores, ids, jnp.array([5]))).round(3))
    [0.333]
    """
    sizes = _check(vocabulary_logits, generation_logit, attention_scores, source_ids)
    check_shapes({"steps": sizes["steps"]}, kind=jnp.integer, targets=(targets, "... steps"))
    check_shapes(attention_scores=(attention_scores[..., 0], "..."), targets=(targets.astype(jnp.float32), "..."))
    dtype = accumulation_dtype(vocabulary_logits, generation_logit, attention_scores)
    copied = _log_weights(attention_scores.astype(dtype), source_ids)
    here = (source_ids[..., None, :] == targets[..., None]) & (targets[..., None] >= 0)
    copied = log_sum_exp(jnp.where(here, copied, -jnp.inf))
    made = jax.nn.log_softmax(vocabulary_logits.astype(dtype), -1)
    known = (targets >= 0) & (targets < sizes["vocabulary"])
    made = jnp.take_along_axis(made, jnp.where(known, targets, 0)[..., None], -1)[..., 0]
    return _mix(generation_logit.astype(dtype), jnp.where(known, made, -jnp.inf), copied)


def _check(vocabulary_logits: Any, generation_logit: Any, attention_scores: Any, source_ids: Any) -> dict[str, int]:
    sizes = check_shapes(
        vocabulary_logits=(vocabulary_logits, "... steps vocabulary"),
        generation_logit=(generation_logit, "... steps"),
        attention_scores=(attention_scores, "... steps kv_len"),
    )
    check_shapes({"kv_len": sizes["kv_len"]}, kind=jnp.integer, source_ids=(source_ids, "... kv_len"))
    batch = attention_scores.shape[:-2]
    if source_ids.shape[:-1] != batch:
        raise ValueError(
            f"`source_ids` must have the batch axes {batch} of `attention_scores` in front of kv_len; got "
            f"{source_ids.shape}."
        )
    return sizes


def _check_ids(name: str, ids: Any, size: int) -> None:
    most = (known_range(ids) or (0, 0))[1]
    if most >= size:
        raise ValueError(
            f"`{name}` must be below `extended_size` = {size}; got {most}. Ids of words that only the source "
            "has count on from the vocabulary; `extended_size` has room for the most that a source has."
        )


def _log_weights(scores: jax.Array, ids: jax.Array) -> jax.Array:
    """log softmax over the positions that are not padding, and -inf for padding, regardless of its score."""
    scores = jnp.where(ids[..., None, :] >= 0, scores, -jnp.inf)
    total = log_sum_exp(scores, keepdims=True)
    return scores - jnp.where(jnp.isneginf(total), 0, total)


def _scatter_logsumexp(scores: jax.Array, ids: jax.Array, empty: jax.Array) -> jax.Array:
    """`[steps, kv_len]` -> `[steps, len(empty)]`: logsumexp of the scores that go to each entry."""
    size = empty.shape[0]
    at = jnp.where(ids >= 0, ids, size)  # one entry more takes the padding
    steps = scores.shape[0]
    highest = jnp.full((steps, size + 1), -jnp.inf, scores.dtype).at[:, at].max(jax.lax.stop_gradient(scores))
    highest = jnp.where(jnp.isneginf(highest), 0, highest)
    total = jnp.zeros((steps, size + 1), scores.dtype).at[:, at].add(jnp.exp(scores - highest[:, at]))
    some = total > 0
    return jnp.where(some, jnp.log(jnp.where(some, total, 1)) + highest, -jnp.inf)[:, :size]


def _mix(generation_logit: jax.Array, made: jax.Array, copied: jax.Array) -> jax.Array:
    """log(σ(g) exp(made) + σ(-g) exp(copied)), where either or both may be impossible."""
    made = jnp.where(jnp.isneginf(made), -jnp.inf, jax.nn.log_sigmoid(generation_logit) + made)
    copied = jnp.where(jnp.isneginf(copied), -jnp.inf, jax.nn.log_sigmoid(-generation_logit) + copied)
    return log_sum_exp(jnp.stack([made, copied], -1))

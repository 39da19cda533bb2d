"""The definition: all weights at once, in float32 or float64, differentiable any number of times."""

import dataclasses

import jax
import jax.numpy as jnp

from ....foundation.numerics import accumulation_dtype, inner, shifted_exp, without_nonfinite
from ....similarities.dot import folded_scale
from ...dispatch import Implementation, Unsupported
from .. import tile
from ..call import Call
from ..partial import Partial, log_of_sum
from ..streaming import Gradients
from ..tile import multiply_values


class Reference(Implementation):
    """`softmax(scores) @ value`, computed literally, with O(q_len x kv_len) memory. Refuses nothing."""

    name = "reference"

    def refuses(self, call: Call) -> str | None:
        del call
        return None

    def run(self, call: Call, query: jax.Array, key: jax.Array, value: jax.Array) -> Partial:
        return _attend(call, query, key, value)

    def gradients(  # type: ignore[override]
        self,
        call: Call,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        results: Partial,
        cotangents: Partial,
    ) -> Gradients:
        """See `jattn.ops.attention.streaming.gradients`.

        With the lse of the whole held fixed, the part's share of the output, o' = Σ_j p_ij d_ij value_j, and of the
        mass, l' = Σ_j p_ij, have dl'/ds_ij = p_ij. So the cotangents do of o' and dλ - D of l' give ds.

        Raises:
            Unsupported: the normalizer has no streaming form, so a row is not known by its output and lse.
        """
        normalizer = call.pieces.normalizer
        if normalizer.streams_as is None:
            raise Unsupported(f"{type(normalizer).__name__} has no gradients by parts: {normalizer.refusal}.")
        return _gradients(call, query, key, value, results, cotangents)

    def describe(self, call: Call) -> tuple[None, str]:
        rows = call.q_heads * call.q_len * call.kv_len
        for size in call.batch:
            rows *= size
        held = f"{2 * 4 * rows / 2**20:,.0f} MiB"
        return None, f"all scores and weights at once: about {held}, several times in the backward pass"


@jax.jit  # otherwise every call outside of `jit` would compile its branches again
def _attend(call: Call, query: jax.Array, key: jax.Array, value: jax.Array) -> Partial:
    scores, allowed = scored(call, query, key)
    weights = _weights(call, scores, allowed)
    factor = tile.dropout_factor(call.pieces)
    weights = weights if factor is None else weights * factor
    # Use the accumulation dtype; otherwise the cotangent of the weights would be rounded to the dtype of the values.
    values = jnp.swapaxes(value, -3, -2).astype(accumulation_dtype(weights, value))
    out = jnp.swapaxes(multiply_values(weights, values, allowed), -3, -2)
    lse, remainder = (jnp.swapaxes(one, -2, -1) for one in log_mass(call, scores, allowed))
    return Partial(out.astype(value.dtype), lse, remainder)


@jax.jit
def _gradients(
    call: Call, query: jax.Array, key: jax.Array, value: jax.Array, results: Partial, cotangents: Partial
) -> Gradients:
    dtype = accumulation_dtype(query, key, value)
    softmax = call.pieces.normalizer.streams_as == "softmax"
    floats, rebuild = tile.floats_of(call.pieces)
    dead = jnp.isneginf(results.lse) & softmax
    d_out = jnp.where(dead[..., None], 0, cotangents.out).astype(dtype)
    along = jnp.where(dead, 0, inner(d_out, results.out.astype(dtype)))
    d_mass = jnp.where(dead, 0, cotangents.lse - along)
    lse, remainder = (jnp.swapaxes(jnp.where(dead, 0, one), -2, -1) for one in (results.lse, results.remainder))

    def shares(query, key, value, floats):
        pieces = rebuild(floats)
        scores, allowed = scored(dataclasses.replace(call, pieces=pieces), query, key)
        if softmax:
            exponent = (jnp.where(allowed, scores, -jnp.inf) - lse[..., None]) - remainder[..., None]
            weights = jnp.exp(exponent)
        else:
            normalizer, scores = tile.for_normalizer(pieces.normalizer, scores, allowed)
            weights = jnp.where(allowed, normalizer.activation(scores), 0)
        mass = weights.sum(-1)
        factor = tile.dropout_factor(call.pieces)
        weights = weights if factor is None else weights * factor
        values = jnp.swapaxes(value, -3, -2).astype(accumulation_dtype(weights, value))
        return jnp.swapaxes(multiply_values(weights, values, allowed), -3, -2), jnp.swapaxes(mass, -2, -1)

    (out, mass), pull = jax.vjp(shares, query, key, value, floats)
    cotangent = d_mass.astype(mass.dtype) if softmax else jnp.zeros_like(mass)
    d_query, d_key, d_value, found = pull((d_out.astype(out.dtype), cotangent))
    rest = iter(found)
    d_pieces = jax.tree.map(lambda leaf: next(rest) if tile.is_float(leaf) else None, call.pieces)
    return Gradients(d_query, d_key, d_value, d_pieces)


@jax.jit
def weights_of(call: Call, query: jax.Array, key: jax.Array) -> jax.Array:
    """The weights `[batch..., q_heads, q_len, kv_len]`, before dropout."""
    return _weights(call, *scored(call, query, key))


@jax.jit
def applied_weights(call: Call, query: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The weights `[batch..., q_heads, q_len, kv_len]` after dropout, and which pairs may attend."""
    scores, allowed = scored(call, query, key)
    weights, factor = _weights(call, scores, allowed), tile.dropout_factor(call.pieces)
    return weights if factor is None else weights * factor, allowed


def _weights(call: Call, scores: jax.Array, allowed: jax.Array) -> jax.Array:
    normalizer, scores = tile.for_normalizer(call.pieces.normalizer, scores, allowed)
    return normalizer.weights(scores, allowed)


def scored(call: Call, query: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """All scores `[batch..., q_heads, q_len, kv_len]`, and which pairs may attend, of the same shape."""
    query, key = jnp.swapaxes(query, -3, -2), jnp.swapaxes(key, -3, -2)
    pieces = call.pieces
    at = pieces.query_positions, pieces.key_positions

    def score(query, key):
        query, scale = folded_scale(pieces.similarity, query, call.scale)
        scores = tile.pair(pieces.similarity, query, key, allowed).astype(accumulation_dtype(query, key)) * scale
        return tile.modify(scores, pieces.scores, *at, allowed)

    allowed = tile.allowed_pairs(pieces)
    # A masked pair must not reach a gradient even as 0 * NaN. Differentiate with non-finite entries set to 0, and add
    # their effect on the scores as a constant.
    clean_query, clean_key = without_nonfinite(query), without_nonfinite(key)
    scores = score(clean_query, clean_key)
    nonfinite = ~jnp.isfinite(query).all(-1)[..., :, None] | jnp.repeat(
        ~jnp.isfinite(key).all(-1)[..., None, :], call.q_heads // call.kv_heads, axis=-3
    )
    raw = jax.lax.stop_gradient(score(query, key))
    scores = jnp.where(nonfinite, raw + (scores - jax.lax.stop_gradient(scores)), scores)
    return scores, jnp.broadcast_to(True if allowed is None else allowed, scores.shape)


def log_mass(call: Call, scores: jax.Array, allowed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The lse of each row and its remainder (see `Partial`).

    For an elementwise normalizer, the log of the number of keys that the query may attend to.
    """
    if call.pieces.normalizer.streams_as == "elementwise":
        counts = jnp.log(allowed.sum(-1).astype(scores.dtype))
        return counts, jnp.zeros_like(counts)
    masked = jnp.where(allowed, scores, -jnp.inf)
    top, mass = shifted_exp(masked)
    return log_of_sum(top[..., 0], mass.sum(-1))

"""Gradients of parts of the keys, given the results of the whole, add up to the gradient of the whole."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from measure import near, random
from tiers import rows

import jattn
from jattn import masks, normalizers, scores, similarities
from jattn.ops.attention.call import Pieces, prepare
from jattn.ops.attention.implementations import Reference, Tiled
from jattn.ops.attention.partial import Partial
from jattn.ops.attention.streaming import Streaming, gradients
from jattn.ops.attention.tile import is_float

Q_LEN, KV_LEN, HEADS = 9, 14, 4
QUERY, KEY, VALUE, BIAS, D_OUT, D_LSE = random(
    (2, Q_LEN, HEADS, 4),
    (2, KV_LEN, 2, 4),
    (2, KV_LEN, 2, 3),
    (HEADS, Q_LEN, KV_LEN),
    (2, Q_LEN, HEADS, 3),
    (2, Q_LEN, HEADS),
)
PARTS = (slice(0, 5), slice(5, 6), slice(6, KV_LEN))
QUERY_POSITIONS = np.arange(Q_LEN) + 2
SLOPES, SINK = np.float32([0.5, 0.25, 0.125, 0.1]), np.float32([0.1, -1, 0, 2])


def per_pair(keys):
    return scores.Bias(BIAS[:, :, keys])


CASES = {
    "plain": lambda keys: Pieces(),
    "causal, per-pair bias": lambda keys: Pieces(masks.Causal(), scores=per_pair(keys)),
    "empty rows, ALiBi, soft cap": lambda keys: Pieces(
        masks.of(lambda q, k: (k <= q) & (q % 3 != 0)), scores=(scores.ALiBi(SLOPES), scores.SoftCap(3.0))
    ),
    "dropout": lambda keys: Pieces(
        masks.Causal(), dropout=jattn.Dropout(0.4, jax.random.key(3)), scores=scores.ALiBi(SLOPES)
    ),
    "sigmoid, bias": lambda keys: Pieces(
        masks.Causal(), normalizer=normalizers.Sigmoid(np.float32([0.3])), scores=per_pair(keys)
    ),
    "not a dot product": lambda keys: Pieces(
        masks.Causal(), similarity=similarities.Additive(*random((4, 3), (4, 3), (3,)))
    ),
}


def prepared(pieces, keys):
    pieces = dataclasses.replace(pieces, query_positions=QUERY_POSITIONS, key_positions=np.arange(KV_LEN)[keys])
    call, query, key = prepare(QUERY, KEY[:, keys], VALUE[:, keys], pieces)
    return call, query, key, VALUE[:, keys]


def of_the_whole(call, query, key, value):
    """By JAX, through the definition."""
    leaves, tree = jax.tree.flatten(call.pieces)

    def run(query, key, value, floats):
        rest = iter(floats)
        pieces = tree.unflatten([next(rest) if is_float(leaf) else leaf for leaf in leaves])
        found = Reference().run(dataclasses.replace(call, pieces=pieces), query, key, value)
        return found.out, found.lse

    (out, lse), pull = jax.vjp(run, query, key, value, [leaf for leaf in leaves if is_float(leaf)])
    live = jnp.isfinite(lse)
    *arrays, floats = pull((D_OUT, jnp.where(live, D_LSE, 0)))
    return Partial(out, lse), [*arrays, *floats]


def whole_of(parts):
    """Gradients of what the parts have apart are joined along the keys, of what they share added."""
    first, *others = parts
    axis = 1 if first.ndim == 4 and first.shape[1] == 5 else first.ndim - 1 if first.shape[-1] == 5 else None
    return sum(others, first) if axis is None else jnp.concatenate(parts, axis)


@pytest.mark.parametrize(
    "implementation",
    [pytest.param(Reference(), marks=pytest.mark.exhaustive), Tiled(4, 4)],
    ids=["reference", "tiled"],
)
@pytest.mark.parametrize("name", rows(CASES, ["empty rows, ALiBi, soft cap"]))
def test_parts_add_up_to_the_whole(name, implementation):
    results, want = of_the_whole(*prepared(CASES[name](slice(None)), slice(None)))
    cotangents = Partial(D_OUT, D_LSE)
    parts = [gradients(implementation, *prepared(CASES[name](keys), keys), results, cotangents) for keys in PARTS]
    got = [whole_of(one) for one in zip(*map(jax.tree.leaves, parts), strict=True)]
    assert len(got) == len(want)
    for one, other in zip(got, want, strict=True):
        assert one.dtype == other.dtype
        near(one, other)
    # Alone, the parts' own results would give something else.
    assert float(jnp.abs(got[0] - parts[0].query).max()) > 1e-3


def test_no_gradients_by_parts_where_a_row_is_more_than_its_lse():
    for implementation in (Reference(), Tiled()):
        call, *arrays = prepared(Pieces(normalizer=normalizers.Sparsemax()), slice(None))
        with pytest.raises(jattn.Unsupported, match="Sparsemax"):
            gradients(implementation, call, *arrays, Partial(D_OUT, D_LSE), Partial(D_OUT, D_LSE))


def test_gradients_of_no_keys_and_under_vmap():
    none = slice(0, 0)
    found = gradients(Tiled(), *prepared(Pieces(masks.Causal()), none), Partial(D_OUT, D_LSE), Partial(D_OUT, D_LSE))
    assert found.key.shape == (2, 0, 2, 4) and not found.query.any()
    call, query, key, value = prepared(Pieces(masks.Causal()), slice(None))
    results, (want, *_) = of_the_whole(call, query, key, value)

    def one(cotangent):
        return gradients(Tiled(4, 4), call, query, key, value, results, Partial(cotangent, D_LSE)).query

    near(jax.vmap(one)(jnp.stack([D_OUT, 0 * D_OUT]))[0], want)


class AllAtOnce(Streaming):
    """The least that a streaming implementation is: two functions of plain arrays. Everything else is given."""

    name = "all at once"

    def refuses(self, call):
        return None if call.pieces.normalizer.streams_as == "softmax" else "it has a softmax alone"

    def stream(self, call, query, key, value):
        plain = dataclasses.replace(call.pieces, normalizer=normalizers.Softmax())
        return Reference().run(dataclasses.replace(call, pieces=plain), query, key, value)

    def gradients(self, call, query, key, value, results, cotangents):
        return Reference().gradients(call, query, key, value, results, cotangents)

    def describe(self, call):
        return None, "everything"


@pytest.mark.exhaustive
def test_a_streaming_implementation_is_two_functions():
    """Its sink, gradients, `vmap` and the refusal of other derivatives need no code of it."""

    def loss(query, bias, sink, implementation):
        pieces = {"scores": scores.Bias(bias), "normalizer": normalizers.Softmax(sink), "mask": masks.Causal()}
        out = jattn.attention(
            query, KEY, VALUE, **pieces, query_positions=QUERY_POSITIONS, implementation=implementation
        )
        return (out * D_OUT).sum()

    both = []
    for implementation in (AllAtOnce(), "reference"):
        step = jax.value_and_grad(functools.partial(loss, implementation=implementation), (0, 1, 2))
        several = jax.vmap(step, (0, None, 0))(jnp.stack([QUERY, 2 * QUERY]), BIAS, jnp.stack([SINK, -SINK]))
        both.append(jax.tree.leaves((step(QUERY, BIAS, jnp.asarray(SINK)), several)))
    for got, want in zip(*both, strict=True):
        near(got, want)
    with pytest.raises(jattn.Unsupported, match="`all at once` has first derivatives in reverse mode only"):
        jax.jvp(lambda query: loss(query, BIAS, SINK, AllAtOnce()), (QUERY,), (QUERY,))
    with pytest.raises(jattn.Unsupported, match="`all at once` refuses this call: it has a softmax alone"):
        jattn.attention(QUERY, KEY, VALUE, normalizer=normalizers.Sigmoid(), implementation=AllAtOnce())

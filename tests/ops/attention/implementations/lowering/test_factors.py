"""Constant factors of scores, moved to the scale, to arrays, and to the exponent: what is left for each pair."""

import jax.numpy as jnp
import numpy as np
import pytest
from lowered_tiles import check

from jattn import normalizers, scores
from jattn.ops.attention.call import Pieces, prepare
from jattn.ops.attention.implementations.lowering import MOSAIC, lower
from jattn.ops.attention.implementations.lowering.expressions import Node, in_order

SLOPES, TABLE = jnp.array([0.5, -0.25]), jnp.linspace(0.0, 1.0, 21)
ALIBI, CAP = scores.ALiBi(SLOPES), scores.SoftCap(4.0)

CHAINS = {
    # name: scores, the factors before and after, and the products, sums and differences left for each pair
    "a soft cap": (CAP, (0.25, 4.0), (0, 0, 0)),
    "slopes, then a soft cap": ((ALIBI, CAP), (0.25, 4.0), (1, 1, 1)),
    "slopes": (ALIBI, (1.0, 1.0), (1, 1, 1)),
    "a soft cap, then slopes": ((CAP, ALIBI), (0.25, 1.0), (2, 1, 1)),
    "a function": (scores.of(lambda s, q, k: 3 * jnp.tanh((s + TABLE[q] - k * TABLE[k]) / 5)), (0.2, 3.0), (0, 2, 0)),
    "a quotient of two caps": ((scores.SoftCap(8.0), CAP), (0.125, 4.0), (1, 0, 0)),
    "a function that is not linear in the scores": (
        (scores.of(lambda s, q, k: s + jnp.sin(s)), CAP),
        (1.0, 4.0),
        (1, 1, 0),
    ),
    "a factor of what has no bound": (scores.of(lambda s, q, k: 2 * jnp.exp(-s)), (1.0, 1.0), (1, 0, 0)),
    "a factor below 0": (scores.of(lambda s, q, k: -2 * jnp.tanh(s)), (1.0, 1.0), (1, 0, 0)),
    "a large cap": (scores.SoftCap(1000.0), (0.001, 1.0), (1, 0, 0)),
    "scores at several places": (scores.of(lambda s, q, k: jnp.tanh(s / 2) + jnp.sin(0.5 * s)), (0.5, 1.0), (0, 1, 0)),
    "scores with several factors": (scores.of(lambda s, q, k: jnp.tanh(s / 2) + jnp.sin(s)), (1.0, 1.0), (1, 1, 0)),
}


def lowered(chain, **pieces):
    array = jnp.zeros((1, 21, 2, 2))
    chain = chain if isinstance(chain, tuple) else (chain,)
    call, *_ = prepare(array, array, array, Pieces(scores=chain, **pieces))
    return call, lower(call, MOSAIC)


@pytest.mark.parametrize("name", CHAINS)
def test_what_is_left(name):
    chain, factors, wanted = CHAINS[name]
    call, low = lowered(chain)
    np.testing.assert_allclose((low.before, low.after), factors, rtol=1e-6)
    nodes = {
        id(value.origin): value.origin.name
        for value in in_order(low._scores, lambda one: one.origin.operands if isinstance(one.origin, Node) else ())
        if isinstance(value.origin, Node) and not low._axes.one_sided(value)
    }
    found = list(nodes.values())
    assert (
        tuple(found.count(name) + found.count(other) for name, other in (("mul", "div"), ("add", ""), ("sub", "")))
        == wanted
    )
    check(call)


def test_an_elementwise_normalizer_gets_whole_scores():
    call, low = lowered((ALIBI, CAP), normalizer=normalizers.Sigmoid())
    assert (low.before, low.after) == (0.25, 1.0)
    check(call)

"""Positions of queries and keys: ambiguous ones are rejected, and those beyond what a piece is made for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import masks, scores

LENGTH = 6
X = jax.random.normal(jax.random.key(0), (2, LENGTH, 2, 4))
IDS = np.array([0, 0, 0, 1, 1, 1])
RESTARTED = np.array([0, 1, 2, 0, 1, 2])
PIECES = {
    "Causal": {"mask": masks.Causal()},
    "packed": {"mask": masks.SameSegment(IDS) & masks.Causal()},
    "window": {"mask": masks.SlidingWindow(2)},
    "Sinks": {"mask": masks.Sinks(2)},
    "function": {"mask": lambda q, k: k <= q},
    "ALiBi": {"scores": scores.ALiBi(np.ones(2, np.float32))},
    "score function": {"scores": lambda s, q, k: s - abs(q - k)},
}


@pytest.mark.parametrize("name", PIECES)
def test_query_positions_alone_say_where_the_keys_are_or_are_refused(name):
    pieces = PIECES[name]

    def attend(at, **more):
        return jax.eval_shape(lambda at: jattn.attention(X, X, X, query_positions=at, **more, **pieces), at)

    what = next(iter(pieces))
    message = (
        f"`query_positions` are given alone, with as many keys as queries \\({LENGTH}\\), and `{what}` depends on key"
    )
    for at in (RESTARTED, np.arange(LENGTH) + 1, jnp.asarray(RESTARTED)):
        with pytest.raises(ValueError, match=message):
            jattn.attention(X, X, X, query_positions=at, **pieces)
    with pytest.raises(ValueError, match=message):  # traced
        attend(jnp.arange(LENGTH))
    attend(jnp.arange(LENGTH), key_positions=np.arange(LENGTH))
    if what == "mask":
        with pytest.raises(ValueError, match=message):
            masks.create(pieces["mask"], LENGTH, LENGTH, query_positions=RESTARTED)
    # Both readings are one, and with other lengths there is one.
    jattn.explain(X, X, X, query_positions=np.arange(LENGTH), **pieces)
    if name != "packed":
        jattn.explain(X[:, :1], X, X, query_positions=np.array([4]), **pieces)


def test_pieces_that_do_not_look_at_keys_take_query_positions_alone():
    for mask in (masks.SameSegment(IDS), masks.of(lambda q, k: q > 1), None):
        jattn.explain(X, X, X, query_positions=RESTARTED, mask=mask)


def test_packed_rows_with_positions_that_begin_again():
    mask = masks.SameSegment(IDS) & masks.Causal()
    whole = jattn.attention(X, X, X, mask=mask, key_positions=RESTARTED)
    parts = [jattn.attention(*[X[:, ids]] * 3, mask=masks.Causal()) for ids in (IDS == 0, IDS == 1)]
    np.testing.assert_allclose(whole, jnp.concatenate(parts, 1), atol=1e-5)


GRIDS = {
    "Neighborhood": masks.Neighborhood((2, 3), (1, 3)),
    "Axial": masks.Axial((2, 3), 0),
    "Blocks": masks.Blocks(np.eye(2, dtype=bool)[None], 3),
    "joined": masks.Neighborhood((2, 3), (1, 3)) & ~masks.Sinks(1),
}


@pytest.mark.parametrize("name", GRIDS)
def test_grids_take_no_more_positions_than_they_have(name):
    grid, longer = GRIDS[name], jnp.concatenate([X[:, :1], X], 1)
    jattn.explain(X, X, X, mask=grid)
    with pytest.raises(ValueError, match="made for 6 positions"):
        grid.picture(LENGTH + 1, LENGTH + 1)
    for pieces in ({"mask": grid}, {"mask": grid | masks.Causal()}):
        with pytest.raises(ValueError, match=r"made for 6 positions, 0 to 5.*`query_positions` up to 6.*Shifted"):
            jattn.attention(longer, longer, longer, **pieces)
    with pytest.raises(ValueError, match="`query_positions` up to 6"):
        jattn.attention(X, X, X, mask=grid, key_positions=np.arange(1, 7))
    with pytest.raises(ValueError, match="`key_positions` up to 6"):
        jattn.attention(X, longer, longer, mask=grid, query_positions=np.arange(6))
    # The remedies: a class token in front, that sees all, and a token behind.
    token = masks.of(lambda q, k: (q == 0) | (k == 0))
    allowed = masks.create(masks.Shifted(grid, 1) | token, LENGTH + 1, LENGTH + 1)[..., :, :].reshape(7, 7)
    np.testing.assert_array_equal(allowed[1:, 1:], masks.create(grid, LENGTH, LENGTH).reshape(6, 6))
    assert allowed[0].all() and allowed[:, 0].all()
    behind = masks.create(masks.Shifted(grid, 0), LENGTH + 1, LENGTH + 1).reshape(7, 7)
    assert not behind[6].any() and not behind[:, 6].any()
    jattn.explain(longer, longer, longer, mask=masks.Shifted(grid, 1) | token)


@pytest.mark.parametrize(
    "at", [np.arange(LENGTH) + 2**31, -np.arange(LENGTH) - 2**31, np.full(LENGTH, 2**32 - 1, "uint32")]
)
def test_positions_outside_int32_are_refused(at):
    attend = functools.partial(jattn.attention, X, X, X, mask=masks.Causal())
    with pytest.raises(ValueError, match="`key_positions` must fit in 32 bits"):
        attend(key_positions=at)
    with pytest.raises(ValueError, match="`query_positions` must fit in 32 bits"):
        attend(query_positions=at, key_positions=np.arange(LENGTH))
    with jax.enable_x64(True), pytest.raises(ValueError, match="must fit in 32 bits"):
        attend(key_positions=jnp.asarray(at))

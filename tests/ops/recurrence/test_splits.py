"""Every form, split in two at every place, equals the whole in float64: values, states and all gradients.

One compilation a kind and form: where to cut is a traced number, and tokens of the other part become such as leave the
state as it is (key, value, β and log decay 0).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recurrences as truth
from recurrences import KINDS, inputs, run, state_of
from tiers import rows

LENGTH, CHUNK = 20, 4
IDS = np.repeat([3, 4, 8, 9], [7, 1, 8, 4])


def part(given, begin, end):
    """Tokens from `begin` to `end`, moved to the front, and neutral ones behind."""
    at = jnp.arange(LENGTH)
    found = {}
    for name, array in given.items():
        if name != "bonus" and array.ndim > 1:
            moved = jnp.roll(array, -begin, 0)
            array = jnp.where((at < end - begin).reshape(-1, *[1] * (array.ndim - 1)), moved, 0)
        found[name] = array
    return found, jnp.asarray(IDS)[jnp.clip(at + begin, 0, jnp.maximum(end - 1, 0))]


def cut_in_two(given, state, split, form, packed):
    """The output and the last state of a run until `split`, and of one that goes on from there."""
    outs = []
    for begin, end in ((0, split), (split, LENGTH)):
        tokens, ids = part(given, begin, end)
        if packed and begin is split:  # a state belongs to its segment
            before = jnp.asarray(IDS)[jnp.maximum(split - 1, 0)]
            state = jnp.where((split > 0) & (split < LENGTH) & (ids[0] != before), 0, state)
        out, state = run(
            tokens, initial_state=state, segment_ids=ids if packed else None, implementation=form, chunk=CHUNK
        )
        outs.append(out)
        if "log_decay" in given and given["log_decay"].ndim == 1:  # neutral tokens decay too, where all do
            state = state * jnp.exp(-given["log_decay"].astype(state.dtype) * (LENGTH - end + begin))[:, None, None]
    at = jnp.arange(LENGTH)[:, None, None]
    return jnp.where(at < split, outs[0], jnp.roll(outs[1], split, 0)), state


@functools.cache
def pulled_back(packed):
    """A function of arrays, state and cotangents: the scan's results and the gradients of all arrays."""

    def both(given, state, cotangents):
        ids = IDS if packed else None
        results, pull = jax.vjp(
            lambda *a: run(a[0], initial_state=a[1], segment_ids=ids, implementation="scan"), given, state
        )
        return results, pull(cotangents)

    return jax.jit(both)


def whole(packed, *arrays):
    """Results and gradients in float64."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda array: np.asarray(array, np.float64), arrays)
        return jax.tree.map(np.asarray, pulled_back(packed)(*wide))


@pytest.mark.exhaustive
@pytest.mark.parametrize("packed", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("form", ["chunked", pytest.param("scan", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("kind", rows(KINDS, ["channel delta"]))
def test_every_split_is_the_whole(kind, form, packed):
    given = inputs(kind, LENGTH, heads=4, k_dim=3, v_dim=2, extreme=True)
    state, rng = state_of(given), np.random.default_rng(8)
    cotangents = rng.normal(size=given["value"].shape), rng.normal(size=state.shape)

    def each(split, given, state, cotangents):
        made, pull = jax.vjp(lambda given, state: cut_in_two(given, state, split, form, packed), given, state)
        return made, pull(cotangents)

    several = jax.jit(jax.vmap(each, (0, None, None, None)))
    narrow = [one.astype(np.float32) for one in cotangents]
    ours, gradients = several(jnp.arange(LENGTH + 1), given, state, tuple(narrow))
    wanted = whole(packed, given, state, cotangents)
    for one, other in zip(jax.tree.leaves((ours, gradients)), jax.tree.leaves(wanted), strict=True):
        for split in range(LENGTH + 1):
            assert truth.relative_error(one[split], other) < 1e-5, split


@pytest.mark.parametrize("kind", rows(KINDS, ["bonus"]))
def test_every_split_in_bfloat16(kind):
    given = inputs(kind, LENGTH, heads=4, k_dim=3, v_dim=2, extreme=True)
    given = {name: jnp.asarray(array, jnp.bfloat16) for name, array in given.items()}
    state = state_of(given)
    several = jax.vmap(lambda split: cut_in_two(given, state, split, "chunked", True))
    out, last = jax.jit(several)(jnp.arange(LENGTH + 1))
    assert out.dtype == jnp.bfloat16 and last.dtype == jnp.float32
    wanted, _ = whole(True, given, state, (given["value"], state))
    for split in range(LENGTH + 1):
        assert truth.relative_error(out[split], wanted[0]) < 4e-3
        assert truth.relative_error(last[split], wanted[1]) < 1e-5

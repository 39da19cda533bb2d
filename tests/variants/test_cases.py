"""Every function of the table of variants equals its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from measure import as_near, near
from tiers import rows
from variant_cases import ROWS, is_float, pullback, truth

from jattn.ops.attention.implementations import Tiled


def each(table=ROWS, always=("local-p", "Linformer")):
    return pytest.mark.parametrize("row", rows(table, always, lambda row: row.name))


EACH = each(always=[row.name for row in ROWS])
# Other ways to call a function that another row calls in every run.
OTHER_WAYS = {
    "fixed, merged",
    "strided, split",
    "fixed, interleaved 1",
    "strided, interleaved 0",
    "hard, log-probability",
    "Luong, global",
    "Luong, local",
    "strided, merged",
    "fixed, interleaved 0",
    "location",
}
SOME = each(always=[row.name for row in ROWS if row.name not in OTHER_WAYS])
WIDE = each(always=("Linformer",))
TILES = Tiled(8, 16)


def split(arrays):
    """Floating-point arrays and the others."""
    floats = {name: one for name, one in arrays.items() if is_float(one)}
    return floats, {name: one for name, one in arrays.items() if name not in floats}


def compare(row, got, seed, **form):
    """Output and gradients are as near to the truth as its plain form, and exactly 0 where nobody looks."""
    want, plain = truth(row, seed, **form), truth(row, seed, **form, plain=True)
    out, gradients = got
    as_near("out", np.asarray(out).astype(np.float64), want.out, plain.out)
    for name, gradient in gradients.items():
        label = f"gradient of {name}"
        as_near(label, np.asarray(gradient).astype(np.float64), want.gradients[name], plain.gradients[name])
    if not form.get("short"):
        sizes = row.size()
        hole = sizes["q"] // 2
        for name, where in row.nowhere(row.draw(seed, sizes), sizes).items() if gradients else ():
            assert not np.asarray(gradients[name])[where].any(), f"gradient of {name}: not 0 where nobody looks"
        for name, axes in row.shapes.items() if row.empty else ():
            if gradients and "q" in axes:
                assert not np.take(np.asarray(gradients[name]), hole, axes.index("q")).any(), (
                    f"gradient of {name}: not 0"
                )
        assert not (row.empty and np.asarray(out)[:, hole].any()), "not 0 where nothing is attended"


def inputs(row, seed):
    """Floating-point arrays, others, and the output's cotangent."""
    sizes = row.size()
    return *split(row.poisoned(row.draw(seed, sizes), sizes)), truth(row, seed).cotangent


@EACH
def test_float64_of_numpy_is_float32(row):
    """Without a warning, where 64 bits are not enabled. JAX would warn while tracing."""
    sizes = row.size()
    arrays = row.draw(0, sizes)
    wide = {name: one.astype(np.float64) if is_float(one) else jnp.asarray(one) for name, one in arrays.items()}
    with row.within():
        out = jax.eval_shape(lambda: row.run(wide, **row.given(sizes, False, None)))
    assert all(leaf.dtype != np.float64 for leaf in jax.tree.leaves(out))


@SOME
def test_value_and_gradients_are_the_definition_and_traced_once(row):
    """With empty rows, NaN where nobody may look, odd lengths, and more queries than keys."""
    sizes, traces = row.size(), []

    @jax.jit
    def run(*arguments):
        traces.append(None)
        return pullback(row, sizes, True, TILES)(*arguments)

    with row.within():
        for seed in (0, 1):
            compare(row, run(*inputs(row, seed)), seed)
    assert len(traces) == 1, "new values were traced again"


@WIDE
def test_vmap(row):
    """Over every array, along the first axis and the second in turn."""
    sizes, lanes = row.size(), [inputs(row, seed) for seed in (0, 1)]
    axes = {name: min(index % 2, one.ndim) for index, (name, one) in enumerate(lanes[0][0].items())}
    floats = {name: np.stack([lane[0][name] for lane in lanes], axis) for name, axis in axes.items()}
    others, cotangents = (jax.tree.map(lambda *one: np.stack(one), *(lane[i] for lane in lanes)) for i in (1, 2))
    run = jax.jit(jax.vmap(pullback(row, sizes, True, TILES), in_axes=(axes, 0, 0)))
    with row.within():
        out, gradients = run(floats, others, cotangents)
    for seed in (0, 1):
        compare(row, (out[seed], {name: one[seed] for name, one in gradients.items()}), seed)


@WIDE
def test_float64_is_float64_throughout(row):
    sizes, want = row.size(), truth(row, 0)
    floats, others, cotangent = inputs(row, 0)
    with row.within(), jax.enable_x64(True):
        wide, given = {name: np.float64(one) for name, one in floats.items()}, row.given(sizes, True, TILES)
        out = jax.jit(lambda floats: row.run({**others, **floats}, **given))(wide)
        _, gradients = jax.eval_shape(pullback(row, sizes, True, TILES), wide, others, np.float64(cotangent))
    assert {one.dtype for one in (out, *gradients.values())} == {np.dtype("float64")}
    near(out, want.out, 1e-11)


@WIDE
def test_one_token(row):
    """Or as few as there can be, by the reference."""
    sizes = row.shortest()
    given = *split(row.draw(0, sizes)), truth(row, 0, short=True).cotangent
    with row.within():
        got = jax.jit(pullback(row, sizes, False, "reference"))(*given)
    compare(row, got, 0, short=True)


@each([row for row in ROWS if not row.lengths], ["local-p"])
def test_no_keys(row):
    sizes = row.size(k=0, **({} if row.refused is None else {"q": 0}))
    floats, others = split(row.draw(0, sizes))

    @jax.jit
    def run(floats):
        out, pull = jax.vjp(lambda floats: row.run({**others, **floats}, **row.given(sizes, False, TILES)), floats)
        return out, *pull(jnp.ones_like(out))

    with row.within():
        out, gradients = run(floats)
    assert out.shape == truth(row, 0).out.shape or row.refused is not None
    assert all(np.isfinite(one).all() for one in (out, *gradients.values()))
    if row.empty:
        assert not any(np.asarray(one).any() for one in (out, *gradients.values()))


@each([row for row in ROWS if row.stored])
def test_bfloat16_is_as_near_as_the_plain_form(row):
    sizes = row.size()
    floats, others = split(row.poisoned(row.draw(0, sizes, "bfloat16"), sizes))
    floats = {name: jnp.asarray(one, "bfloat16" if name in row.stored else "float32") for name, one in floats.items()}
    given = row.given(sizes, True, TILES)
    with row.within():
        out = jax.jit(lambda floats: row.run({**others, **floats}, **given))(floats)
        compare(row, (out, {}), 0, storage="bfloat16")
        assert out.dtype == (row.stays or jnp.bfloat16)
        _, gradients = jax.eval_shape(pullback(row, sizes, True, TILES), floats, others, out)
    assert {name: one.dtype for name, one in gradients.items()} == {name: one.dtype for name, one in floats.items()}


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=row.name.replace(" ", "-")) for row in ROWS if row.refused is not None]
)
def test_self_attention_says_so(row):
    """Where queries and keys are of one sequence, other lengths are refused by name."""
    sizes = row.size(q=5, k=7)
    floats, others = split(row.draw(0, sizes))
    with pytest.raises(ValueError, match=row.refused):
        row.run({**floats, **others}, **row.given(sizes, False, None))

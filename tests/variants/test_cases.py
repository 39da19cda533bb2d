"""Every function of the table of variants, as its definition has it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import QUICK
from measure import as_near
from variant_cases import ROWS, is_float, pullback, truth

from jattn.implementations import Chunked

EACH = pytest.mark.parametrize("row", [pytest.param(row, id=row.name.replace(" ", "-")) for row in ROWS])
TILES = Chunked(8, 16)


def split(arrays):
    """Floating-point arrays and the others."""
    floats = {name: one for name, one in arrays.items() if is_float(one)}
    return floats, {name: one for name, one in arrays.items() if name not in floats}


def compare(row, got, seed, lengths=None, holes=True, storage=None):
    """Output and gradients are as near to the truth as its plain form, and exactly 0 where nobody looks."""
    want, plain = (truth(row, seed, lengths, holes, storage=storage, plain=rough) for rough in (False, True))
    out, gradients = got
    labels = {"out": (out, want[0], plain[0])}
    if gradients is not None:
        labels |= {f"gradient of {name}": (gradients[name], want[2][name], plain[2][name]) for name in want[2]}
    for label, (have, wish, rough) in labels.items():
        as_near(label, np.asarray(have).astype(np.float64), wish, rough)
    if holes:
        nowhere = row.nowhere(row.draw(seed, row.size()), row.size())
        for name, where in nowhere.items() if gradients is not None else ():
            assert not np.asarray(gradients[name])[where].any(), f"gradient of {name}: not 0 where nobody looks"
        if row.empty:
            assert not np.asarray(out)[:, row.size()["q"] // 2].any(), "not 0 where nothing is attended"


def inputs(row, seed, sizes, holes=True):
    arrays = row.draw(seed, sizes)
    floats, others = split(row.poisoned(arrays, sizes) if holes else arrays)
    return floats, others


@EACH
def test_value_and_gradients_are_the_definition_and_traced_once(row):
    """With empty rows, NaN where nobody may look, odd lengths, and more queries than keys."""
    sizes, traces = row.size(), []

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(*arguments):
        traces.append(None)
        return pullback(row, sizes, True, TILES)(*arguments)

    with row.within():
        for seed in (0, 1):
            compare(
                row, run(*inputs(row, seed, sizes), truth(row, seed, None, True, storage=None, plain=False)[1]), seed
            )
    assert len(traces) == 1, "new values were traced again"


@EACH
def test_vmap(row):
    """Over every array, along the first axis and the second in turn."""
    sizes = row.size()
    lanes = [(*inputs(row, seed, sizes), truth(row, seed, None, True, storage=None, plain=False)[1]) for seed in (0, 1)]
    axes = {name: min(index % 2, one.ndim) for index, (name, one) in enumerate(lanes[0][0].items())}
    floats = {name: np.stack([lane[0][name] for lane in lanes], axis) for name, axis in axes.items()}
    others, cotangents = (jax.tree.map(lambda *one: np.stack(one), *(lane[i] for lane in lanes)) for i in (1, 2))
    run = jax.jit(jax.vmap(pullback(row, sizes, True, TILES), in_axes=(axes, 0, 0)), compiler_options=QUICK)
    with row.within():
        out, gradients = run(floats, others, cotangents)
    for seed in (0, 1):
        compare(row, (out[seed], {name: one[seed] for name, one in gradients.items()}), seed)


@EACH
def test_one_token(row):
    sizes = row.size(q=row.short[0], k=row.short[1])
    given = *inputs(row, 0, sizes, False), truth(row, 0, row.short, False, storage=None, plain=False)[1]
    with row.within():
        got = jax.jit(pullback(row, sizes, False, "reference"), compiler_options=QUICK)(*given)
    compare(row, got, 0, row.short, False)


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name.replace(" ", "-")) for row in ROWS if row.stored])
def test_bfloat16_is_as_near_as_the_plain_form(row):
    sizes = row.size()
    floats, others = split(row.poisoned(row.draw(0, sizes, "bfloat16"), sizes))
    floats = {name: jnp.asarray(one, "bfloat16" if name in row.stored else "float32") for name, one in floats.items()}
    given = row.given(sizes, True, TILES)
    with row.within():
        out = jax.jit(lambda floats: row.run({**others, **floats}, **given), compiler_options=QUICK)(floats)
        compare(row, (out, None), 0, storage="bfloat16")
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

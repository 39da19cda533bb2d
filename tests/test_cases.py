"""Every row of the table through every implementation: it agrees with the oracle, or refuses where the row says so."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, TILES
from measure import call, compare, draw, everything, in_order, near, poisoned, truth
from tiers import rows

import jattn

REFUSED = {("tiled", "sparsemax"), ("tiled", "entmax 1.5")}  # they need whole rows

# Where the axis that is mapped over stands in query, key, value and the arrays of the pieces.
IN_AXES = [
    (0, 0, 0, 0),
    (0, None, None, None),
    (None, 1, 0, None),
    (-1, 2, None, 0),
    (None, None, -2, None),
    (1, 0, 1, 0),
]

# What `vmap` and bfloat16 are tested with in every run; with all rows, where --everything is asked for.
FEW = {"bias, then soft cap, then alibi, causal", "entmax 1.5"}
# Rows that go on from another of their kind, which is tested in every run, and pieces that have tests of their values
# and gradients in a folder of their own.
FURTHER = {
    "tree of candidates",
    "longformer, traced",
    "dilated",
    "table of blocks",
    "prefix of each sequence",
    "continuations of a prefix",
    "strided, merged",
    "fixed, split",
    "bigbird, a table for each head",
    "axial",
    "neighborhood",
    "block diffusion",
    "block causal",
    "chunked causal",
    "sparse transformer",
    "blocked local",
    "window and sinks",
    "a table of the offsets in a grid",
    "relative dot, of Shaw",
    "length 1000",
    "open window",
    "not a window",
    "blocks of two sizes",
    "key blocks chosen by query blocks of each head",
    "a where of two masks",
    "strided, split",
    "strided, layer of columns",
    "fixed, merged",
    "fixed, layer of summaries",
    "fixed, in documents",
    "window and sinks, in documents",
    "longformer, dilation and globals",
    "longformer, causal",
    "bigbird, traced tables",
    "bigbird, extra globals",
    "blocked local, causal",
    "neighborhood, one axis, dilated",
    "neighborhood, three axes",
    "axial, three axes",
    "relative buckets of the past",
    "shared bilinear",
    "softmax with a sink of each query",
    "a window and a Gaussian around centers",
    "keys chosen by each query",
    "gaussian, alibi, sink, grouped, window",
    "relative logits of queries",
    "relative logits from a table, of coordinates",
    "flags of queries and keys, and of heads that see summaries",
    "bias of queries and of keys",
    "soft cap",
    "alibi",
    "dot",
    "one key head",
    "no batch",
    "longformer",
    "a shard of the keys",
    "plain",
    "more keys than queries",
    "off by one",
    "cosine",
    "bilinear",
    "length 63",
    "gaussian",
    "relative dot, with both biases",
    "forget",
    "relu",
    "two batch axes",
    "more queries than keys",
}
IMPLEMENTATIONS = pytest.mark.parametrize("name", rows(["reference", "tiled"], ["tiled"]))


def implementation(case, name):
    return TILES[case.name] if name == "tiled" else name


def place(case, inputs, dtype):
    """The inputs as JAX arrays, with NaN and inf where nobody looks."""
    key, value = poisoned(case, inputs.key, inputs.value)
    arrays = {name: jnp.asarray(array) for name, array in inputs.arrays.items()}
    floats = {name: arrays.pop(name) for name in inputs.floats}
    out, *lse = inputs.cotangents
    cotangents = (jnp.asarray(out, dtype), *map(jnp.asarray, lse))
    return *(jnp.asarray(array, dtype) for array in (inputs.query, key, value)), floats, arrays, cotangents


def refused(case, name):
    """Whether the table says that this implementation refuses the row; then it must, with a reason."""
    if (name, case.name) not in REFUSED:
        return False
    inputs = place(case, draw(case, 0), "float32")
    with pytest.raises(jattn.Unsupported, match="sorting all of its scores"):
        call(case, implementation(case, name), *inputs[:3], {**inputs[3], **inputs[4]})
    return True


@functools.cache
def compiled(case, name):
    """Results and all gradients of a row, and a list that is one longer for every time it was traced."""
    traces = []

    @jax.jit
    def run(*arguments):
        traces.append(None)
        return everything(case, implementation(case, name))(*arguments)

    return run, traces


@pytest.mark.parametrize(
    ("case", "name"),
    [
        pytest.param(*row.values, name, id=f"{row.id}-{name}", marks=row.marks)
        for name, always in (("tiled", {case.name for case in CASES} - FURTHER), ("reference", {"sparsemax", *FEW}))
        for row in rows(CASES, always, lambda case: case.name)
    ],
)
def test_agrees_with_the_truth_and_is_traced_once(case, name):
    if refused(case, name):
        return
    run, traces = compiled(case, name)
    for seed in (0, 1):
        compare(case, run(*place(case, draw(case, seed), "float32")), seed)
    assert len(traces) == 1, "new values were traced again"


@IMPLEMENTATIONS
@pytest.mark.parametrize("case", rows((case for case in CASES if case.bfloat16), FEW, lambda case: case.name))
def test_bfloat16_is_as_near_as_the_plain_reference(case, name):
    if refused(case, name):
        return
    inputs = place(case, draw(case, 0, "bfloat16"), "bfloat16")
    got = jax.jit(everything(case, implementation(case, name)))(*inputs)
    compare(case, got, 0, "bfloat16")
    (out, *lse), gradients = got
    assert out.dtype == jnp.bfloat16 and all(item.dtype == jnp.float32 for item in lse)
    for gradient, array in zip(jax.tree.leaves(gradients), jax.tree.leaves(inputs[:4]), strict=True):
        assert gradient.dtype == array.dtype


# One of each piece that computes something of its own.
WIDE = [
    "packed segments",
    "additive",
    "bias, then soft cap, then alibi, causal",
    "a function over an array",
    "keys chosen by each query",
    "sigmoid",
    "sparsemax",
]


@pytest.mark.parametrize(
    "case",
    rows(
        (case for case in CASES if case.name in WIDE or "gaussian" in case.name.lower()),
        {"additive", "gaussian"},
        lambda case: case.name,
    ),
)
def test_float64_is_float64_throughout(case):
    name = "reference" if ("tiled", case.name) in REFUSED else "tiled"
    inputs, wanted = draw(case, 0), truth(case, 0)
    key, value = poisoned(case, inputs.key, inputs.value)
    with jax.enable_x64(True):
        arrays = {at: np.float64(one) if at in inputs.floats else one for at, one in inputs.arrays.items()}
        wide = [np.float64(one) for one in (inputs.query, key, value)]
        got = jax.jit(functools.partial(call, case, implementation(case, name)))(*wide, arrays)
    for have, want in zip(got, wanted, strict=False):
        assert have.dtype == np.float64
        near(have, want, 1e-11)


@IMPLEMENTATIONS
@pytest.mark.parametrize(
    ("case", "axes"),
    [
        pytest.param(*row.values, IN_AXES[i % len(IN_AXES)], id=row.id, marks=row.marks)
        for i, row in enumerate(rows((case for case in CASES if case.vmap), FEW, lambda case: case.name))
    ],
)
def test_vmap(case, axes, name):
    if refused(case, name):
        return
    lanes = [place(case, draw(case, seed), "float32") for seed in (0, 1)]
    if not (lanes[0][3] or lanes[0][4]):
        axes = (*axes[:3], None)
    mapped = tuple(axis for axis in (*axes, axes[3], 0))

    def stacked(axis, *items):
        if axis is None:
            return items[0]
        # In NumPy, where it is not a program for every shape.
        return jax.tree.map(lambda *leaves: np.stack(leaves, axis if axis >= 0 else leaves[0].ndim + 1 + axis), *items)

    inputs = [stacked(axis, *items) for axis, *items in zip(mapped, *lanes, strict=True)]
    mapped_over = jax.vmap(everything(case, implementation(case, name)), in_axes=mapped)
    run = jax.jit(mapped_over)
    got = in_order(run(*inputs))
    one, _ = compiled(case, "reference")
    for lane, seed in enumerate((0, 1)):
        arguments = [
            item if axis is None else lanes[seed][i] for i, (axis, item) in enumerate(zip(mapped, inputs, strict=True))
        ]
        want = in_order(one(*arguments))
        for have, wish in zip(got, want, strict=True):
            have, wish = np.asarray(have), np.asarray(wish)
            largest = max(1.0, np.abs(wish[np.isfinite(wish)]).max(initial=0))
            np.testing.assert_allclose(have[lane], wish, rtol=0, atol=1e-5 * largest)


EAGER = [
    "one query, one key",
    "causal",
    "packed segments",
    "additive",
    "bias, then soft cap, then alibi, causal",
    "sigmoid",
]


@IMPLEMENTATIONS
@pytest.mark.parametrize(
    "case", rows((case for case in CASES if case.name in EAGER), {"causal"}, lambda case: case.name)
)
def test_jit_equals_eager(case, name):
    query, key, value, floats, others, _ = place(case, draw(case, 0), "float32")
    run = functools.partial(call, case, implementation(case, name))
    eager, compiled = (f(query, key, value, {**floats, **others}) for f in (run, jax.jit(run)))
    for have, want in zip(eager, compiled, strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-6)


@pytest.mark.exhaustive
def test_nested_vmap():
    """Two mapped axes over a call that has a batch of its own."""
    case = next(case for case in CASES if case.name == "window of each head")
    run = everything(case, implementation(case, "tiled"))
    lanes = [place(case, draw(case, seed), "float32") for seed in range(4)]
    stack = jax.tree.map(lambda *leaves: np.stack(leaves).reshape(2, 2, *leaves[0].shape), *lanes)
    got = in_order(
        jax.jit(jax.vmap(jax.vmap(run, in_axes=1), in_axes=0))(*jax.tree.map(lambda x: x.swapaxes(1, 2), stack))
    )
    one, _ = compiled(case, "tiled")
    for seed in range(4):
        for have, want in zip(got, in_order(one(*lanes[seed])), strict=True):
            np.testing.assert_allclose(np.asarray(have)[divmod(seed, 2)], want, rtol=0, atol=1e-5)

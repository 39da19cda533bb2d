"""The kernel in interpret mode: values, lse and gradients of the table of calls, and of calls over several tiles."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from measure import as_near, compare, draw, everything, in_order, names, near, poisoned, random, truth
from tiers import rows

import jattn
from jattn import masks, scores, similarities
from jattn.foundation.pieces import array, piece
from jattn.normalizers import Sigmoid, Softmax
from jattn.ops.attention.implementations.pallas_tpu import PallasTPU, doubled, forward, geometry, tables

KERNEL = PallasTPU(q_tile=128, kv_tile=128, interpret=True)

REFUSED = {
    "sparsemax": "Sparsemax cannot stream",
    "entmax 1.5": "Entmax15 cannot stream",
}
"""Rows of the table that the kernel refuses, and a part of its reason."""

LSE = 2**-16
"""Its error in bfloat16: `partial_attention` takes it from the sum of the weights before they are rounded."""

ALWAYS = {"bias, then soft cap, then alibi, causal"}


def test_memory_is_nan_until_it_is_written():
    """The interpreter fills results and scratch with NaN: every test of values would see a kernel that reads them."""

    def copy(out, scratch):
        out[:1] = scratch[:1]

    shape = (8, 128)
    out_shape, scratch = jax.ShapeDtypeStruct(shape, "float32"), pltpu.VMEM(shape, jnp.float32)
    out = pl.pallas_call(copy, out_shape=out_shape, scratch_shapes=[scratch], interpret=True)()
    assert np.isnan(out).all()


@pytest.mark.parametrize("case", rows(CASES, ALWAYS, lambda case: case.name))
def test_case(case):
    if case.name in REFUSED:
        with pytest.raises(jattn.Unsupported, match=REFUSED[case.name]):
            _run(case, "float32")
    else:
        compare(case, _run(case, "float32"), 0)


@pytest.mark.parametrize("case", rows(CASES, {"grouped queries"}, lambda case: case.name))
def test_case_in_bfloat16(case):
    """Weights and gradients of scores are rounded for products.

    So an error may be twice as large, beside that of the plain reference, as in float32. A gradient that is a sum over
    all pairs, like that of a temperature, may also be off by a sixteenth of a unit of bfloat16: the gradients of the
    scores of a row sum to 0 only up to their rounding.
    """
    if not case.bfloat16 or case.name in REFUSED:
        pytest.skip("another row tests it")
    found = in_order(_run(case, "bfloat16"))
    wanted, plain = truth(case, 0, "bfloat16"), truth(case, 0, "bfloat16", plain=True)
    for label, have, want, rough in zip(names(case, 0), found, wanted, plain, strict=True):
        have = np.asarray(have).astype(np.float64)
        if label == "lse":
            np.testing.assert_allclose(have, want, atol=LSE, rtol=0)
        else:
            error = 2 * np.abs(rough - want)
            if label.startswith("gradient"):
                error = np.maximum(error, 2.0**-13 * np.abs(want).max())
            as_near(label, have, want, want + error)


def _run(case, storage):
    inputs = draw(case, 0, storage)
    key, value = poisoned(case, inputs.key, inputs.value)
    out_cotangent, *rest = inputs.cotangents
    query, key, value, out_cotangent = (jnp.asarray(one, storage) for one in (inputs.query, key, value, out_cotangent))
    others = {name: array for name, array in inputs.arrays.items() if name not in inputs.floats}
    cotangents = (out_cotangent, *rest)
    return jax.jit(everything(case, KERNEL))(query, key, value, inputs.floats, others, cotangents)


@piece
class Distance(similarities.Similarity):
    """-√(Σ_f weight_f (q_f - k_f)²) times a factor of the head: a sum over features, with more around it."""

    weight: jax.Array = array("feature")
    factor: jax.Array = array("head")
    is_dot = False
    rewrites_key = False

    def prepare(self, query, key):
        return similarities.dot.Prepared(query, key, 0.5)

    def pair(self, query, key):
        key = jnp.repeat(key, query.shape[-3] // key.shape[-3], axis=-3)
        apart = query[..., :, None, :].astype(jnp.float32) - key[..., None, :, :].astype(jnp.float32)
        return -jnp.sqrt(1e-3 + (self.weight * apart * apart).mean(-1)) * self.factor


IDS = np.repeat(np.arange(4), 50)
LONG = {
    # name: (q_len, kv_len, q_heads, kv_heads, qk_dim, v_dim), pieces of the arrays, shapes of arrays
    "one head": ((130, 300, 1, 1, 8, 8), lambda: {}, ()),
    "values without features": ((130, 140, 1, 1, 8, 0), lambda: {}, ()),
    "two key heads, padding": ((200, 200, 2, 2, 12, 20), lambda: {"mask": masks.SlidingWindow(60, 0)}, ()),
    "segments, scores": (
        (200, 200, 2, 1, 8, 8),
        lambda slopes: {
            "mask": masks.SameSegment(jnp.asarray(IDS)) & masks.Causal(),
            "scores": (scores.ALiBi(slopes), scores.SoftCap(5.0)),
        },
        ((2,),),
    ),
    "additive": (
        (200, 300, 2, 1, 8, 8),
        lambda query, key, vector, bias: {"similarity": similarities.Additive(query, key, vector, bias)},
        ((8, 11), (8, 11), (2, 11), (11,)),
    ),
    "a distance": (
        (200, 200, 4, 2, 12, 8),
        lambda weight, factor: {"similarity": Distance(jnp.exp(weight), factor), "mask": masks.SlidingWindow(60, 0)},
        ((12,), (4,)),
    ),
    "biases": (
        (200, 200, 2, 1, 8, 8),
        lambda shared, of_keys, of_queries, distances: {
            "mask": masks.Causal(),
            "scores": (
                scores.Bias(shared),
                scores.Bias(of_keys),
                scores.Bias(of_queries),
                scores.RelativeBuckets(distances),
            ),
        },
        ((1, 200, 200), (2, 1, 200), (1, 200, 1), (32, 2)),
    ),
}


def results(implementation, arrays, pieces):
    """Results, and gradients for fixed cotangents."""

    def run(query, key, value, *others):
        return tuple(jattn.partial_attention(query, key, value, **pieces(*others), implementation=implementation))

    @jax.jit
    def both(*arrays):
        out, pull = jax.vjp(run, *arrays)
        return out, pull(tuple(random(*(one.shape for one in out), seed=1)))

    return both(*arrays)


@pytest.mark.parametrize("name", rows(LONG, ["segments, scores"]))
def test_tiles_are_those_of_the_reference(name):
    _compare_long(name)


def _compare_long(name, kernel=KERNEL):
    (q_len, kv_len, q_heads, kv_heads, qk_dim, v_dim), pieces, shapes = LONG[name]
    arrays = random((q_len, q_heads, qk_dim), (kv_len, kv_heads, qk_dim), (kv_len, kv_heads, v_dim), *shapes)
    have, want = (results(one, arrays, pieces) for one in (kernel, "reference"))
    jax.tree.map(near, have, want)


@pytest.mark.exhaustive
def test_float16_is_computed_in_float32():
    """As near to float64 as from the same numbers in float32, but for the rounding of the results."""
    arrays = random((200, 2, 8), (200, 1, 8), (200, 1, 8))
    arrays = [one.astype(jnp.float16) for one in arrays]

    def run(*arrays):
        return jattn.attention(*arrays, mask=masks.Causal(), implementation=KERNEL)

    have, pull = jax.vjp(run, *arrays)
    want, pull_wide = jax.vjp(run, *(one.astype(jnp.float32) for one in arrays))
    cotangent = jnp.sin(want).astype(jnp.float16)
    for one, other in zip((have, *pull(cotangent)), (want, *pull_wide(cotangent.astype(jnp.float32))), strict=True):
        assert one.dtype == jnp.float16
        np.testing.assert_array_equal(one, other.astype(jnp.float16))


NO_ROOM = {"forward": 0, "backward": 0, "gradients": 0}


@pytest.mark.parametrize(
    ("name", "heads", "shares"),
    [
        ("one head", 1, {"forward": 0, "backward": 1 / 8, "gradients": 80 / 2**16}),  # chunks of two tiles
        pytest.param("segments, scores", 2, NO_ROOM, marks=pytest.mark.exhaustive),
        pytest.param("biases", 2, NO_ROOM, marks=pytest.mark.exhaustive),
    ],
)
def test_what_does_not_fit_is_fetched_as_the_lists_say(name, heads, shares, monkeypatch):
    """Keys by copies, gradients of keys in chunks, a row of a list at a time: what long sequences need."""
    monkeypatch.setattr(geometry, "RESIDENT", shares)
    monkeypatch.setattr(tables, "WHOLE", 0)
    _compare_long(name, dataclasses.replace(KERNEL, heads=heads))  # not the program of the test above


@pytest.mark.exhaustive
def test_long_loops_of_the_backward_pass_have_half_the_heads(monkeypatch):
    """On v5e, whose loops are the longest."""
    cuts = []
    real = geometry.for_backward
    monkeypatch.setattr(geometry, "for_backward", lambda *given, **long: cuts.append(real(*given, **long)) or cuts[-1])
    arrays = [one.astype(jnp.bfloat16) for one in random((200, 4, 8), (200, 2, 8), (200, 2, 8))]

    def gradients(implementation):
        def run(*arrays):
            return jattn.attention(*arrays, normalizer=Sigmoid(bias=-2.0), implementation=implementation)

        _, pull = jax.vjp(run, *arrays)
        return pull(jnp.sin(arrays[0]))  # not of the output, which each rounds in its own way

    with jattn.compiled_for("tpu v5e"):
        have = gradients(PallasTPU(interpret=True))
    assert cuts[0].heads == 2
    for one, other in zip(have, gradients("reference"), strict=True):
        near(one.astype(jnp.float32), other.astype(jnp.float32), 0.03)  # of numbers rounded twice


def test_twice_the_heads_of_a_step_forward(monkeypatch):
    """Where a generation gains by it, and all heads visit the same tiles."""
    monkeypatch.setattr(doubled, "GENERATIONS", (None,))  # that of a CPU
    cuts, real = [], forward.attend
    monkeypatch.setattr(forward, "attend", lambda design, *given: cuts.append(design.cut) or real(design, *given))
    arrays = [one.astype(jnp.bfloat16) for one in random((200, 8, 8), (200, 2, 8), (200, 2, 8))]

    def results(implementation, mask):
        run = jax.jit(functools.partial(jattn.attention, mask=mask, implementation=implementation))
        return run(*arrays).astype(jnp.float32)

    for mask, heads in ((masks.Causal(), 8), (masks.SlidingWindow(np.repeat([10, 150], 4), 0), 4)):
        have = results(PallasTPU(interpret=True), mask)
        assert {cut.heads for cut in cuts} == {heads}
        near(have, results("reference", mask), 0.02)
        cuts.clear()


def test_nan_and_inf_reach_who_may_attend_to_them():
    query, key, value = random((200, 2, 8), (200, 1, 8), (200, 1, 8))
    value = value.at[30, 0, 3].set(jnp.inf).at[150, 0, 5].set(jnp.nan)
    have, want = (
        jattn.attention(query, key, value, mask=masks.Causal(), implementation=one) for one in (KERNEL, "reference")
    )
    np.testing.assert_array_equal(np.isnan(have), np.isnan(want))
    np.testing.assert_array_equal(np.isposinf(have), np.isposinf(want))


@pytest.mark.parametrize("normalizer", [Softmax(), Sigmoid()], ids=["softmax", "sigmoid"])
def test_nan_of_a_query_reaches_the_keys_it_attends_to(normalizer):
    """And no masked keys of its tile; so does NaN of its cotangent."""
    query, key, value, cotangent = random((140, 2, 8), (140, 1, 8), (140, 1, 8), (140, 2, 8))
    inputs = (query.at[50, 0, 3].set(jnp.nan), cotangent), (query, cotangent.at[90, 1, 2].set(jnp.nan))

    def of_key(implementation):
        def run(query, key):
            pieces = {"mask": masks.SlidingWindow(20, 0), "normalizer": normalizer}
            return jattn.attention(query, key, value, **pieces, implementation=implementation)

        pulled = jax.jit(lambda query, cotangent: jax.vjp(run, query, key)[1](cotangent))
        return [np.isnan(pulled(*one)[1]).any((1, 2)) for one in inputs]

    np.testing.assert_array_equal(of_key(KERNEL), of_key("reference"))


@pytest.mark.parametrize(("q_len", "parts"), [(500, 4), (600, 2)])
def test_a_single_head_has_four_parts_if_that_pads_no_more(q_len, parts, monkeypatch):
    cuts, real = [], forward.attend
    monkeypatch.setattr(forward, "attend", lambda design, *given: cuts.append(design.cut) or real(design, *given))
    arrays = [one.astype(jnp.bfloat16) for one in random((q_len, 1, 8), (130, 1, 8), (130, 1, 8))]

    def both(implementation):
        out, pull = jax.vjp(functools.partial(jattn.attention, implementation=implementation), *arrays)
        return out, *pull(jnp.sin(arrays[0]))

    for have, want in zip(both(KERNEL), both("reference"), strict=True):
        near(have.astype(jnp.float32), want.astype(jnp.float32), 0.03)
    assert cuts[0].parts == parts


@pytest.mark.exhaustive
def test_a_negative_scale_of_rounded_scores():
    arrays = [20 * one.astype(jnp.bfloat16) for one in random((130, 2, 8), (130, 1, 8), (130, 1, 8))]
    pieces = {"mask": masks.Causal(), "similarity": similarities.Dot(-1.0)}
    have, want = (jattn.attention(*arrays, **pieces, implementation=one) for one in (KERNEL, "reference"))
    np.testing.assert_allclose(have.astype(np.float32), want.astype(np.float32), atol=0.25, rtol=2**-7)


@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="the simulator of TPUs needs a newer JAX")
@pytest.mark.parametrize("target", ["tpu v5e", pytest.param("tpu v4", marks=pytest.mark.exhaustive)])  # 1 core, 2 cores
def test_heads_of_two_devices(target):
    """Inside of `shard_map` a kernel is simulated; the gradient of shared slopes is the sum over devices.

    The simulator takes steps that may be parallel in any order.
    """
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:2])
    arrays = random((2, 130, 4, 8), (2, 130, 4, 8), (2, 130, 4, 8), (4,))
    split = [jax.device_put(one, NamedSharding(mesh, P(None, None, "x"))) for one in arrays[:3]]
    kernel = dataclasses.replace(KERNEL, heads=1)

    def gradients(implementation, *arrays):
        def run(query, key, value, slopes):
            pieces = {"mask": masks.Causal(), "scores": scores.ALiBi(0.1 * slopes)}
            return jnp.sin(jattn.attention(query, key, value, **pieces, implementation=implementation))

        out, pull = jax.vjp(run, *arrays)
        return out, pull(out)

    with jattn.compiled_for(target):
        have = jax.jit(gradients, static_argnums=0)(kernel, *split, arrays[3])
    want = gradients("reference", *arrays)
    jax.tree.map(lambda one, other: near(jax.device_get(one), other), have, want)

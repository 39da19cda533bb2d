"""The compiler for TPUs has every primitive that a tile is evaluated with, also in derivatives. Nothing runs."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from pair_functions import FUNCTIONS
from tpu import compiled, needs_libtpu

from jattn import scores
from jattn.foundation.target import as_target
from jattn.ops.attention.call import Pieces, prepare
from jattn.ops.attention.implementations.lowering import lower, mosaic

pytestmark = needs_libtpu

SIZE = 128


def kernel(low, raw_ref, query_ref, key_ref, *refs):
    """The scores of a tile, and the gradients of the raw scores and the fields."""
    fields, (out_ref, *gradient_refs) = refs[: len(low.kinds)], refs[len(low.kinds) :]
    given = [ref[...] for ref in fields]
    floats = [place for place, one in enumerate(low.differentiable) if one]

    def run(raw, some):
        seen = list(given)
        for place, one in zip(floats, some, strict=True):
            seen[place] = one
        return low.tile(seen, query_ref[...], key_ref[...]).scores(raw, raw > 0)

    out, pull = jax.vjp(run, raw_ref[...], [given[place] for place in floats])
    out_ref[...] = out
    for ref, gradient in zip(gradient_refs, jax.tree.leaves(pull(jnp.where(raw_ref[...] > 0, out, 0))), strict=True):
        ref[...] = gradient


@pytest.mark.parametrize("generation", ["v5e", pytest.param("v6e", marks=pytest.mark.exhaustive)])
def test_every_primitive_compiles(generation):
    array = jnp.zeros((1, SIZE, 1, 8))
    shapes = {"none": (1, 1), "query": (1, SIZE), "key": (SIZE, 1), "pair": (SIZE, SIZE)}

    def run(raw, query, key):
        results = {}
        for name, function in FUNCTIONS.items():
            call, *_ = prepare(array, array, array, Pieces(scores=scores.of(function)))
            low = lower(call, mosaic(as_target(f"tpu {generation}")))
            fields = [
                jnp.zeros(shapes[kind], one.dtype) for kind, one in zip(low.kinds, low.fields(call.pieces), strict=True)
            ]
            outs = [raw, raw, *(one for one, wanted in zip(fields, low.differentiable, strict=True) if wanted)]
            results[name] = pl.pallas_call(
                lambda *refs, low=low: kernel(low, *refs),
                out_shape=[jax.ShapeDtypeStruct(one.shape, jnp.float32) for one in outs],
                name="tile",
            )(raw, query, key, *fields)
        return results

    raw = jax.ShapeDtypeStruct((SIZE, SIZE), jnp.float32)
    query, key = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((1, SIZE), (SIZE, 1)))
    _, text = compiled(generation, run, raw, query, key)
    assert text.count("tpu_custom_call") >= len(FUNCTIONS)

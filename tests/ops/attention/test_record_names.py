"""Recordings have names, print a table and refuse what they cannot record."""

import contextlib

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from recordings import (
    FEATURES,
    HEADS,
    MODEL,
    X,
    attend,
    twice,
)

import jattn
import jattn.linen
import jattn.nnx
from jattn.models import t5
from jattn.variants.sparse import Longformer


def test_names_of_a_whole_model():
    config = t5.T5Config(vocabulary=9, features=8, head_dim=4, mlp_features=8, depth=2, heads=2)
    model = nnx.eval_shape(lambda: t5.T5ForConditionalGeneration(config, rngs=nnx.Rngs(0)))
    tokens = jnp.zeros((1, 5), int)
    _, seen = nnx.eval_shape(jattn.recorded(lambda model: model(tokens, tokens[:, :3])), model)
    decoder = [f"decoder.blocks.{i}.{name}" for i in range(2) for name in ("attention", "cross")]
    assert list(seen) == [*(f"encoder.blocks.{i}.attention" for i in range(2)), *decoder]
    assert seen["decoder.1.cross"].shape == seen["1.cross"].shape == seen.shapes[decoder[3]] == (1, 2, 3, 5)
    with pytest.raises(KeyError, match=r"'1.attention' may be any of encoder.*, decoder.blocks.1.attention"):
        seen["1.attention"]


def test_names_within_a_layer():
    """Longformer attends twice; the second time has a name of its own."""
    model = nnx.Sequential(jattn.nnx.Layer(Longformer(FEATURES, HEADS, reach=1), rngs=nnx.Rngs(0)))
    _, seen = jax.eval_shape(jattn.recorded(lambda x: model(x, global_tokens=[0])), X)
    assert list(seen) == ["layers.0", "layers.0.global"]


def test_names_of_copies_and_prefixes():
    """nnx transformations call copies: a layer then has its name in the copy, after that of the caller."""

    class Outer(nnx.Module):
        def __init__(self):
            self.block = MODEL.blocks[0]

        def __call__(self, x):
            return nnx.clone(self.block)(x)

    @contextlib.contextmanager
    def prefix():
        with jattn.named("late"):
            yield

    with jattn.record(layers="*own*") as seen, jattn.named("outer"), prefix():
        Outer()(X)
        MODEL.blocks[0](X)
    assert list(seen) == ["outer.own.late#0", "outer.own.late#1"]


def test_table_and_tokens():
    _, seen = jattn.recorded(lambda x: twice(x)[0], queries=[0, 3])(X)
    seen = seen.tokens(list("abcde"), [list("vwxyz"), list("VWXYZ")])
    record = jax.tree.map(lambda leaf: leaf, seen).record("attention.0")
    assert (record.query_tokens, record.key_tokens) == (("a", "d"), (tuple("vwxyz"), tuple("VWXYZ")))
    assert repr(seen).splitlines() == [
        "name         weights              heads  queries  keys  tokens",
        "attention.0  float32[2, 2, 2, 5]  all 2  0, 3     5     attached",
        "attention.1  float32[2, 2, 2, 5]  all 2  0, 3     5     attached",
        "2 recorded, 0.0 MiB",
    ]
    assert dict(seen).keys() == {"attention.0", "attention.1"} and len(seen) == 2


BAD = {
    "unknown layer": (
        dict(layers="blocks.2"),
        "`layers` must be names of .*got 'blocks.2'. These attended: blocks.0.own",
    ),
    "unknown call": (dict(layers=[0, 6]), "`layers` must be .* numbers of calls below 6; got 6"),
    "no layer": (dict(layers=[]), "`layers` must be a name"),
    "negative call": (dict(layers=-1), "`layers` must be a name"),
    "unknown head": (dict(heads=2), "`heads` must be indices from 0 to 1 for 'blocks.0.own', which has 2 heads; got"),
    "unknown query": (dict(queries=[0, -6]), "`queries` must be indices from 0 to 4 for 'blocks.0.own'"),
    "no indices": (dict(heads="all"), "`heads` must be one or several indices"),
    "too large": (dict(limit=600), "`limit` is 600 bytes, and the record would take 800 with 'blocks.0.flax'.*layers="),
    "limit": (dict(limit=0), "`limit` must be a positive number of bytes"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_choices(case):
    options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda x: jattn.recorded(MODEL, **options)(x), X)
    with pytest.raises(ValueError, match=message), jattn.record(**options):
        MODEL(X)


def test_bad_uses():
    with pytest.raises(ValueError, match="never attended through jattn"), jattn.record():
        jnp.sin(X)
    with pytest.raises(RuntimeError, match="its own"), jattn.record():
        raise RuntimeError("its own")  # not hidden by the one that nothing attended
    with pytest.raises(ValueError, match="the output of `function` must be a floating-point scalar"):
        jattn.recorded(attend, gradients=True)(X)
    with pytest.raises(ValueError, match="`gradients` must be True, False, or a function"):
        jattn.recorded(attend, gradients="loss")
    with pytest.raises(ValueError, match="`function` must be a function"):
        jattn.recorded(attend(X))
    with pytest.raises(ValueError, match="`name` must be text"):
        jattn.named("a..b")
    _, seen = jattn.recorded(twice, queries=0)(X)
    with pytest.raises(KeyError, match=r"nothing is recorded under 'x', but under attention.0, attention.1"):
        seen["x"]
    with pytest.raises(ValueError, match=r"gradients were not recorded: `jattn.recorded"):
        _ = seen.gradients
    with pytest.raises(ValueError, match=r"`queries` must have 5 tokens for 'attention.0'; got 2"):
        seen.tokens(["a", "b"])
    with pytest.raises(ValueError, match=r"`layers` must match some of attention.0, attention.1; got 'y'"):
        seen.stack("y")

"""Attention maps from any source: what comes out, and what is refused."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import analysis, masks

TOKENS = ["the", "cat", "sat"]


def weights(seed, shape):
    found = np.random.default_rng(seed).random(shape).astype(np.float32) + 0.1
    return found / found.sum(-1, keepdims=True)


class Tensor:
    """What PyTorch's tensors are to NumPy: an array only once it is detached, on the host and of a dtype of NumPy."""

    dtype = "torch.bfloat16"

    def __init__(self, array, steps=()):
        self.array, self.steps, self.shape = array, steps, array.shape

    def __array__(self, dtype=None, copy=None):
        if self.steps != ("detach", "cpu", "float"):
            raise TypeError(f"can't convert after {self.steps}")
        return self.array.astype(dtype)

    def detach(self):
        return Tensor(self.array, (*self.steps, "detach"))

    def cpu(self):
        return Tensor(self.array, (*self.steps, "cpu"))

    def float(self):
        return Tensor(self.array, (*self.steps, "float"))


LAYERS = [weights(0, (2, 4, 3, 3)), weights(1, (2, 4, 3, 3))]


@pytest.mark.parametrize(
    "source",
    [
        LAYERS,
        tuple(LAYERS),
        {"0": LAYERS[0], "1": LAYERS[1]},
        np.stack(LAYERS),
        [jnp.asarray(one) for one in LAYERS],
        [Tensor(one) for one in LAYERS],
        [one.astype(np.float64) for one in LAYERS],
        {"encoder": LAYERS},
        analysis.read(LAYERS),
    ],
    ids=["list", "tuple", "mapping", "stacked", "jax", "tensors", "float64", "side", "maps"],
)
def test_every_source_gives_the_same_maps(source):
    maps = analysis.read(source, tokens=TOKENS)
    assert len(maps) == 2
    for layer, want in zip(maps, LAYERS, strict=True):
        assert layer.weights.dtype == np.float32
        np.testing.assert_array_equal(layer.weights, want)
        assert layer.shape == want.shape
        assert (layer.side, layer.query_tokens, layer.key_tokens) == (
            "self",
            (tuple(TOKENS),) * 2,
            (tuple(TOKENS),) * 2,
        )
        assert layer.notes() == []


def test_a_recording_brings_tokens_indices_and_gradients():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 8))

    def model(x):
        return jattn.attention(x, x, x, mask=masks.Causal())[1].sum()

    run = jattn.recorded(model, heads=[2, -1], queries=[-1], gradients=True)
    seen = jax.jit(run)(x)[1]
    (layer,) = analysis.read(seen.tokens(TOKENS))
    assert (layer.heads, layer.queries, layer.examples) == ((2, 3), (2,), (0, 1))
    assert layer.query_tokens == (("sat",), ("sat",)) and layer.key_tokens == (tuple(TOKENS),) * 2
    np.testing.assert_array_equal(layer.weights, seen["attention.0"])
    (one,) = analysis.read(seen, tokens=TOKENS, mask=masks.Causal(), heads=3, examples=[1])
    assert one.query_tokens == (("sat",),)
    np.testing.assert_array_equal(one.weights, seen["attention.0"][1:, 1:])
    np.testing.assert_array_equal(one.gradients, seen.gradients["attention.0"][1:, 1:])
    assert one.may_attend.tolist() == [[[[True, True, True]]]]
    with pytest.raises(ValueError, match=r"`heads` must be among 2, 3 .*got 0"):
        analysis.read(seen, heads=0)


def test_sides_choose_their_tokens():
    source = {
        "encoder": [weights(0, (1, 2, 4, 4))],
        "decoder": [weights(1, (1, 2, 3, 3))],
        "cross": [weights(2, (1, 2, 3, 4))],
    }
    long = ["le", "chat", "noir", "dort"]
    maps = analysis.read(
        source, tokens={"encoder": long, "decoder": TOKENS}, valid={"encoder": [1, 1, 1, 0], "decoder": [1, 1, 1]}
    )
    assert maps.names == ["encoder.0", "decoder.0", "cross.0"]
    assert [(one.query_tokens[0], one.key_tokens[0]) for one in maps] == [
        (tuple(long), tuple(long)),
        (tuple(TOKENS), tuple(TOKENS)),
        (tuple(TOKENS), tuple(long)),
    ]
    assert maps["cross"].counted.tolist() == [[[[True, True, True, False]] * 3]]
    with pytest.raises(ValueError, match="`tokens` must say which are whose"):
        analysis.read(source["cross"], side="cross", tokens=TOKENS)
    with pytest.raises(ValueError, match="`tokens` must also have 'decoder'"):
        analysis.read(source, tokens={"encoder": long})


def test_the_output_of_a_model_of_hugging_face():
    hidden = np.zeros((2, 3, 8))
    alone = types.SimpleNamespace(last_hidden_state=hidden, attentions=tuple(LAYERS))
    assert analysis.read(alone).names == ["0", "1"]
    both = types.SimpleNamespace(encoder_attentions=LAYERS, decoder_attentions=LAYERS[:1], cross_attentions=LAYERS)
    assert [layer.side for layer in analysis.read(both)] == ["encoder", "encoder", "decoder", "cross", "cross"]
    for nothing in ({}, {"attentions": None}, {"attentions": ()}):
        with pytest.raises(ValueError, match=r"did not return its weights.*output_attentions=True"):
            analysis.read(types.SimpleNamespace(last_hidden_state=hidden, **nothing))


def test_masks_and_what_is_masked():
    causal = np.tril(np.ones((3, 3), bool))
    zeros = weights(0, (1, 2, 3, 3)) * causal
    for mask in (None, masks.Causal(), causal, causal[None, None].astype(int)):
        (layer,) = analysis.read([zeros], mask=mask)
        np.testing.assert_array_equal(layer.may_attend, causal[None, None])


def test_queries_and_keys_of_chosen_heads():
    query, key = weights(0, (2, 4, 3, 8)), weights(1, (2, 2, 3, 8))
    (layer,) = analysis.read(LAYERS[:1], query=[query], key=[Tensor(key)], heads=[3, 0], examples=1)
    q, k = layer.vectors
    np.testing.assert_array_equal(q, query[1:][:, [3, 0]])
    np.testing.assert_array_equal(k, key[1:][:, [1, 0]])


def test_layers_are_chosen_by_name_pattern_and_number():
    maps = analysis.read({f"blocks.{i}.attention": LAYERS[0] for i in range(12)})
    assert maps.choose(layers="blocks.1").names == ["blocks.1.attention"]
    assert maps.choose(layers=["blocks.1*", 0]).names == [f"blocks.{i}.attention" for i in (0, 1, 10, 11)]
    assert maps.choose(layers=iter(["blocks.1"])).names == ["blocks.1.attention"]
    assert maps["11"].name == "blocks.11.attention"
    assert maps[2:4].names == ["blocks.2.attention", "blocks.3.attention"]
    np.testing.assert_array_equal(maps.choose(heads=[2, 0])[0].weights, LAYERS[0][:, [2, 0]])
    assert list(maps[:1].arrays()) == ["blocks.0.attention"]


def test_each_layer_is_given_to_one_compiled_function():
    found = analysis.read(LAYERS, valid=[[1, 1, 0], [1, 1, 1]]).each(
        lambda weights, where: (weights * where).sum((2, 3))
    )
    valid = np.array([[1, 1, 0], [1, 1, 1]])
    want = [(one * valid[:, None, :, None] * valid[:, None, None]).sum((2, 3)) for one in LAYERS]
    np.testing.assert_allclose([found["0"], found["1"]], want, rtol=1e-5)


def test_what_is_unusual_is_said():
    bad = weights(0, (1, 2, 3, 3))
    bad[0, 1, 0, 0] = np.nan
    assert analysis.read([bad]).notes() == ["0: 1 of 18 weights are NaN or infinite, the first in head 1 of example 0"]
    assert "rows sum to 2 to 2" in analysis.read([2 * weights(0, (1, 2, 3, 3))]).notes()[0]
    assert "9 weights are negative" in analysis.read([np.stack([weights(0, (3, 3)), -weights(0, (3, 3))])]).notes()[0]
    assert analysis.read([np.zeros((1, 2, 3, 3))]).notes() == []  # rows that attend to nothing


SHUFFLED = analysis.Maps((dataclasses.replace(analysis.read(LAYERS)[0], queries=(2, 0, 1)),))


@pytest.mark.parametrize(
    "source, options, message",
    [
        (jattn.Seen(), {}, "is empty.*attended through jattn"),
        ([], {}, "at least one layer"),
        ([None], {}, "layer 0 of `source` is None.*eager"),
        (LAYERS[0], {}, r"For one layer: `\[weights\]`"),
        (len, {}, "Record a model first"),
        ([LAYERS[0][0, 0]], {}, r"must have shape \[batch, heads, queries, keys\].*\[3, 3\]. For the map of one head"),
        ([np.zeros((2, 0, 3, 3))], {}, "without an axis of size 0"),
        ([np.zeros((1, 2, 3, 3), int)], {}, "floating-point array.*int64"),
        ([LAYERS], {}, "floating-point array.*list"),
        (LAYERS, {"tokens": TOKENS[:2]}, "`tokens` must have 3 tokens for '0'; got 2: the, cat"),
        (SHUFFLED, {"tokens": TOKENS[:2]}, "at least 3, for query 2; got 2"),
        (LAYERS, {"tokens": "the cat sat"}, "list of tokens"),
        (LAYERS, {"tokens": [TOKENS] * 3}, "one list, or 2 for the examples.*got 3 lists"),
        (LAYERS, {"layers": "blocks"}, "got 'blocks'. There are: 0, 1"),
        (LAYERS, {"layers": 2}, "numbers from 0 to 1; got 2"),
        (LAYERS, {"heads": 4}, "among 0, 1, 2, 3 for '0'; got 4"),
        (LAYERS, {"examples": [0, 2]}, "`examples` must be among 0, 1 for '0'; got 2"),
        (LAYERS, {"side": "left"}, "`side` must be one of 'self'"),
        (LAYERS, {"mask": np.ones((3, 4), bool)}, r"`mask` must be a mask.*\[3, 3\]"),
        (LAYERS, {"mask": -np.inf * np.ones((3, 3))}, "other numbers than 0 and 1"),
        (LAYERS, {"valid": np.ones((2, 4))}, r"`valid` must be .*\[2, 3\]"),
        (LAYERS, {"query": LAYERS}, "given together"),
        (LAYERS, {"query": LAYERS[:1], "key": LAYERS}, "one array for each of the 2 layers"),
        (LAYERS, {"query": [np.ones((2, 3, 4, 8))] * 2, "key": LAYERS}, r"\[2, 4, 3, features\]; got \[2, 3, 4, 8\]"),
    ],
)
def test_bad_input(source, options, message):
    with pytest.raises(ValueError, match=message):
        analysis.read(source, **options)


def test_traced_weights_and_too_many():
    with pytest.raises(ValueError, match="is traced by a transformation of JAX"):
        jax.jit(lambda one: analysis.read([one]))(LAYERS[0])
    with pytest.raises(ValueError, match=r"16 maps of 2 layers take 576\. Choose fewer with `layers=`"):
        analysis.read(LAYERS).arrays(limit=500)
    with pytest.raises(KeyError, match="stands for none of the layers 0, 1"):
        analysis.read(LAYERS)["cross"]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda maps: maps.arrays(limit="a"), "`limit` must be a number of bytes.*got 'a'"),
        (lambda maps: maps.check_size(None), "`limit` must be a number of bytes.*got None"),
        (lambda maps: maps.each("entropy"), "`function` must be a function of weights"),
        (lambda maps: maps[1.5], "by its number or its name; got 1.5"),
        (lambda maps: maps.choose(heads="a"), "`heads` must be one index or several"),
        (lambda maps: maps.choose(examples=[[0], [0, 1]]), "`examples` must be one index or several"),
        (lambda maps: maps.choose(layers=1.5), "`layers` must be a name, a number"),
        (lambda maps: maps.choose(layers=[1.5]), "`layers` must be names or patterns.*got 1.5"),
    ],
)
def test_arguments_of_another_kind_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(analysis.read(LAYERS))

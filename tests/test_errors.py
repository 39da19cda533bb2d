"""Misuse is rejected with a `ValueError` that names the argument, what was received, and the remedy.

One row a mistake: what is called, and the words that the message must hold. Most rows compile nothing.
"""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import masks, normalizers, positions, scores, similarities
from jattn.foundation.pieces import array, constants, number, part, piece
from jattn.layers import MultiHeadAttention, caches
from jattn.ops.recurrence.implementations.scan import Scan
from jattn.parallel import Heads, array_specs, partition_specs
from jattn.variants import attention_free, heads, kernelized, low_rank, sparse
from jattn.variants.heads import LatentAttention
from jattn.variants.recurrent import RetNet
from jattn.variants.selection import reinforce

Q = np.ones((2, 7, 4, 8), np.float32)
TORCH = types.SimpleNamespace(shape=(2, 7, 4, 8), dtype=types.SimpleNamespace(), ndim=4)
"""Like a tensor of another library: it has a shape and a dtype, which JAX does not understand."""
KEY = jax.random.key(0)
AT, GRID = np.arange(7), np.ones((7, 2), np.int32)


def attend(query=Q, key=Q, value=Q, **given):
    return lambda: jattn.attention(query, key, value, **given)


RETNET = RetNet(8, 2, 4, 4)
LATENT = LatentAttention(8, 2, kv_rank=4, head_dim=4, rope_dim=2)
OF_RETNET, OF_LATENT, OF_MULTI_HEAD = (
    jax.eval_shape(layer.init, KEY) for layer in (RETNET, LATENT, MultiHeadAttention(8, 2))
)
PAGED = caches.Paged(pages=4, page_size=2, slots=2).create((), kv_heads=1, k_dim=2)
TOKENS = np.ones((2, 7, 8), np.float32)


class Undecorated(masks.Mask):
    def allows(self, query, key):
        return key <= query


@piece
class Ids(masks.Mask):
    ids: jax.Array = array("query")

    def allows(self, query, key):
        return (self.ids > 0) & (key <= query)


class Inherited(Ids):
    pass


@piece
class Factor(scores.Score):
    factor: float | jax.Array = number("head")
    constants: tuple = constants()
    inner: scores.Score | None = part(default=None)
    note: object = None

    def modify(self, scores, query, key):
        return scores * self.factor


@piece
class Branching(masks.Mask):
    def allows(self, query, key):
        return query > key if query > 3 else key > query


@piece
class Doubling(scores.Score):
    def modify(self, scores, query, key):
        return scores if query > key else 2 * scores


ROWS = {
    # A class for an instance
    "class for a mask": (attend(mask=masks.Causal), "`mask`", "the class `Causal`", "`Causal(...)`"),
    "class with fields": (attend(mask=masks.SlidingWindow), "`mask`", "`SlidingWindow(...)`"),
    "class in &": (lambda: masks.Causal() & masks.Causal, "`mask`", "`Causal(...)`"),
    "class before &": (lambda: masks.Causal & masks.Causal(), "`mask`", "`Causal(...)`"),
    "class for a score": (attend(scores=scores.SoftCap), "`scores[0]`", "`SoftCap(...)`"),
    "class among scores": (attend(scores=[scores.SoftCap]), "`scores[0]`", "`SoftCap(...)`"),
    "class for a similarity": (attend(similarity=similarities.Dot), "`similarity`", "`Dot(...)`"),
    "class for a normalizer": (attend(normalizer=normalizers.Softmax), "`normalizer`", "`Softmax(...)`"),
    "class for dropout": (attend(dropout=jattn.Dropout), "`dropout`", "`Dropout(...)`"),
    "class for a part": (lambda: Factor(1.0, inner=scores.SoftCap), "`Factor.inner`", "`SoftCap(...)`"),
    # Pieces of a user's own
    "no @piece": (lambda: Undecorated(), "`Undecorated`", "`@jattn.foundation.pieces.piece`"),
    "no @piece on a subclass": (lambda: Inherited([1]), "`Inherited`", "`@jattn.foundation.pieces.piece`"),
    "array('hed')": (lambda: array("hed"), "'hed'", "Did you mean 'head'?"),
    "number('queries')": (lambda: number("queries"), "'queries'", "Did you mean 'query'?"),
    "array('batch')": (lambda: array("batch", "head"), "batch axes are not declared"),
    "array(3)": (lambda: array(3), "string", "got 3"),  # pyright: ignore[reportArgumentType]
    "an axis twice": (lambda: array("head", "head"), "named once"),
    "None for an array": (lambda: Ids(None), "`Ids.ids`", "[batch..., query]", "None"),
    "a word for an array": (lambda: Ids("abc"), "`Ids.ids`", "'abc' (str)"),
    "a ragged list for an array": (lambda: Ids([[1], [2, 3]]), "`Ids.ids`", "[[1], [2, 3]]"),
    "a tensor for an array": (lambda: Ids(TORCH), "`Ids.ids`", "jax.numpy.asarray"),
    "a word for a number": (lambda: Factor("2"), "`Factor.factor`", "'2' (str)"),
    "an array for constants": (lambda: Factor(1.0, constants=Q), "`Factor.constants`", "tuple of arrays"),
    "a function for a part": (lambda: Factor(1.0, inner=lambda s, q, k: s), "`Factor.inner`", "`jattn.scores.of("),
    "an array that no field declares": (lambda: Factor(1.0, note=Q), "`Factor.note`", "= array(...)"),
    "if in a mask": (attend(mask=lambda q, k: q > k if q > 3 else k > q), "`function`", "`jnp.where("),
    "int() in a mask": (attend(mask=lambda q, k: int(q) < k), "`function`", "`x.astype(int)`"),
    "a list in a mask": (attend(mask=lambda q, k: [0, 1, 1][q] < k), "`function`", "`jnp.asarray(table)[q]`"),
    "if in a score": (lambda: scores.of(lambda s, q, k: s if q > k else -s), "`function`", "`jnp.where("),
    "if in a piece's mask": (attend(mask=Branching()), "`mask`", "`Branching.allows`", "`jnp.where("),
    "if in a piece's score": (attend(scores=Doubling()), "`scores`", "`Doubling.modify`", "`jnp.where("),
    # Things of other kinds
    "a list of masks": (attend(mask=[masks.Causal()]), "`mask`", "[Causal()] (list)"),
    "an array and a mask": (lambda: np.ones((7, 7), bool) & masks.Causal(), "`mask`", "(7, 7)", "Dense"),
    "a function of a score alone": (attend(scores=lambda s: s), "`function`", "(score, query, key)"),
    "nested scores": (attend(scores=[[scores.SoftCap(3.0)]]), "`scores[0]`", "(list)"),
    "a score for a normalizer": (attend(normalizer=scores.SoftCap(3.0)), "`normalizer`", "goes to `scores=`"),
    "a rate for dropout": (attend(dropout=0.1), "`dropout`", "`jattn.Dropout(rate, key)`"),
    "a list for an implementation": (attend(implementation=["tiled"]), "`implementation`", "['tiled']"),
    "words for positions": (attend(query_positions="abc"), "`query_positions`", "'abc' (str)"),
    "ragged positions": (attend(query_positions=[[1], [2, 3]]), "`query_positions`", "[[1], [2, 3]]"),
    # Sizes of what pieces are made of, and partials that do not fit
    "gates of another length": (
        attend(scores=scores.Forget.of(np.zeros((4, 9), np.float32))),
        "`Forget.of(log_gates, queries)`",
        "(4, 9)",
    ),
    "an attention mask of another length": (
        attend(mask=masks.from_attention_mask(np.ones((2, 9), int))),
        "`attention_mask`",
        "the call has 7",
    ),
    "too few lists of keys": (
        attend(mask=masks.Selected(np.zeros((1, 3, 2), int))),
        "`mask` is made for 3",
        "`indices` of `Selected`",
    ),
    "a partial that does not fit itself": (
        lambda: jattn.merge(*[jattn.Partial(jnp.ones((2, 3, 4)), jnp.ones(5))] * 2),
        "`partials[0]`",
        "`lse` (5,)",
    ),
    "a partial of another remainder": (
        lambda: jattn.merge(jattn.Partial(jnp.ones((2, 4)), jnp.ones(2), jnp.ones(3))),
        "`remainder` (3,)",
    ),
    "a partial without an lse": (
        lambda: jattn.merge(jattn.Partial(jnp.ones((2, 4)), None)),
        "`partials[0].lse`",
        "None",  # pyright: ignore
    ),
    # Arrays of other libraries, dtypes and sizes
    "a tensor for a query": (attend(query=TORCH), "`query`", "SimpleNamespace", "jax.numpy.asarray"),
    "a tensor for a value": (attend(value=TORCH), "`value`", "jax.numpy.asarray"),
    "a tensor for a mask": (attend(mask=TORCH), "`mask`", "SimpleNamespace"),
    "a tensor for lengths": (lambda: masks.Lengths(TORCH), "`key_lengths`", "SimpleNamespace"),
    "a tensor for ids": (lambda: masks.SameSegment(TORCH), "`query_ids`", "SimpleNamespace"),
    "a tensor for a dense mask": (lambda: masks.Dense(TORCH), "`array`", "SimpleNamespace"),
    "a tensor for a bias": (lambda: scores.Bias(TORCH), "`values`", "SimpleNamespace"),
    "a tensor for positions": (attend(query_positions=TORCH), "`query_positions`", "SimpleNamespace"),
    "float8": (attend(query=Q.astype(jnp.float8_e4m3fn)), "`query`", "float8_e4m3fn", "astype('bfloat16')"),
    "float8 values": (attend(value=Q.astype(jnp.float8_e5m2)), "`value`", "float8_e5m2", "astype('bfloat16')"),
    "no features": (attend(query=Q[..., :0], key=Q[..., :0]), "`query` and `key`", "at least one feature"),
    "no heads": (attend(Q[:, :, :0], Q[:, :, :0], Q[:, :, :0]), "0 query heads"),
    # Dropout
    "a negative rate": (lambda: jattn.Dropout(-0.1, KEY), "`rate`", "[0, 1]", "-0.1"),
    "a rate beyond 1": (lambda: jattn.Dropout(jnp.float32(2.0), KEY), "`rate`", "[0, 1]", "2.0"),
    "a word for a rate": (lambda: jattn.Dropout("a", KEY), "`rate`", "'a' (str)"),
    "several rates": (lambda: jattn.Dropout(np.array([0.1, 0.2]), KEY), "`rate`", "(2,)"),
    "a flag for a rate": (lambda: jattn.Dropout(True, KEY), "`rate`", "True (bool)"),
    # Arguments of other kinds than arrays and pieces
    "one index for heads": (lambda: jattn.attention_weights(Q, Q, heads=1), "`heads`", "[0, 3]", "1 (int)"),
    "flags for queries": (lambda: jattn.attention_weights(Q, Q, queries=[True] * 7), "`queries`", "indices"),
    "a word for is_causal": (lambda: jattn.dot_product_attention(Q, Q, Q, is_causal="no"), "`is_causal`", "'no'"),
    "a number for return_residual": (
        lambda: jattn.dot_product_attention(Q, Q, Q, return_residual=2),
        "`return_residual`",
    ),
    "a float for a window": (
        lambda: jattn.dot_product_attention(Q, Q, Q, local_window_size=1.5),
        "`local_window_size`",
        "(left, right)",
    ),
    "a window below -1": (
        lambda: jattn.dot_product_attention(Q, Q, Q, local_window_size=(-2, 0)),
        "`local_window_size`",
        "-2",
    ),
    "scales of other heads": (attend(similarity=similarities.Dot(np.ones(3, np.float32))), "`Dot.scale`", "(3,)"),
    "temperatures of other heads": (attend(similarity=similarities.Cosine([1.0, 2.0])), "`Cosine.temperature`"),
    "biases of other heads": (attend(normalizer=normalizers.Sigmoid([1.0, 2.0])), "`Sigmoid.bias`"),
    "scales of other heads, as jax.nn's": (lambda: jattn.dot_product_attention(Q, Q, Q, scale=[1.0, 2.0]), "`scale`"),
    "None for a part": (lambda: masks.Shifted(None), "`mask`", "None"),
    "None for a required part": (lambda: masks.base.Not(None), "`Not.mask`", "None"),
    "no masks to split": (lambda: masks.split_between_heads([], 4), "`masks`", "[]"),
    "one mask to split": (lambda: masks.split_between_heads(masks.Causal(), 4), "`masks`", "Causal()"),
    "a word for positions of a mask": (
        lambda: masks.create(masks.Causal(), 3, 3, query_positions="abc"),
        "`query_positions`",
        "'abc'",
    ),
    "a picture of no length": (lambda: masks.Causal().picture(3, None), "`kv_len`", "None"),
    "float8 for a recurrence": (
        lambda: jattn.linear_recurrence(Q, Q.astype(jnp.float8_e4m3fn), Q),
        "`key`",
        "astype('bfloat16')",
    ),
    "float8 for a convolution": (
        lambda: jattn.short_convolution(jnp.ones((3, 2), jnp.float8_e4m3fn), Q[0, :2, 0, :2]),
        "`inputs`",
        "astype('bfloat16')",
    ),
    "no beta": (lambda: jattn.delta_rule(Q, Q, Q, None), "`beta`", "None"),
    "no beta of a step": (lambda: jattn.delta_step(Q[0], Q[0], Q[0], None, Q), "`beta`", "None"),
    "objects for a decay": (lambda: jattn.linear_recurrence(Q, Q, Q, log_decay=np.array([None])), "`log_decay`"),
    "flags for segments": (
        lambda: jattn.short_convolution(Q[0, :, 0], Q[0, :2, 0], segment_ids=[True] * 7),
        "`segment_ids`",
        "integers",
    ),
    "an array for a dtype": (lambda: MultiHeadAttention(8, 2, dtype=Q), "`dtype`", "float32"),
    "a class for an initializer": (
        lambda: MultiHeadAttention(8, 2, kernel_init=int),
        "`kernel_init`",
        "the class `int`",
    ),
    "None for an initializer": (lambda: MultiHeadAttention(8, 2, bias_init=None), "`bias_init`", "None"),
    "an initializer of another shape": (
        lambda: MultiHeadAttention(8, 2, bias_init=lambda key, shape, dtype: jnp.zeros(3)).init(KEY),
        "initializer",
        "(8,)",
        "(3,)",
    ),
    "an array for learned": (lambda: MultiHeadAttention(8, 2, learned=Q), "`learned`", "(2, 7, 4, 8)"),
    "a rotation that drops features": (
        lambda: jax.eval_shape(MultiHeadAttention(8, 2, rotary=lambda x, at: x[..., :2]), OF_MULTI_HEAD, TOKENS),
        "`rotary`",
        "(2, 7, 2, 4)",
        "(2, 7, 2, 2)",
    ),
    "a word for a baseline": (lambda: reinforce(Q[0, 0, 0], Q[0, 0, 0], "a"), "`baseline`", "'a' (str)"),
    "None for a loss": (lambda: reinforce(None, Q[0, 0, 0]), "`loss`", "None"),
    "whole numbers for log-probabilities": (lambda: reinforce(Q[0, 0, 0], np.arange(8)), "`log_probability`", "int64"),
    "a choice that is an array": (lambda: low_rank.Linformer(8, 2, 6, 3, sharing=Q), "`sharing`", "'heads'"),
    "copies of pages that are not pairs": (lambda: PAGED.with_copies([1, 2]), "`copies`", "(from, to)"),
    "copies of pages that there are not": (lambda: PAGED.with_copies([(0, 9)]), "`copies`", "9"),
    # Layers, which are pure functions of parameters
    "no parameters of a recurrence": (
        lambda: RETNET.initial_state((2,)),
        "`parameters`",
        "`init(key)`",
        "(2,) (tuple)",
    ),
    "parameters second": (lambda: LATENT(TOKENS, OF_LATENT), "`parameters`", "before all other arguments", "(2, 7, 8)"),
    "a group missing": (
        lambda: LATENT({name: one for name, one in OF_LATENT.items() if name != "key"}, TOKENS),
        "'key', which LatentAttention declares",
        "value (kernel)",
    ),
    "empty parameters": (lambda: RETNET({}, TOKENS), "'key', which RetNet declares", "an empty mapping"),
    "parameters of other sizes": (
        lambda: RetNet(8, 1, 4, 4)(OF_RETNET, TOKENS),
        "'key.kernel' of shape (8, 1, 4)",
        "(8, 2, 4)",
    ),
    "a step from no state": (lambda: RETNET.step(OF_RETNET, TOKENS[:, 0], None), "`state`", "`initial_state(", "None"),
    "a step with a length": (
        lambda: jax.eval_shape(lambda p: RETNET.step(p, TOKENS[:, :1], RETNET.initial_state(p, (2,))), OF_RETNET),
        "`inputs`",
        "`step` takes one token",
        "(2, 1)",
    ),
    "padding of a recurrence": (
        lambda: RETNET.prefill(OF_RETNET, TOKENS, valid=np.ones(7, bool)),
        "RetNet.prefill has no `valid`",
        "`segment_ids`",
    ),
    "a length of a recurrence": (lambda: RETNET.initial_state(OF_RETNET, length=4), "has no `length`", "is fixed"),
    "the class of an implementation": (attend(implementation=Scan), "`implementation`", "write `Scan()`"),
    # Positions
    "an array of pairs": (lambda: positions.rotary(Q, AT, pairs=Q), "`pairs`", "'half', 'interleaved'"),
    "an array of pairs, on a grid": (lambda: positions.rotary_2d(Q, GRID, pairs=Q), "`pairs`", "'interleaved'"),
    "an array of pairs, in sections": (lambda: positions.rotary_sections(Q, GRID, (2, 2), pairs=Q), "`pairs`"),
    "an array of pairs, with decay": (lambda: positions.xpos(Q, AT, role="key", pairs=Q), "`pairs`"),
    "an array for a layout of a grid": (lambda: positions.rotary_2d(Q, GRID, layout=Q), "`layout`", "'split', 'joint'"),
    "an array for a layout of sines": (lambda: positions.sinusoidal(AT, 8, layout=Q), "`layout`", "'half'"),
    "an array for a role": (lambda: positions.xpos(Q, AT, role=Q), "`role`", "'query', 'key'"),
    "a word for a flag of sections": (lambda: positions.rotary_sections(Q, GRID, (2, 2), interleaved="no"), "True or"),
    "a word for a flag of sines": (lambda: positions.sinusoidal(AT, 8, inclusive="no"), "`inclusive`", "True or False"),
    "integers for a dtype of sines": (lambda: positions.sinusoidal(AT, 8, dtype=int), "`dtype`", "floating-point"),
    "a list of coordinates": (lambda: positions.rotary_2d(Q, [[1, 2]]), "`positions`", "must be an array"),
    "a list of frequencies": (lambda: positions.rotary_2d(Q, GRID, frequencies=[[1.0]]), "`frequencies`", "list"),
    "an array for a center": (lambda: positions.xpos(Q, AT, role="key", center=Q), "`center`", "integer"),
    "an array for a factor": (lambda: positions.YaRN(Q, 64), "`factor`", "at least 1"),
    "an array for a factor of a length": (lambda: positions.DynamicNTK(Q, 64, 80), "`factor`", "at least 1"),
    "an array for an mscale": (lambda: positions.YaRN(2.0, 64, mscale=Q), "`mscale`", "at least 0"),
    "a word for a seed": (lambda: kernelized.Performer(8, 2, seed="x"), "`seed`", "'x'"),
    "no features of values": (lambda: kernelized.kernel_state(kernelized.ELU(), (2,), 1, 4, 0), "`v_dim`", "positive"),
    "a word for a feature map": (lambda: kernelized.kernel_state("a", (2,), 1, 4, 4), "`features`", "ELU()"),
    "a word for a dtype": (lambda: kernelized.kernel_state(kernelized.ELU(), (2,), 1, 4, 4, "abc"), "`dtype`", "'abc'"),
    "an array for a ramp": (lambda: positions.YaRN(2.0, 64, ramp=Q), "`ramp`", "'turns', 'index'"),
    # Devices
    "None for a mesh axis": (lambda: Heads(None), "`axis`", "None"),
    "a tuple for a mesh axis": (lambda: Heads(("model",)), "`axis`", "('model',)"),
    "None for batch axes": (lambda: Heads("model", batch=None), "`batch`", "`()` splits none", "None"),
    "a number for batch axes": (lambda: Heads("model", batch=(0,)), "`batch`", "(0,)"),
    "a name for a mesh": (lambda: Heads("model", mesh="x"), "`mesh`", "`jax.make_mesh(", "'x'"),
    "None for the specs of a batch": (lambda: partition_specs(scores.SoftCap(3.0), batch=None), "`batch`", "None"),
    "None for the spec of an array": (lambda: array_specs(batch=None), "`batch`", "None"),
    # Merging
    "outputs merged": (lambda: jattn.merge(Q, Q), "`partials[0]`", "`jattn.partial_attention`"),
    "None merged": (lambda: jattn.merge([jattn.Partial(Q, Q[..., 0]), None]), "`partials[1]`", "None"),
    "nothing merged": (lambda: jattn.merge([]), "`Partial.empty(out)`"),
}


@pytest.mark.parametrize(("call", "words"), [(call, words) for call, *words in ROWS.values()], ids=ROWS)
def test_named(call, words):
    with pytest.raises(ValueError) as caught:
        call()
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"


FLAGS = {
    "causal": (
        lambda no: attention_free.aft_full(Q[0, 0], Q[0, 0], Q[0, 0], Q[0, 0, :, :4], causal=no),
        lambda no: attention_free.aft_simple(Q[0, 0], Q[0, 0], Q[0, 0], causal=no),
        lambda no: attention_free.aft_local(Q[0, 0], Q[0, 0], Q[0, 0], Q[0, 0, :, :4], window=2, causal=no),
        lambda no: kernelized.kernelized_attention(Q, Q, Q, kernelized.ELU(), causal=no),
        lambda no: kernelized.LinearTransformer(8, 2, causal=no),
        lambda no: sparse.Longformer(8, 2, reach=2, causal=no),
        lambda no: sparse.longformer_mask(2, causal=no),
    ),
    "use_bias": (
        lambda no: heads.TalkingHeads(8, 2, use_bias=no),
        lambda no: low_rank.Linformer(8, 2, 6, 3, use_bias=no),
        lambda no: low_rank.Nystromformer(8, 2, 3, use_bias=no),
        lambda no: sparse.Longformer(8, 2, reach=2, use_bias=no),
    ),
    "internal": (lambda no: sparse.random_blocks(16, 2, heads=2, count=1, seed=0, internal=no),),
    "nonnegative": (lambda no: kernelized.Function(jnp.exp, nonnegative=no),),
}


@pytest.mark.parametrize("name", FLAGS)
@pytest.mark.parametrize("value", ["no", 2, Q])
def test_flags_are_true_or_false(name, value):
    """A word would count as True, and an array has no truth value."""
    for call in FLAGS[name]:
        with pytest.raises(ValueError, match=f"`{name}` must be True or False"):
            call(value)


def test_what_has_one_meaning_works():
    """Lists where arrays stand, one partial or a list of them, one score or several."""
    listed = Ids([1, 0, 1])
    assert isinstance(listed.ids, np.ndarray) and Factor([1.0, 2.0]).factor.dtype == np.float32
    both = Factor(1.0, constants=[Q, Q], inner=[scores.SoftCap(3.0)])
    assert type(both.constants) is tuple and type(both.inner) is tuple
    some = jattn.Partial(Q[0], Q[0, ..., 0])
    for merged in (jattn.merge([some, some]), jattn.merge(iter((some, some)))):
        np.testing.assert_array_equal(merged.lse, jattn.merge(some, some).lse)
    shapes = [jax.ShapeDtypeStruct(Q.shape, "float32")] * 3
    one = jattn.explain(*shapes, scores=[scores.SoftCap(3.0)], query_positions=range(7))
    assert str(one) == str(jattn.explain(*shapes, scores=scores.SoftCap(3.0)))


def test_pieces_are_arguments_of_exported_functions():
    """What is static in a piece survives as bytes; a Python function does not, and says so."""
    mask = (masks.Causal() & masks.Lengths(jnp.array([3, 7]))) | ~masks.SlidingWindow(2, None)
    tree = jax.tree.structure((mask, (scores.SoftCap(3.0), scores.ALiBi.standard(4)), jattn.Dropout(0.5, KEY)))

    def through_bytes(node):
        kind, aux = node.node_data() or (None, None)
        if kind is not None and issubclass(kind, jattn.foundation.pieces.Piece):
            assert jattn.foundation.pieces._from_bytes(jattn.foundation.pieces._to_bytes(kind, aux)) == aux
        for child in node.children():
            through_bytes(child)

    through_bytes(tree)
    function = masks.of(lambda q, k: k <= q)
    with pytest.raises(ValueError, match=r"`Function.function` cannot be serialized: .*inside the function"):
        jattn.foundation.pieces._to_bytes(type(function), jax.tree.structure(function).node_data()[1])

    pytest.importorskip("flatbuffers")  # JAX's own need, to write an exported function down
    run = jax.jit(lambda query, pieces: jattn.partial_attention(query, query, query, mask=pieces[0], scores=pieces[1]))
    pieces = (mask, (scores.SoftCap(3.0), scores.ALiBi.standard(4)))
    written = jax.export.export(run)(Q, pieces).serialize()
    out = jax.export.deserialize(written).call(Q, pieces)
    assert type(out) is jattn.Partial
    np.testing.assert_allclose(out.out, run(Q, pieces).out, rtol=1e-6)

"""Multi-head attention generates what it computes on the whole: prefill in chunks, then steps, over every cache."""

import functools
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest
from flax import nnx
from measure import random
from tiers import rows

import jattn.linen
import jattn.nnx
from jattn import masks, normalizers, positions, scores
from jattn.layers import Layer, MultiHeadAttention, caches
from jattn.parallel import Heads

BATCH, LENGTH, FEATURES, HEADS = 2, 7, 16, 4
(X,) = random((BATCH, LENGTH, FEATURES))
WEIGHTS = np.cos(np.arange(BATCH * LENGTH * FEATURES, dtype=np.float32)).reshape(X.shape)
WINDOW = masks.SlidingWindow(2, 0)
SINK = normalizers.Softmax(jnp.linspace(-1, 1, HEADS))
PAGES = caches.PageAllocator(8, 2)
TABLE = PAGES.table([PAGES.allocate(8), PAGES.allocate(8)], 5)
CACHES: dict[str, Any] = {"contiguous": caches.Contiguous(9), "paged": caches.Paged(8, 2, slots=5, block=4)}
FOR_WINDOWS: dict[str, Any] = {"rolling": caches.Rolling(3, sinks=1)}

CASES: dict[str, dict[str, Any]] = {
    "causal": dict(mask=masks.Causal()),
    "window, grouped": dict(mask=WINDOW, kv_heads=2, rotary=True, implementation="tiled"),
    "window with the first token, one key head": dict(mask=lambda q, k: (k <= q) & ((q - k < 3) | (k < 1)), kv_heads=1),
    "ALiBi, no biases": dict(mask=masks.Causal(), scores=scores.ALiBi.standard(HEADS), use_bias=False),
    "relative buckets, learned": dict(
        mask=masks.Causal(),
        scores=(scores.RelativeBuckets(jnp.linspace(-1, 1, 8 * HEADS).reshape(8, HEADS)), scores.SoftCap(5.0)),
        learned="scores",
    ),
    "a learned sink": dict(mask=masks.Causal(), normalizer=SINK, learned="normalizer"),
    "sigmoid": dict(mask=masks.Causal(), normalizer=normalizers.Sigmoid()),
    "scaled rotations, norms": dict(
        mask=masks.Causal(),
        rotary=functools.partial(positions.rotary, base=100.0, scaling=positions.Linear(2.0)),
        qk_norm=True,
        kv_heads=2,
        head_dim=6,
        out_features=FEATURES,
    ),
    "dropout": dict(mask=masks.Causal(), dropout_rate=0.4),
}


def close(got, want, atol=2e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=atol), got, want)


def layer_of(**options) -> MultiHeadAttention:
    options.setdefault("implementation", "reference")
    return MultiHeadAttention(FEATURES, HEADS, bias_init=jax.nn.initializers.normal(), **options)


def empty(layer, parameters, cache):
    """A state without tokens, of a cache by its name."""
    state = layer.initial_state(parameters, (BATCH,), cache={**CACHES, **FOR_WINDOWS}[cache])
    return state.with_table(TABLE) if cache == "paged" else state


def generated(layer, parameters, x, state, *chunks, **options):
    """Outputs of chunks of these sizes, and of the rest one by one."""
    outs, begin = [], 0
    for size in chunks:
        out, state = layer.prefill(parameters, x[:, begin : begin + size], state, **options)
        outs.append(out)
        begin += size

    def token(state, x):
        out, state = layer.step(parameters, x, state, **options)
        return state, out

    state, steps = jax.lax.scan(token, state, jnp.moveaxis(x[:, begin:], 1, 0))
    return jnp.concatenate([*outs, jnp.moveaxis(steps, 0, 1)], 1), state


EACH = [
    *((case, "contiguous") for case in CASES),
    *((case, "rolling") for case in CASES if "window" in case),
    *((case, "paged") for case in CASES),
]
ALWAYS = {
    ("dropout", "contiguous"),
    ("window, grouped", "rolling"),
}
ROWS = [one if one in ALWAYS else pytest.param(*one, marks=pytest.mark.exhaustive) for one in EACH]
WITH_GRADIENTS = ("window, grouped", "relative buckets, learned", "a learned sink", "scaled rotations, norms")
"""Cases that compare gradients, too; in the others only the pieces differ, whose gradients have tests of their own."""


@pytest.mark.parametrize(("case", "cache"), ROWS)
def test_chunks_and_steps_are_the_whole(case, cache):
    layer = layer_of(**CASES[case])
    parameters = layer.init(jax.random.key(1))
    options = {"dropout_key": jax.random.key(2)} if layer.dropout_rate else {}

    def whole(parameters, x):
        out = layer(parameters, x, **options)
        return (out * WEIGHTS).sum(), out

    def in_parts(parameters, x):
        out = generated(layer, parameters, x, empty(layer, parameters, cache), 4, **options)[0]
        return (out * WEIGHTS).sum(), out

    def differentiated(function, parameters, x):
        if case not in WITH_GRADIENTS:
            return function(parameters, x)[1], None
        (_, out), gradients = jax.value_and_grad(function, (0, 1), has_aux=True)(parameters, x)
        return out, gradients

    @jax.jit
    def everything(parameters, x):
        chunks = generated(layer, parameters, x, empty(layer, parameters, cache), 2, 3, 2, **options)[0]
        return differentiated(whole, parameters, x), differentiated(in_parts, parameters, x), chunks

    (want, wanted), (out, gradients), chunks = everything(parameters, X)
    close([out, chunks], [want, want])
    close(gradients, wanted)
    for name in layer.learned:
        assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradients[0][name]))


PROMPTS = np.array([3, 6])
PADDING = {
    "left": np.arange(6) >= 6 - PROMPTS[:, None],
    "right": np.arange(6) < PROMPTS[:, None],
    "between": np.array([[1, 0, 0, 1, 1, 0], [1, 1, 1, 1, 1, 1]], bool),
}


@pytest.mark.parametrize("cache", rows([*CACHES, *FOR_WINDOWS], ["contiguous"]))
def test_prompts_of_different_lengths(cache):
    """Padding, NaN too, changes nothing: each example generates as it does alone."""
    layer = layer_of(mask=WINDOW, rotary=True, scores=scores.ALiBi.standard(HEADS))
    parameters = layer.init(jax.random.key(1))
    tails = X[:, :2]

    @jax.jit
    def go_on(parameters, padded, valid, tails):
        state = empty(layer, parameters, cache)
        prompt, state = layer.prefill(parameters, padded, state, valid=valid)
        out, state = generated(layer, parameters, tails, state)
        _, stopped = layer.step(parameters, tails[:, 0], state, valid=jnp.array([True, False]))
        return prompt, out, state.lengths, stopped.lengths

    alone = jax.jit(layer.__call__)
    for valid in PADDING.values():
        padded = np.full((BATCH, 6, FEATURES), np.nan, np.float32)
        for example, real in enumerate(valid):
            padded[example, real] = X[example, : real.sum()]
        prompt, out, lengths, stopped = go_on(parameters, padded, valid, tails)
        assert (lengths == PROMPTS + 2).all() and (stopped == lengths + np.array([1, 0])).all()
        for example, real in enumerate(valid):
            want = alone(parameters, jnp.concatenate([X[example, : real.sum()], tails[example]]))
            close(prompt[example, real], want[: real.sum()])
            close(out[example], want[real.sum() :])


def test_cross_attention_makes_its_keys_once():
    layer = layer_of(in_kv_features=9, kv_heads=2, rotary=True, qk_norm=True, scores=scores.ALiBi.standard(HEADS))
    parameters, memory = layer.init(jax.random.key(1)), jax.random.normal(jax.random.key(3), (BATCH, 5, 9))
    valid = np.array([[1, 1, 1, 0, 0], [1] * 5], bool)
    lengths = masks.Lengths(valid.sum(-1))

    def in_parts(parameters, x, memory):
        state = layer.initial_state(parameters, key_inputs=memory, key_valid=valid)
        out = generated(layer, parameters, x, state, 3)[0]
        return (out * WEIGHTS).sum(), out

    def whole(parameters, x, memory):
        at = {"positions": np.arange(LENGTH), "key_positions": np.arange(5)}
        out = layer(parameters, x, memory, mask=lengths, **at)
        return (out * WEIGHTS).sum(), out

    @jax.jit
    def both(*arrays):
        return [jax.value_and_grad(one, (0, 1, 2), has_aux=True)(*arrays) for one in (in_parts, whole)]

    close(*both(parameters, X, memory), atol=5e-5)


def test_bfloat16():
    """A cache of bfloat16 rounds keys and values, and nothing else; layers of bfloat16 have one by default."""
    layer = layer_of(mask=masks.Causal(), kv_heads=2)
    parameters = layer.init(jax.random.key(1))

    @jax.jit
    def run(parameters, x):
        narrow = layer.initial_state(parameters, (BATCH,), length=8, dtype=jnp.bfloat16)
        return generated(layer, parameters, x, narrow, 4), layer(parameters, x)

    (out, state), want = run(parameters, X)
    assert (state.keys.dtype, out.dtype) == (jnp.bfloat16, jnp.float32)
    assert 1e-5 < float(jnp.abs(out - want).max()) < 0.03
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), parameters)
    assert layer.initial_state(low, length=8).keys.dtype == jnp.bfloat16
    assert layer_of(dtype=jnp.float16, kv_heads=2).initial_state(low, length=8).keys.dtype == jnp.float16


def test_in_nnx_and_linen():
    """One tree of parameters for training and decoding: an update of the one is one of the other."""
    options: dict[str, Any] = dict(
        mask=masks.Causal(),
        scores=scores.ALiBi(jnp.linspace(0, 1, HEADS)),
        normalizer=normalizers.Softmax(jnp.linspace(-1, 1, HEADS)),
        learned="normalizer",
        kv_heads=2,
        implementation="reference",
    )
    module = jattn.nnx.MultiHeadAttention(FEATURES, HEADS, **options, rngs=nnx.Rngs(0))
    twin = jattn.linen.MultiHeadAttention(FEATURES, HEADS, **options)
    definition, trained, rest = nnx.split(module, nnx.Param, ...)

    @jax.jit
    def run(arrays, x):
        module = nnx.merge(definition, arrays, rest)
        front, state = module.prefill(x[:, :5], module.initial_state((BATCH,), length=9))
        last, state = module.step(x[:, 5], state)
        variables = {"params": module.arrays()}
        begin = twin.apply(variables, (BATCH,), length=9, method="initial_state")
        twin_front, begin = twin.apply(variables, x[:, :5], begin, method="prefill")
        twin_last, begin = twin.apply(variables, x[:, 5], begin, method="step")
        return module(x[:, :6]), (front, last, state), (twin_front, twin_last, begin)

    for arrays in (trained, jax.tree.map(lambda leaf: 0.8 * leaf, trained)):
        whole, (front, last, state), twins = run(arrays, X)
        close(jnp.concatenate([front, last[:, None]], 1), whole)
        close(twins, (front, last, state))
    nnx.update(module, jax.tree.map(lambda leaf: leaf / 2, trained))
    out, _ = module.prefill(X[:, :6], module.initial_state((BATCH,), length=6))
    close(out, module(X[:, :6]))
    assert float(jnp.abs(out - whole).max()) > 1e-3


def test_a_checkpoint_of_training_generates():
    """What Orbax saves of a module in training is restored into one that generates, of nnx or linen."""
    options: dict[str, Any] = dict(mask=masks.Causal(), cache=caches.Contiguous(8), implementation="reference")
    trained, module = (jattn.nnx.MultiHeadAttention(FEATURES, HEADS, **options, rngs=nnx.Rngs(i)) for i in (0, 1))
    with tempfile.TemporaryDirectory() as folder, orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(f"{folder}/layer", trained.arrays())
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(f"{folder}/layer", trained.arrays())
    nnx.update(module, nnx.State(restored))
    twin = jattn.linen.MultiHeadAttention(FEATURES, HEADS, **options)
    want = trained(X)
    close(module.prefill(X, module.initial_state((BATCH,)))[0], want)
    state = twin.apply({}, (BATCH,), method="initial_state")
    close(twin.apply({"params": restored}, X, state, method="prefill")[0], want)


@pytest.mark.exhaustive
def test_cross_attention_in_linen():
    """The width of what keys are made of is read from the parameters, once these are made."""
    layer = jattn.linen.MultiHeadAttention(FEATURES, HEADS, implementation="reference")
    memory = jnp.ones((BATCH, 5, 9))

    @jax.jit
    def run(x):
        variables = layer.init(jax.random.key(0), x, memory)
        state = layer.apply(variables, key_inputs=memory, method="initial_state")
        out, state = layer.apply(variables, x[:, :4], state, method="prefill")
        last, _ = layer.apply(variables, x[:, 4], state, method="step")
        return jnp.concatenate([out, last[:, None]], 1), layer.apply(variables, x[:, :5], memory)

    close(*run(X))


@pytest.mark.exhaustive
def test_heads_over_devices():
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    ahead = masks.of(lambda q, k: q - k < 3)  # empty places are hidden by the cache alone
    options: dict[str, Any] = dict(mask=ahead, rotary=True, scores=scores.ALiBi.standard(HEADS))
    plain, split = (layer_of(**options, parallel=one) for one in (None, Heads("model", batch="data", mesh=mesh)))
    parameters = plain.init(jax.random.key(1))

    @jax.jit
    def run(parameters, x):
        states = [layer.initial_state(parameters, (BATCH,), length=8) for layer in (split, plain)]
        return [generated(layer, parameters, x, state, 4) for layer, state in zip((split, plain), states, strict=True)]

    close(*run(parameters, X))


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "heads", [pytest.param(False, marks=pytest.mark.exhaustive), True], ids=["examples", "examples and heads"]
)
def test_over_explicit_axes(heads):
    """Each device generates for its own examples, and the outputs and the cache are split as the inputs are."""
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
    options: dict[str, Any] = dict(mask=masks.Causal(), rotary=True, dropout_rate=0.3)
    plain, layer = (
        layer_of(**options, parallel=one) for one in (None, Heads("model", batch="data", mesh=mesh) if heads else None)
    )
    parameters = plain.init(jax.random.key(1))
    split = jax.device_put(X, jax.sharding.NamedSharding(mesh, jax.P("data")))

    @functools.partial(jax.jit, static_argnums=0)
    def run(layer, parameters, x):
        def loss(parameters, x):
            state = layer.initial_state(parameters, (BATCH,), length=8)
            front, state = layer.prefill(parameters, x[:, :4], state, dropout_key=jax.random.key(2))
            last, state = layer.step(parameters, x[:, 4], state)
            return jnp.sin(front).sum() + last.sum(), (front, last, state)

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(parameters, x)

    (got, gradients), (want, wanted) = run(layer, parameters, split), run(plain, parameters, X)
    close(jax.tree.map(np.asarray, (got, gradients)), jax.tree.map(np.asarray, (want, wanted)))
    assert {leaf.sharding.spec[0] for leaf in jax.tree.leaves(got[1])} == {"data"}


def test_bad_input():
    layer, cross = layer_of(mask=masks.Causal(), kv_heads=2), layer_of(in_kv_features=9)
    parameters, others = (one.init(jax.random.key(0)) for one in (layer, cross))
    state = layer.initial_state(parameters, (BATCH,), length=4)
    of_tokens = layer_of(mask=masks.SameSegment(np.arange(7)), kv_heads=2)
    full = layer.prefill(parameters, X[:, :4], state)[1]
    memory = jnp.ones((BATCH, 5, 9))
    remembered = cross.initial_state(others, key_inputs=memory)
    wide = layer_of(mask=masks.Causal()).initial_state({}, (BATCH,), length=4)
    for call, message in [
        (lambda: layer.initial_state(parameters, (2,)), "`length` must be the number of places.*got length None"),
        (lambda: layer.initial_state(parameters, (2,), length=0), "`length` must be a positive int; got 0"),
        (lambda: layer.initial_state(parameters, 2, length=4), "`batch` must be a tuple of sizes"),
        (lambda: layer.initial_state(parameters, cache="rolling"), "`cache` must be one of.*'rolling'"),  # type: ignore[arg-type]
        (lambda: of_tokens.initial_state(parameters, length=7), r"`SameSegment.query_ids` .*function of positions"),
        (lambda: layer.initial_state(parameters, length=4, dtype=int), "`dtype` must be floating-point"),
        (
            lambda: layer.initial_state(parameters, length=4, key_inputs=X),
            "`length` and `cache` are for self",
        ),
        (lambda: cross.initial_state(others, length=4), "`key_inputs` must be given.*`in_kv_features` 9 differs"),
        (lambda: cross.initial_state(others, key_inputs=X), r"`key_inputs` must have shape .*in_kv_features = 9"),
        (lambda: cross.initial_state(others, (3,), key_inputs=memory), r"`batch` must be that of .*\(2,\); got \(3,\)"),
        (
            lambda: cross.initial_state(others, key_inputs=memory, key_valid=np.ones(4, bool)),
            r"`key_valid` must be booleans of shape \(2, 5\) or \(5,\)",
        ),
        (lambda: cross.step(others, X[:, 0], None), r"`state` must be what `initial_state\(batch, key_inputs=...\)`"),
        (lambda: cross.step(others, X[:, 0], wide), "`state` must hold keys computed from other inputs"),
        (lambda: layer.prefill(parameters, X), r"`state` must be what `initial_state\(batch, length=...\)`.*got None"),
        (
            lambda: layer.step(parameters, X[:, 0], wide),
            "`state` must hold keys and values of 2 heads .* 4 heads",
        ),
        (lambda: layer.step(parameters, X[:1, 0], state), r"`inputs` must have the batch axes \(2,\).*got \(1,\)"),
        (lambda: layer.step(parameters, X[:, 0, :5], state), r"`inputs` must have shape .*in_features = 16"),
        (lambda: layer.prefill(parameters, X, state), "`inputs` must end within the 4 places of the cache.* has 7"),
        (lambda: layer.step(parameters, X[:, 0], full), "`inputs` must end within the 4 places of the cache.* has 5"),
        (lambda: layer(X, parameters), r"`parameters` must be a mapping .*before all other arguments; got an array"),
        (lambda: layer.initial_state((BATCH,), length=4), r"`parameters` must be a mapping .*got \(2,\) \(tuple\)"),
        (lambda: layer({**parameters, "out": {}}, X), r"`parameters` must have 'out.bias', which Multi.*out \(\)"),
        (lambda: layer(layer_of().init(jax.random.key(0)), X), r"'key.bias' of shape \(2, 4\).*got shape \(4, 4\)"),
        (lambda: cross(others, X), "`key_inputs` must be given.*`in_kv_features` 9 differs"),
        (lambda: layer_of(kv_heads=2).prefill(parameters, X[:, :4], state), r"`mask` must hide .*`mask=jattn.masks.Ca"),
        (lambda: layer_of(kv_heads=2).step(parameters, X[:, 0], state), r"`mask` must hide .*`mask=jattn.masks.Ca"),
        (
            lambda: layer.prefill(parameters, X[:, :3], state, mask=masks.Dense(np.ones((1, 3, 3), bool))),
            r"`Dense.array` of shape \(1, 3, 3\) has size 3 on its key axis, .* 4 places of the cache",
        ),
        (lambda: layer.step(parameters, X[:, :1], state), r"`inputs` must have .*`step` takes one token"),
        (
            lambda: layer.initial_state(parameters, length=4, cache=caches.Rolling(2)),
            "`length` and `cache` cannot both be given",
        ),
        (lambda: layer.prefill(parameters, X, state, valid=np.ones(7)), "`valid` must be booleans"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    assert remembered.lengths.shape == (BATCH,)
    assert np.isnan(jax.jit(layer.step)(parameters, X[:, 0], full)[0]).all()
    for name in ("prefill", "step"):
        with pytest.raises(ValueError, match=f"Pooling has no `{name}`: .* got '{name}'"):
            getattr(jattn.nnx.Layer(Pooling(), rngs=nnx.Rngs(0)), name)(X, None)
        with pytest.raises(ValueError, match=f"Pooling has no `{name}`"):
            jattn.linen.Layer(Pooling()).init(jax.random.key(0), X, None, method=name)
    unsized: Any = jattn.linen.MultiHeadAttention(q_heads=HEADS)
    with pytest.raises(ValueError, match=r"`in_features` \(or `head_dim`\) must be an attribute"):
        unsized.initial_state((2,), length=4)


class Pooling(Layer):
    """A layer that does not generate."""

    def parameters(self):
        return {}

    def __call__(self, parameters, inputs):
        return inputs.mean(-2)

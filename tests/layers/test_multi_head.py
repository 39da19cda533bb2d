"""The pure function of multi-head attention, against float64 NumPy written from the equations."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import rows

import jattn
from jattn import masks, normalizers, positions, scores
from jattn.layers import Sizes, multi_head, parameter_shapes, parameter_specs
from jattn.layers.multi_head import multi_head_weights
from jattn.layers.parameters import Shape, initialize

BATCH, Q_LEN, KV_LEN = 2, 5, 7
EPSILON = 1e-6


def parameters(sizes, use_bias=True, qk_norm=True, seed=0) -> Any:
    draw = np.random.default_rng(seed)
    shapes = parameter_shapes(sizes, use_bias=use_bias, qk_norm=qk_norm)
    return {
        group: {name: draw.normal(size=shape.shape) * 0.4 for name, shape in members.items()}
        for group, members in shapes.items()
    }


def inputs(length, features, seed) -> Any:
    return np.random.default_rng(seed).normal(size=(BATCH, length, features))


def rotate(x, at, base):
    """Pairs (i, i + dim/2) turned by position * base^(-2i/dim); x [batch, length, heads, dim]."""
    half = x.shape[-1] // 2
    angle = np.asarray(at)[..., None] * base ** (-np.arange(half) / half)
    angle = angle[..., :, None, :]
    first, second = x[..., :half], x[..., half:]
    return np.concatenate(
        [first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle)], -1
    )


def truth(p, x, y=None, z=None, *, allowed=None, base=None, at=None, key_at=None, sink=None):
    """Weights and output, head by head."""
    y = x if y is None else y
    z = y if z is None else z
    q, k, v = (
        np.einsum("btf,fhd->bthd", source, p[name]["kernel"]) + p[name].get("bias", 0)
        for name, source in (("query", x), ("key", y), ("value", z))
    )
    if "query_norm" in p:
        q, k = (
            a / np.sqrt((a**2).mean(-1, keepdims=True) + EPSILON) * p[name]["scale"]
            for a, name in ((q, "query_norm"), (k, "key_norm"))
        )
    if base is not None:
        q = rotate(q, np.arange(q.shape[1]) if at is None else at, base)
        k = rotate(k, np.arange(k.shape[1]) if key_at is None else key_at, base)
    group = q.shape[2] // k.shape[2]
    out = p["out"].get("bias", 0) + np.zeros((*x.shape[:2], p["out"]["kernel"].shape[-1]))
    all_weights = []
    for head in range(q.shape[2]):
        s = np.einsum("bqd,bkd->bqk", q[:, :, head], k[:, :, head // group]) / np.sqrt(q.shape[-1])
        e = np.exp(s) if allowed is None else np.exp(s) * allowed
        weights = e / (e.sum(-1, keepdims=True) + (0 if sink is None else np.exp(sink[head])))
        all_weights.append(weights)
        out = out + np.einsum("bqk,bkd,df->bqf", weights, v[:, :, head // group], p["out"]["kernel"][head])
    return np.stack(all_weights, 1), out


TRIANGLE = np.tril(np.ones((Q_LEN, Q_LEN)))
SINK = np.linspace(-1, 1, 4)
CASES = {
    "self": (Sizes(16, 4), {}, {}),
    "grouped, wide heads, causal, rotary, norm": (
        Sizes(16, 4, kv_heads=2, head_dim=6, out_features=5),
        dict(mask=masks.Causal(), rotary=True),
        dict(allowed=TRIANGLE, base=1e4),
    ),
    "other base, positions, one key head": (
        Sizes(16, 4, kv_heads=1, head_dim=4),
        dict(
            rotary=functools.partial(positions.rotary, base=100.0),
            positions=np.arange(3, 3 + Q_LEN),
            mask=masks.Causal(),
        ),
        dict(allowed=TRIANGLE, base=100.0, at=np.arange(3, 3 + Q_LEN), key_at=np.arange(3, 3 + Q_LEN)),
    ),
    "a sink": (Sizes(16, 4), dict(normalizer=normalizers.Softmax(SINK)), dict(sink=SINK)),
}


@pytest.mark.parametrize("name", rows(CASES, ["self", "grouped, wide heads, causal, rotary, norm"]))
@pytest.mark.parametrize("implementation", ["tiled", pytest.param("reference", marks=pytest.mark.exhaustive)])
def test_value_and_directional_gradient_against_numpy(name, implementation):
    sizes, arguments, meaning = CASES[name]
    p, x = parameters(sizes), inputs(Q_LEN, 16, seed=1)
    want = truth(p, x, **meaning)[1]
    with jax.enable_x64(True):

        def out(p, x):
            return multi_head(p, x, **arguments, implementation=implementation)

        got = jax.jit(out)(p, x)
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)
        step = {group: {name: np.sin(7 * a) for name, a in members.items()} for group, members in p.items()}
        probe = np.cos(np.arange(want.size)).reshape(want.shape)
        gradient = jax.jit(jax.grad(lambda p, x: (out(p, x) * probe).sum()))(p, jnp.asarray(x))
        along = sum(float((g * s).sum()) for g, s in zip(jax.tree.leaves(gradient), jax.tree.leaves(step), strict=True))

    def shifted(size):
        moved = jax.tree.map(lambda a, s: a + size * s, p, step)
        return (truth(moved, x, **meaning)[1] * probe).sum()

    slope = (shifted(1e-5) - shifted(-1e-5)) / 2e-5
    np.testing.assert_allclose(along, slope, rtol=1e-6)


def test_cross_attention_with_values_of_their_own():
    sizes = Sizes(16, 4, kv_heads=2, in_kv_features=9)
    p, x = parameters(sizes), inputs(Q_LEN, 16, seed=1)
    y, z = inputs(KV_LEN, 9, seed=2), inputs(KV_LEN, 9, seed=3)
    at, key_at = np.array([[0, 2, 4, 6, 8], [5, 4, 3, 2, 1]]), np.arange(10, 10 + KV_LEN)
    run = jax.jit(lambda *a, rotary=True, **places: multi_head(*a, rotary=rotary, **places), static_argnames="rotary")
    got = run(p, x, y, z, positions=jnp.asarray(at), key_positions=key_at)
    want = truth(p, x, y, z, base=1e4, at=at, key_at=key_at)[1]
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)
    alone = run(p, x, y[:, :Q_LEN], key_positions=at[0])  # with as many keys it holds for both
    both = run(p, x, y[:, :Q_LEN], positions=at[0], key_positions=at[0])
    np.testing.assert_array_equal(alone, both)
    np.testing.assert_allclose(run(p, x, y, rotary=False), truth(p, x, y)[1], rtol=2e-5, atol=2e-5)


@pytest.mark.exhaustive
def test_positions_hold_for_queries_and_keys_in_self_attention():
    p, x = parameters(Sizes(16, 4)), inputs(Q_LEN, 16, seed=1)
    at = jnp.array([4, 0, 3, 1, 2])
    got = multi_head(p, x, mask=masks.Causal(), rotary=True, positions=at)
    order = np.argsort(at)
    sorted_first = multi_head(p, x[:, order], mask=masks.Causal(), rotary=True)
    np.testing.assert_allclose(got[:, order], sorted_first, rtol=2e-5, atol=2e-5)


def test_weights_are_those_of_the_output():
    p, x = parameters(Sizes(16, 4, kv_heads=2)), inputs(Q_LEN, 16, seed=1)
    want = truth(p, x, base=1e4, allowed=TRIANGLE)[0]
    got = multi_head_weights(p, x, mask=masks.Causal(), rotary=True, heads=[3, 0], queries=[4])
    np.testing.assert_allclose(got, want[:, [3, 0]][:, :, [4]], rtol=2e-5, atol=2e-6)


def test_bfloat16_sums_heads_in_float32():
    sizes = Sizes(32, 16)
    p, x = parameters(sizes, seed=4), inputs(Q_LEN, 32, seed=1)
    low = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), (p, x))
    got = multi_head(*low)
    assert got.dtype == jnp.bfloat16
    want = truth(*jax.tree.map(lambda a: np.asarray(a, np.float64), low))[1]
    error = np.abs(np.asarray(got, np.float64) - want).max() / np.abs(want).max()
    assert error < 2**-6  # a few roundings of 2^-9 each: projections, weights, attended values, output
    assert multi_head(p, x, dtype=jnp.bfloat16).dtype == jnp.bfloat16
    assert multi_head(low[0], jnp.asarray(x, jnp.float32)).dtype == jnp.float32


def test_vmap_and_no_retrace_on_new_values():
    p, x = parameters(Sizes(16, 4)), jnp.asarray(inputs(Q_LEN, 16, seed=1), jnp.float32)
    np.testing.assert_allclose(
        jax.vmap(lambda x: multi_head(p, x, mask=masks.Causal()))(x), multi_head(p, x, mask=masks.Causal()), atol=1e-5
    )
    traces = []

    @jax.jit
    def call(p, x, slopes):
        traces.append(1)
        return multi_head(p, x, scores=scores.ALiBi(slopes))

    call(p, x, jnp.ones(4))
    call(p, x + 1, 2 * jnp.ones(4))
    assert len(traces) == 1


def test_dropout_keeps_the_mean():
    p, x = parameters(Sizes(16, 4)), inputs(Q_LEN, 16, seed=1)
    drop = jax.jit(lambda key: multi_head(p, x, dropout=jattn.Dropout(0.3, key)))
    outs = jnp.stack([drop(jax.random.key(i)) for i in range(200)])
    spread = float(outs.std(0).max())
    assert spread > 0.05
    assert float(jnp.abs(outs.mean(0) - multi_head(p, x)).max()) < 5 * spread / np.sqrt(200)


def test_sizes_fill_in_and_check():
    assert (Sizes(12, 4).kv_heads, Sizes(12, 4).head_dim, Sizes(12, 4).out_features) == (4, 3, 12)
    for bad, message in [
        (lambda: Sizes(12, 5), "`in_features` must be a multiple of `q_heads`"),
        (lambda: Sizes(12, 4, kv_heads=3), "`q_heads` must be a multiple of `kv_heads`; got q_heads 4 and kv_heads 3"),
        (lambda: Sizes(12, 4, head_dim=0), "`head_dim` must be a positive int; got 0"),
        (lambda: Sizes(4, 12), "`in_features` comes first, then `q_heads`.*got in_features 4 and q_heads 12"),
        (lambda: Sizes(12, None), "`q_heads` must be a positive int; got None"),  # type: ignore[arg-type]
        (lambda: Sizes(12, 0), "`q_heads` must be a positive int; got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            bad()


def test_initialization_sees_a_matrix():
    seen = []

    def init(key, shape, dtype):
        seen.append(shape)
        return jnp.arange(np.prod(shape), dtype=dtype).reshape(shape)

    shapes = parameter_shapes(Sizes(12, 4, kv_heads=2, head_dim=5), use_bias=True, qk_norm=False)
    assert set(shapes) == {"query", "key", "value", "out"}
    made = {
        group: initialize(init, jax.random.key(0), members["kernel"], "float32") for group, members in shapes.items()
    }
    assert seen == [(12, 20), (12, 10), (12, 10), (20, 12)]
    assert [made[name].shape for name in ("query", "key", "out")] == [(12, 4, 5), (12, 2, 5), (4, 5, 12)]
    assert initialize(init, jax.random.key(0), Shape((4, 5), 0), "float32").shape == (4, 5)


def test_specs_of_parameters():
    from jax.sharding import PartitionSpec as P

    specs = parameter_specs(parameters(Sizes(12, 4)), head="model")
    assert specs["query"] == {"kernel": P(None, "model", None), "bias": P("model", None)}
    assert specs["out"] == {"kernel": P("model", None, None), "bias": P(None)}
    assert specs["query_norm"] == {"scale": P(None)}


def test_bad_input():
    p, x, y = parameters(Sizes(16, 4, in_kv_features=9)), inputs(Q_LEN, 16, seed=1), inputs(KV_LEN, 9, seed=2)
    for call, message in [
        (lambda: multi_head(p, x[..., :5], y), r"`inputs` must have shape \[..., length, 16\]"),
        (lambda: multi_head(p, None, y), "`inputs` must be an array .*got None"),
        (lambda: multi_head(p, x.astype(int), y), "`inputs` must be floating-point; got an array of dtype int"),
        (lambda: multi_head(p, x, y > 0), "`key_inputs` must be floating-point; got an array of dtype bool"),
        (lambda: multi_head(p, x), r"`key_inputs` must have shape \[..., length, 9\] for a key kernel"),
        (lambda: multi_head(p, x, None, y), "`value_inputs` needs `key_inputs`"),
        (lambda: multi_head(p, x, y[:1]), "`key_inputs` must have the batch axes of `inputs`"),
        (lambda: multi_head(p, x, y, y[:, :3]), "must have the same length"),
        (
            lambda: multi_head(p, x, y, rotary=True),
            r"`rotary` depends on query positions, and q_len 5.*`positions=numpy",
        ),
        (
            lambda: multi_head(p, x, y[:, :Q_LEN], rotary=True, positions=np.arange(Q_LEN) + 1),
            "`positions` are given alone.*`rotary` depends",
        ),
        (lambda: multi_head(p, x, y, rotary="yes"), "`rotary` must be True, False or a function.*'yes'"),
        (lambda: multi_head(p, x, y, mask=masks.Causal()), "`mask` depends on query positions.*give `positions`"),
        (
            lambda: multi_head(p, x, y, positions=np.arange(3)),
            r"`positions` must .* each element of `inputs`; got \(3,\)",
        ),
        (
            lambda: multi_head(p, x, y, key_positions=np.arange(3)),
            r"`key_positions` must .* of `key_inputs`; got \(3,\)",
        ),
        (
            lambda: multi_head(p, x, y, dtype=jnp.int32),
            "`dtype` must be floating-point, of at least 16 bits; got int32",
        ),
        (lambda: multi_head(p, x, y, scores=masks.Causal()), "A mask goes to `mask=`"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    square = parameters(Sizes(16, 4))
    with pytest.raises(ValueError, match=r"`positions` must be integers.*'abc'"):
        multi_head(square, x, positions="abc")
    for call, message in [
        (lambda: multi_head(square, x.tolist()), r"`inputs` must be an array \[..., length, features\].*\(list\)"),
        (lambda: multi_head(square, x[0, 0]), r"`inputs` must be an array .*shape \(16,\)"),
        (lambda: multi_head({**square, "out": {}}, x), "`parameters` must have a `kernel` in 'out'"),
        (lambda: multi_head(None, x), "`parameters` must have a `kernel` in 'query'; got None"),
        (lambda: multi_head(square, x, parallel="model"), r"`parallel` must be `jattn.parallel.Heads\(...\)`.*'model'"),
        (lambda: multi_head(square, x, dropout=0.1), r"`dropout`.*`jattn.Dropout\(rate, key\)`"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(ValueError, match="in self-attention give `positions`"):
        multi_head(square, x, key_positions=np.arange(Q_LEN))


def test_nan_in_padding_reaches_no_other_token():
    p, x = parameters(Sizes(8, 2)), inputs(Q_LEN, 8, seed=3)
    padded = x.copy()
    padded[:, 3:] = np.nan
    run = functools.partial(multi_head, p, mask=masks.Lengths(np.array([3, 3])))
    np.testing.assert_array_equal(run(padded)[:, :3], run(x)[:, :3])

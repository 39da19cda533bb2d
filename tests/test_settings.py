"""JAX's settings, transformations and kinds of input: attention works under them, or says why not."""

import functools
import inspect

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, TILES
from measure import call, draw, near, random
from tiers import rows

import jattn
from jattn import masks, normalizers, scores, similarities

QUERY, KEY, VALUE = random((2, 7, 4, 8), (2, 7, 2, 8), (2, 7, 2, 8))
CALLS = {
    "plain": {},
    "causal": {"mask": masks.Causal() & masks.Lengths(4), "scores": [scores.SoftCap(3.0), scores.ALiBi.standard(4)]},
    "function": {"mask": lambda q, k: (k <= q) & (q - k < 3), "normalizer": normalizers.Softmax(np.zeros(4))},
    "gaussian": {"similarity": similarities.Gaussian(0.5)},
    "reference": {"implementation": "reference", "mask": masks.Causal()},
    "sparsemax": {"normalizer": normalizers.Sparsemax()},
}


def loss(given, query=QUERY, key=KEY, value=VALUE):
    return jnp.sin(jattn.attention(query, key, value, **given)).sum()


@pytest.mark.parametrize("case", rows(CASES[::7], {case.name for case in CASES[::21]}, lambda case: case.name))
def test_no_rank_is_promoted(case):
    """Under `jax_numpy_rank_promotion="raise"`, forward and backward. JAX raises while tracing."""
    inputs = draw(case, 0)
    arrays = {name: jnp.asarray(array) for name, array in inputs.arrays.items()}
    floats = {name: arrays.pop(name) for name in inputs.floats}
    given = [jnp.asarray(array) for array in (inputs.query, inputs.key, inputs.value)]
    for name in ("reference", TILES[case.name]):

        def total(query, key, value, floats, name=name):
            results = call(case, name, query, key, value, {**floats, **arrays})
            return sum(one.sum() for one in jax.tree.leaves(results))

        with jax.numpy_rank_promotion("raise"):
            try:
                jax.eval_shape(jax.grad(total, argnums=(0, 1, 2, 3)), *given, floats)
            except jattn.Unsupported:
                assert case.name in ("sparsemax", "entmax 1.5")


@pytest.mark.parametrize("name", rows(CALLS, ["causal", "sparsemax"]))
def test_debug_nans_and_checks(name):
    with jax.debug_nans(True), jax.enable_checks(True):
        jax.jit(jax.grad(functools.partial(loss, CALLS[name])))(QUERY)


def test_float64_of_numpy_is_float32():
    """As in `jax.nn`, without a warning, wherever it comes in."""
    wide = [np.asarray(array, np.float64) for array in (QUERY, KEY, VALUE)]
    assert jax.nn.dot_product_attention(*wide).dtype == "float32"
    want = jattn.attention(QUERY, KEY, VALUE)
    assert want.dtype == "float32"
    for out in (
        jattn.attention(*wide),
        jattn.attention(*wide, implementation="reference"),
        jattn.attention(QUERY, *wide[1:]),
        jattn.dot_product_attention(*wide),
        jattn.merge([jattn.partial_attention(*wide)]).out,
    ):
        assert out.dtype == "float32"
        near(out, want, 1e-6)
    gradient = jax.grad(lambda query: loss({}, query, *wide[1:]))(wide[0])
    near(gradient, jax.grad(functools.partial(loss, {}))(QUERY), 1e-6)


def test_symbolic_sizes():
    """What is exported for any batch and length gives what the same call gives, as with `jax.nn`."""
    batch, length = jax.export.symbolic_shape("b, t")
    shape = functools.partial(jax.ShapeDtypeStruct, dtype="float32")
    dropping = {"dropout": jattn.Dropout(0.5, jax.random.key(0)), "mask": masks.Causal()}
    for given, *sizes in ((CALLS["function"], batch, 7), (CALLS["causal"], 2, length), (dropping, batch, length)):
        run = functools.partial(jattn.attention, **given)
        arrays = (shape((*sizes, 4, 8)), shape((*sizes, 2, 8)), shape((*sizes, 2, 8)))
        exported = jax.export.export(jax.jit(run))(*arrays)
        near(exported.call(QUERY, KEY, VALUE), run(QUERY, KEY, VALUE), 1e-5)
    with pytest.raises(jattn.Unsupported, match=r"`tiled` refuses this call: .*symbols \(of `jax.export`\)"):
        run = functools.partial(jattn.attention, implementation="tiled")
        jax.export.export(jax.jit(run))(*(shape((2, length, 4, 8)),) * 3)


def value_of(scale):
    return loss({"mask": masks.Causal()}, QUERY * scale)


FORWARD = {
    "jvp": lambda: jax.jvp(value_of, (1.0,), (1.0,)),
    "jvp of jit": lambda: jax.jvp(jax.jit(value_of), (1.0,), (1.0,)),
    "jit of jvp": lambda: jax.jit(lambda x: jax.jvp(value_of, (x,), (x,)))(1.0),
    "jacfwd": lambda: jax.jacfwd(value_of)(1.0),
    "jit of jacfwd": lambda: jax.jit(jax.jacfwd(value_of))(1.0),
    "hessian": lambda: jax.hessian(value_of)(1.0),
    "jit of hessian of jit": lambda: jax.jit(jax.hessian(jax.jit(value_of)))(1.0),
    "linearize": lambda: jax.linearize(value_of, 1.0)[1](1.0),
    "grad of grad": lambda: jax.grad(jax.grad(value_of))(1.0),
    "jvp in slopes": lambda: jax.jvp(lambda s: loss({"scores": scores.ALiBi(s)}), (jnp.ones(4),), (jnp.ones(4),)),
}


@pytest.mark.parametrize("derivative", FORWARD.values(), ids=FORWARD)
def test_derivatives_that_tiled_has_not_name_the_reference(derivative):
    with pytest.raises(jattn.Unsupported, match=r"`tiled` has first derivatives in reverse mode .*'reference'"):
        derivative()


REVERSE = {
    "vmap of grad": lambda: jax.vmap(jax.grad(value_of))(jnp.ones(1))[0],
    "grad of vmap": lambda: jax.grad(lambda x: jax.vmap(value_of)(x).sum())(jnp.ones(1))[0],
    "grad of scan of checkpoint": lambda: jax.grad(
        lambda x: jax.lax.scan(lambda total, _: (total + jax.checkpoint(value_of)(x), None), 0.0, None, length=1)[0]
    )(1.0),
    "grad of cond": lambda: jax.grad(lambda x: jax.lax.cond(x > 0, value_of, jnp.sin, x))(1.0),
    "jacrev": lambda: jax.jacrev(value_of)(1.0),
}


@pytest.mark.parametrize("name", rows(REVERSE, ["vmap of grad", "grad of scan of checkpoint"]))
def test_derivatives_that_tiled_has(name):
    near(jax.jit(REVERSE[name])(), gradient_of_value(), 1e-5)


@functools.cache
def gradient_of_value():
    return float(jax.grad(value_of)(1.0))


def test_signature_of_jax_nn():
    """Argument by argument: name, kind and default."""
    ours, theirs = (
        [(one.name, one.kind, one.default) for one in inspect.signature(function).parameters.values()]
        for function in (jattn.dot_product_attention, jax.nn.dot_product_attention)
    )
    assert ours == theirs


TRIANGLE = np.tril(np.ones((7, 7), bool))
FEWER_AXES = {
    "mask of 0 axes": {"mask": np.array(True)},
    "mask of 1": {"mask": np.arange(7) < 5},
    "mask of 2": {"mask": TRIANGLE},
    "mask of 3": {"mask": np.broadcast_to(TRIANGLE, (4, 7, 7))},
    "bias of 0": {"bias": np.float32(2.0)},
    "bias of 1": {"bias": np.linspace(0, 1, 7, dtype=np.float32)},
    "bias of 2, integers": {"bias": np.arange(49).reshape(7, 7) % 5},
    "xla": {"implementation": "xla", "scale": jnp.float32(0.3)},
    "a window in a list": {"local_window_size": [2, 1]},
    "lengths": {"query_seq_lengths": np.array([7, 7], np.int32), "key_value_seq_lengths": np.array([5, 7], np.int32)},
}


@pytest.mark.parametrize("name", rows(FEWER_AXES, ["mask of 1"]))
def test_dot_product_attention_takes_what_jax_nn_takes(name):
    given = {"implementation": "reference", **FEWER_AXES[name]}
    theirs = {**given, "implementation": "xla"}
    want = jax.nn.dot_product_attention(QUERY, KEY, VALUE, **theirs)
    near(jattn.dot_product_attention(QUERY, KEY, VALUE, **given), want, 1e-5)
    if "lengths" not in " ".join(given):
        alone = (QUERY[0], KEY[0], VALUE[0])
        near(jattn.dot_product_attention(*alone, **given), jax.nn.dot_product_attention(*alone, **theirs), 1e-5)


REFUSED = {
    "cudnn": ({"implementation": "cudnn"}, "`implementation` must not be 'cudnn'"),
    "another name": ({"implementation": "fast"}, "`implementation`.*'fast'"),
    "numbers for a mask": ({"mask": TRIANGLE.astype("float32")}, "`mask` must be a boolean array"),
    "a mask of other lengths": ({"mask": TRIANGLE[:3]}, r"`mask` of shape \(1, 1, 3, 7\) has size 3 on its query axis"),
    "a mask of other heads": ({"mask": np.ones((2, 7, 7), bool)}, "`mask` .* has size 2 on its head axis"),
    "a bias of other heads": ({"bias": np.ones((3, 7, 7), "float32")}, "`bias` .* has size 3 on its head axis"),
    "lengths of another batch": ({"key_value_seq_lengths": jnp.array([5])}, r"`key_value_seq_lengths`.*\(2,\).*\(1,\)"),
    "lengths that are no integers": (
        {"key_value_seq_lengths": np.array([5.0, 7.0])},
        "`key_value_seq_lengths` must be an integer",
    ),
    "three windows": ({"local_window_size": (1, 2, 3)}, r"`local_window_size` must be one int, or \(left, right\)"),
}


@pytest.mark.parametrize(("given", "message"), REFUSED.values(), ids=REFUSED)
def test_dot_product_attention_refuses_where_jax_nn_does(given, message):
    with pytest.raises(ValueError, match=message):
        jattn.dot_product_attention(QUERY, KEY, VALUE, **given)
    with pytest.raises((ValueError, TypeError, AssertionError, RuntimeError)):
        jax.nn.dot_product_attention(QUERY, KEY, VALUE, **given)

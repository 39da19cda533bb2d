"""Step, scan and chunked forms equal the float64 recurrence: values, gradients, cut in two, for extreme gates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recurrences as truth
from recurrences import KINDS, both_forms, compiled, inputs, run, state_of
from tiers import rows

from jattn.ops.recurrence import delta_step, linear_step

GATED = ("scalar", "channel", "bonus", "gated delta", "channel delta")
FEW = ("bonus", "channel delta")  # with all that the others have
EACH = [*((kind, "chunked") for kind in KINDS), ("bonus", "scan"), ("gated delta", "scan"), ("channel delta", "scan")]
HARDEST = ("channel delta",)


def some_of_each(*always):
    """Of `EACH`, with those marked that do not run always."""
    assert set(always) <= set(EACH)
    return [pytest.param(*one, marks=() if one in always else pytest.mark.exhaustive) for one in EACH]


SOME_OF_EACH = some_of_each(
    ("constant", "chunked"), ("bonus", "chunked"), ("channel delta", "chunked"), ("bonus", "scan")
)


def expected(given, state=None, segments=None):
    given = {name: np.asarray(array, np.float64) for name, array in given.items()}
    state = None if state is None else np.asarray(state, np.float64)
    if "beta" in given:
        return truth.delta(**given, state=state, segments=segments)
    if "log_decay" in given:
        gates = given["log_decay"]
        given["log_decay"] = np.broadcast_to(gates if gates.ndim == 3 else gates[..., None], given["key"].shape)
    return truth.linear(**given, state=state, segments=segments)


def assert_close(ours, wanted, tolerance=1e-5):
    for one, other in zip(ours, wanted, strict=True):
        assert truth.relative_error(one, other) < tolerance


@pytest.mark.parametrize(
    ("kind", "form", "extreme"),
    [(kind, "chunked", False) for kind in KINDS]
    + [pytest.param(kind, "scan", False, marks=() if kind in FEW else pytest.mark.exhaustive) for kind in KINDS]
    + [(kind, "chunked", True) for kind in GATED],
)
def test_is_its_definition_with_state_and_segments(kind, form, extreme):
    given = inputs(kind, 63, extreme=extreme)
    state, segments = state_of(given), np.repeat([1, 2, 5, 6], [20, 1, 30, 12])
    ours = compiled(implementation=form, chunk=16)(given, initial_state=state, segment_ids=segments)
    assert_close(ours, expected(given, state, segments))


@pytest.mark.parametrize("kind", rows(KINDS, ["bonus"]))
def test_cut_in_two_it_is_the_same(kind):
    """The state after a prefix is where the rest goes on; token by token too. Cuts at every place: test_splits.py."""
    given = inputs(kind, 6)
    apart = {name: array for name, array in given.items() if array.shape[0] == 6}
    fixed = {name: array for name, array in given.items() if name not in apart}

    @jax.jit
    def cut(apart, fixed):
        found = []
        for form, splits in (("scan", (2,)), ("chunked", (0, 2, 5, 6))):
            for split in splits:
                first, state = run({**fixed, **{n: a[:split] for n, a in apart.items()}}, implementation=form, chunk=4)
                second, state = run(
                    {**fixed, **{n: a[split:] for n, a in apart.items()}},
                    initial_state=state,
                    implementation=form,
                    chunk=4,
                )
                found.append((jnp.concatenate([first, second]), state))
        return found

    @jax.jit
    def step(token, fixed, state):
        return (delta_step if "beta" in given else linear_step)(**fixed, **token, state=state)

    whole = expected(given)
    for each in cut(apart, fixed):
        assert_close(each, whole)
    state, out = np.zeros_like(whole[1], np.float32), []
    for t in range(6):
        one, state = step({name: array[t] for name, array in apart.items()}, fixed, state)
        out.append(one)
    assert_close((np.stack(out), state), whole)


@pytest.mark.parametrize(
    ("length", "k_dim", "v_dim"),
    [
        (130, 1, 1),
        *(pytest.param(*one, marks=pytest.mark.exhaustive) for one in ((1, 60, 64), (63, 64, 60), (1000, 60, 64))),
    ],
)
@pytest.mark.parametrize("kind", rows(KINDS, ["bonus"]))
def test_lengths_and_dims(kind, length, k_dim, v_dim):
    given = inputs(kind, length, 2, k_dim, v_dim)
    wanted = expected(given)
    for ours in both_forms()(given):
        assert_close(ours, wanted)


@pytest.mark.parametrize("kind", rows(KINDS, HARDEST))
def test_is_the_parallel_form(kind):
    given = inputs(kind, 70)
    wanted = truth.pairs(**{name: array.astype(np.float64) for name, array in given.items()})
    for out, _ in both_forms(16)(given):
        assert truth.relative_error(out, wanted) < 1e-5


@pytest.mark.parametrize("chunk", [3, *(pytest.param(one, marks=pytest.mark.exhaustive) for one in (1, 8, 100))])
@pytest.mark.parametrize("kind", rows(["bonus", "gated delta", "channel delta"], HARDEST))
def test_chunk_changes_nothing(kind, chunk):
    given = inputs(kind, 37, extreme=True)
    assert_close(compiled(chunk=chunk)(given), expected(given))


@pytest.mark.parametrize(("kind", "form"), SOME_OF_EACH)
def test_gradients_are_those_of_the_definition(kind, form):
    """Of all arrays and the first state, with cotangents on the output and the last state, by central differences."""
    given = {**inputs(kind, 9, 1, 3, 2)}
    given = {name: array.astype(np.float32) for name, array in given.items()}
    state, segments = state_of(given), np.array([0] * 6 + [1] * 3)
    if kind in ("constant", "channel", "delta"):
        segments = None  # so that the first state reaches the last
    rng = np.random.default_rng(3)
    on_out, on_state = rng.normal(size=given["value"].shape), rng.normal(size=state.shape)

    def loss(given, state):
        out, final = run(given, initial_state=state, segment_ids=segments, implementation=form, chunk=4)
        return jnp.sum(out * on_out) + jnp.sum(final * on_state)

    gradients = jax.tree.leaves(jax.jit(jax.grad(loss, argnums=(0, 1)))(given, state))
    arrays, tree = jax.tree.flatten(({k: v.astype(np.float64) for k, v in given.items()}, state.astype(np.float64)))
    for gradient, array in zip(gradients, arrays, strict=True):
        numeric = np.zeros_like(array)
        for index in np.ndindex(array.shape):
            kept, sides = array[index], []
            for step in (1e-5, -1e-5):
                array[index] = kept + step
                out, final = expected(*jax.tree.unflatten(tree, arrays), segments=segments)
                sides.append((out * on_out).sum() + (final * on_state).sum())
            array[index] = kept
            numeric[index] = (sides[0] - sides[1]) / 2e-5
        np.testing.assert_allclose(gradient, numeric, rtol=0, atol=2e-5 * max(1, np.abs(numeric).max()))


@pytest.mark.parametrize("kind", rows(GATED, HARDEST))
def test_gradients_of_extreme_gates_are_finite_and_those_of_the_scan(kind):
    given = inputs(kind, 40, extreme=True)

    def loss(given, form):
        out, state = run(given, implementation=form, chunk=16)
        return jnp.sum(jnp.sin(out)) + jnp.sum(jnp.sin(state))

    ours, scan = (jax.jit(jax.grad(loss), static_argnums=1)(given, form) for form in ("chunked", "scan"))
    for name in given:
        assert np.isfinite(ours[name]).all()
        assert truth.relative_error(ours[name], scan[name]) < 1e-5, name


@functools.cache
def pulled_back(**options):
    """Of arrays by name and cotangents: results and the gradients of all arrays."""

    def both(given, cotangents):
        results, pull = jax.vjp(lambda given: run(given, **options), given)
        return results, *pull(cotangents)

    return jax.jit(both)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", rows(KINDS, HARDEST))
def test_bfloat16_in_a_float32_state(kind):
    """Output and gradients are rounded once, at the end: 2^-8 at most of each number."""
    given = {name: jnp.asarray(array, jnp.bfloat16) for name, array in inputs(kind, 70).items()}
    rng = np.random.default_rng(3)
    on_out = jnp.asarray(rng.normal(size=given["value"].shape), jnp.bfloat16)
    on_state = rng.normal(size=state_of(given).shape).astype(np.float32)
    ours = pulled_back(chunk=16)
    (out, state), gradients = ours(given, (on_out, on_state))
    assert out.dtype == jnp.bfloat16 and state.dtype == jnp.float32
    assert_close((out,), expected(given)[:1], 4e-3)
    assert_close((state,), expected(given)[1:])
    with jax.enable_x64(True):
        wide, *cotangents = jax.tree.map(lambda array: np.asarray(array, np.float64), (given, on_out, on_state))
        _, wanted = pulled_back(implementation="scan")(wide, tuple(cotangents))
    for name, gradient in gradients.items():
        assert gradient.dtype == jnp.bfloat16
        assert truth.relative_error(gradient, wanted[name]) < 4e-3, name


@pytest.mark.parametrize(("kind", "form"), some_of_each(("channel delta", "chunked")))
def test_nan_stays_in_the_future_and_in_its_segment(kind, form):
    given = inputs(kind, 24)
    segments = np.repeat([0, 1], [16, 8])

    @jax.jit
    def run_once(given):
        (out, state), pull = jax.vjp(
            lambda given: run(given, segment_ids=segments, implementation=form, chunk=8), given
        )
        return out, state, *pull((jnp.zeros_like(out).at[:10].set(1), jnp.zeros_like(state)))

    clean, final, _ = run_once(given)
    for name in given:
        if given[name].shape[0] != 24:
            continue
        spoiled = {**given, name: given[name].copy()}
        spoiled[name][10] = np.nan
        out, state, gradient = run_once(spoiled)
        np.testing.assert_allclose(out[:10], clean[:10], atol=1e-6)
        np.testing.assert_allclose(out[16:], clean[16:], atol=1e-6)
        np.testing.assert_allclose(state, final, atol=1e-6)
        assert np.isnan(out[11 if name == "log_decay" else 10]).all()  # with a bonus, a gate reaches the next token
        assert all(np.isfinite(one[:10]).all() for one in jax.tree.leaves(gradient) if one.shape[0] == 24)


@pytest.mark.parametrize("kind", rows(KINDS, ["bonus"]))
def test_causal(kind):
    given = inputs(kind, 7, 1, 3, 2)
    slopes = jax.jit(jax.jacobian(lambda given: run(given, chunk=4)[0]))(given)
    for name, slope in slopes.items():
        if given[name].shape[0] == 7:
            reach = np.abs(np.asarray(slope)).sum(axis=(1, 2, *range(4, slope.ndim)))
            assert (np.triu(reach, 1) == 0).all(), name


@pytest.mark.parametrize("kind", rows(["channel", "gated delta"], ["gated delta"]))
def test_vmap_and_batch_are_loops(kind):
    several = [inputs(kind, 20, seed=seed) for seed in range(3)]
    stacked = {name: np.stack([one[name] for one in several]) for name in several[0]}
    mapped = jax.jit(jax.vmap(lambda given: run(given, chunk=8)))
    for out, state in (compiled(chunk=8)(stacked), mapped(stacked)):
        for i, one in enumerate(several):
            assert_close((out[i], state[i]), expected(one))
    nested = {name: array[None] for name, array in stacked.items()}
    assert jax.eval_shape(run, nested)[0].shape == (1, 3, 20, 2, 5)


@pytest.mark.exhaustive  # in every run: tests/benchmarks/test_linear.py
@pytest.mark.parametrize("kind", KINDS)
def test_memory_of_the_gradient_is_linear(kind):
    def temporaries(length):
        given = inputs(kind, length, 4, 32, 32)
        gradient = jax.jit(jax.grad(lambda given: jnp.sum(run(given)[0])))
        return gradient.lower(given).compile().memory_analysis().temp_size_in_bytes

    sizes = [temporaries(length) for length in (2048, 4096, 8192)]
    assert sizes[2] - sizes[1] < 2.1 * (sizes[1] - sizes[0]) + 2**20
    assert sizes[2] < 8192 * 4 * 32 * 4 * 40  # a state for each token would be 32 of these for one array


GROUPS = {"queries": (4, 2, 2), "values": (2, 2, 4), "a query of each value": (4, 2, 4), "both": (8, 2, 4)}
"""Heads of queries, keys and values."""


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("kind", "heads"),
    [
        pytest.param(
            kind,
            heads,
            id=f"{kind}-{name}",
            marks=() if (kind, name) in {("bonus", "both")} else pytest.mark.exhaustive,
        )
        for kind in ("scalar", "bonus", "channel delta")
        for name, heads in GROUPS.items()
    ],
)
def test_grouped_heads_are_repeated_heads(kind, heads):
    """Values, states and gradients, in both forms and by steps."""
    q_heads, k_heads, states = heads
    most = max(heads)
    whole = inputs(kind, 11, states)
    given = {**whole, "key": whole["key"][:, :k_heads], "query": inputs(kind, 11, q_heads, seed=1)["query"]}
    state = state_of({**given, "key": whole["key"]})
    fixed = {name: array for name, array in given.items() if name == "bonus"}

    def repeated(given, state):
        def to(array, axis, of):
            return jnp.repeat(array, most // of, axis)

        apart = {
            name: to(array, -2 if array.ndim == 3 or name == "bonus" else -1, states) for name, array in given.items()
        }
        apart.update(query=to(given["query"], -2, q_heads), key=to(given["key"], -2, k_heads))
        out, last = run(apart, initial_state=to(state, 0, states), implementation="scan", chunk=4)
        return out, last[:: most // states]

    def steps(given, state):
        def one(state, token):
            out, state = (delta_step if "beta" in given else linear_step)(**token, **fixed, state=state)
            return state, out

        state, out = jax.lax.scan(one, state, {name: given[name] for name in given.keys() - fixed.keys()})
        return out, state

    def grouped(given, state, form="chunked"):
        return run(given, initial_state=state, implementation=form, chunk=4)

    def loss(given, state, function):
        out, last = function(given, state)
        return jnp.sum(jnp.sin(out)) + jnp.sum(jnp.sin(last)), (out, last)

    @jax.jit
    def everything(given, state):
        found = []
        for function in (repeated, grouped):
            gradients, results = jax.grad(loss, (0, 1), has_aux=True)(given, state, function)
            found.append((*results, *jax.tree.leaves(gradients)))
        return *found, grouped(given, state, "scan"), steps(given, state)

    wanted, chunked, scan, by_steps = everything(given, state)
    assert_close(chunked, wanted)
    assert_close(scan, wanted[:2])
    assert_close(by_steps, wanted[:2])


def alike(rng, how, length):
    """Keys of length 1 that are hard for the delta rule: all one, of changing sign, nearly one, in a plane."""
    one = np.broadcast_to(rng.normal(size=16), (length, 16))
    if how == "of changing sign":
        one = one * np.where(np.arange(length) % 2, 1, -1)[:, None]
    if how == "nearly one":
        one = one + 0.05 * rng.normal(size=one.shape)
    if how == "in a plane":
        one = rng.normal(size=(length, 2))
    return (one / np.linalg.norm(one, axis=-1, keepdims=True)).astype(np.float32)[:, None]


@pytest.mark.exhaustive
@pytest.mark.parametrize("how", rows(["one", "of changing sign", "nearly one", "in a plane"], ["nearly one"]))
def test_delta_rule_of_keys_alike(how):
    """Up to β = 2, where (I + N)⁻¹ comes out of numbers much larger than its own."""
    rng = np.random.default_rng(0)
    key = alike(rng, how, 256)
    query, value = (rng.normal(size=(256, 1, dim)).astype(np.float32) for dim in (key.shape[-1], 8))

    @functools.partial(jax.jit, static_argnums=1)
    def graded(given, form):
        def total(given):
            out, state = run(given, implementation=form)
            return out.sum() + state.sum(), (out, state)

        gradients, found = jax.grad(total, has_aux=True)(given)
        return *found, *(gradients[name] for name in sorted(given))

    for beta, tolerance in ((1.0, 5e-6), (2.0, 5e-5)):
        given = {"query": query, "key": key, "value": value, "beta": np.full((256, 1), beta, np.float32)}
        with jax.enable_x64(True):
            wanted = graded({name: np.float64(array) for name, array in given.items()}, "scan")
        assert_close(graded(given, "chunked"), wanted, tolerance)

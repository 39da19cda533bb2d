"""What a recurrence may be given, and what not: empty axes, a symbolic length, bad input, an implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recurrences import KINDS, compiled, inputs, run, state_of
from tiers import rows

import jattn
from jattn.ops.attention.implementations import Tiled
from jattn.ops.recurrence import linear_step
from jattn.ops.recurrence.implementations.scan import Scan

FEW = ("bonus", "channel delta")  # with all that the others have


def test_length_zero():
    given = {name: array[:0] for name, array in inputs("channel", 3).items()}
    out, state = run(given, initial_state=state_of(given))
    assert out.shape == (0, 2, 5)
    np.testing.assert_array_equal(state, state_of(given))


@pytest.mark.parametrize("form", ["chunked", "scan"])
@pytest.mark.parametrize("kind", rows(KINDS, FEW))
def test_empty_axes(kind, form):
    """No features of keys or values, no batch."""
    for sizes in ((5, 2, 0, 3), (5, 2, 3, 0)):
        out, state = compiled(implementation=form)(inputs(kind, *sizes))
        assert out.shape == (5, 2, sizes[3]) and state.shape == (2, *sizes[2:]) and not np.any(out)
    given = {name: np.stack([array])[:0] for name, array in inputs(kind, 5).items() if array.shape[0] == 5}
    if len(given) == len(inputs(kind, 5)):
        assert compiled(implementation=form)(given)[0].shape == (0, 5, 2, 5)


SMALL = inputs("channel", 5)
DELTA = inputs("gated delta", 5)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (SMALL, {"log_decay": np.full((5, 2), 0.1, np.float32)}, "`log_decay` must be at most 0.*log_sigmoid"),
        (SMALL, {"log_decay": np.zeros((5, 6), np.float32)}, "`log_decay` must have shape"),
        (SMALL, {"log_decay": np.zeros((1, 5, 2, 6, 1), np.float32)}, "`log_decay` must have shape"),
        (SMALL, {"bonus": np.zeros((6,), np.float32)}, r"`bonus` must have shape \[heads, k_dim\]"),
        (SMALL, {"key": np.zeros((5, 3, 6), np.float32)}, "`value` must have as many heads as `key`.*got 2 and 3"),
        (SMALL, {"query": np.zeros((5, 3, 6), np.float32)}, r"`query` must have as many heads as `key` \(2\).*got 3"),
        (SMALL, {"initial_state": np.zeros((2, 5, 6), np.float32)}, r"`initial_state` must have shape \(2, 6, 5\)"),
        (SMALL, {"initial_state": np.zeros((2, 6, 5), np.float16)}, "`initial_state` must be float32.*astype"),
        (SMALL, {"segment_ids": np.array([0, 1, 0, 1, 1])}, "`segment_ids` must not decrease"),
        (SMALL, {"segment_ids": np.array([3, 3, 2, 2, 1], np.uint32)}, "`segment_ids` must not decrease"),
        (SMALL, {"segment_ids": np.array([100, 100, -100, -100, 0], np.int8)}, "`segment_ids` must not decrease"),
        (SMALL, {"segment_ids": np.array([0, 1])}, r"`segment_ids` must be integers of shape \(5,\)"),
        (
            SMALL,
            {"implementation": "fast"},
            "`implementation` must be None, an `Implementation`, or one of 'chunked', 'scan'",
        ),
        (SMALL, {"implementation": Tiled()}, "`implementation` must be an implementation of recurrences: 'chunked'"),
        *((SMALL, {"chunk": chunk}, "`chunk` must be a positive int") for chunk in (0, -64, True, 64.0)),
        (DELTA, {"beta": np.full((5, 2), -0.5, np.float32)}, r"`beta` must lie in \[0, 2\]"),
        (DELTA, {"log_decay": np.full((5, 2), 0.1, np.float32)}, "`log_decay` must be at most 0"),
        (DELTA, {"beta": np.full((5, 2), 2.5, np.float32)}, r"`beta` must lie in \[0, 2\]"),
        (DELTA, {"beta": np.zeros((5, 3), np.float32)}, "`beta` must have shape"),
        (DELTA, {"refine": 1}, "`refine` must be True or False; got 1"),
        (
            DELTA,
            {"log_decay": np.zeros((5, 2, 5), np.float32)},
            r"`log_decay` must have shape \[..., length, heads, k_dim\] with k_dim = 6; got \(5, 2, 5\)",
        ),
        (
            DELTA,
            {"log_decay": np.zeros((2,), np.float32)},
            r"heads\] = \(5, 2\) or .*k_dim\] = \(5, 2, 6\); got \(2,\)",
        ),
    ],
)
def test_bad_input_is_named(given, options, message):
    with pytest.raises(ValueError, match=message):
        run({**given, **options})


def test_bad_state_of_a_step_is_named():
    token = {name: array[0] for name, array in SMALL.items()}
    with pytest.raises(ValueError, match=r"`state` must have shape \(2, 6, 5\)"):
        linear_step(**token, state=jnp.zeros((2, 5, 6)))
    with pytest.raises(ValueError, match=r"`state` must be an array .*; got NoneType. Zeros of shape \(2, 6, 5\) are"):
        linear_step(**token, state=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["scalar", "gated delta"])
def test_explained_and_chosen_by_name_or_object(kind):
    given = inputs(kind, 5)
    (default,), (named,), (chosen,) = (
        jattn.explain_calls(lambda given, one=one: run(given, implementation=one), given)
        for one in (None, "scan", Scan())
    )
    assert default.implementation == "chunked" and "1 chunk" in str(default)
    assert default.operation == ("delta_rule" if "beta" in given else "linear_recurrence")
    assert str(default).startswith(f"{default.operation} over query (5, 2, 6) float32")
    assert "not scan: it would accept, but `chunked` comes first" in str(default)
    assert named.implementation == chosen.implementation == "scan"
    assert named.reasons == {"chunked": "`scan` was asked for"}


def test_symbolic_length_runs_as_a_scan():
    (length,) = jax.export.symbolic_shape("t")
    given = {name: jnp.asarray(array) for name, array in inputs("delta", 5).items()}
    shapes = {name: jax.ShapeDtypeStruct((length, *one.shape[1:]), one.dtype) for name, one in given.items()}
    exported = jax.export.export(jax.jit(run))(shapes)
    np.testing.assert_allclose(exported.call(given)[0], run(given)[0], atol=1e-5)
    with pytest.raises(jattn.Unsupported, match=r"`chunked` refuses this call: .*symbol \(of `jax.export`\)"):
        jax.export.export(jax.jit(lambda given: run(given, implementation="chunked")))(shapes)

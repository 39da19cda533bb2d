"""The attention-free layers equal their functions between projections, and reject positions beyond their limits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import close, normal
from generative_layers import FEATURES, LAYERS, random_parameters
from tiers import rows
from variant_layers import check_layer

from jattn.variants.attention_free import AFTConv, AFTFull, AFTLocal, aft_full, aft_local, aft_simple, relative_bias

NAMES = [name for name in LAYERS if name.startswith("AFT")]


@pytest.mark.parametrize("name", NAMES)
def test_is_its_function_and_a_module(name):
    layer = LAYERS[name]
    p, (inputs,) = random_parameters(layer), normal(0, (2, 7, FEATURES))
    arrays = [inputs @ np.asarray(p[key]["kernel"]) for key in ("query", "key", "value")]
    if name == "AFT-conv":
        table = relative_bias(np.concatenate([p["bias"][:, ::-1], np.zeros((2, 2), np.float32)], 1), 7)
        function = functools.partial(aft_local, bias=table, window=3)
    elif name == "AFT-simple":
        function = aft_simple
    else:
        table = np.asarray(p["bias"]["query"] @ p["bias"]["key"].T)[:7, :7]
        function = functools.partial(aft_full, bias=table)
        if name == "AFT-local":
            function = functools.partial(aft_local, bias=table, window=3)
    want = jax.jit(functools.partial(function, causal=True))(*arrays)
    got = check_layer(LAYERS[name], jnp.asarray(inputs), parameters=p)
    close(got, want @ p["out"]["kernel"], 1e-5)


@pytest.mark.parametrize("name", rows(["AFT-full", "AFT-local"], ["AFT-full"]))
def test_positions_without_numbers(name):
    """Refused where they are known; where they are traced NaN, not the numbers of another position."""
    layer = LAYERS[name]
    parameters, (inputs,) = layer.init(jax.random.key(0)), normal(2, (9, FEATURES))
    with pytest.raises(ValueError, match=r"`inputs` must end before position `max_len` = 8.* end at 9"):
        layer(parameters, inputs)
    prefill = jax.jit(layer.prefill)
    _, state = prefill(parameters, inputs[:8])
    with pytest.raises(ValueError, match=r"`inputs` must end before position `max_len` = 8.* end at 9"):
        layer.step(parameters, inputs[8], state)
    step = jax.jit(layer.step)
    _, before = prefill(parameters, inputs[:7])
    assert np.isfinite(step(parameters, inputs[7], before)[0]).all()
    assert np.isnan(step(parameters, inputs[8], state)[0]).all()


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match="`features` must be a multiple of `heads`; got features 6 and heads 4"):
        AFTConv(6, window=3, heads=4)
    with pytest.raises(ValueError, match="`window` must be a positive int; got 0"):
        AFTLocal(6, max_len=8, window=0)
    with pytest.raises(ValueError, match="`max_len` must be a positive int; got 0"):
        AFTFull(6, max_len=0)

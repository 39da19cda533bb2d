"""The shapes that signatures state, held against calls: every public function that states any."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beartype import beartype
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import TypeCheckError, jaxtyped
from tiers import rows

import jattn
from jattn import positions


def array(*shape):
    return jnp.asarray(np.full(shape, 0.5, np.float32))


QUERY, KEY, VALUE = array(2, 5, 4, 3), array(2, 7, 2, 3), array(2, 7, 2, 6)
X, STATE = array(2, 5, 4, 8), array(2, 4, 3, 6)
TOKENS = array(2, 5, 4, 3), array(2, 5, 2, 3), array(2, 5, 4, 6)
TOKEN = tuple(tokens[:, 0] for tokens in TOKENS)
AT = jnp.arange(5)

CALLS = {
    jattn.attention: ((QUERY, KEY, VALUE), {}),
    jattn.partial_attention: ((QUERY, KEY, VALUE), {}),
    jattn.attention_weights: ((QUERY, KEY), {"heads": [1], "queries": [0, 4]}),
    jattn.dot_product_attention: ((QUERY, KEY, VALUE), {}),
    jattn.linear_recurrence: (TOKENS, {"bonus": array(4, 3), "initial_state": STATE}),
    jattn.linear_step: ((*TOKEN, STATE), {}),
    jattn.delta_rule: ((*TOKENS, array(2, 5, 4)), {"initial_state": STATE}),
    jattn.delta_step: ((*TOKEN, array(2, 4), STATE), {}),
    jattn.long_convolution: ((array(2, 5, 3), array(4, 3)), {"skip": array(3)}),
    jattn.short_convolution: ((array(2, 5, 3), array(4, 3)), {"past": array(2, 3, 3)}),
    positions.rotary: ((X, AT), {}),
    positions.rotary_2d: ((X, jnp.stack([AT, AT], -1)), {}),
    positions.rotary_sections: ((X, jnp.stack([AT, AT], -1), (1, 3)), {}),
    positions.xpos: ((X, AT), {"role": "key"}),
}
ALWAYS = {"attention", "attention_weights", "linear_recurrence", "delta_rule", "short_convolution", "rotary"}
"""Of the functions that share their annotations, one, called in every run."""


def states_shapes(function):
    return "Float[" in str(inspect.signature(function))


def checked(function):
    """The function, whose arguments and results are compared with the shapes of its signature."""
    return jaxtyped(typechecker=beartype)(inspect.unwrap(function))


@pytest.mark.parametrize("function", rows(CALLS, ALWAYS, lambda function: function.__name__))
def test_signatures_are_true(function):
    arguments, options = CALLS[function]
    assert states_shapes(function)
    jax.block_until_ready(jax.tree.leaves(checked(function)(*arguments, **options)))


@pytest.mark.parametrize("function", CALLS, ids=lambda function: function.__name__)
def test_signatures_name_the_axes_that_must_fit(function):
    """One batch axis more in the second array, or one feature more: the signature alone tells."""
    (first, second, *rest), options = CALLS[function]
    if second is AT or second.dtype == AT.dtype:  # positions, whose shape is not in the signature
        first = first[0, 0]
    else:
        second = jnp.concatenate([second, second], -1)[None]
    with pytest.raises((TypeCheckError, BeartypeCallHintViolation)):
        checked(function)(first, second, *rest, **options)


def test_every_public_function_that_states_shapes_is_called():
    public = [getattr(room, name) for room in (jattn, positions) for name in room.__all__]
    stated = {one for one in public if inspect.isfunction(one) and states_shapes(one)}
    assert stated == set(CALLS)

"""The interface of causal layers that generate: a call on whole sequences, `prefill` and `step`."""

import abc
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..foundation.arguments import check_batch, check_dtype
from ..foundation.numerics import accumulation_dtype
from ..foundation.shapes import check_shapes
from .layer import OWN_AXES, Layer


class Generative(Layer):
    """A causal layer that can replace multi-head self-attention in a block, and that carries its own state.

        layer(parameters, x)                                    the whole sequence at once
        out, state = layer.prefill(parameters, x[..., :s, :])   its first s tokens, and the state after them
        out, state = layer.step(parameters, x[..., s, :], state)                                    the next token

    Outputs and states do not depend on how the sequence is divided. Sums and states are float32 (float64 if an input or
    a parameter is), also for inputs of 16 bits.

    Attributes:
        features: features of inputs and outputs.
    """

    own_axes = OWN_AXES

    features: int

    def __call__(self, parameters: Mapping[str, Any], inputs: jax.Array, *, segment_ids: Any = None) -> jax.Array:
        """Apply the layer to whole sequences, causally.

        Args:
            parameters: the layer's parameters.
            inputs: `[..., length, features]`.
            segment_ids: nondecreasing integers `[..., length]` or `[length]`, for packed sequences: segments do not see
                one another.

        Returns:
            `[..., length, features]`.
        """
        return self.prefill(parameters, inputs, segment_ids=segment_ids)[0]

    @abc.abstractmethod
    def initial_state(
        self, parameters: Mapping[str, Any], batch: tuple[int, ...] = (), dtype: Any = jnp.float32
    ) -> Any:
        """The state before the first token.

        Args:
            parameters: the layer's parameters.
            batch: the batch axes of the inputs to come.
            dtype: the dtype of sums and states.

        Raises:
            ValueError: `batch` is not a tuple of sizes; `dtype` is not floating-point.
        """

    @abc.abstractmethod
    def prefill(
        self, parameters: Mapping[str, Any], inputs: jax.Array, state: Any = None, *, segment_ids: Any = None
    ) -> tuple[jax.Array, Any]:
        """The call, continuing from `state` if there is one, and the state after the last token.

        Args:
            parameters: the layer's parameters.
            inputs: `[..., length, features]`.
            state: returned by `initial_state`, `prefill` or `step`. With segments, the first segment continues it.
            segment_ids: as in `__call__`. The returned state is that of the last segment.

        Raises:
            ValueError: the state has another shape or dtype than `initial_state` gives for these inputs.
        """

    def step(self, parameters: Mapping[str, Any], inputs: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        """The next token: `[..., features]` and the state before it -> `[..., features]` and the state after it.

        Raises:
            ValueError: as in `prefill`; the state is None.
        """
        check_shapes({"features": self.features}, inputs=(inputs, "... features"))
        out, state = self.prefill(parameters, inputs[..., None, :], state)
        return out[..., 0, :], state

    def check_call(self, method: str, accepted: Any, arguments: tuple, options: Mapping[str, Any]) -> None:
        """As in `Layer`; in addition, `step` needs a state, `initial_state` a dtype for sums, and options of caches are
        not those of these layers."""
        super().check_call(method, accepted, arguments, options)

        def given(place: int, name: str, default: Any) -> Any:
            return arguments[place] if len(arguments) > place else options.get(name, default)

        if method == "initial_state":
            check_batch(given(1, "batch", ()))
            check_dtype("dtype", given(2, "dtype", jnp.float32))
        for name in options.keys() & _OF_CACHES.keys() - accepted:
            raise ValueError(f"{type(self).__name__}.{method} has no `{name}`: {_OF_CACHES[name]}.")
        if method != "step":
            return
        if given(2, "state", ...) is None:
            raise ValueError(
                "`state` must be what `initial_state(parameters, batch)`, `prefill` or `step` of the layer gave: what "
                "it knows of the tokens before this one; got None."
            )

    def checked(self, parameters: Mapping[str, Any], inputs: jax.Array, batch: tuple[int, ...], state: Any) -> Any:
        """`state`, after checking that it matches these inputs; for None, the initial state.

        Raises:
            ValueError: names the part that does not match, what was received and what was expected.
        """
        dtype = accumulation_dtype(inputs, *jax.tree.leaves(parameters))
        if state is None:
            return self.initial_state(parameters, batch, dtype)
        wanted = jax.eval_shape(lambda: self.initial_state(parameters, batch, dtype))
        if jax.tree.structure(state) != jax.tree.structure(wanted):
            raise ValueError(
                f"`state` must be what `initial_state`, `prefill` or `step` of {type(self).__name__} gave, a "
                f"{type(wanted).__name__}; got {type(state).__name__}."
            )
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(state)]
        if batch and shapes != [leaf.shape for leaf in jax.tree.leaves(wanted)]:
            shorter = jax.eval_shape(lambda: self.initial_state(parameters, batch[:-1], dtype))
            if shapes == [leaf.shape for leaf in jax.tree.leaves(shorter)]:
                raise ValueError(
                    f"`inputs` must have the batch axes {batch[:-1]} of `state`, and have one axis more: `step` takes "
                    "one token [..., features], without a length axis, and `prefill` several, [..., length, features]; "
                    f"got the batch axes {batch}."
                )
        check_state(state, wanted, f"initial_state(parameters, batch={batch}, dtype={dtype.name!r})")
        return state


_OF_CACHES = {
    "valid": (
        "every input is a token. Generate prompts of different lengths separately, or pack them with `segment_ids`, "
        "whose last segment the state continues"
    ),
    "length": "the size of its state is fixed, so `initial_state(parameters, batch)` needs no length",
    "cache": "it has a state of its own, which `initial_state(parameters, batch)` makes, instead of a cache",
    "key_inputs": "it is self-attention",
    "mask": "it is causal; separate packed sequences by `segment_ids`",
}
"""Options of `MultiHeadAttention` that these layers lack, and what to do instead."""


def check_state(state: Any, wanted: Any, made_by: str) -> None:
    """Check that every array of a state has the shape and dtype of its counterpart in `wanted`.

    Raises:
        ValueError: names the array, and the call that makes a matching state.
    """
    for (path, want), got in zip(jax.tree_util.tree_leaves_with_path(wanted), jax.tree.leaves(state), strict=True):
        if jnp.shape(got) != want.shape or jnp.result_type(got) != want.dtype:
            raise ValueError(
                f"`state{jax.tree_util.keystr(path)}` must be {want.dtype} of shape {want.shape} for these inputs, as "
                f"`{made_by}` makes it; got {jnp.result_type(got)} of shape {jnp.shape(got)}."
            )

"""Layers that generate: what they share with multi-head attention's call, and a state in place of its keys."""

import abc
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..foundation.numerics import accumulation_dtype
from ..foundation.shapes import check_shapes
from .layer import OWN_AXES, Layer


class Generative(Layer):
    """A causal layer that takes the place of multi-head self-attention in a block, with a state of its own.

        layer(parameters, x)                                    the whole sequence at once
        out, state = layer.prefill(parameters, x[..., :s, :])   its first s tokens, and what they leave behind
        out, state = layer.step(parameters, x[..., s, :], state)                                    the next token

    The outputs are the same at every s, and so are the states. Sums and states are float32 (float64 where an input or
    a parameter is), whatever the inputs.

    Attributes:
        features: of inputs and outputs.
    """

    own_axes = OWN_AXES

    features: int

    def __call__(self, parameters: Mapping[str, Any], inputs: jax.Array, *, segment_ids: Any = None) -> jax.Array:
        """`[..., length, features]`, causal.

        Args:
            parameters: of the layer.
            inputs: `[..., length, features]`.
            segment_ids: integers that never decrease, `[..., length]` or `[length]`: packed sequences, which do not
                see one another.
        """
        return self.prefill(parameters, inputs, segment_ids=segment_ids)[0]

    @abc.abstractmethod
    def initial_state(
        self, parameters: Mapping[str, Any], batch: tuple[int, ...] = (), dtype: Any = jnp.float32
    ) -> Any:
        """The state before the first token.

        Args:
            parameters: of the layer.
            batch: the batch axes of the inputs to come.
            dtype: of sums and states.
        """

    @abc.abstractmethod
    def prefill(
        self, parameters: Mapping[str, Any], inputs: jax.Array, state: Any = None, *, segment_ids: Any = None
    ) -> tuple[jax.Array, Any]:
        """The call, going on behind `state` if there is one, and the state behind the last token.

        Args:
            parameters: of the layer.
            inputs: `[..., length, features]`.
            state: of `initial_state`, `prefill` or `step`. With segments it belongs to the first of them.
            segment_ids: as of the call. The state that comes back is that of the last segment.

        Raises:
            ValueError: a state of another shape or dtype than `initial_state` gives for these inputs.
        """

    def step(self, parameters: Mapping[str, Any], inputs: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        """The next token: `[..., features]` and the state before it -> `[..., features]` and the state behind it.

        Raises:
            ValueError: as `prefill`.
        """
        check_shapes({"features": self.features}, inputs=(inputs, "... features"))
        out, state = self.prefill(parameters, inputs[..., None, :], state)
        return out[..., 0, :], state

    def checked(self, parameters: Mapping[str, Any], inputs: jax.Array, batch: tuple[int, ...], state: Any) -> Any:
        """`state`, if it is one for these inputs; the initial one for None.

        Raises:
            ValueError: naming the part that is not, what came, and what was expected.
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
        check_state(state, wanted, f"initial_state(parameters, batch={batch}, dtype={dtype.name!r})")
        return state


def check_state(state: Any, wanted: Any, made_by: str) -> None:
    """Every array of a state has the shape and dtype of its like in `wanted`.

    Raises:
        ValueError: naming the array, and the call that makes one that fits.
    """
    for (path, want), got in zip(jax.tree_util.tree_leaves_with_path(wanted), jax.tree.leaves(state), strict=True):
        if jnp.shape(got) != want.shape or jnp.result_type(got) != want.dtype:
            raise ValueError(
                f"`state{jax.tree_util.keystr(path)}` must be {want.dtype} of shape {want.shape} for these inputs, as "
                f"`{made_by}` makes it; got {jnp.result_type(got)} of shape {jnp.shape(got)}."
            )

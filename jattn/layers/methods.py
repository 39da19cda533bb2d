"""The methods of layers, said once for the modules that hold their parameters."""

from typing import Any

import jax


class Methods:
    """Methods of a layer, with the parameters of the module that it is mixed into. The module defines `run`."""

    def run(self, method: str, *inputs: Any, **options: Any) -> Any:
        """Call a method of the layer by name, with the module's parameters."""
        raise NotImplementedError

    def initial_state(self, batch: tuple[int, ...] = (), **options: Any) -> Any:
        """The state before the first token, for layers that generate.

        Args:
            batch: the batch axes of the inputs to come.
            **options: options of the layer's method, such as `dtype`.
        """
        return self.run("initial_state", batch, **options)

    def prefill(self, inputs: jax.Array, state: Any = None, **options: Any) -> tuple[jax.Array, Any]:
        """The next tokens `[..., length, features]`: their outputs, and the state after them.

        Args:
            inputs: the tokens.
            state: returned by `initial_state`, `prefill` or `step`.
            **options: options of the layer's method.
        """
        return self.run("prefill", inputs, state, **options)

    def step(self, inputs: jax.Array, state: Any, **options: Any) -> tuple[jax.Array, Any]:
        """The next token `[..., features]`: its output, and the state after it.

        Args:
            inputs: the token.
            state: returned by `initial_state`, `prefill` or `step`.
            **options: options of the layer's method.
        """
        return self.run("step", inputs, state, **options)

    def attention_weights(self, *inputs: Any, **options: Any) -> jax.Array:
        """The attention weights of the call, for layers that have them."""
        return self.run("attention_weights", *inputs, **options)

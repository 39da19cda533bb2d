"""What compiling costs: the time that XLA takes for the gradient of a stack of attention layers, written out."""

import itertools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..ops.attention.api import dot_product_attention
from .sides import Run, Shape, Side

_count = itertools.count(time.time_ns() % 2**30)  # so that a persistent cache has none of them


def compiling(label: str, attend: Callable[..., jax.Array], layers: int) -> Side:
    """A side that compiles and runs nothing. Tracing and lowering, done once, are not timed; no cache is read.

    Args:
        label: how the table calls it.
        attend: with the signature of `jax.nn.dot_product_attention`.
        layers: of the stack.
    """

    def build(shape: Shape) -> Run:
        def stacked(query, key, value):
            for _ in range(layers):
                query = attend(query, key, value, is_causal=True)
            return (query**2).sum()

        arrays = (jax.ShapeDtypeStruct(each, jnp.float32) for each in (shape.query(), shape.key(), shape.key()))
        lowered = jax.jit(jax.grad(stacked, argnums=(0, 1, 2))).lower(*arrays)

        # Another value of an option has it compiled anew, here of one that does nothing.
        def run():
            options: dict[str, Any] = {"xla_dump_max_hlo_modules": next(_count)}
            return lowered.compile(options)

        return run

    return Side(label, build)


def ours(layers: int) -> Side:
    """This library's attention."""
    return compiling("jattn", dot_product_attention, layers)


def jax_nn(layers: int) -> Side:
    """JAX's own."""
    return compiling("jax.nn", jax.nn.dot_product_attention, layers)

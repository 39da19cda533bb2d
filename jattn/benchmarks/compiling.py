"""Compile time: how long XLA takes for the gradient of a stack of unrolled attention layers."""

import itertools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..ops.attention.api import dot_product_attention
from .sides import Run, Shape, Side

_count = itertools.count(time.time_ns() % 2**30)  # unique per process, so that no persistent cache has an entry


def compiling(label: str, attend: Callable[..., jax.Array], layers: int) -> Side:
    """A side that compiles and does not run. Tracing and lowering happen once and are not timed; no cache is used.

    Args:
        label: the label in the table.
        attend: a function with the signature of `jax.nn.dot_product_attention`.
        layers: the number of layers.
    """

    def build(shape: Shape) -> Run:
        def stacked(query, key, value):
            for _ in range(layers):
                query = attend(query, key, value, is_causal=True)
            return (query**2).sum()

        arrays = (jax.ShapeDtypeStruct(each, jnp.float32) for each in (shape.query(), shape.key(), shape.key()))
        lowered = jax.jit(jax.grad(stacked, argnums=(0, 1, 2))).lower(*arrays)

        # A new value of a compiler option, here one without effect, forces a new compilation.
        def run():
            options: dict[str, Any] = {"xla_dump_max_hlo_modules": next(_count)}
            return lowered.compile(options)

        return run

    return Side(label, build)


def ours(layers: int) -> Side:
    """jattn's attention."""
    return compiling("jattn", dot_product_attention, layers)


def jax_nn(layers: int) -> Side:
    """`jax.nn.dot_product_attention`."""
    return compiling("jax.nn", jax.nn.dot_product_attention, layers)

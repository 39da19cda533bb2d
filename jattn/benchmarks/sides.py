"""One side of a comparison: what runs, at which shape; and jattn as such a side."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..ops.attention.api import attention
from ..ops.attention.explain import explain
from ..ops.attention.plan import Plan


@dataclasses.dataclass(frozen=True)
class Shape:
    """Self-attention with the head layout of a real model; `dtype` is that of JAX's inputs, PyTorch's are float32."""

    model: str
    length: int
    q_heads: int
    kv_heads: int
    dim: int
    batch: int = 1
    dtype: str = "float32"

    def __str__(self) -> str:
        heads = str(self.q_heads) if self.q_heads == self.kv_heads else f"{self.q_heads}/{self.kv_heads}"
        return f"{self.batch} x {self.length} x {heads} x {self.dim}"

    def query(self) -> tuple[int, ...]:
        return self.batch, self.length, self.q_heads, self.dim

    def key(self) -> tuple[int, ...]:
        return self.batch, self.length, self.kv_heads, self.dim


Run = Callable[[], Any]
"""Computes once, and returns when the result is ready."""


@dataclasses.dataclass(frozen=True)
class Side:
    """One side of a comparison.

    Attributes:
        label: the label in the table.
        build: from the shape, the function to time. Inputs are made and the function is compiled here.
        temporaries: from the shape, the bytes of temporaries of the compiled gradient, if known.
        missing: returns why this side cannot run here, or None. Called when the row is run.
    """

    label: str
    build: Callable[[Shape], Run]
    temporaries: Callable[[Shape], int] | None = None
    missing: Callable[[], str | None] = lambda: None


def inputs(shape: Shape) -> tuple[np.ndarray, ...]:
    """Query, key, value and the cotangent of the output."""
    random = np.random.default_rng(0)
    shapes = shape.query(), shape.key(), shape.key(), shape.query()
    return tuple(random.standard_normal(each, np.float32) for each in shapes)


def with_gradients(function: Callable[..., jax.Array]) -> Callable[..., Any]:
    """`function(query, key, value, *rest)` and its gradients in query, key and value; takes the cotangent first."""

    def both(cotangent, query, key, value, *rest):
        out, pull = jax.vjp(lambda *arrays: function(*arrays, *rest), query, key, value)
        return out, pull(cotangent)

    return both


def jax_run(function: Callable[..., Any], shape: Shape, *rest: Any, backward: bool) -> Run:
    """`function(query, key, value, *rest)`, compiled; with its gradients if `backward`."""
    *arrays, cotangent = (jnp.asarray(array, shape.dtype) for array in inputs(shape))
    compiled = jax.jit(with_gradients(function) if backward else function)
    arguments = (cotangent, *arrays, *rest) if backward else (*arrays, *rest)
    return lambda: jax.block_until_ready(compiled(*arguments))


def gradient_temporaries(function: Callable[..., Any], shape: Shape, *rest: Any) -> int:
    """Bytes of temporaries, including the output, of the compiled gradient of the sum. Nothing is run."""

    def total(*arrays):
        return function(*arrays).sum()

    query, key = (jax.ShapeDtypeStruct(each, shape.dtype) for each in (shape.query(), shape.key()))
    compiled = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(query, key, key, *rest).compile()
    analysis = compiled.memory_analysis()
    if analysis is None:
        raise RuntimeError("this backend does not report the memory of a compiled program")
    return analysis.temp_size_in_bytes


@dataclasses.dataclass(frozen=True)
class Choice:
    """The pieces of a jattn call, as functions of the shape."""

    mask: Callable[[Shape], Any]
    scores: Callable[[Shape], tuple] = lambda shape: ()
    kv_heads: int | None = None

    def shape(self, shape: Shape) -> Shape:
        return dataclasses.replace(shape, kv_heads=self.kv_heads or shape.kv_heads)

    def plan(self, shape: Shape) -> Plan:
        """The tiles that the call visits."""
        shape = self.shape(shape)
        query, key = (jax.ShapeDtypeStruct(each, shape.dtype) for each in (shape.query(), shape.key()))
        return explain(query, key, key, mask=self.mask(shape), scores=self.scores(shape)).plan


def _attend(query, key, value, mask, scores):
    return attention(query, key, value, mask=mask, scores=scores)


def jattn(label: str, choice: Choice, *, backward: bool = False, plan_included: bool = False) -> Side:
    """jattn as a side. Pieces are arguments of the compiled function: their sizes are static, their arrays traced.

    Args:
        label: the label in the table.
        choice: the pieces.
        backward: also compute the gradients of query, key and value.
        plan_included: rebuild the tile plan in every call, although it is made only once, at trace time.
    """

    def build(shape: Shape) -> Run:
        shape = choice.shape(shape)
        run = jax_run(_attend, shape, choice.mask(shape), choice.scores(shape), backward=backward)
        return (lambda: (choice.plan(shape), run())) if plan_included else run

    def temporaries(shape: Shape) -> int:
        shape = choice.shape(shape)
        return gradient_temporaries(_attend, shape, choice.mask(shape), choice.scores(shape))

    return Side(label, build, temporaries)

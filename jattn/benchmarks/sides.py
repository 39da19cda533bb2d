"""One side of a comparison: what runs, at which shape, and this library as such a side."""

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
    """Self-attention in float32 with the heads of a model that exists."""

    model: str
    length: int
    q_heads: int
    kv_heads: int
    dim: int
    batch: int = 1

    def __str__(self) -> str:
        heads = str(self.q_heads) if self.q_heads == self.kv_heads else f"{self.q_heads}/{self.kv_heads}"
        return f"{self.batch} x {self.length} x {heads} x {self.dim}"

    def query(self) -> tuple[int, ...]:
        return self.batch, self.length, self.q_heads, self.dim

    def key(self) -> tuple[int, ...]:
        return self.batch, self.length, self.kv_heads, self.dim


Run = Callable[[], Any]
"""Computes once, and returns when the result is there."""


@dataclasses.dataclass(frozen=True)
class Side:
    """What is timed.

    Attributes:
        label: how the table calls it.
        build: from a shape to what is timed; compiling and making inputs happen here.
        temporaries: from a shape to the bytes of temporaries of the compiled gradient, where that is known.
        missing: why it cannot run here, or None. Asked when a case is run.
    """

    label: str
    build: Callable[[Shape], Run]
    temporaries: Callable[[Shape], int] | None = None
    missing: Callable[[], str | None] = lambda: None


def inputs(shape: Shape) -> tuple[np.ndarray, ...]:
    """Query, key, value and the output's cotangent."""
    random = np.random.default_rng(0)
    shapes = shape.query(), shape.key(), shape.key(), shape.query()
    return tuple(random.standard_normal(each, np.float32) for each in shapes)


def with_gradients(function: Callable[..., jax.Array]) -> Callable[..., Any]:
    """`function(query, key, value, *rest)`, and the gradients of the first three for a cotangent given before them."""

    def both(cotangent, query, key, value, *rest):
        out, pull = jax.vjp(lambda *arrays: function(*arrays, *rest), query, key, value)
        return out, pull(cotangent)

    return both


def jax_run(function: Callable[..., Any], shape: Shape, *rest: Any, backward: bool) -> Run:
    """`function(query, key, value, *rest)`, compiled, with its gradients if `backward`."""
    *arrays, cotangent = (jnp.asarray(array) for array in inputs(shape))
    compiled = jax.jit(with_gradients(function) if backward else function)
    arguments = (cotangent, *arrays, *rest) if backward else (*arrays, *rest)
    return lambda: jax.block_until_ready(compiled(*arguments))


def gradient_temporaries(function: Callable[..., Any], shape: Shape, *rest: Any) -> int:
    """Bytes of temporaries of the compiled gradient of the sum, the output among them; nothing is run."""

    def total(*arrays):
        return function(*arrays).sum()

    query, key = (jax.ShapeDtypeStruct(each, jnp.float32) for each in (shape.query(), shape.key()))
    compiled = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(query, key, key, *rest).compile()
    analysis = compiled.memory_analysis()
    if analysis is None:
        raise RuntimeError("this backend does not say what memory a compiled program takes")
    return analysis.temp_size_in_bytes


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a call asks of this library: its pieces, made for a shape."""

    mask: Callable[[Shape], Any]
    scores: Callable[[Shape], tuple] = lambda shape: ()
    kv_heads: int | None = None

    def shape(self, shape: Shape) -> Shape:
        return dataclasses.replace(shape, kv_heads=self.kv_heads or shape.kv_heads)

    def plan(self, shape: Shape) -> Plan:
        """The tiles that the call visits."""
        shape = self.shape(shape)
        query, key = (jax.ShapeDtypeStruct(each, jnp.float32) for each in (shape.query(), shape.key()))
        return explain(query, key, key, mask=self.mask(shape), scores=self.scores(shape)).plan


def _attend(query, key, value, mask, scores):
    return attention(query, key, value, mask=mask, scores=scores)


def jattn(label: str, choice: Choice, *, backward: bool = False, plan_included: bool = False) -> Side:
    """This library. Pieces are arguments of the compiled function: their sizes are static, their arrays are traced.

    Args:
        label: how the table calls it.
        choice: the pieces.
        backward: also the gradients of query, key and value.
        plan_included: build the plan of tiles anew each time, although it is made once, when the call is traced.
    """

    def build(shape: Shape) -> Run:
        shape = choice.shape(shape)
        run = jax_run(_attend, shape, choice.mask(shape), choice.scores(shape), backward=backward)
        return (lambda: (choice.plan(shape), run())) if plan_included else run

    def temporaries(shape: Shape) -> int:
        shape = choice.shape(shape)
        return gradient_temporaries(_attend, shape, choice.mask(shape), choice.scores(shape))

    return Side(label, build, temporaries)

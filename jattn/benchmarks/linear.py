"""The rows on linear recurrences: chunks against scan, attention and PyTorch."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..ops.attention.api import attention
from ..ops.recurrence import delta_rule, linear_recurrence, linear_step
from . import peers
from .cases import Bar, Memory, Speed, causal
from .sides import Choice, Run, Shape, Side, gradient_temporaries, inputs, jattn, jax_run

SHORT, LENGTH, LONG = 2048, 8192, 65536


def _unit(keys: jax.Array) -> jax.Array:
    return keys / jnp.linalg.norm(keys, axis=-1, keepdims=True)


def _gates(shape: Shape, channels: int | None = None) -> np.ndarray:
    """Logarithms of random gates between 0.9 and 1: `[batch, length, heads]`, or one for each of `channels` too."""
    sizes = shape.query()[:-1] + (() if channels is None else (channels,))
    return np.log(np.random.default_rng(1).uniform(0.9, 1, sizes)).astype(np.float32)


def _linear(implementation: str, query, key, value, gates):
    return linear_recurrence(query, key, value, log_decay=gates, implementation=implementation)[0]


def _delta(implementation: str, query, key, value, gates):
    options: Any = {"log_decay": gates, "implementation": implementation, "refine": False}
    return delta_rule(query, _unit(key), value, jnp.exp(gates) / 2, **options)[0]


KINDS: dict[str, tuple[Callable, Callable[[Shape], Any]]] = {
    "no decay": (_linear, lambda shape: None),
    "gate per head and step": (_linear, _gates),
    "gate per channel": (_linear, lambda shape: _gates(shape, shape.dim)),
    "gated delta rule": (_delta, _gates),
}
"""The recurrences: a function of the implementation and the arrays, and a function that makes the gates for a shape."""


def recurrence(kind: str, *, implementation: str = "chunked", length: int | None = None) -> Side:
    """One of `KINDS`, forward and backward.

    Args:
        kind: its name.
        implementation: as in `jattn.linear_recurrence`.
        length: the length to use instead of the row's.
    """
    function, gates = KINDS[kind]

    def sized(shape: Shape) -> Shape:
        return dataclasses.replace(shape, length=length or shape.length)

    def build(shape: Shape) -> Run:
        shape = sized(shape)
        return jax_run(functools.partial(function, implementation), shape, gates(shape), backward=True)

    def temporaries(shape: Shape) -> int:
        return gradient_temporaries(functools.partial(function, implementation), shape, gates(shape))

    return Side(implementation if length is None else f"{length} tokens", build, temporaries)


def torch_recurrence(*, quadratic: bool = False) -> Side:
    """PyTorch with a gate per head and step, forward and backward: token by token, or in the quadratic form."""

    def build(shape: Shape) -> Run:
        torch = peers.load_torch()
        query, key, value, cotangent = peers.torch_inputs(shape)
        gates = torch.from_numpy(_gates(shape)).transpose(1, 2).contiguous()
        arrays = (query, key, value)

        def tokens():
            state, out = torch.zeros(shape.batch, shape.q_heads, shape.dim, shape.dim), []
            decay = gates.exp()
            for t in range(shape.length):
                written = key[:, :, t, :, None] * value[:, :, t, None, :]
                state = decay[:, :, t, None, None] * state + written
                out.append((query[:, :, t, None] @ state)[:, :, 0])
            return torch.stack(out, 2)

        def pairs():
            sums = gates.cumsum(-1)
            decay = (sums[..., :, None] - sums[..., None, :]).tril().exp().tril()
            return (query @ key.transpose(-1, -2) * decay) @ value

        def run():
            for array in arrays:
                array.requires_grad_()
            return torch.autograd.grad((pairs if quadratic else tokens)(), arrays, cotangent)

        return run

    label = f"PyTorch, {'every pair' if quadratic else 'token by token'}"
    return Side(label, build, missing=peers.no_torch)


def decode() -> Side:
    """One decoding step with a recurrent state."""

    def build(shape: Shape) -> Run:
        token, state_shape = jnp.ones((3, shape.batch, shape.q_heads, shape.dim)), (shape.dim, shape.dim)
        state = jnp.ones((shape.batch, shape.q_heads, *state_shape))
        gates = jnp.full((shape.batch, shape.q_heads), -0.1)
        step = jax.jit(lambda token, state: linear_step(*token, state=state, log_decay=gates))
        return lambda: jax.block_until_ready(step(token, state))

    return Side("state", build)


def decode_with_cache() -> Side:
    """One decoding step of attention over a cache of the row's length."""

    def build(shape: Shape) -> Run:
        query, key, value, _ = (jnp.asarray(one) for one in inputs(shape))
        step = jax.jit(lambda query, key, value: attention(query, key, value))
        return lambda: jax.block_until_ready(step(query[:, -1:], key, value))

    return Side("cache", build)


def linear(length: int = LENGTH, long: int = LONG) -> tuple[Speed | Memory, ...]:
    """The rows on linear recurrences.

    Args:
        length: the length of the rows that compare with the scan.
        long: the length of the rows on growth and on decoding.
    """

    def base(length: int) -> Shape:
        return Shape("Transformer base", length, q_heads=8, kv_heads=8, dim=64)

    short = min(SHORT, long // 4)
    gated = "gate per head and step"
    rows: list[Speed | Memory] = []
    for kind in KINDS:
        name = kind.replace(" ", "-")
        rows += [
            Speed(
                f"scan-{name}",
                f"{kind}: forward + backward vs. the scan",
                base(length),
                recurrence(kind),
                recurrence(kind, implementation="scan"),
                Bar(10.0),
            ),
            Speed(
                f"time-{name}",
                f"{kind}: time a token, vs. {short} tokens",
                base(long),
                recurrence(kind),
                recurrence(kind, length=short),
                Bar(1.15, True),
                lambda shape: short / shape.length,
            ),
            Memory(
                f"memory-{name}",
                f"{kind}: temporaries of the compiled gradient",
                tuple(base(each) for each in (long // 4, long // 2, long)),
                recurrence(kind),
                recurrence(kind, implementation="scan"),
                Bar(long / 64, True),
            ),
        ]
    rows += [
        Speed(
            f"crossover-{each}",
            "gate per head and step vs. causal attention, forward + backward",
            base(each),
            recurrence(gated),
            jattn("attention", Choice(causal), backward=True),
            Bar(1.0),
        )
        for each in (256, 512, 1024, 2048)
    ]
    return (
        *rows,
        Speed(
            "torch",
            "gate per head and step vs. token by token, forward + backward",
            base(1024),
            recurrence(gated),
            torch_recurrence(),
            Bar(1.0),
        ),
        Speed(
            "torch-pairs",
            "gate per head and step vs. the quadratic form, forward + backward",
            base(2048),
            recurrence(gated),
            torch_recurrence(quadratic=True),
            Bar(1.0),
        ),
        Speed("decode", "one decoding step vs. a cache of keys", base(long), decode(), decode_with_cache(), Bar(100.0)),
    )

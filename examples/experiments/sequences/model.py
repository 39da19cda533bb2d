"""A small causal language model that mixes tokens with any `jattn.layers.Layer`, and its training."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jattn
from jattn.layers import Layer, multi_head
from jattn.layers.layer import kernel


@dataclasses.dataclass(frozen=True)
class Softmax(Layer):
    """Causal multi-head softmax attention, the baseline."""

    features: int
    heads: int

    def parameters(self) -> dict[str, Any]:
        """`query`, `key`, `value` and `out`."""
        dim = self.features // self.heads
        inner = {name: {"kernel": kernel(self.features, self.heads, dim)} for name in ("query", "key", "value")}
        return {**inner, "out": {"kernel": kernel(self.heads, dim, self.features, inputs=2)}}

    def __call__(self, parameters: Mapping[str, Any], inputs: jax.Array) -> jax.Array:
        """`[..., length, features]`."""
        return multi_head(parameters, inputs, mask=jattn.masks.Causal())


class Task(NamedTuple):
    """A task.

    Attributes:
        sample: from a key to tokens `[batch, length]`, and weights `[batch, length - 1]` of the predictions of all
            tokens but the first.
        tokens: the size of the alphabet.
        positions: sinusoids `[length, width]` that are added to the embedded tokens, or None.
    """

    sample: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
    tokens: int
    positions: jax.Array | None = None


def train(
    layer: Layer, task: Task, *, width: int, steps: int, seed: int, depth: int = 2, rate: float = 3e-3
) -> Callable[[jax.Array, Task], tuple[float, float]]:
    """Train `depth` blocks of `layer` and a two-layer network: AdamW, a cosine schedule, new samples in every step.

    Returns:
        A function from a key and a task to the weighted loss and accuracy on a new sample of it.
    """
    at, of_samples = jax.random.split(jax.random.key(seed))
    parameters = _first(at, layer, task.tokens, width, depth)
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, max(steps // 20, 1), steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))

    def loss(parameters, key):
        return _measure(parameters, layer, task, key)[0]

    @jax.jit
    def run(parameters, state):
        def step(carry, key):
            parameters, state = carry
            updates, state = optimizer.update(jax.grad(loss)(parameters, key), state, parameters)
            return (optax.apply_updates(parameters, updates), state), None

        return jax.lax.scan(step, (parameters, state), jax.random.split(of_samples, steps))[0]

    parameters, _ = run(parameters, optimizer.init(parameters))

    def measure(key: jax.Array, task: Task) -> tuple[float, float]:
        loss, accuracy = jax.jit(lambda parameters, key: _measure(parameters, layer, task, key))(parameters, key)
        return float(loss), float(accuracy)

    return measure


def _first(key: jax.Array, layer: Layer, tokens: int, width: int, depth: int) -> dict[str, Any]:
    normal = jax.nn.initializers.lecun_normal()
    keys = iter(jax.random.split(key, 3 * depth + 2))
    blocks = [
        {
            "mix": layer.init(next(keys)),
            "inner": normal(next(keys), (width, 2 * width)),
            "outer": normal(next(keys), (2 * width, width)),
        }
        for _ in range(depth)
    ]
    return {
        "embed": jax.random.normal(next(keys), (tokens, width)) * 0.5,
        "blocks": blocks,
        "out": normal(next(keys), (width, tokens)),
    }


def _measure(parameters: Any, layer: Layer, task: Task, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    tokens, weights = task.sample(key)
    x = parameters["embed"][tokens[:, :-1]]
    if task.positions is not None:
        x = x + task.positions[: x.shape[1]]
    for block in parameters["blocks"]:
        x = x + layer(block["mix"], _norm(x))
        x = x + jax.nn.gelu(_norm(x) @ block["inner"]) @ block["outer"]
    logits = _norm(x) @ parameters["out"]
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    right = logits.argmax(-1) == tokens[:, 1:]
    total = weights.sum()
    return (losses * weights).sum() / total, (right * weights).sum() / total


def _norm(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)

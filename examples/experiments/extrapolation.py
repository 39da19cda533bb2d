"""Trained on rows of 64 symbols, tested on rows of 256: decaying states extrapolate, absolute positions do not.

Data: a language whose topic drifts. Each of 6 topics has its own random frequencies of 16 symbols, and before every
symbol the topic changes with probability 1/24. The distant past carries little information, regardless of the length,
so the optimal predictor is the same filter at every position. Figures are nats per symbol above this filter, over the
last 64 symbols of a row. All models have two layers of the same width and the same training. RetNet and GLA get no
positions. Softmax attention gets sinusoids (without positions it cannot forget), or ALiBi's slopes instead, which shows
that the positions break and not the softmax. The reduced form trains GLA and the sinusoids on rows of 32.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from report import Result, main
from sequences import Softmax, Task, train

import jattn
from jattn.layers import Layer, multi_head
from jattn.positions import sinusoidal
from jattn.variants.recurrent import GLA, RetNet

TOPICS, SYMBOLS, CHANGE = 6, 16, 1 / 24
TIMES, WIDTH, HEADS = 4, 32, 2


@dataclasses.dataclass(frozen=True)
class Sloped(Softmax):
    """The baseline with ALiBi's slopes."""

    def __call__(self, parameters: Mapping[str, Any], inputs: jax.Array) -> jax.Array:
        """`[..., length, features]`."""
        slopes = 2.0 ** (-8.0 * (1 + jnp.arange(self.heads)) / self.heads)
        return multi_head(parameters, inputs, mask=jattn.masks.Causal(), scores=jattn.scores.ALiBi(slopes))


def frequencies(seed: int) -> jax.Array:
    """Log frequencies of the symbols in each topic, `[TOPICS, SYMBOLS]`."""
    return jax.nn.log_softmax(1.5 * jax.random.normal(jax.random.key(seed + 100), (TOPICS, SYMBOLS)))


def change() -> jax.Array:
    """Transition probabilities between topics."""
    return (1 - CHANGE) * jnp.eye(TOPICS) + CHANGE * (1 - jnp.eye(TOPICS)) / (TOPICS - 1)


def rows(key: jax.Array, spoken: jax.Array, length: int, count: int) -> jax.Array:
    """Symbols `[count, length]`."""
    first, moves, said = jax.random.split(key, 3)

    def move(topic, key):
        new = jax.random.categorical(key, jnp.log(change())[topic])
        return new, new

    start = jax.random.randint(first, (count,), 0, TOPICS)
    topics = jax.lax.scan(move, start, jax.random.split(moves, length))[1].T
    return jax.random.categorical(said, spoken[topics])


def best(tokens: jax.Array, spoken: jax.Array) -> jax.Array:
    """Nats of every symbol under the filter that knows the language, `[count, length]`."""

    def read(belief, symbol):
        joint = jnp.einsum("bi,ij->bj", belief, change()) * jnp.exp(spoken.T[symbol])
        total = joint.sum(-1, keepdims=True)
        return joint / total, -jnp.log(total[:, 0])

    return jax.lax.scan(read, jnp.full((len(tokens), TOPICS), 1 / TOPICS), tokens.T)[1].T


def run(*, fast: bool = False, seed: int = 0) -> Sequence[Result]:
    """Nats above the optimum at four times the training length, compared with softmax attention with sinusoids."""
    spoken = frequencies(seed)
    trained, count = (32, 64) if fast else (64, 256)

    def task(length, places, count):
        """Only the last `trained` symbols of each row count."""
        counted = jnp.broadcast_to(jnp.arange(1, length) >= length - trained, (count, length - 1))
        positions = sinusoidal(jnp.arange(length), WIDTH) if places else None
        return Task(lambda key: (rows(key, spoken, length, count), counted * 1.0), SYMBOLS, positions)

    test = jax.random.key(seed + 1)

    @functools.cache
    def floor(length):
        nats = jax.jit(lambda key: best(rows(key, spoken, length, count), spoken)[:, 1:][:, -trained:].mean())
        return float(nats(test))

    def above(measure, length, places):
        return measure(test, task(length, places, count))[0] - floor(length)

    dim = WIDTH // HEADS
    layers: dict[str, Layer] = {"sinusoids": Softmax(WIDTH, HEADS), "GLA": GLA(WIDTH, HEADS, dim, dim)}
    if not fast:
        layers |= {"RetNet": RetNet(WIDTH, HEADS, dim, dim), "ALiBi": Sloped(WIDTH, HEADS)}
    near, far = 0.0, {}
    for name, layer in layers.items():
        places = name == "sinusoids"
        measure = train(layer, task(trained, places, 32), width=WIDTH, steps=150 if fast else 800, seed=seed)
        far[name] = above(measure, TIMES * trained, places)
        if places:
            near = above(measure, trained, places)
    bar = 0.2 if fast else 0.1
    results = [
        Result(f"nats above the optimum, {name}", far[name], far["sinusoids"], "sinusoids", bar, at_most=True)
        for name in far
        if name != "sinusoids"
    ]
    return [
        *results,
        Result(f"sinusoids at length {trained}", near, far["sinusoids"], "at 4 times the length", bar, at_most=True),
    ]


if __name__ == "__main__":
    main(run, __doc__)

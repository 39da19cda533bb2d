"""Copying 15 symbols after a separator: linear attention does it as well as softmax.

Both models have two layers of the same width, sinusoidal positions and the same training. The figure is the share of
copied symbols that are correct (chance is one in 10).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from report import Result, main
from sequences import Softmax, Task, train

from jattn.positions import sinusoidal
from jattn.variants.kernelized import LinearTransformer

SYMBOLS, ALPHABET, WIDTH = 15, 10, 64


def run(*, fast: bool = False, seed: int = 0) -> Sequence[Result]:
    """The accuracy of the linear transformer, compared with softmax attention."""
    length = 5 if fast else SYMBOLS

    def sample(key):
        symbols = jax.random.randint(key, (32, length), 0, ALPHABET)
        tokens = jnp.concatenate([symbols, jnp.full((32, 1), ALPHABET), symbols], 1)
        weights = jnp.broadcast_to(jnp.arange(2 * length) >= length, (32, 2 * length)).astype(jnp.float32)
        return tokens, weights

    task = Task(sample, ALPHABET + 1, sinusoidal(jnp.arange(2 * length + 1), WIDTH))
    steps = 250 if fast else 1000
    figures = []
    for layer in (LinearTransformer(WIDTH, 4), Softmax(WIDTH, 4)):
        measure = train(layer, task, width=WIDTH, steps=steps, seed=seed)
        figures.append(measure(jax.random.key(seed + 1), task)[1])
    return [Result(f"{length} symbols copied", figures[0], figures[1] - 0.01, "softmax - .01", 0.9 if fast else 0.99)]


if __name__ == "__main__":
    main(run, __doc__)

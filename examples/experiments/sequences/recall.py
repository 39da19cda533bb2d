"""Associative recall: keys and values alternate, paired anew in each row. When a key repeats, predict its value."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jattn.layers import Layer
from jattn.positions import sinusoidal

from .model import Task, train

WIDTH, LENGTH = 64, 64


class Model(NamedTuple):
    """A layer of `WIDTH` features, its number of training steps, its learning rate, and whether it gets sinusoids."""

    layer: Layer
    steps: int
    rate: float = 1e-2
    positions: bool = True


def recall(length: int, alphabet: int, rows: int) -> Task:
    """Rows of `length` tokens. Half of the alphabet are keys, half are values, so chance is one in half the alphabet.

    Only values of keys that occurred before in the row count. Positions are sinusoidal.
    """
    pairs, half = length // 2, alphabet // 2

    def sample(key):
        of_keys, of_values = jax.random.split(key)
        keys = jax.random.randint(of_keys, (rows, pairs), 0, half)
        paired = half + jax.random.randint(of_values, (rows, half), 0, half)
        tokens = jnp.stack([keys, jnp.take_along_axis(paired, keys, 1)], -1).reshape(rows, length)
        seen = jnp.tril(keys[:, :, None] == keys[:, None, :], -1).any(-1)
        counted = jnp.stack([seen, jnp.zeros_like(seen)], -1).reshape(rows, length)[:, :-1]
        return tokens, counted.astype(jnp.float32)

    return Task(sample, alphabet, sinusoidal(jnp.arange(length), WIDTH))


def recalled(models: Mapping[str, Model], *, fast: bool, seed: int) -> dict[str, float]:
    """The accuracy of each model on 64 tokens of 20; in the reduced form on 16 tokens of 8, after 150 steps."""
    length, alphabet = (16, 8) if fast else (LENGTH, 20)
    right = {}
    for name, model in models.items():
        task, test = (recall(length, alphabet, rows) for rows in (32, 128 if fast else 512))
        if not model.positions:
            task, test = (one._replace(positions=None) for one in (task, test))
        steps, rate = (150, 3e-3) if fast else (model.steps, model.rate)
        measure = train(model.layer, task, width=WIDTH, steps=steps, seed=seed, rate=rate)
        right[name] = measure(jax.random.key(seed + 1), test)[1]
    return right

"""Luong's local-p learns a stretched alignment that content does not reveal.

Data: a source of S = 16, 24 or 32 random symbols, and for each target t = 0, ..., 7 the symbol at source position
p* = S t / 8. A target's state consists of Fourier features of t. It knows nothing about the symbols, so only positions
help, and global attention by content must guess. The window D is annealed from 24 to 2. With D = 3 from the start,
success depends on whether the initial centers are within reach of their symbols: three seeds give accuracies of 0.09,
0.27 and 0.74.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from report import Result, main

import jattn
from jattn.variants.seq2seq import LuongLocal, local_p

SYMBOLS, TARGETS, LONGEST = 30, 8, 32
FEATURES = 32
LAYER = LuongLocal(FEATURES)


def examples(key: jax.Array, count: int):
    """Symbols `[count, LONGEST]`, lengths `[count]`, and the source position of each target `[count, TARGETS]`."""
    at, long = jax.random.split(key)
    symbols = jax.random.randint(at, (count, LONGEST), 0, SYMBOLS)
    stretch = jax.random.randint(long, (count,), 2, LONGEST // TARGETS + 1)
    lengths, where = TARGETS * stretch, jnp.arange(TARGETS) * stretch[:, None]
    return symbols, lengths, where


def states_of(parameters):
    time = jnp.linspace(0, 1, TARGETS)[:, None] * np.pi * 2.0 ** jnp.arange(-1, 4)
    return jnp.concatenate([jnp.sin(time), jnp.cos(time)], -1) @ parameters["states"]


def first(key: jax.Array):
    one, two, three, four = jax.random.split(key, 4)
    return {
        "layer": LAYER.init(one),
        "states": 0.3 * jax.random.normal(two, (10, FEATURES)),
        "sources": jax.random.normal(three, (SYMBOLS, FEATURES)),
        "read": 0.2 * jax.random.normal(four, (FEATURES, SYMBOLS)),
    }


def context_of(kind: str, parameters: Any, symbols, lengths, distance):
    """The context of each target, `[count, TARGETS, FEATURES]`, and the predicted centers."""
    states = jnp.broadcast_to(states_of(parameters), (symbols.shape[0], TARGETS, FEATURES))
    sources = parameters["sources"][symbols]
    query, key = states[..., None, :], sources[..., None, :]
    mask = jattn.masks.Lengths(lengths)
    centers = LAYER.centers(parameters["layer"], states, lengths)
    if kind == "local-p":
        out = local_p(query, key, key, centers[:, None], distance, mask=mask)
    else:
        window = jattn.masks.SlidingWindow(3, 3)
        places = np.arange(TARGETS)
        mask = mask & window if kind == "local-m" else mask
        out = jattn.attention(query, key, key, mask=mask, query_positions=places)
    return out[..., 0, :], centers


@functools.partial(jax.jit, static_argnums=(0, 1))
def train(kind: str, steps: int, key: jax.Array, distances: jax.Array):
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, steps))
    begin, data = jax.random.split(key)
    parameters: Any = first(begin)

    def loss(parameters, batch, distance):
        symbols, lengths, where = batch
        context, _ = context_of(kind, parameters, symbols, lengths, distance)
        wanted = jnp.take_along_axis(symbols, where, -1)
        return optax.softmax_cross_entropy_with_integer_labels(context @ parameters["read"], wanted).mean()

    def step(carry: Any, now: Any):
        parameters, state = carry
        index, distance = now
        batch = examples(jax.random.fold_in(data, index), 64)
        updates, state = optimizer.update(jax.grad(loss)(parameters, batch, distance), state)
        return (optax.apply_updates(parameters, updates), state), None

    (parameters, _), _ = jax.lax.scan(step, (parameters, optimizer.init(parameters)), (jnp.arange(steps), distances))
    symbols, lengths, where = examples(jax.random.fold_in(data, steps), 512)
    context, centers = context_of(kind, parameters, symbols, lengths, distances[-1])
    wanted = jnp.take_along_axis(symbols, where, -1)
    right = ((context @ parameters["read"]).argmax(-1) == wanted).mean()
    return right, jnp.abs(centers - where).mean()


def run(*, fast: bool = False, seed: int = 0) -> Sequence[Result]:
    """The accuracy of annealed local-p on new examples, compared with a fixed window, local-m and global attention."""
    key = jax.random.key(seed)
    steps = 300 if fast else 1000
    annealed = 24 * (2 / 24) ** jnp.minimum(jnp.linspace(0, 1.25, steps), 1)
    fixed = jnp.full(steps, 3.0)
    ours, apart = train("local-p", steps, key, annealed)
    content, _ = train("global", steps, key, fixed)
    results = [
        Result("accuracy: local-p, D from 24 to 2", float(ours), float(content), "global", 0.7 if fast else 0.9),
        Result("mean distance of p from p*", float(apart), 1.0, "one position", 1.0 if fast else 0.25, at_most=True),
    ]
    if not fast:
        stuck, _ = train("local-p", steps, key, fixed)
        near, _ = train("local-m", steps, key, fixed)
        results += [
            Result("accuracy: local-p, D annealed", float(ours), float(stuck), "D = 3", 0.9),
            Result("accuracy: local-p, D annealed", float(ours), float(near), "local-m", 0.9),
        ]
    return results


if __name__ == "__main__":
    main(run, __doc__)

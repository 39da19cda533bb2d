"""Words outside the vocabulary can be copied with a pointer, and not without one.

A source is a row of words. Half of them are known; the others are names that the vocabulary does not have, all of which
read as the same "unknown" word in training and testing. The decoder repeats the row. At each step it knows its position
and attends to the source with additive attention (and coverage). The pointer-generator can produce a word of the
vocabulary or copy one from the source; the baseline can only produce. The figure is the share of unknown words that are
correct, on new rows.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from report import Result, main

from jattn.positions import sinusoidal
from jattn.variants.seq2seq import (
    CoverageAttention,
    GenerationGate,
    coverage_loss,
    pointer_log_probabilities,
    pointer_log_probability,
)

WORDS, NAMES, FEATURES = 20, 100, 32
"""The number of known words, of names outside the vocabulary, and of features of every layer."""
UNKNOWN = WORDS
"""The word of the vocabulary that stands for all names."""


def run(*, fast: bool = False, seed: int = 0) -> Sequence[Result]:
    """The share of unknown words that are correct, with the pointer and without."""
    length, steps = (6, 400) if fast else (12, 1500)
    attend = CoverageAttention(FEATURES, FEATURES, FEATURES)
    gate = GenerationGate(FEATURES, FEATURES, FEATURES)
    places = sinusoidal(jnp.arange(length), FEATURES)

    def rows(key, count):
        known, named, coin = jax.random.split(key, 3)
        # Names are numbered after the vocabulary, whose last word is the unknown word.
        words = jax.random.randint(known, (count, length), 0, WORDS)
        names = jax.random.randint(named, (count, length), WORDS + 1, WORDS + 1 + NAMES)
        return jnp.where(jax.random.bernoulli(coin, 0.5, words.shape), words, names)

    def first(key):
        keys = jax.random.split(key, 4)
        return {
            "embedding": 0.5 * jax.random.normal(keys[0], (WORDS + 1, FEATURES)),
            "attend": attend.init(keys[1]),
            "gate": gate.init(keys[2]),
            "out": 0.1 * jax.random.normal(keys[3], (FEATURES, WORDS + 1)),
        }

    def decode(parameters, ids):
        """Logits of the vocabulary and of the gate, and what attention saw."""
        sources = parameters["embedding"][jnp.minimum(ids, UNKNOWN)] + places
        states = jnp.broadcast_to(places, sources.shape)
        attended = attend(parameters["attend"], states, sources)
        logits = attended.context @ parameters["out"]
        return logits, gate(parameters["gate"], attended.context, states, states), attended

    def loss(parameters, ids, pointer):
        logits, generation, attended = decode(parameters, ids)
        if not pointer:
            return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.minimum(ids, UNKNOWN)).mean()
        said = pointer_log_probability(logits, generation, attended.scores, ids, ids)
        return (coverage_loss(attended.weights) - said).mean()

    def share(parameters, ids, pointer):
        logits, generation, attended = decode(parameters, ids)
        if pointer:
            size = WORDS + 1 + NAMES
            logits = pointer_log_probabilities(logits, generation, attended.scores, ids, size)
        right = logits.argmax(-1) == ids
        named = ids > UNKNOWN
        return (right & named).sum() / named.sum()

    def trained(pointer):
        optimizer = optax.adam(5e-3)

        def step(carry, key):
            parameters, state = carry
            gradient = jax.grad(loss)(parameters, rows(key, 32), pointer)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(parameters, updates), state), None

        @jax.jit
        def train(key):
            start, data, test = jax.random.split(key, 3)
            parameters = first(start)
            carry = (parameters, optimizer.init(parameters))
            (parameters, _), _ = jax.lax.scan(step, carry, jax.random.split(data, steps))
            return share(parameters, rows(test, 200), pointer)

        return float(train(jax.random.key(seed)))

    return [Result("share of unknown words copied", trained(True), trained(False), "no pointer", 0.9 if fast else 0.95)]


if __name__ == "__main__":
    main(run, __doc__)

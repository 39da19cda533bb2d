"""Distant repeats: a memory copies what was read hundreds of tokens ago, which a short recurrence has forgotten.

Data: rows of 12 segments of 32 random symbols. The second half of each segment repeats its first half, which trains
queries and keys (the memory is not differentiated, so distant repeats train no keys). The last segment repeats the
first one of the row, and the figure is the share of correct predictions in its first half, from the second symbol on.
Training rows have 4 segments. The models have one layer, whose input is a symbol and the one before it, so that a match
reveals what came next. Transformer-XL keeps the last 64 states. Memorizing attention finds 4 keys among the last 512.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from report import Result, main

from jattn.variants.memory import Memorizing, TransformerXL

SYMBOLS, SEGMENT, SEGMENTS, FEATURES = 128, 32, 12, 64


def data(key, rows, segments):
    """Symbols `[segments, rows, SEGMENT]`."""
    halves = jax.random.randint(key, (segments, rows, SEGMENT // 2), 0, SYMBOLS)
    text = jnp.concatenate([halves, halves], -1)
    return text.at[-1].set(text[0])


def run(*, fast: bool = False, seed: int = 0) -> Sequence[Result]:
    """The share of distant repeats that are predicted, in both forms."""
    first_key, test_key, train_key = jax.random.split(jax.random.key(seed), 3)
    steps = 130 if fast else 500
    optimizer = optax.adam(optax.cosine_decay_schedule(0.01, steps))
    sizes = dict(features=FEATURES, heads=2)
    models = {
        "XL": TransformerXL(**sizes, memory_len=2 * SEGMENT),
        **{combine: Memorizing(**sizes, memory_size=512, top_k=4, combine=combine) for combine in ("gated", "joint")},
    }

    def trained(layer):
        def begin(key):
            embed, attend = jax.random.split(key)
            table = jax.random.normal(embed, (SYMBOLS, FEATURES // 2)) * 4 / FEATURES**0.5
            return {"embedding": table, "layer": layer.init(attend)}

        def logits(parameters, segments):
            """Logits of every next symbol, segment by segment, `[SEGMENTS, rows, SEGMENT, SYMBOLS]`."""
            table = parameters["embedding"]
            before = jnp.pad(segments[..., :-1], ((0, 0), (0, 0), (1, 0)))
            inputs = jnp.concatenate([table[segments], table[before]], -1)

            def read(memory, segment):
                out, memory = layer(parameters["layer"], segment, memory)
                return memory, out[..., : FEATURES // 2] @ table.T

            _, empty = jax.eval_shape(layer, parameters["layer"], inputs[0])
            empty = jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), empty)
            return jax.lax.scan(read, empty, inputs)[1]

        def loss(parameters, segments):
            told = logits(parameters, segments)[..., :-1, :]
            return optax.softmax_cross_entropy_with_integer_labels(told, segments[..., 1:]).mean()

        def step(state, key):
            parameters, moments = state
            gradient = jax.grad(loss)(parameters, data(key, 8, 4))
            updates, moments = optimizer.update(gradient, moments)
            return (optax.apply_updates(parameters, updates), moments), None

        @jax.jit
        def figure(parameters):
            keys = jax.random.split(train_key, steps)
            parameters = jax.lax.scan(step, (parameters, optimizer.init(parameters)), keys)[0][0]
            segments = data(test_key, 64, SEGMENTS)
            half = SEGMENT // 2
            guessed = logits(parameters, segments)[-1, :, : half - 1].argmax(-1)
            return (guessed == segments[-1, :, 1:half]).mean()

        return float(figure(begin(first_key)))

    forgotten, least = trained(models["XL"]), 0.15 if fast else 0.38
    return [
        Result(f"distant repeats, {combine}", trained(models[combine]), forgotten, "Transformer-XL", least)
        for combine in ("gated", "joint")
    ]


if __name__ == "__main__":
    main(run, __doc__)

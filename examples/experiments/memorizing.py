"""Far repeats: what was read hundreds of tokens ago is copied from a memory, which a short recurrence has forgotten.

Data: rows of 12 segments of 32 random symbols. Half of each segment repeats its other half, which trains queries and
keys (memory holds constants: far repeats train no keys); the last segment is the first one of the row again, and its
first half the figure: the share of symbols predicted from the second on. Training rows have 4 segments. One layer each,
of a symbol and the one before, so that a match can say what came next. Transformer-XL keeps the 64 states before;
memorizing attention finds 4 keys of a ring of 512.
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
    """The share of far repeats predicted, in both forms."""
    first_key, test_key, train_key = jax.random.split(jax.random.key(seed), 3)
    steps = 130 if fast else 500
    optimizer = optax.adam(optax.cosine_decay_schedule(0.01, steps))
    sizes = dict(features=FEATURES, heads=2)
    models = {
        "XL": TransformerXL(**sizes, memory_len=2 * SEGMENT),
        **{form: Memorizing(**sizes, memory_size=512, top_k=4, form=form) for form in ("gated", "joint")},
    }

    def trained(layer):
        def begin(key):
            embed, attend = jax.random.split(key)
            table = jax.random.normal(embed, (SYMBOLS, FEATURES // 2)) * 4 / FEATURES**0.5
            return {"embedding": table, "layer": layer.init(attend)}

        def logits(parameters, segments):
            """Of every next symbol, segment after segment, `[SEGMENTS, rows, SEGMENT, SYMBOLS]`."""
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

    forgotten = trained(models["XL"])
    return [
        Result(f"far repeats, {form}", trained(models[form]), forgotten, "Transformer-XL", 0.15 if fast else 0.38)
        for form in ("gated", "joint")
    ]


if __name__ == "__main__":
    main(run, __doc__)

"""Answering from a distant key: a window cannot, and one global token makes it easy.

Data: a row of 512 tokens. Token 1 says which answer is correct, random tokens follow, and the last token asks. Two
layers of attention with a window of 32 tokens cannot reach the answer. In the second model token 1 is global, like a
question in Longformer (arXiv:2004.05150). The window is a mask of `jattn.attention`, which skips its empty tiles.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from report import Result, main

import jattn
from jattn.ops.attention.implementations.tiled import Tiled
from jattn.variants.sparse import longformer_mask

ANSWERS, FEATURES, HEADS = 8, 32, 2


def run(*, fast: bool = False, seed: int = 0) -> Sequence[Result]:
    """The accuracy with one global token, compared with the window alone."""
    length, steps, batch = (128, 80, 16) if fast else (512, 200, 16)
    window = length // (8 if fast else 16)
    tiles = Tiled(window, window)

    def accuracy(mask):
        return _trained(mask, tiles, length, steps, batch, seed)

    alone = accuracy(longformer_mask(window))
    together = accuracy(longformer_mask(window, global_tokens=[1], length=length))
    shape = jax.ShapeDtypeStruct((length, HEADS, FEATURES // HEADS), "float32")
    mask = longformer_mask(window, global_tokens=[1], length=length)
    visited, _, every = jattn.explain(shape, shape, shape, mask=mask, implementation=tiles).plan.counts()
    return [
        Result("accuracy with one global token", together, alone, "the window alone", 0.9 if fast else 0.95),
        Result("tiles visited", visited / every, 1.0, "full attention", 0.6 if fast else 0.35, at_most=True),
    ]


def _data(key, length, batch):
    which, rest = jax.random.split(key)
    answer = jax.random.randint(which, (batch,), 0, ANSWERS)
    noise = jax.random.randint(rest, (batch, length), ANSWERS, 2 * ANSWERS)
    return noise.at[:, 1].set(answer).at[:, -1].set(2 * ANSWERS), answer


def _trained(mask, tiles, length, steps, batch, seed):
    """The accuracy on new rows of a two-layer model trained with this mask."""
    start, data, test = jax.random.split(jax.random.key(seed), 3)
    shapes = {"token": (2 * ANSWERS + 1, FEATURES), "place": (length, FEATURES), "out": (FEATURES, ANSWERS)}
    for layer in range(2):
        shapes |= {f"{name}{layer}": (FEATURES, HEADS, FEATURES // HEADS) for name in "qkv"}
        shapes |= {f"o{layer}": (HEADS, FEATURES // HEADS, FEATURES)}
    keys = jax.random.split(start, len(shapes))
    parameters = {
        name: jax.random.normal(key, shape) * (0.3 if name in ("token", "place") else FEATURES**-0.5)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }

    def logits(parameters, tokens):
        x = parameters["token"][tokens] + parameters["place"]
        for layer in range(2):
            # Treat rows of the batch as additional heads, which share the pattern's tiles.
            q, k, v = (
                jnp.einsum("blf,fhd->lbhd", x, parameters[f"{name}{layer}"]).reshape(length, -1, FEATURES // HEADS)
                for name in "qkv"
            )
            seen = jattn.attention(q, k, v, mask=mask, implementation=tiles).reshape(length, len(tokens), HEADS, -1)
            x = x + jnp.einsum("lbhd,hdf->blf", seen, parameters[f"o{layer}"])
        return x[:, -1] @ parameters["out"]

    def loss(parameters, key):
        tokens, answer = _data(key, length, batch)
        return optax.softmax_cross_entropy_with_integer_labels(logits(parameters, tokens), answer).mean()

    optimizer = optax.adam(5e-3)

    @jax.jit
    def train(parameters):
        def step(carry, key):
            parameters, state = carry
            updates, state = optimizer.update(jax.grad(loss)(parameters, key), state)
            return (optax.apply_updates(parameters, updates), state), None

        carry = parameters, optimizer.init(parameters)
        return jax.lax.scan(step, carry, jax.random.split(data, steps))[0][0]

    tokens, answer = _data(test, length, 8 * batch)
    found = jax.jit(logits)(train(parameters), tokens).argmax(-1)
    return float((found == answer).mean())


if __name__ == "__main__":
    main(run, __doc__)

"""What each part of BigBird contributes: random, window and global blocks, left out one at a time at equal budget.

Data: 16 blocks of tokens. The first is a heading, the last a footing, and between them are two texts of 7 blocks each,
whose tokens say which text they belong to. One token of the heading is marked. In each text, one token per block is
marked; it is the same in all blocks of a text, its topic. Every position between heading and footing must predict

- near: the token one block length before it, which is in the previous block;
- head: the marked token of the heading;
- other: the topic of the other text, which occurs in each of its blocks.

The model is one layer of attention with three heads and a bias per distance. A row of blocks sees 7 of 16 blocks: its
neighbors (3 including its own), the first and last (global), and random ones. If a part is left out, another gets its
budget: nearer blocks in place of random ones, random ones in place of the others. All patterns are block tables of one
call of `jattn.attention`, which skips their empty tiles.

Each question tests one part. Only a window always sees the previous block, only global blocks see the heading, and only
random blocks see something of everything far away. With a second layer, global blocks could collect the topics and pass
them on, and random blocks would only shorten the path; hence one layer.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from report import Result, main

import jattn
from jattn.ops.attention.implementations.tiled import Tiled
from jattn.scores import RelativeBuckets

TOKENS, FEATURES, HEADS, BLOCKS, BLOCK, SEEN = 8, 32, 3, 16, 4, 7
LENGTH = BLOCKS * BLOCK
PARTS = {
    "all parts": (True, True, True),
    "no random": (False, True, True),
    "no window": (True, False, True),
    "no global": (True, True, False),
}
"""(random, window, global) of each variant."""
QUESTIONS = {"near": "no window", "head": "no global", "other": "no random"}
"""Each question, and the variant without the part that it tests."""


def run(*, fast: bool = False, seed: int = 0) -> Sequence[Result]:
    """The accuracy on each question with all parts, compared with the variant that lacks its part."""
    tables = np.stack([_table(*part, seed) for part in PARTS.values()])
    right = _trained(jnp.asarray(tables), 200 if fast else 500, seed)
    right = {
        part: dict(zip(QUESTIONS, map(float, of_part), strict=True)) for part, of_part in zip(PARTS, right, strict=True)
    }
    # With two random blocks, about nine rows in ten see the other text, depending on the draw.
    bars = {"near": 0.95, "head": 0.95, "other": 0.7}
    return [
        Result(question, right["all parts"][question], right[without][question], without, bars[question])
        for question, without in QUESTIONS.items()
    ]


def _table(with_random, with_window, with_global, seed):
    """Which blocks see which, `[BLOCKS, BLOCKS]`; `SEEN` per row that is not global."""
    rng = np.random.default_rng(seed)
    at = np.arange(BLOCKS)
    far = abs(at[:, None] - at)
    seen = far <= (1 if with_window else 0)
    if with_global:
        seen[:, [0, -1]] = True
    for row in range(BLOCKS):
        order = rng.permutation(BLOCKS)
        if not with_random:
            order = order[np.argsort(far[row, order], kind="stable")]
        free = order[~seen[row, order]]
        seen[row, free[: SEEN - seen[row].sum()]] = True
    if with_global:
        seen[[0, -1]] = True
    return seen


def _data(key, batch):
    """Inputs `[batch, LENGTH]`, and the answers at the inner positions `[batch, LENGTH - 2 BLOCK, 3]`."""
    keys = jax.random.split(key, 4)
    tokens = jax.random.randint(keys[0], (batch, BLOCKS, BLOCK), 0, TOKENS)
    place = jax.random.randint(keys[1], (batch, BLOCKS), 0, BLOCK)
    topics = jax.random.randint(keys[2], (batch, 2), 0, TOKENS)
    text = jnp.array([0] + [1] * 7 + [2] * 7 + [3])
    marked = (jnp.arange(BLOCK) == place[..., None]) & (text < 3)[:, None]
    topic = jnp.take_along_axis(topics, jnp.clip(text - 1, 0, 1)[None], 1)[..., None]
    tokens = jnp.where(marked & ((text == 1) | (text == 2))[:, None], topic, tokens)
    head = (tokens * marked)[:, 0].sum(-1)
    inputs = (tokens + TOKENS * (marked + 2 * text[:, None])).reshape(batch, LENGTH)
    tokens = tokens.reshape(batch, LENGTH)
    inner = slice(BLOCK, -BLOCK)
    answers = jnp.stack(
        [
            jnp.roll(tokens, BLOCK, 1),
            jnp.broadcast_to(head[:, None], tokens.shape),
            jnp.repeat(topics[:, ::-1], LENGTH // 2, 1),
        ],
        -1,
    )
    return inputs, answers[:, inner]


def _trained(tables, steps, seed, batch=16):
    """Accuracies `[tables, 3]` of one model per table, all trained alike and in parallel."""
    start, data, test = jax.random.split(jax.random.key(seed), 3)
    dim = FEATURES // 2
    shapes = {"token": (8 * TOKENS, FEATURES), "read": (HEADS, dim, 3, TOKENS)}
    shapes |= {name: (FEATURES, HEADS, dim) for name in "qkv"} | {"distance": (64, HEADS)}
    keys = jax.random.split(start, len(shapes))
    scales = dict.fromkeys(shapes, FEATURES**-0.5) | {"token": 1.0, "distance": 0.1}
    first = {
        name: jax.random.normal(key, shape) * scales[name]
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }

    def logits(parameters, table, inputs):
        x = parameters["token"][inputs]
        # Treat rows of the batch as additional heads, which share the pattern's tiles.
        q, k, v = (jnp.einsum("blf,fhd->lbhd", x, parameters[name]).reshape(LENGTH, -1, dim) for name in "qkv")
        distance = RelativeBuckets(10 * jnp.tile(parameters["distance"], (1, len(inputs))))
        mask = jattn.masks.Blocks(table[None], BLOCK)
        seen = jattn.attention(q, k, v, mask=mask, scores=distance, implementation=Tiled(BLOCK, BLOCK))
        seen = seen.reshape(LENGTH, len(inputs), HEADS, dim)[BLOCK:-BLOCK]
        return jnp.einsum("lbhd,hdat->blat", seen, parameters["read"])

    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, steps))

    def one(table):
        def loss(parameters, key):
            inputs, answers = _data(key, batch)
            found = logits(parameters, table, inputs)
            return optax.softmax_cross_entropy_with_integer_labels(found, answers).mean()

        def step(carry, key):
            parameters, state = carry
            updates, state = optimizer.update(jax.grad(loss)(parameters, key), state)
            return (optax.apply_updates(parameters, updates), state), None

        carry = first, optimizer.init(first)
        parameters = jax.lax.scan(step, carry, jax.random.split(data, steps))[0][0]
        inputs, answers = _data(test, 4 * batch)
        return (logits(parameters, table, inputs).argmax(-1) == answers).mean((0, 1))

    return jax.jit(jax.vmap(one))(tables)


if __name__ == "__main__":
    main(run, __doc__)

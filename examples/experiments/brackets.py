"""A linear-chain CRF reads what is between brackets, although no token knows by itself whether it is inside.

Data: rows of 24 tokens, with one opening and one closing bracket at random places; every other token is a standard
normal number. The target is the mean of the numbers between the brackets. Both models see three kinds of token, and
learn a number per kind and per place: segmentation attention as scores (with transitions per kind), softmax attention
as scores too. Both output a weighted mean of the numbers. The error is the mean square. Always answering 0 has an error
of about 0.27, the mean of 1/n over the number n of tokens between the brackets.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from report import Result, main

import jattn
from jattn.variants.structured import segmentation_attention

LENGTH = 24


def data(key, rows):
    """The kinds of token and the numbers, `[rows, LENGTH]`, and the means `[rows]`."""
    at, text = jax.random.split(key)
    # Two places with at least one token between them.
    pairs = jnp.argwhere(jnp.triu(jnp.ones((LENGTH, LENGTH)), 2), size=(LENGTH - 1) * (LENGTH - 2) // 2)
    first, last = jax.random.choice(at, pairs, (rows,)).T[..., None]
    place = jnp.arange(LENGTH)
    kinds = jnp.where(place == first, 1, jnp.where(place == last, 2, 0))
    numbers = jnp.where(kinds == 0, jax.random.normal(text, (rows, LENGTH)), 0)
    inside = (place > first) & (place < last)
    return kinds, numbers, jnp.where(inside, numbers, 0).sum(-1) / inside.sum(-1)


def scores_of(parameters, kinds):
    """`[rows, LENGTH]`."""
    return parameters["scores"][kinds] + parameters["places"]


def chain(parameters, kinds, numbers):
    """Σ p(z_i = 1) number_i / Σ p(z_i = 1), over all i that are not brackets."""
    transitions = parameters["transitions"][kinds[:, 1:]]
    read = jnp.stack([numbers, (kinds == 0).astype(numbers.dtype)], -1)
    total, weight = segmentation_attention(scores_of(parameters, kinds), transitions, read).T
    return total / weight


def softmax(parameters, kinds, numbers):
    """Σ softmax_i number_i."""
    score, value = (given[..., None, None] for given in (scores_of(parameters, kinds), numbers))
    read = jattn.attention(jnp.ones_like(score[:, :1]), score, value, similarity=jattn.similarities.Dot())
    return read[:, 0, 0, 0]


def run(*, fast: bool = False, seed: int = 0) -> Sequence[Result]:
    """The error of both models on new rows."""
    first_key, test_key, train_key = jax.random.split(jax.random.key(seed), 3)
    first = {
        "scores": jnp.zeros(3),
        "places": jnp.zeros(LENGTH),
        "transitions": 0.5 * jax.random.normal(first_key, (3, 2, 2)) + jnp.eye(2),
    }
    kinds, numbers, means = data(test_key, 2000)
    steps = 400 if fast else 1500
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, steps))

    def trained(model):
        def loss(parameters, kinds, numbers, means):
            return jnp.square(model(parameters, kinds, numbers) - means).mean()

        def step(state, key):
            parameters, moments = state
            gradient = jax.grad(loss)(parameters, *data(key, 64))
            updates, moments = optimizer.update(gradient, moments)
            return (optax.apply_updates(parameters, updates), moments), None

        keys = jax.random.split(train_key, steps)
        (parameters, _), _ = jax.jit(lambda state: jax.lax.scan(step, state, keys))((first, optimizer.init(first)))
        return float(loss(parameters, kinds, numbers, means))

    return [Result("error", trained(chain), trained(softmax), "softmax", 0.03, at_most=True)]


if __name__ == "__main__":
    main(run, __doc__)

"""Gaussian attention is Nadaraya-Watson regression: its error has a minimum in γ, and a learned γ finds it.

Data: y = 2 sin x + x + noise, at 200 training points in [0, 5). The query is a new x, the keys are the training x, and
the values the training y. During training each point is predicted from the others.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from report import Result, main

import jattn


def run(*, fast: bool = False, seed: int = 0) -> Sequence[Result]:
    """The learned γ, compared with the best of a grid and with γ = 0 (the mean of all values)."""
    at, noise = jax.random.split(jax.random.key(seed))
    x = jnp.sort(jax.random.uniform(at, (200,), maxval=5.0))
    y = 2 * jnp.sin(x) + x + 0.5 * jax.random.normal(noise, (200,))
    grid = jnp.linspace(0, 5, 50)
    truth = 2 * jnp.sin(grid) + grid

    def predict(gamma, queries, mask=None):
        as_rows = lambda values: values[:, None, None]  # noqa: E731 (length, one head, one feature)
        similarity = jattn.similarities.Gaussian(gamma)
        return jattn.attention(as_rows(queries), as_rows(x), as_rows(y), similarity=similarity, mask=mask)[:, 0, 0]

    def error(gamma):
        return jnp.square(predict(gamma, grid) - truth).mean()

    def loss(log_gamma):
        return jnp.square(predict(jnp.exp(log_gamma), x, lambda q, k: q != k) - y).mean()

    optimizer = optax.adam(0.1)

    @jax.jit
    def step(log_gamma, state):
        updates, state = optimizer.update(jax.grad(loss)(log_gamma), state)
        return optax.apply_updates(log_gamma, updates), state

    log_gamma = jnp.zeros(())
    state = optimizer.init(log_gamma)
    for _ in range(50 if fast else 300):
        log_gamma, state = step(log_gamma, state)
    gammas = jnp.logspace(-2, 3, 26)
    errors = jax.vmap(error)(gammas)
    least = float(errors.min())
    mean, sharp, learned = (float(error(gamma)) / least for gamma in (0.0, 1000.0, jnp.exp(log_gamma)))
    return [
        Result("error relative to the best γ: γ = 1000", sharp, 1.0, "best γ", 1.5),
        Result("γ = 0", mean, 1.0, "best γ", 5),
        Result("learned γ", learned, mean, "γ = 0", 1.5, at_most=True),
    ]


if __name__ == "__main__":
    main(run, __doc__)

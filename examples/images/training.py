"""A training loop: AdamW, a warm-up and a cosine, a progress bar."""

import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm


def train(
    model: nnx.Module,
    loss: Callable[..., jax.Array],
    batch: Callable[[np.random.Generator], tuple[np.ndarray, ...]],
    steps: int,
    *,
    learning_rate: float,
    seed: int,
    weight_decay: float = 0.1,
) -> list[float]:
    """Train a model in place. Returns the loss of each step.

    Args:
        model: the model, which is left in evaluation mode.
        loss: a function of the model and the arrays of a batch.
        batch: draws the arrays of a batch.
        steps: the number of steps.
        learning_rate: the largest, after the warm-up of a twentieth of the steps.
        seed: of the batches.
        weight_decay: of kernels and embeddings, not of biases and norms.
    """
    schedule = optax.warmup_cosine_decay_schedule(0, learning_rate, max(steps // 20, 1), steps + 1)
    decayed = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)  # noqa: E731
    adamw = optax.adamw(schedule, b2=0.98, weight_decay=weight_decay, mask=decayed)
    optimizer = nnx.Optimizer(model, optax.chain(optax.clip_by_global_norm(1.0), adamw), wrt=nnx.Param)

    @nnx.jit
    def step(model: Any, optimizer: nnx.Optimizer, *arrays: jax.typing.ArrayLike) -> jax.Array:
        found, gradients = nnx.value_and_grad(loss)(model, *arrays)
        optimizer.update(model, gradients)
        return found

    random, losses = np.random.default_rng(seed), []
    model.train()
    with tqdm(total=steps, unit="step", dynamic_ncols=True, file=sys.stdout) as bar:
        for _ in range(steps):
            losses.append(step(model, optimizer, *batch(random)))
            # Wait for the previous step: the bar stays accurate, and one more step is always queued.
            bar.set_description(f"loss {float(losses[-2:][0]):.3f}", refresh=False)
            bar.update()
    model.eval()
    return [float(one) for one in losses]

"""What every test of a single piece checks: value and gradients against float64 NumPy, `jit` and `vmap`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

STEP = 1e-5


def normal(seed: int, *shapes: Sequence[int], spread: float = 1.0) -> list[Any]:
    """Random float32 arrays of these shapes."""
    rng = np.random.default_rng(seed)
    return [(spread * rng.normal(size=shape)).astype(np.float32) for shape in shapes]


def central_differences(truth: Callable, arrays: Sequence[np.ndarray], cotangent: np.ndarray) -> list[np.ndarray]:
    """The gradient of `(truth(*arrays) * cotangent).sum()` in every array, float64."""
    arrays = [np.array(array, np.float64) for array in arrays]
    gradients = []
    for array in arrays:
        gradient = np.zeros_like(array)
        for index in np.ndindex(array.shape):
            kept = array[index]
            sides = []
            for step in (STEP, -STEP):
                array[index] = kept + step
                sides.append((truth(*arrays) * cotangent).sum())
            array[index] = kept
            gradient[index] = (sides[0] - sides[1]) / (2 * STEP)
        gradients.append(gradient)
    return gradients


def close(ours, truth, tolerance: float, what: str = "value") -> None:
    """Equal up to `tolerance` times the largest entry (at least 1)."""
    ours, truth = np.asarray(ours, np.float64), np.asarray(truth, np.float64)
    assert ours.shape == truth.shape, f"{what}: shape {ours.shape}, expected {truth.shape}"
    assert np.isfinite(ours).all() == np.isfinite(truth).all(), what
    np.testing.assert_allclose(
        ours, truth, rtol=0, atol=tolerance * max(1.0, np.abs(truth).max(initial=0)), err_msg=what
    )


def summed(run: Callable, *arrays: Any) -> tuple[Any, ...]:
    """The output of `run`, and the gradients of its sum in all arrays; one compiled program."""

    @jax.jit
    def both(*arrays):
        out, pull = jax.vjp(run, *arrays)
        return out, *pull(jnp.ones_like(out))

    return both(*arrays)


def check(ours: Callable, truth: Callable, *arrays: np.ndarray, tolerance: float = 1e-5) -> None:
    """`ours` (JAX, float32) is `truth` (NumPy, float64): in value and in the gradient of every array.

    Also: compiled it is the same and new values do not retrace, and `vmap` over all arrays is a loop over them.
    """
    wide = [np.asarray(array, np.float64) for array in arrays]
    expected = truth(*wide)
    cotangent = np.random.default_rng(99).normal(size=expected.shape)
    traced = []

    def value_and_pullback(*given):
        traced.append(None)
        value, pull = jax.vjp(ours, *given)
        return value, pull(jnp.asarray(cotangent, value.dtype))

    compiled = jax.jit(value_and_pullback)
    value, gradients = compiled(*arrays)
    close(value, expected, tolerance)
    for i, (gradient, numeric) in enumerate(zip(gradients, central_differences(truth, wide, cotangent), strict=True)):
        assert gradient.dtype == arrays[i].dtype
        close(gradient, numeric, 4 * tolerance, f"gradient of array {i}")
    others = [array[::-1].copy() if array.ndim else array * np.float32(0.9) for array in arrays]
    compiled(*others)
    assert len(traced) == 1, "new values retraced"
    stacked = [np.stack(pair) for pair in zip(arrays, others, strict=True)]
    mapped = jax.jit(jax.vmap(ours))(*stacked)
    close(mapped[0], expected, tolerance, "vmap, first")
    close(mapped[1], truth(*(np.asarray(array, np.float64) for array in others)), tolerance, "vmap, second")

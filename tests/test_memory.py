"""Memory of the compiled gradient: measured slopes show that it is linear."""

import functools

import pytest
from temporaries import MIB, gradient_temporaries

import jattn

WIDE = pytest.mark.exhaustive


def test_gradient_of_8192_causal_takes_no_more_than_the_best_peer():
    """51 MiB was measured of the best other library at this size; `jax.nn` takes 6176."""
    assert gradient_temporaries(8192, mask=jattn.masks.Causal()) <= 51 * MIB


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"mask": jattn.masks.Causal()}, marks=WIDE),
        pytest.param({"mask": jattn.masks.SlidingWindow(100, 0), "scores": jattn.scores.SoftCap(5.0)}, marks=WIDE),
        {"mask": jattn.masks.of(lambda q, k: (k <= q) & ((q - k) % 3 != 1)), "lse": True},
    ],
    ids=["causal", "window-and-soft-cap", "a-function"],
)
def test_gradient_temporaries_grow_linearly(given):
    measure = functools.partial(gradient_temporaries, heads=2, dim=16, **given)
    at = {length: measure(length) for length in (1024, 2048, 4096)}
    first, second = at[2048] - at[1024], at[4096] - at[2048]
    assert second <= 2.2 * max(first, MIB // 4), at  # quadratic growth would make it 4 times the first
    assert at[4096] <= 12 * MIB, at


@WIDE
def test_the_measure_sees_quadratic_memory():
    measure = functools.partial(gradient_temporaries, heads=2, dim=16, implementation="reference")
    at = {length: measure(length) for length in (512, 1024, 2048)}
    assert at[2048] - at[1024] > 3 * (at[1024] - at[512]), at

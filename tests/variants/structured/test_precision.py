"""Long structures in float32 agree with float64: log Z, marginals, and the gradient of marginals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import normal
from tiers import rows

from jattn.variants import structured

CHAIN, WORDS = 3000, 72


def chain(potentials, transitions):
    return (
        structured.chain_log_partition(potentials, transitions),
        structured.chain_marginals(potentials, transitions),
    )


def projective(arcs, roots):
    return structured.projective_log_partition(arcs, roots), structured.projective_marginals(arcs, roots).arcs


def nonprojective(arcs, roots):
    return structured.nonprojective_log_partition(arcs, roots), structured.nonprojective_marginals(arcs, roots).arcs


CASES = {
    "chain": (chain, ((CHAIN, 2), (2, 2)), 1.0),
    "chain, a transition for each step": (chain, ((CHAIN, 2), (CHAIN - 1, 2, 2)), 1.0),
    "projective": (projective, ((WORDS, WORDS), (WORDS,)), 4.0),
    "nonprojective": (nonprojective, ((WORDS, WORDS), (WORDS,)), 1.0),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", rows(CASES, ["chain, a transition for each step"]))
def test_length_costs_no_digits(name):
    """Messages and charts grow with the length: as plain float32 logarithms they lose 1e-5 to 1e-3 here."""
    found, shapes, spread = CASES[name]
    given = normal(0, *shapes, spread=spread)
    cotangent = np.cos(np.arange(shapes[0][0]))

    @jax.jit
    def everything(*given):
        total, weights = found(*given)
        both = jax.grad(lambda *given: jnp.sum(found(*given)[1] * cotangent[:, None]).astype(total.dtype), (0, 1))
        return total, jax.grad(lambda *given: found(*given)[0], (0, 1))(*given), weights, both(*given)

    ours = jax.tree.leaves(everything(*given))
    with jax.enable_x64(True):
        wanted = [np.asarray(one) for one in jax.tree.leaves(everything(*map(np.float64, given)))]
    for one, truth, tolerance in zip(ours, wanted, (3e-7, 1e-6, 1e-6, 1e-6, 3e-6, 3e-6), strict=True):
        assert one.dtype == np.float32 and truth.dtype == np.float64
        assert np.abs(one - truth).max() < tolerance * max(1, np.abs(truth).max())

"""Programs for TPUs that are not present: libtpu compiles them, and nothing runs."""

import jax
import pytest

from jattn.benchmarks.tpu.compiler import GENERATIONS, lower, missing
from jattn.foundation.target import compiled_for

needs_libtpu = pytest.mark.skipif(missing() is not None, reason=f"compiles for a TPU: {missing()}")
"""Mark of a test that compiles for a TPU."""


def compiled(generation, function, *arguments):
    """The program of a function for one device of a generation, and its text before it was compiled."""
    lowered = lower(generation, function, arguments)
    return lowered.compile(), lowered.as_text()


def compiled_gradients(generation, function, *arguments):
    """As `compiled`, of the results of a function and its gradients in all floating-point arrays."""
    leaves, tree = jax.tree.flatten(arguments)
    floats = [index for index, leaf in enumerate(leaves) if jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating)]

    def both(leaves, cotangents):
        def part(given):
            filled = list(leaves)
            for index, leaf in zip(floats, given, strict=True):
                filled[index] = leaf
            return function(*tree.unflatten(filled))

        out, pull = jax.vjp(part, [leaves[index] for index in floats])
        return out, pull(cotangents)

    with compiled_for(GENERATIONS[generation].target):
        cotangents = jax.eval_shape(function, *arguments)
    return compiled(generation, both, leaves, cotangents)

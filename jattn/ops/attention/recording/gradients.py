"""The gradient of a loss with respect to attention weights.

An attention with weights A gives o = A v, and the rest of the model and the loss L give a cotangent `do` of o. Then

    dL/dA_ij = do_i · v_j        where i may attend to j, 0 elsewhere.

It is the gradient with respect to an array of zeros that is added to A: an input `zero` of each recorded call, which no
equation of the forward pass reads. So the loss is differentiated with respect to these arrays, whatever else it is a
function of, and attention runs by its fast implementation in both passes.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from ....foundation.sharding import mesh_of, reshard, spec_of, split_like, vary, varying_axes
from ....similarities import Dot
from ..api import run_call
from ..call import Call, Pieces
from ..implementations.reference import scored
from ..select import select
from .choice import Choice


@dataclasses.dataclass(frozen=True)
class _Products:
    """do_i · v_j of some heads and queries, for `do` in place of the query and the values in place of the key."""

    heads: tuple[int, ...] | None
    queries: tuple[int, ...] | None

    def __call__(self, call: Call, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        del value
        call, query, key = select(call, query, key, heads=self.heads, queries=self.queries)
        return scored(call, query, key)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def perturbed(choice: Choice, out: jax.Array, value: jax.Array, allowed: jax.Array, zero: jax.Array) -> jax.Array:
    """`out`, whose cotangent becomes that of the weights, as the gradient of `zero`."""
    del choice, value, allowed, zero
    return out


def _perturbed_forward(choice, out, value, allowed, zero):
    del choice
    return out, (value, allowed, zero)


def _perturbed_backward(choice, saved, d_out):
    value, allowed, zero = saved
    function = _Products(choice.heads, choice.queries)
    arrays = d_out, value, value
    products = run_call(function, arrays, Pieces(similarity=Dot()), "weights", whole_heads=choice.heads is not None)
    gradient = jnp.where(split_like(allowed, products), products, 0)
    return d_out, jnp.zeros_like(value), None, split_like(gradient.astype(zero.dtype), zero)


perturbed.defvjp(_perturbed_forward, _perturbed_backward)


@dataclasses.dataclass(frozen=True)
class Zero:
    """What an array of zeros must be like to be added to some weights. Static."""

    shape: tuple[int, ...]
    dtype: Any
    mesh: Any
    spec: tuple[Any, ...]
    varying: tuple[str, ...]

    @classmethod
    def like(cls, weights: jax.Array) -> "Zero":
        """The description of these weights."""
        return cls(weights.shape, weights.dtype, mesh_of(weights), spec_of(weights), varying_axes(weights))

    def made(self) -> jax.Array:
        """The array."""
        zero = jnp.zeros(self.shape, self.dtype)
        if AxisType.Explicit in self.mesh.axis_types:
            zero = reshard(zero, self.mesh, PartitionSpec(*self.spec))
        return vary(zero, self.varying)

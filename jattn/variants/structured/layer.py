"""Soft selection of each word's parent as a layer (Kim et al. 2017)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ...foundation.arguments import check_choice, check_flags, check_positive
from ...foundation.shapes import check_shapes, token_mask
from ...layers.layer import OWN_AXES, Layer, bias, kernel, normal
from .nonprojective import nonprojective_marginals
from .projective import projective_marginals
from .trees import TreeMarginals, soft_parents

TREES = {"projective": projective_marginals, "nonprojective": nonprojective_marginals}


@dataclasses.dataclass(frozen=True)
class SoftParents(Layer):
    """Soft parents: the expected parent of every word, under a distribution over dependency trees.

        θ_ij = vᵀ tanh(W₁ h_i + W₂ h_j + b),  c_j = Σ_i p(i -> j) h_i

    Kim, Denton, Hoang & Rush 2017 (arXiv:1702.00887), section 3.2, with i over the words and the root, whose state
    h_root is learned. θ takes O(length² hidden) memory, and the chart of trees O(length³).

    Demonstrated in `examples/experiments/eisner.py`.

    Args:
        features: features of the states h.
        hidden: features of the hidden layer for a pair of words.
        trees: `"projective"` (Eisner, the paper's) or `"nonprojective"` (matrix-tree).
        single_root: whether the root has exactly one child.

    Raises:
        ValueError: a size is below 1; `trees` is unknown; `single_root` is not a flag; at the call, shapes do not match
            or `lengths` are invalid.

    >>> import jax
    >>> layer = SoftParents(8, hidden=16)
    >>> jax.jit(layer)(layer.init(jax.random.key(0)), jax.numpy.ones((2, 5, 8))).shape
    (2, 5, 8)
    """

    own_axes = OWN_AXES

    features: int
    hidden: int
    trees: str = "projective"
    single_root: bool = True

    def __post_init__(self):
        check_positive(features=self.features, hidden=self.hidden)
        check_choice("trees", self.trees, tuple(TREES))
        check_flags(single_root=self.single_root)

    def parameters(self) -> dict[str, Any]:
        """`parent.kernel` W₁, `child.kernel` W₂ `[features, hidden]`, `pair.bias`, `pair.vector`, `root.state`."""
        return {
            "parent": {"kernel": kernel(self.features, self.hidden)},
            "child": {"kernel": kernel(self.features, self.hidden)},
            "pair": {"bias": bias(self.hidden), "vector": bias(self.hidden, init=normal(self.hidden**-0.5))},
            "root": {"state": bias(self.features, init=normal(1.0))},
        }

    def __call__(self, parameters: Mapping[str, Any], states: jax.Array, *, lengths: Any = None) -> jax.Array:
        """`[..., length, features]`: c, 0 beyond an example's length.

        Args:
            parameters: the layer's parameters.
            states: h, `[..., length, features]`.
            lengths: integers `[...]`, or one for all.
        """
        found = self.marginals(parameters, states, lengths=lengths)
        root = found.roots[..., None] * parameters["root"]["state"]
        return soft_parents(found.arcs, states, lengths=lengths) + root.astype(states.dtype)

    def marginals(self, parameters: Mapping[str, Any], states: jax.Array, *, lengths: Any = None) -> TreeMarginals:
        """p(i -> j) for the words and the root; arguments as in `__call__`."""
        check_shapes({"features": self.features}, states=(states, "... length features"))
        own = token_mask(lengths, states.shape[:-2], states.shape[-2])
        states = jnp.where(own[..., None], states, 0)
        child = states @ parameters["child"]["kernel"] + parameters["pair"]["bias"]
        parent, root = (given @ parameters["parent"]["kernel"] for given in (states, parameters["root"]["state"]))
        arcs = jnp.tanh(parent[..., :, None, :] + child[..., None, :, :]) @ parameters["pair"]["vector"]
        roots = jnp.tanh(root + child) @ parameters["pair"]["vector"]
        return TREES[self.trees](arcs, roots, single_root=self.single_root, lengths=lengths)

"""Trees of candidate continuations, verified by speculative decoding in one call."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from ...foundation.arrays import as_known
from ...foundation.fields import Integers
from ...foundation.shapes import check_shapes
from ...masks import Blocks, Lengths, Shifted
from ...masks.base import Mask


def tree_mask(parents: Any, prefix_length: Integers = 0) -> Mask:
    """Tree of candidates: each node sees the prefix, its ancestors and itself (speculative decoding).

        k < P,    or q - P is k - P or a descendant of it        P = prefix_length

    The keys are P cached ones followed by the nodes. The queries are the nodes, at positions P, P + 1, ...
    (`query_positions`), regardless of depth. Rotary embeddings need the depth instead: `P + tree_depths(parents)`.
    Miao et al. 2023 (arXiv:2305.09781); Cai et al. 2024 (arXiv:2401.10774).

    Args:
        parents: integers `[..., nodes]`: the parent of each node, -1 for a node directly after the prefix. Nodes may be
            in any order.
        prefix_length: P, an integer, or an array `[...]` with one for each sequence of the batch. In a cache longer
            than P, the keys from P on are treated as nodes.

    Raises:
        ValueError: parents are not nodes, or form a cycle; not checked if they are traced.

    >>> mask = tree_mask([-1, 0, 0, 1], prefix_length=1)
    >>> print(mask.picture(4, 5, query_positions=[1, 2, 3, 4]).rsplit(chr(10), 2)[0])
    ██···
    ███··
    ██·█·
    ███·█
    """
    nodes = Blocks(_ancestors(_checked(parents))[..., None, :, :], 1)
    return Shifted(nodes, prefix_length) | Lengths(prefix_length)


def tree_depths(parents: Any) -> Any:
    """The number of ancestors of each node: `[..., nodes]`, int32.

    Raises:
        ValueError: as in `tree_mask`.

    >>> tree_depths([-1, 0, 0, 1])
    array([0, 1, 1, 2], dtype=int32)
    """
    return _ancestors(_checked(parents)).sum(-1).astype(np.int32) - 1


def _checked(parents: Any) -> Any:
    parents = as_known(parents)
    nodes = check_shapes(kind=jnp.integer, parents=(parents, "... nodes"))["nodes"]
    if isinstance(parents, np.ndarray) and parents.size:
        if not (parents.min() >= -1 and parents.max() < nodes):
            raise ValueError(
                f"`parents` must be nodes, from 0 to {nodes - 1}, or -1 for none; got {parents.min()} to "
                f"{parents.max()}."
            )
        # The path from a node to the prefix has fewer steps than there are nodes.
        at = np.broadcast_to(np.arange(nodes), parents.shape)
        for _ in range(nodes):
            at = np.where(at < 0, -1, np.take_along_axis(parents, np.maximum(at, 0), -1))
        if (at >= 0).any():
            raise ValueError(f"`parents` must not go round in a circle; got {parents.tolist()}.")
    return parents


def _ancestors(parents: Any) -> Any:
    """Booleans `[..., node, ancestor or the node itself]`, by doubling the length of paths."""
    backend: Any = np if isinstance(parents, np.ndarray) else jnp
    nodes = parents.shape[-1]
    steps = (parents[..., None] == np.arange(nodes)) | np.eye(nodes, dtype=bool)
    for _ in range(max(1, math.ceil(math.log2(max(nodes, 2))))):
        wide = steps.astype(np.float32)
        steps = backend.matmul(wide, wide) > 0
    return steps

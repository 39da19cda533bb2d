"""Arrays of pieces as parameters: which of them a module trains."""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp

from ..foundation.arrays import describe

LEARNABLE = ("mask", "similarity", "scores", "normalizer")


def check_learned(learned: Collection[str], pieces: dict[str, Any]) -> tuple[str, ...]:
    """The names of the pieces whose floating-point arrays are parameters.

    Raises:
        ValueError: an unknown name; a piece without such an array.
    """
    if not isinstance(learned, Collection):
        raise ValueError(f"`learned` must name pieces, among {', '.join(LEARNABLE)}; got {describe(learned)}.")
    learned = (learned,) if isinstance(learned, str) else tuple(learned)
    for name in learned:
        if name not in LEARNABLE:
            raise ValueError(f"`learned` must name pieces, among {', '.join(LEARNABLE)}; got {name!r}.")
        if not any(is_trainable(leaf) for leaf in jax.tree.leaves(pieces[name])):
            raise ValueError(
                f"`learned` names {name!r}, but {pieces[name]!r} holds no floating-point array to train. Give the "
                "number as an array, such as `jax.numpy.zeros(q_heads)`."
            )
    return learned


def is_trainable(leaf: Any) -> bool:
    """Whether an array of a piece can be a parameter."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def split(piece: Any) -> dict[str, Any]:
    """The floating-point arrays of a piece (or tuple of pieces), in a nested dict by the names of their fields."""
    tree: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(piece):
        if is_trainable(leaf):
            *groups, last = (_name(entry) for entry in path)
            node = tree
            for group in groups:
                node = node.setdefault(group, {})
            node[last] = jnp.asarray(leaf)
    return tree


def join(piece: Any, tree: dict[str, Any]) -> Any:
    """The piece with the arrays of `tree` in place of those that `split` found."""

    def one(path: tuple, leaf: Any) -> Any:
        if not is_trainable(leaf):
            return leaf
        node: Any = tree
        for entry in path:
            node = node[_name(entry)]
        return node

    return jax.tree_util.tree_map_with_path(one, piece)


def _name(entry: Any) -> str:
    """`slopes` of an attribute, `0` of a place in a tuple."""
    for attribute in ("name", "idx", "key"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)

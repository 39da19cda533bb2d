"""Arrays inside a layer's pieces: trained ones become parameters, the others are held beside the parameters."""

import copy
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..foundation.arrays import describe, dtype_of
from ..foundation.pieces import Piece
from .layer import Layer, Parameter, constant

PIECES = ("mask", "similarity", "scores", "normalizer")
"""The arguments of a layer that hold pieces; any of them may be trained."""


def check_learned(learned: Collection[str], pieces: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the pieces whose floating-point arrays are parameters.

    Raises:
        ValueError: a name is unknown; a piece has no floating-point array.
    """
    if not isinstance(learned, Collection) or dtype_of(learned) is not None:
        raise ValueError(f"`learned` must name pieces, among {', '.join(PIECES)}; got {describe(learned)}.")
    learned = (learned,) if isinstance(learned, str) else tuple(learned)
    for name in learned:
        if name not in PIECES:
            raise ValueError(f"`learned` must name pieces, among {', '.join(PIECES)}; got {name!r}.")
        if not any(is_trainable(leaf) for leaf in jax.tree.leaves(pieces[name])):
            raise ValueError(
                f"`learned` names {name!r}, but {pieces[name]!r} holds no floating-point array to train. Give the "
                "number as an array, such as `jax.numpy.zeros(q_heads)`."
            )
    return learned


def is_trainable(leaf: Any) -> bool:
    """Whether an array of a piece can be a parameter: its dtype is floating-point."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)


def declare(piece: Any) -> dict[str, Any]:
    """The floating-point arrays of a piece (or tuple of pieces) as parameters, initialized to their current values.

    >>> import jattn
    >>> {name: one.shape for name, one in declare(jattn.scores.ALiBi.standard(8)).items()}
    {'slopes': (8,)}
    """
    tree: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(piece):
        if is_trainable(leaf):
            *groups, last = (_name(entry) for entry in path)
            node = tree
            for group in groups:
                node = node.setdefault(group, {})
            node[last] = Parameter(tuple(leaf.shape), constant(leaf), 0)
    return tree


def join(piece: Any, tree: Mapping[str, Any]) -> Any:
    """The piece with the arrays that `declare` found replaced by those in `tree`."""

    def one(path: tuple, leaf: Any) -> Any:
        if not is_trainable(leaf):
            return leaf
        node: Any = tree
        for entry in path:
            node = node[_name(entry)]
        return node

    return jax.tree_util.tree_map_with_path(one, piece)


def _name(entry: Any) -> str:
    """The name of a path entry: `slopes` for an attribute, `0` for a tuple index."""
    for attribute in ("name", "idx", "key"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def detach(layer: Layer) -> tuple[Layer, list[jax.Array]]:
    """Split a layer into a hashable layer, whose JAX arrays are replaced by their shapes, and the list of these arrays.

    Arrays to train are not in the list: they arrive with the parameters. NumPy arrays stay in the layer, because values
    known at trace time allow plans of tiles that are known at trace time.
    """
    arrays: list[jax.Array] = []

    def one(name: str, leaf: Any) -> Any:
        trained = name in getattr(layer, "learned", ()) and is_trainable(leaf)
        if not trained and not isinstance(leaf, jax.Array):
            return leaf
        if not trained:
            arrays.append(leaf)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)

    return _map_pieces(layer, one), arrays


def attach(layer: Layer, arrays: Sequence[Any]) -> Layer:
    """The inverse of `detach`, except for the arrays to train."""
    rest = iter(arrays)

    def one(name: str, leaf: Any) -> Any:
        trained = name in getattr(layer, "learned", ()) and is_trainable(leaf)
        return next(rest) if isinstance(leaf, jax.ShapeDtypeStruct) and not trained else leaf

    return _map_pieces(layer, one) if arrays else layer


def _map_pieces(layer: Layer, function: Any) -> Layer:
    """A copy with every leaf of the piece fields replaced by `function(field, leaf)`, without checks."""
    other = copy.copy(layer)
    for field in dataclasses.fields(layer) if dataclasses.is_dataclass(layer) else ():
        value = getattr(layer, field.name)
        parts = value if isinstance(value, tuple) else (value,)
        if parts and all(isinstance(one, Piece) for one in parts):
            mapped = jax.tree.map(lambda leaf, name=field.name: function(name, leaf), value)
            object.__setattr__(other, field.name, mapped)
    return other

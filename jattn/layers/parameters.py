"""The parameters of multi-head attention: names, axes, shapes, initial values and partition specs."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..foundation.arguments import check_multiple, check_positive
from ..foundation.arrays import describe, dtype_of
from ..parallel import partition_spec
from .norms import as_qk_norm

AXES: dict[str, dict[str, tuple[str, ...]]] = {
    "query": {"kernel": ("feature", "head", "dim"), "bias": ("head", "dim")},
    "key": {"kernel": ("feature", "head", "dim"), "bias": ("head", "dim")},
    "value": {"kernel": ("feature", "head", "dim"), "bias": ("head", "dim")},
    "query_norm": {"scale": ("head", "dim"), "bias": ("head", "dim")},
    "key_norm": {"scale": ("head", "dim"), "bias": ("head", "dim")},
    "out": {"kernel": ("head", "dim", "feature"), "bias": ("feature",)},
}
"""The axes of each parameter. A norm shared by all heads has no head axis. Names and shapes of the projections match
Flax's own `MultiHeadAttention`."""


class Shape(NamedTuple):
    """The shape of a parameter, and how many of its axes are summed over when it is applied."""

    shape: tuple[int, ...]
    inputs: int


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of multi-head attention; those that are `None` are filled in.

    Args:
        in_features: features of the inputs that queries are computed from.
        q_heads: number of query heads.
        kv_heads: number of key and value heads, by default `q_heads`; must divide `q_heads`.
        head_dim: features of a head, by default `in_features / q_heads`; any size.
        in_kv_features: features of the inputs that keys and values are computed from, by default `in_features`.
        out_features: features of the output, by default `in_features`.

    Raises:
        ValueError: a size is no int of at least 1; `kv_heads` does not divide `q_heads`; without a `head_dim`,
            `q_heads` does not divide `in_features`, or the two are swapped.

    >>> Sizes(64, 8, kv_heads=2).head_dim
    8
    """

    in_features: int
    q_heads: int
    kv_heads: int | None = None
    head_dim: int | None = None
    in_kv_features: int | None = None
    out_features: int | None = None

    def __post_init__(self):
        check_positive(in_features=self.in_features, q_heads=self.q_heads)
        if self.head_dim is None:
            if self.in_features < self.q_heads and self.q_heads % self.in_features == 0:
                raise ValueError(
                    "`in_features` comes first, then `q_heads` (Flax has them the other way round); got in_features "
                    f"{self.in_features} and q_heads {self.q_heads}."
                )
            check_multiple("q_heads", in_features=self.in_features, q_heads=self.q_heads, unless="head_dim")
        defaults = {
            "kv_heads": self.q_heads,
            "head_dim": self.in_features // self.q_heads,
            "in_kv_features": self.in_features,
            "out_features": self.in_features,
        }
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        for name, value in dataclasses.asdict(self).items():
            check_positive(**{name: value})
        check_multiple("kv_heads", q_heads=self.q_heads, kv_heads=int(self.kv_heads or 0))


PROJECTIONS = ("query", "key", "value", "out")


def biased(use_bias: Any) -> tuple[str, ...]:
    """The projections that add a bias: all, none or the named ones.

    Raises:
        ValueError: it is something else.

    >>> biased(("query", "value", "out"))  # as in Whisper, whose keys have no bias
    ('query', 'value', 'out')
    """
    if isinstance(use_bias, bool):
        return PROJECTIONS if use_bias else ()
    named = (use_bias,) if isinstance(use_bias, str) else use_bias
    if not isinstance(named, (tuple, list, set, frozenset)) or not set(named) <= set(PROJECTIONS):
        raise ValueError(
            f"`use_bias` must be True, False or names among {', '.join(map(repr, PROJECTIONS))}; got {use_bias!r}."
        )
    return tuple(name for name in PROJECTIONS if name in named)


def parameter_shapes(sizes: Sizes, *, use_bias: Any, qk_norm: Any) -> dict[str, dict[str, Shape]]:
    """The shape of each parameter, as a tree with the names of `AXES`.

    Args:
        sizes: the sizes of the attention.
        use_bias: True, False, or the names of the projections that have a bias.
        qk_norm: True, False, or a `QKNorm`.
    """
    norm, with_bias = as_qk_norm(qk_norm), biased(use_bias)
    extent = {
        "query": {"feature": sizes.in_features, "head": sizes.q_heads},
        "key": {"feature": sizes.in_kv_features, "head": sizes.kv_heads},
        "value": {"feature": sizes.in_kv_features, "head": sizes.kv_heads},
        "out": {"feature": sizes.out_features, "head": sizes.q_heads},
    }
    inputs = {"query": 1, "key": 1, "value": 1, "out": 2}
    tree: dict[str, dict[str, Shape]] = {}
    for group, axes in AXES.items():
        if norm is None and group.endswith("_norm"):
            continue
        of = group.removesuffix("_norm")
        known: dict[str, Any] = {**extent[of], "dim": sizes.head_dim}  # no None: `Sizes` filled them in
        if norm is not None and group != of:
            shape = Shape(tuple(known[axis] for axis in norm.axes), 0)
            tree[group] = {"scale": shape, "bias": shape} if norm.use_bias else {"scale": shape}
            continue
        tree[group] = {
            name: Shape(tuple(known[axis] for axis in names), inputs[group] if name == "kernel" else 0)
            for name, names in axes.items()
            if name != "bias" or group in with_bias
        }
    return tree


def initialize(init: Callable[..., Any], key: jax.Array, shape: Shape, dtype: Any) -> Any:
    """The initial value of a parameter; `init` gets the shape [inputs, outputs], so that its fan-in is right."""
    sizes, inputs = shape
    flat = (math.prod(sizes[:inputs]), math.prod(sizes[inputs:])) if inputs else (math.prod(sizes),)
    value = init(key, flat, dtype)
    plain = value.unbox() if hasattr(value, "replace_boxed") else getattr(value, "raw_value", value)
    if dtype_of(plain) is None or math.prod(plain.shape) != math.prod(sizes):
        raise ValueError(
            f"an initializer must return an array of the shape it is given, {flat}, as "
            f"`jax.nn.initializers.lecun_normal()` does; got {describe(plain)} from {describe(init)}."
        )
    if hasattr(value, "replace_boxed"):  # an array in a box of metadata, as linen's `with_partitioning` makes
        return value.replace_boxed(jnp.reshape(value.unbox(), sizes))
    if hasattr(value, "raw_value"):  # likewise, as nnx's does
        value.raw_value = jnp.reshape(value.raw_value, sizes)
        return value
    return jnp.reshape(value, sizes)


def axes_of(group: str, name: str, value: Any) -> tuple[str, ...]:
    """The axes of a parameter, such as `("feature", "head", "dim")`."""
    axes = AXES[group][name]
    return axes[len(axes) - len(value.shape) :] if group.endswith("_norm") else axes


def parameter_specs(
    parameters: Mapping[str, Any], *, head: str | None = None, whole_keys: bool = False
) -> dict[str, Any]:
    """A `PartitionSpec` for each parameter, with heads split over the mesh axis `head`.

    With `whole_keys`, the projections of keys and values are not split.

    >>> import jax
    >>> tree = {"out": {"kernel": jax.ShapeDtypeStruct((8, 16, 128), "float32")}}
    >>> parameter_specs(tree, head="model")
    {'out': {'kernel': P('model', None, None)}}
    """
    return {
        group: {
            name: partition_spec(
                value.shape,
                axes_of(group, name, value),
                name=f"{group}.{name}",
                head=None if whole_keys and group in ("key", "key_norm", "value") else head,
            )
            for name, value in members.items()
        }
        for group, members in parameters.items()
    }

"""What reaches an output through all layers: rollout, flow, and gradient x attention.

They take the maps of the layers in order: `Maps`, or any iterable of arrays `[..., heads, tokens, tokens]`. Rollout has
one of them in memory at a time. A residual connection beside the attention of a layer is an identity in its map:

    Ã = (mean_h A_h + I) / row sums
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ..foundation.arguments import check_choice
from ..foundation.arrays import describe
from .maps import Layer
from .rows import checked

HEADS = ("mean", "max", "min")


def _arrays(layers: Any, argument: str = "layers") -> Iterable[jax.Array]:
    """The weights of each layer, checked to be square."""
    layers = layers.values() if isinstance(layers, Mapping) else layers
    shape = getattr(layers, "shape", None)
    if not isinstance(layers, Iterable) or isinstance(layers, str) or (shape is not None and len(shape) != 5):
        raise ValueError(
            f"`{argument}` must be `Maps`, or several arrays [..., heads, tokens, tokens], one for each layer; got "
            f"{describe(layers)}.{'' if shape is None else ' For one layer: `[weights]`.'}"
        )
    count, first = 0, None
    for one in layers:
        weights, _ = checked(one.weights if isinstance(one, Layer) else one)
        if weights.shape[-3] == 0:
            raise ValueError(f"`{argument}` must be of at least one head; got {weights.shape} as layer {count}.")
        shape = (*weights.shape[:-3], *weights.shape[-2:])
        if shape[-1] != shape[-2] or first not in (None, shape):
            raise ValueError(
                f"`{argument}` must be of self-attention of the same tokens, [..., heads, tokens, tokens]; got "
                f"{weights.shape} as layer {count}."
            )
        first, count = shape, count + 1
        yield weights
    if not count:
        raise ValueError(f"`{argument}` must have at least one layer; got none.")


def with_residual(weights: Any, heads: str = "mean") -> jax.Array:
    """Ã of one layer, `[..., tokens, tokens]`.

    Args:
        weights: `[..., heads, tokens, tokens]`.
        heads: how to join heads: "mean", "max" or "min".
    """
    check_choice("heads", heads, HEADS)
    weights, _ = checked(weights)
    if weights.shape[-2] != weights.shape[-1]:
        raise ValueError(f"`weights` must be of self-attention, [..., heads, tokens, tokens]; got {weights.shape}.")
    joined = getattr(jnp, heads)(weights, axis=-3) + jnp.eye(weights.shape[-1])
    return joined / joined.sum(-1, keepdims=True)


def rollout(layers: Any, *, heads: str = "mean") -> jax.Array:
    """R = Ã_L ⋯ Ã_1: how much of each input token an output token is made of, if layers only mixed tokens.

    Abnar & Zuidema 2020 (arXiv:2005.00928).

    Args:
        layers: the maps, in order.
        heads: as in `with_residual`.

    Returns:
        `[..., tokens, tokens]`, outputs by inputs; rows sum to 1.

    >>> import numpy as np
    >>> print(rollout([np.array([[[0.0, 1.0], [1.0, 0.0]]])] * 2))
    [[0.5 0.5]
     [0.5 0.5]]
    """
    found = None
    for weights in _arrays(layers):
        mixed = with_residual(weights, heads)
        found = mixed if found is None else jnp.matmul(mixed, found, precision="highest")
    assert found is not None
    return found


def attention_flow(layers: Any, *, heads: str = "mean", outputs: Sequence[int] | None = None) -> np.ndarray:
    """The largest flow from each input token to each output token through all layers (Abnar & Zuidema 2020).

    A graph has the tokens of the inputs and of each layer as nodes, and an edge of capacity Ã_ij from token j below to
    token i above. Each pair costs one maximum flow, by SciPy: for short texts, or few outputs.

    Args:
        layers: the maps, in order.
        heads: as in `with_residual`.
        outputs: the indices of the output tokens, by default all.

    Returns:
        `[..., outputs, tokens]`, with an error of at most tokens · layers / 2^24.

    Raises:
        ValueError: weights are negative or not finite; an output does not exist.

    >>> import numpy as np
    >>> print(attention_flow([np.array([[[0.0, 1.0], [1.0, 0.0]]])] * 2).round(3))
    [[1. 1.]
     [1. 1.]]
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import maximum_flow

    each = [with_residual(weights, heads) for weights in _arrays(layers)]
    if any(isinstance(one, Tracer) for one in each):
        raise ValueError("`layers` must have known values: SciPy computes the flow, outside of `jax.jit`.")
    mixed = np.stack([np.asarray(one, np.float64) for one in each])
    if not np.isfinite(mixed).all() or (mixed < 0).any():
        raise ValueError("`layers` must be of finite weights of at least 0, as capacities are; got NaN, inf or others.")
    depth, length = mixed.shape[0], mixed.shape[-1]
    chosen = list(range(length)) if outputs is None else np.asarray(outputs).tolist()
    if not isinstance(chosen, list) or any(type(one) is not int or not -length <= one < length for one in chosen):
        raise ValueError(f"`outputs` must be indices of {length} tokens, a list; got {describe(outputs)}.")
    capacities = np.floor(mixed * 2**24).astype(np.int32).reshape(depth, -1, length, length)
    layer, above, below = np.indices((depth, length, length)).reshape(3, -1)
    nodes = (depth + 1) * length
    found = np.zeros((capacities.shape[1], len(chosen), length))
    for example in range(len(found)):
        values = capacities[:, example].ravel()
        edges = (layer * length + below, (layer + 1) * length + above)
        graph = coo_matrix((values, edges), shape=(nodes, nodes)).tocsr()
        graph.eliminate_zeros()
        for place, output in enumerate(chosen):
            for source in range(length):
                flow = maximum_flow(graph, source, depth * length + output % length)
                found[example, place, source] = flow.flow_value / 2**24
    return found.reshape(*mixed.shape[1:-2], len(chosen), length)


def gradient_attention(layers: Any, gradients: Any = None) -> jax.Array:
    """R ← R + mean_h relu(∂L/∂A ⊙ A) R over layers, from R = I (Chefer et al. 2021, arXiv:2103.15679).

    Args:
        layers: the maps, in order; `Maps` of a recording with gradients have them.
        gradients: for each layer the gradient with respect to its weights.

    Returns:
        `[..., tokens, tokens]`: for each output token, such as that of the class, the relevance of each input token.

    Raises:
        ValueError: gradients are missing, or do not have the shapes of the weights.
    """
    for name, one in {"layers": layers, "gradients": gradients}.items():
        shape = getattr(one, "shape", None)
        if not isinstance(one, Iterable | None) or (shape is not None and len(shape) != 5):
            raise ValueError(f"`{name}` must be several arrays, one for each layer; got {describe(one)}.")
    kept = [] if layers is None else list(layers.values() if isinstance(layers, Mapping) else layers)
    if gradients is None:
        if not kept or any(not isinstance(one, Layer) or one.gradient is None for one in kept):
            raise ValueError(
                "`gradients` must be given, one for each layer, unless `layers` are `Maps` of a recording that has "
                "them: `jattn.recorded(function, gradients=True)`."
            )
        slopes: list[Any] = [one.gradients for one in kept]
    else:
        slopes = list(gradients.values() if isinstance(gradients, Mapping) else gradients)
    if len(slopes) != len(kept):
        raise ValueError(f"`gradients` must have one array for each of {len(kept)} layers; got {len(slopes)}.")
    found = None
    for weights, slope in zip(_arrays(kept), slopes, strict=True):
        if np.shape(slope) != weights.shape:
            raise ValueError(f"`gradients` must have the shape {weights.shape} of the weights; got {describe(slope)}.")
        relevant = jax.nn.relu(jnp.asarray(slope, jnp.float32) * weights).mean(-3)
        start = jnp.eye(weights.shape[-1]) if found is None else found
        found = start + jnp.matmul(relevant, start, precision="highest")
    assert found is not None
    return found


def cross_gradient_attention(weights: Any, gradients: Any, relevance: Any, encoder_relevance: Any) -> jax.Array:
    """What a decoder's tokens take from an encoder's through one cross-attention (Chefer et al. 2021, equation 10).

        R_de = R̄_ddᵀ mean_h relu(∂L/∂A ⊙ A) R̄_ee,        R̄ = (R - I) / row sums + I

    Args:
        weights, gradients: `[..., heads, queries, keys]` of the cross-attention.
        relevance: R_dd `[..., queries, queries]` of the decoder's self-attention so far, by `gradient_attention`.
        encoder_relevance: R_ee `[..., keys, keys]` of the encoder.

    Returns:
        `[..., queries, keys]`; those of several layers add up.

    Raises:
        ValueError: shapes do not match.
    """
    weights, _ = checked(weights)
    q_len, kv_len = weights.shape[-2:]
    squares = [[(*batch, size, size) for batch in ((), weights.shape[:-3])] for size in (q_len, kv_len)]
    fits = [np.shape(one) in shapes for one, shapes in zip((relevance, encoder_relevance), squares, strict=True)]
    if np.shape(gradients) != weights.shape or not all(fits):
        raise ValueError(
            f"`gradients`, `relevance` and `encoder_relevance` must have shapes {weights.shape}, {squares[0][1]} and "
            f"{squares[1][1]}; got {describe(gradients)}, {describe(relevance)} and "
            f"{describe(encoder_relevance)}."
        )
    relevant = jax.nn.relu(jnp.asarray(gradients, jnp.float32) * weights).mean(-3)
    return jnp.einsum(
        "...ab,...ac,...cd->...bd",
        _normalized(jnp.asarray(relevance)),
        relevant,
        _normalized(jnp.asarray(encoder_relevance)),
        precision="highest",
    )


def _normalized(relevance: jax.Array) -> jax.Array:
    eye = jnp.eye(relevance.shape[-1])
    rest = relevance - eye
    total = rest.sum(-1, keepdims=True)
    return rest / jnp.where(total == 0, 1, total) + eye

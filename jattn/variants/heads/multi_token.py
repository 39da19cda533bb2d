"""Multi-token attention: scores are convolved over queries and keys, and mixed over heads."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...foundation.arguments import check_multiple, check_positive
from ...foundation.arrays import as_jax
from ...foundation.pieces import take
from ...foundation.shapes import check_shapes
from ...layers.layer import OWN_AXES, Initializer, Layer, bias, multi_head_parameters, project, project_heads
from ...normalizers import Softmax
from ...ops.attention.by_example import by_example
from ...ops.attention.call import Call, Pieces, prepare
from ...ops.attention.implementations.reference import scored
from ...ops.attention.tile import multiply_values

ROWS = 128


@by_example(query="length heads dim", key="length heads dim", value="length heads dim")
def multi_token(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    filters: jax.Array,
    *,
    before: jax.Array | None = None,
    after: jax.Array | None = None,
    mask: Any = None,
    similarity: Any = None,
    scores: Any = (),
    query_positions: Any = None,
    key_positions: Any = None,
) -> jax.Array:
    """Attention whose weights depend on the scores of nearby queries and keys, and of other heads.

        S_ij = score(q_i, k_j) where i may attend to j, else 0
        C_ij = Σ_{a=0}^{A-1} Σ_{b=-⌊B/2⌋}^{⌈B/2⌉-1} filters[a, b + ⌊B/2⌋] S_{i-a, j-b}     in each head
        W = softmax(C | mask),    out = W v

    Golovneva et al. 2025 (arXiv:2504.00927), key-query convolution in its masked form: masked scores are set to 0
    before it and excluded after it, so with a causal mask no future is seen, neither by query i nor by earlier queries.
    Scores of queries and keys beyond the ends are 0. `before` mixes the heads of C within groups, `after` those of W.
    The paper's normalization of each head afterward is left to the caller.

    Convolved scores are not dot products, so every row is computed in full whatever the mask, `ROWS` queries at a time,
    and again in the backward pass. Time is quadratic; memory is ROWS x kv_len for each head, not q_len x kv_len.

    Args:
        query: `[..., q_len, heads, qk_dim]`, in order: neighbors in the array are neighbors in the convolution.
        key: `[..., kv_len, kv_heads, qk_dim]`.
        value: `[..., kv_len, kv_heads, v_dim]`.
        filters: `[heads, A, B]`; 1 at `[:, 0, B // 2]` and 0 elsewhere is plain attention.
        before: `[groups, size, size]`, with `groups * size` = heads: `C'_h = Σ_g before[., h, g] C_g` in the group of
            h.
        after: the same for the weights.
        mask: as in `jattn.attention`, like all that follow.
        similarity: maps a query and a key to a number.
        scores: modify it, before the convolution.
        query_positions: absolute.
        key_positions: absolute.

    Returns:
        `[..., q_len, heads, v_dim]`, in the dtype of `value`; 0 for a query that may attend to nothing.

    Raises:
        ValueError: `filters`, `before` or `after` do not match the heads; as in `jattn.attention`.

    >>> import jax, jax.numpy as jnp
    >>> q, k, v = (jax.random.normal(jax.random.key(i), (2, 10, 4, 16)) for i in range(3))
    >>> filters = jnp.zeros((4, 6, 11)).at[:, 0, 5].set(1)
    >>> multi_token(q, k, v, filters, mask=lambda q, k: k <= q).shape
    (2, 10, 4, 16)
    """
    heads = check_shapes(query=(query, "... q_len heads qk_dim"), filters=(filters, "heads queries keys"))["heads"]
    for name, mixture in (("before", before), ("after", after)):
        if mixture is not None:
            sizes = check_shapes(**{name: (mixture, "groups size size")})
            if sizes["groups"] * sizes["size"] != heads:
                raise ValueError(f"`{name}` of shape {mixture.shape} must mix groups * size = {heads} heads.")
    if 0 in filters.shape:
        raise ValueError(f"`filters` must span at least one query and one key; got {filters.shape}.")
    query, key, value, filters, before, after = as_jax(query, key, value, filters, before, after)
    pieces = Pieces(mask, similarity, scores, Softmax(), None, query_positions, key_positions)
    call, query, key = prepare(query, key, value, pieces)
    if 0 in (*call.batch, call.q_len, call.kv_len):
        return jnp.zeros((*call.batch, call.q_len, heads, call.v_dim), value.dtype)
    rank, rows = len(call.batch), min(ROWS, call.q_len)
    halo = min(filters.shape[1] - 1, call.q_len - rows)  # rows above that the first row of a block looks at

    @jax.checkpoint
    def block(start):
        first = jnp.maximum(start - halo, 0)
        tall = _rows(call, first, rows + halo)
        given, allowed = scored(tall, jax.lax.dynamic_slice_in_dim(query, first, rows + halo, rank), key)
        convolved = convolve(jnp.where(allowed, given, 0), filters)
        if before is not None:
            convolved = mix(convolved, before)
        own, reach = (jax.lax.dynamic_slice_in_dim(one, start - first, rows, rank + 1) for one in (convolved, allowed))
        weights = Softmax().weights(own, reach)
        if after is not None:
            weights = mix(weights, after)
            reach = mix(reach.astype(weights.dtype), jnp.ones_like(after)) > 0
        return multiply_values(weights, jnp.swapaxes(value, -3, -2), reach)

    # The last block is shifted back to end with the array, so that all blocks have the same size.
    starts = np.minimum(np.arange(0, call.q_len, rows), call.q_len - rows)
    blocks = jax.lax.map(block, jnp.asarray(starts, jnp.int32))
    out = jnp.moveaxis(blocks, 0, rank + 1)  # [batch..., heads, blocks, rows, v_dim]
    tail = call.q_len - (len(starts) - 1) * rows
    whole = out[..., :-1, :, :].reshape(*out.shape[: rank + 1], -1, call.v_dim)
    out = jnp.concatenate([whole, out[..., -1, rows - tail :, :]], -2)
    return jnp.swapaxes(out, -3, -2).astype(value.dtype)


def convolve(scores: jax.Array, filters: jax.Array) -> jax.Array:
    """C from S: convolve `[..., heads, q, k]` with `[heads, A, B]`, with zeros beyond the ends."""
    heads, queries, keys = filters.shape
    flat = scores.reshape(-1, *scores.shape[-3:])
    # XLA's convolution is a correlation: out[j] = Σ_t kernel[t] in[j + t - pad]; here in[j - b], b = t - ⌊B/2⌋.
    turned = filters[:, ::-1, ::-1].astype(scores.dtype)[:, None]
    out = jax.lax.conv_general_dilated(
        flat,
        turned,
        (1, 1),
        [(queries - 1, 0), (-(-keys // 2) - 1, keys // 2)],
        feature_group_count=heads,
        precision=jax.lax.Precision.HIGHEST,
    )
    return out.reshape(scores.shape)


def mix(heads: jax.Array, mixture: jax.Array) -> jax.Array:
    """`[..., heads, q, k]` with `[groups, size, size]`: head h of a group is mixed by row h of the group's matrix."""
    groups, size, _ = mixture.shape
    grouped = heads.reshape(*heads.shape[:-3], groups, size, *heads.shape[-2:])
    return jnp.einsum("...ghqk,gfh->...gfqk", grouped, mixture.astype(heads.dtype)).reshape(heads.shape)


def _rows(call: Call, first: jax.Array, count: int) -> Call:
    """The call for these query rows."""
    axis = len(call.batch) + 1
    cut = jax.tree.map(lambda leaf: take(leaf, {axis: first}, {axis: count}), call.pieces)
    return dataclasses.replace(call, q_len=count, pieces=cut)


@dataclasses.dataclass(frozen=True)
class MultiToken(Layer):
    """Multi-token attention: self-attention whose scores are convolved over queries and keys, and mixed over heads.

        out = W_o multi_token(x W_q, x W_k, x W_v, filters, before, after)

    Golovneva et al. 2025 (arXiv:2504.00927), without its normalization of each head. Filters and mixtures are
    initialized to the identity, so at first this is multi-head attention.

    Args:
        features: features of inputs and outputs, a multiple of `heads`.
        heads: number of heads.
        queries: A, how many queries a filter spans; 6 in the paper.
        keys: B, how many keys it spans; 11 in the paper.
        group: how many heads are mixed with one another, before and after the softmax; must divide `heads`. 1 mixes
            none.

    Raises:
        ValueError: sizes do not match; at the call, as in `multi_token`.

    >>> import jax
    >>> layer = MultiToken(16, heads=4, group=2)
    >>> layer(layer.init(jax.random.key(0)), jax.numpy.ones((2, 9, 16)), mask=lambda q, k: k <= q).shape
    (2, 9, 16)
    """

    own_axes = OWN_AXES

    features: int
    heads: int
    queries: int = 6
    keys: int = 11
    group: int = 1

    def __post_init__(self):
        check_positive(**dataclasses.asdict(self))
        check_multiple("heads", features=self.features, heads=self.heads)
        check_multiple("group", heads=self.heads, group=self.group)

    def parameters(self) -> dict[str, Any]:
        """`query`, `key`, `value`, `out` of multi-head attention; `filters [heads, A, B]`; `before`, `after`."""
        filters = np.zeros((self.heads, self.queries, self.keys))
        filters[:, 0, self.keys // 2] = 1
        tree = multi_head_parameters(self.features, self.heads, use_bias=False)
        tree["filters"] = bias(*filters.shape, init=_starts_as(filters))
        if self.group > 1:
            same = np.tile(np.eye(self.group), (self.heads // self.group, 1, 1))
            tree |= dict.fromkeys(("before", "after"), bias(*same.shape, init=_starts_as(same)))
        return tree

    def __call__(self, parameters: Mapping[str, Any], inputs: jax.Array, **pieces: Any) -> jax.Array:
        """Apply the layer; the result is `[..., length, features]`.

        Args:
            parameters: the layer's parameters.
            inputs: `[..., length, features]`.
            **pieces: arguments of `multi_token`: `mask`, `similarity`, `scores`, positions.
        """
        check_shapes({"features": self.features}, inputs=(inputs, "... length features"))
        query, key, value = project_heads(parameters, inputs)
        mixtures = {name: parameters[name] for name in ("before", "after") if name in parameters}
        heads = multi_token(query, key, value, parameters["filters"], **mixtures, **pieces)
        return project(parameters["out"], heads, "...lhd,hdf->...lf")


def _starts_as(array: np.ndarray) -> Initializer:
    """An initializer that ignores its key."""
    return lambda key, shape, dtype: jnp.asarray(array, dtype).reshape(shape)

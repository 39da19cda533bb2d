"""Multi-head attention as a pure function of its parameters."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.arguments import check_dtype, check_inputs
from ..foundation.arrays import as_array, describe, dtype_of, of_rank
from ..foundation.numerics import accumulation_dtype
from ..foundation.pieces import indexed
from ..foundation.sharding import split_axes, summed_einsum
from ..masks.placement import check_lone_query_positions
from ..ops.attention.api import attention, attention_weights
from ..ops.attention.call import check_pieces, check_positions, reject_ambiguous_positions, renamed
from ..ops.attention.dropout import Dropout
from ..ops.attention.observed import is_observed
from ..parallel import Heads
from ..positions import rotary as default_rotary
from .norms import QKNorm, as_qk_norm
from .parameters import axes_of, parameter_specs

Array = jax.Array | np.ndarray
Parameters = Mapping[str, Mapping[str, Array]]
Rotation = Callable[[jax.Array, Any], jax.Array]


def multi_head(
    parameters: Parameters,
    inputs: Array,
    key_inputs: Array | None = None,
    value_inputs: Array | None = None,
    *,
    mask: Any = None,
    similarity: Any = None,
    scores: Any = (),
    normalizer: Any = None,
    rotary: Rotation | bool | None = None,
    positions: Any = None,
    key_positions: Any = None,
    dropout: Dropout | None = None,
    implementation: Any = None,
    dtype: Any = None,
    qk_norm: QKNorm | None = None,
    parallel: Heads | None = None,
) -> jax.Array:
    """Multi-head attention (Vaswani et al. 2017, arXiv:1706.03762) with every choice of pieces.

        q, k, v = x W_q + b_q,  y W_k + b_k,  z W_v + b_v                   one projection per head
        q, k    = norm(q),  norm(k)                                         if there are norms (`QKNorm`)
        q, k    = rotary(q, positions),  rotary(k, key_positions)           if `rotary` is given
        out     = Σ_heads attention(q, k, v) W_o + b_o

    Args:
        parameters: `query`, `key` and `value`, each with a `kernel [features, heads, head_dim]` and optionally a
            `bias [heads, head_dim]`; `out` with a `kernel [q_heads, head_dim, features]` and optionally a
            `bias [features]`; optionally `query_norm` and `key_norm`, each with a `scale` of shape `[head_dim]` or
            `[heads, head_dim]` and optionally a `bias` of the same shape. With fewer key and value heads than query
            heads, this is grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245).
        inputs: x, `[..., q_len, features]`.
        key_inputs: y, `[..., kv_len, features]`; by default x (self-attention).
        value_inputs: z, `[..., kv_len, features]`; by default y.
        mask, similarity, scores, normalizer, implementation: as in `jattn.attention`.
        rotary: True for `jattn.positions.rotary`, or any function of `x [..., length, heads, dim]` and positions
            `[..., length]`, such as `functools.partial(jattn.positions.rotary, base=500000.0)`.
        positions: the positions of x, integers `[q_len]` or `[..., q_len]`, by default 0, 1, ...; in self-attention
            also those of the keys.
        key_positions: the positions of y.
        dropout: dropout of the weights.
        dtype: the dtype to compute in; by default the promoted dtype of inputs and parameters.
        qk_norm: which norm the parameters `query_norm` and `key_norm` belong to; by default `QKNorm()`, the root mean
            square of each head.
        parallel: `Heads(...)` splits the heads across devices: each device holds its part of the projections and
            attends with it, and one all-reduce sums the output. By default, heads are not split explicitly.

    Returns:
        `[..., q_len, features]`, in `dtype`; sums over heads and features are accumulated in float32. NaN and inf in a
        masked-out token reach no other token's output. They do reach the gradients of the kernels that project that
        token, as 0 · NaN: fill padding with finite numbers.

    Raises:
        ValueError: shapes do not match; `value_inputs` without `key_inputs`; a rotation without `positions` although
            `q_len != kv_len`; as in `jattn.attention`.

    >>> import jax
    >>> from jattn.layers import Sizes, multi_head, parameter_shapes
    >>> shapes = parameter_shapes(Sizes(64, 8, kv_heads=2), use_bias=False, qk_norm=True)
    >>> is_shape = lambda node: hasattr(node, "shape")
    >>> parameters = jax.tree.map(lambda s: jax.numpy.ones(s.shape), shapes, is_leaf=is_shape)
    >>> multi_head(parameters, jax.numpy.ones((2, 10, 64)), rotary=True).shape
    (2, 10, 64)
    """
    _check(parameters, inputs, key_inputs, value_inputs)
    check_rotary(rotary)
    check_parallel(parallel)
    dtype = computation_dtype(dtype, parameters, inputs, key_inputs, value_inputs)
    mask, similarity, scores, normalizer, dropout = check_pieces(mask, similarity, scores, normalizer, dropout)
    at = _positions(inputs, key_inputs, positions, key_positions, rotary)
    batch = inputs.shape[:-2]
    q_heads, kv_heads = (parameters[name]["kernel"].shape[1] for name in ("query", "key"))
    if parallel is not None:
        with renamed(query="inputs"):
            parallel.check(batch, q_heads)
    axes = split_axes(inputs)
    pieces = dict(
        mask=indexed(mask, batch, q_heads, axes),
        similarity=similarity,
        scores=indexed(scores, batch, q_heads, axes),
        normalizer=normalizer,
        dropout=None if dropout is None else dropout.indexed(batch, q_heads, axes),
    )
    sources = (inputs, key_inputs, value_inputs)
    out_bias = parameters["out"].get("bias")
    split = {name: group for name, group in parameters.items() if name != "out"}
    split["out"] = {"kernel": parameters["out"]["kernel"]}  # its bias is added once, after the sum over heads

    norm = functools.partial(norm_of(qk_norm), mesh_axis=None if parallel is None else parallel.axis)

    whole_keys = parallel is not None and parallel.axis is not None and parallel.key_axis(kv_heads) is None

    def local(parameters: Parameters, sources: tuple, pieces: dict, at: dict) -> jax.Array:
        if whole_keys and parallel is not None:
            parameters = _of_own_key_heads(parameters, parallel, q_heads, kv_heads)
        query, key, value = _project(parameters, *sources, rotary=rotary, at=at, dtype=dtype, norm=norm)
        attended = attention(query, key, value, **pieces, **at, implementation=implementation)
        kernel = parameters["out"]["kernel"].astype(dtype)
        return summed_einsum("...qhd,hdf->...qf", attended, kernel, preferred_element_type=accumulation_dtype(dtype))

    with renamed(query_positions="positions"):
        if parallel is None:
            summed = local(split, sources, pieces, at)
        else:
            if is_observed():  # by someone who needs the whole call, not the part of a device
                whole = norm_of(qk_norm)
                query, key, value = _project(parameters, *sources, rotary=rotary, at=at, dtype=dtype, norm=whole)
                attended = parallel.attention(query, key, value, **pieces, **at, implementation=implementation)
                return joined_heads(parameters, attended, dtype)
            specs = (
                parameter_specs(split, head=parallel.axis, whole_keys=whole_keys),
                parallel.specs_of_inputs(sources),
                parallel.specs(pieces),
                parallel.specs_of_positions(at),
            )
            summed = parallel.sum_over_heads(local, (split, sources, pieces, at), specs, len(batch))
    return _biased(summed.astype(dtype), out_bias, dtype)


def _of_own_key_heads(parameters: Parameters, parallel: Heads, q_heads: int, kv_heads: int) -> dict[str, Any]:
    """The parameters of one device that is given those of all key heads, with the heads that it needs."""
    made = {name: dict(group) for name, group in parameters.items()}
    for name in ("key", "key_norm", "value"):
        for what, array in made.get(name, {}).items():
            axes = axes_of(name, what, array)
            if "head" in axes:
                made[name][what] = parallel.own_key_heads(jnp.asarray(array), q_heads, kv_heads, axes.index("head"))
    return made


def multi_head_weights(
    parameters: Parameters,
    inputs: Array,
    key_inputs: Array | None = None,
    *,
    mask: Any = None,
    similarity: Any = None,
    scores: Any = (),
    normalizer: Any = None,
    rotary: Rotation | bool | None = None,
    positions: Any = None,
    key_positions: Any = None,
    dtype: Any = None,
    qk_norm: QKNorm | None = None,
    heads: Sequence[int] | None = None,
    queries: Sequence[int] | None = None,
) -> jax.Array:
    """The attention weights of `multi_head`, before dropout: what each head attends to, for inspection and plots.

        weights = normalizer(scores(similarity(q, k)), mask)                with q and k as in `multi_head`

    The whole matrix is computed and kept, O(q_len kv_len) memory for each head; `heads` and `queries` limit it.

    Args:
        parameters, inputs, key_inputs: as in `multi_head`.
        mask, similarity, scores, normalizer, rotary, positions, key_positions, dtype, qk_norm: likewise.
        heads: indices of the heads to return, as in `jattn.attention_weights`; by default all.
        queries: indices of the queries to return; by default all.

    Returns:
        `[..., heads, queries, kv_len]`, as in `jattn.attention_weights`. Queries that may attend to nothing have only
        zeros.

    Raises:
        ValueError: as in `multi_head`; an index of `heads` or `queries` is out of range.

    >>> import jax, jattn
    >>> from jattn.layers.multi_head import multi_head_weights
    >>> layer = jattn.layers.MultiHeadAttention(64, 8)
    >>> x = jax.random.normal(jax.random.key(0), (2, 10, 64))
    >>> weights = multi_head_weights(layer.init(jax.random.key(1)), x, mask=jattn.masks.Causal(), heads=[0])
    >>> weights.shape, bool(jax.numpy.allclose(weights.sum(-1), 1, atol=1e-5))
    ((2, 1, 10, 10), True)
    """
    _check(parameters, inputs, key_inputs, None)
    check_rotary(rotary)
    dtype = computation_dtype(dtype, parameters, inputs, key_inputs)
    at = _positions(inputs, key_inputs, positions, key_positions, rotary)
    norm = norm_of(qk_norm)
    query, key, _ = _project(parameters, inputs, key_inputs, None, rotary=rotary, at=at, dtype=dtype, norm=norm)
    pieces = dict(mask=mask, similarity=similarity, scores=scores, normalizer=normalizer)
    with renamed(query_positions="positions"):
        return attention_weights(query, key, **pieces, **at, heads=heads, queries=queries)


def _project(
    parameters: Parameters,
    inputs: Array,
    key_inputs: Array | None,
    value_inputs: Array | None,
    *,
    rotary: Rotation | bool | None,
    at: dict[str, Any],
    dtype: Any,
    norm: Callable[..., jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Query, key and value `[..., length, heads, head_dim]`, normalized and rotated."""
    key_inputs = inputs if key_inputs is None else key_inputs
    value_inputs = key_inputs if value_inputs is None else value_inputs
    options = {"rotary": rotary, "dtype": dtype, "norm": norm}
    query = projected("query", parameters, inputs, at["query_positions"], **options)
    key = projected("key", parameters, key_inputs, at["key_positions"], **options)
    return query, key, projected("value", parameters, value_inputs, None, **options)


def projected(
    name: str,
    parameters: Parameters,
    source: Array,
    positions: Any,
    *,
    rotary: Rotation | bool | None,
    dtype: Any,
    norm: Callable[..., jax.Array],
) -> jax.Array:
    """The queries, keys or values `[..., length, heads, head_dim]` of some inputs, normalized and rotated.

    Args:
        name: `"query"`, `"key"` or `"value"`.
        parameters: the parameters of `multi_head`.
        source: `[..., length, features]`.
        positions: integers `[..., length]`, by default 0, 1, ...
        rotary: as in `multi_head`.
        dtype: the dtype to compute in.
        norm: normalizes queries and keys: a function of the heads and the norm's parameters.
    """
    kernel = parameters[name]["kernel"].astype(dtype)
    heads = summed_einsum("...tf,fhd->...thd", source.astype(dtype), kernel)
    heads = _biased(heads, parameters[name].get("bias"), dtype)
    if f"{name}_norm" in parameters:
        heads = norm(heads, parameters[f"{name}_norm"])
    if rotary and name != "value":
        rotate = default_rotary if rotary is True else rotary
        heads = rotated(rotate, heads, jnp.arange(heads.shape[-3]) if positions is None else positions)
    return heads


def joined_heads(parameters: Parameters, attended: jax.Array, dtype: Any) -> jax.Array:
    """Project attended values `[..., length, heads, head_dim]` to `[..., length, features]`, summed in float32."""
    kernel = parameters["out"]["kernel"].astype(dtype)
    summed = summed_einsum(
        "...qhd,hdf->...qf", attended.astype(dtype), kernel, preferred_element_type=accumulation_dtype(dtype)
    )
    return _biased(summed.astype(dtype), parameters["out"].get("bias"), dtype)


def norm_of(qk_norm: Any) -> Callable[..., jax.Array]:
    """The function `norm(x, parameters)` for queries or keys."""
    given = None if qk_norm is None else as_qk_norm(qk_norm)

    def norm(x: jax.Array, parameters: Any, **options: Any) -> jax.Array:
        return (given or QKNorm()).apply(x, parameters, **options)

    return norm


def _biased(x: jax.Array, bias: Array | None, dtype: Any) -> jax.Array:
    return x if bias is None else x + of_rank(bias.astype(dtype), x.ndim)


def computation_dtype(dtype: Any, parameters: Parameters, *sources: Array | None) -> Any:
    """The dtype to compute in: `dtype` if given, else the promoted dtype of inputs and parameters."""
    if dtype is None:
        dtype = jnp.result_type(*(item for item in sources if item is not None), *jax.tree.leaves(parameters))
    check_dtype("dtype", dtype)
    return dtype


def _check(parameters: Parameters, inputs: Any, key_inputs: Any, value_inputs: Any) -> None:
    """Check that the shapes of inputs and kernels match."""
    if value_inputs is not None and key_inputs is None:
        raise ValueError("`value_inputs` needs `key_inputs`: give `key_inputs=inputs` if keys are made of the inputs.")
    check_inputs(inputs=inputs, key_inputs=key_inputs, value_inputs=value_inputs)
    for group in ("query", "key", "value", "out"):
        if not isinstance(parameters, Mapping) or "kernel" not in parameters.get(group, ()):
            raise ValueError(f"`parameters` must have a `kernel` in {group!r}; got {describe(parameters)}.")
    key_source = inputs if key_inputs is None else key_inputs
    value_source = key_source if value_inputs is None else value_inputs
    sources = {"query": ("inputs", inputs), "key": ("key_inputs", key_source), "value": ("value_inputs", value_source)}
    for group, (name, source) in sources.items():
        kernel = parameters[group]["kernel"]
        if source.shape[-1] != kernel.shape[0]:
            raise ValueError(
                f"`{name}` must have shape [..., length, {kernel.shape[0]}] for a {group} kernel of shape "
                f"{kernel.shape}; got {jnp.shape(source)}."
            )
        if source.shape[:-2] != inputs.shape[:-2]:
            raise ValueError(
                f"`{name}` must have the batch axes of `inputs` (all but the last two); got {name} {source.shape} and "
                f"inputs {inputs.shape}."
            )
    if key_source.shape[-2] != value_source.shape[-2]:
        raise ValueError(
            f"`key_inputs` and `value_inputs` must have the same length; got {key_source.shape} and "
            f"{value_source.shape}."
        )
    out, query = parameters["out"]["kernel"], parameters["query"]["kernel"]
    if out.shape[0] != query.shape[1]:
        raise ValueError(f"`parameters` must have as many heads in out {out.shape} as in query {query.shape}.")


def _positions(inputs: Any, key_inputs: Any, positions: Any, key_positions: Any, rotary: Any) -> dict[str, Any]:
    """The positions of queries and keys, as keyword arguments of `attention`."""
    positions, key_positions = as_array(positions), as_array(key_positions)
    if key_inputs is None:
        if key_positions is not None and positions is None:
            raise ValueError("`key_positions` without `key_inputs`: in self-attention give `positions`, for both.")
        key_positions = positions if key_positions is None else key_positions
    elif rotary and positions is None and inputs.shape[-2] != key_inputs.shape[-2]:
        with renamed(query_positions="positions"):
            reject_ambiguous_positions(inputs.shape[-2], key_inputs.shape[-2], "rotary")
    elif inputs.shape[-2] == key_inputs.shape[-2]:  # as in `attention`: one alone is for both, the other is open
        if positions is None:
            positions = key_positions
        elif key_positions is None and rotary:
            with renamed(query_positions="positions"):
                check_lone_query_positions(positions, inputs.shape[-2], {"rotary": True})
    key_source, key_name = (inputs, "inputs") if key_inputs is None else (key_inputs, "key_inputs")
    key_argument = "positions" if key_inputs is None and key_positions is positions else "key_positions"
    for name, where, of, source in (
        ("positions", positions, "inputs", inputs),
        (key_argument, key_positions, key_name, key_source),
    ):
        if where is not None:
            check_positions(name, where, source.shape[:-2], source.shape[-2], of)
    return {"query_positions": positions, "key_positions": key_positions}


def check_parallel(parallel: Any) -> None:
    """Check that `parallel` is None or `Heads`.

    Raises:
        ValueError: it is something else.
    """
    if parallel is not None and not isinstance(parallel, Heads):
        raise ValueError(f"`parallel` must be `jattn.parallel.Heads(...)`, or None; got {describe(parallel)}.")


def check_rotary(rotary: Any) -> None:
    """Check that `rotary` is None, a flag or a function.

    Raises:
        ValueError: it is something else.
    """
    function = callable(rotary) and not isinstance(rotary, type)
    if rotary is not None and not isinstance(rotary, bool) and not function:
        raise ValueError(
            f"`rotary` must be True, False or a function such as `jattn.positions.rotary`; got {describe(rotary)}."
        )


def rotated(rotary: Rotation, x: jax.Array, positions: Any) -> jax.Array:
    """`rotary(x, positions)`, after checking that it returns an array of the shape of `x`.

    Raises:
        ValueError: it returns something else.
    """
    turned = rotary(x, positions)
    if dtype_of(turned) is None or tuple(turned.shape) != tuple(x.shape):
        raise ValueError(
            f"`rotary` must return an array of the shape of its `x`, {tuple(x.shape)}; got {describe(turned)}."
        )
    return turned

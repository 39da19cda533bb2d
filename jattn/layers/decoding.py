"""Multi-head attention of new tokens over a cache: what `MultiHeadAttention.prefill` and `step` compute.

    q, k, v = W_q x, W_k x, W_v x          for the new tokens x; q and k normalized and rotated by their positions
    cache   = append(cache, k, v)
    out     = Σ_heads attention(q, cache) W_o

Queries and cached keys carry their positions in the whole sequence, so masks, scores and rotations mean the same at
every step as in a call on the whole sequence.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..foundation.arrays import describe
from ..foundation.pieces import map_fields
from ..masks.base import restricted
from ..ops.attention.call import renamed
from ..parallel import Heads
from .caches import Cache, Contiguous, Spec, View
from .caches.base import exportable
from .multi_head import computation_dtype, joined_heads, norm_of, projected
from .splitting import Splitting


@exportable
@dataclasses.dataclass(frozen=True)
class Memory:
    """The state of cross-attention: keys and values computed once, from other inputs than the queries.

    Attributes:
        cache: the keys and values.
        lengths: int32 `[batch...]`, the number of queries that each example has had.
    """

    cache: Cache
    lengths: jax.Array


State = Cache | Memory


def remember(
    parameters: Mapping[str, Any],
    cache: Cache,
    key_inputs: jax.Array,
    value_inputs: jax.Array,
    *,
    valid: Any,
    parallel: Heads | None,
    **projecting: Any,
) -> Memory:
    """Store the keys and values of these inputs in an empty cache.

    Args:
        parameters: the parameters of `multi_head`.
        cache: a cache without tokens.
        key_inputs: `[..., kv_len, features]`.
        value_inputs: `[..., kv_len, features]`.
        valid: as in `Cache.append`.
        parallel: how heads are split across devices.
        **projecting: `rotary`, `qk_norm` and `dtype`, as in `multi_head`.
    """
    options = _options(parameters, (key_inputs, value_inputs), **projecting)
    split = Splitting(parallel, cache, parameters["query"]["kernel"].shape[1])
    cache, key_inputs, value_inputs = split.cache(cache), split.by_example(key_inputs), split.by_example(value_inputs)
    with renamed(valid="key_valid"):
        positions = cache.positions(key_inputs.shape[-2], valid)
        key = projected("key", parameters, key_inputs, positions, **options)
        value = projected("value", parameters, value_inputs, None, **options)
        _, cache = cache.append(split.by_head(key), split.by_head(value), valid=valid)
    return Memory(cache, jnp.zeros_like(cache.lengths))


def attend_new(
    parameters: Mapping[str, Any],
    inputs: jax.Array,
    state: Any,
    *,
    valid: Any,
    pieces: dict[str, Any],
    parallel: Heads | None,
    **projecting: Any,
) -> tuple[jax.Array, Any]:
    """The output of new tokens, and the state after them.

    Args:
        parameters: the parameters of `multi_head`.
        inputs: `[..., new, features]`.
        state: a cache of keys and values, or a `Memory`.
        valid: as in `Cache.append`.
        pieces: `mask`, `similarity`, `scores`, `normalizer`, `dropout` and `implementation`, as in `jattn.attention`.
        parallel: how heads are split across devices.
        **projecting: `rotary`, `qk_norm` and `dtype`, as in `multi_head`.
    """
    options = _options(parameters, (inputs,), **projecting)
    counted: Any = state.cache if isinstance(state, Memory) else state
    split = Splitting(parallel, counted, parameters["query"]["kernel"].shape[1])
    inputs, counted, lengths = split.by_example(inputs), split.cache(counted), split.by_example(state.lengths)
    positions = dataclasses.replace(counted, lengths=lengths).positions(inputs.shape[-2], valid)
    query = projected("query", parameters, inputs, positions, **options)
    if isinstance(state, Memory):
        view = counted.view()
        new = inputs.shape[-2] if valid is None else jnp.broadcast_to(valid, positions.shape).sum(-1, dtype=jnp.int32)
        after: Any = Memory(counted, lengths + new)
    else:
        key = projected("key", parameters, inputs, positions, **options)
        value = projected("value", parameters, inputs, None, **options)
        with renamed(key="inputs", value="inputs"):
            view, after = counted.append(split.by_head(key), split.by_head(value), valid=valid)
    attended = attend_view(view, query, positions, pieces, parallel)
    return joined_heads(parameters, attended, options["dtype"]), after


def attend_view(
    view: View, query: jax.Array, positions: jax.Array, pieces: dict[str, Any], parallel: Heads | None
) -> jax.Array:
    """`view.attend`, with the heads split across devices if `parallel` is given."""
    check_keys_of_pieces((pieces["mask"], pieces["scores"]), view.key_positions.shape[-1])
    with renamed(query_positions="positions"):
        if parallel is None:
            return view.attend(query, query_positions=positions, **pieces)
        pieces = pieces | {"mask": restricted(pieces["mask"], view.mask)}
        at = {"query_positions": positions, "key_positions": view.key_positions}
        return view.checked(parallel.attention(query, view.key, view.value, **pieces, **at))


def spec_of(length: int | None, cache: Spec | None, default: Spec | None) -> Spec:
    """The requested cache: a contiguous one of this length, or another.

    Raises:
        ValueError: both are given, or neither and there is no default; `cache` is something else.
    """
    if length is not None and cache is None:
        return Contiguous(length)
    if length is not None:
        raise ValueError(
            "`length` and `cache` cannot both be given: `length` is short for `cache=caches.Contiguous(length)`; got "
            f"length {length} and cache {describe(cache)}."
        )
    cache = default if cache is None else cache
    if cache is None:
        raise ValueError(
            "`length` must be the number of places for each example, or `cache` another cache, such as "
            "`jattn.layers.caches.Rolling(window)`; got length None and cache None."
        )
    check_cache(cache)
    return cache


def check_cache(cache: Any) -> None:
    """None, or how keys and values are kept.

    Raises:
        ValueError: `cache` is something else, such as a class.
    """
    if cache is not None and not isinstance(cache, Spec):
        raise ValueError(
            f"`cache` must be one of `jattn.layers.caches`, such as `Contiguous(64)`; got {describe(cache)}."
        )


def check_pieces_of_tokens(pieces: Mapping[str, Any]) -> None:
    """No piece of the layer has numbers for each query of one sequence, which new tokens are not.

    Raises:
        ValueError: naming the array.
    """

    def check(value: Any, axes: tuple[str, ...], name: str) -> Any:
        if "query" in axes and jnp.shape(value)[axes.index("query") - len(axes)] > 1:
            raise ValueError(
                f"`{name}` of shape {jnp.shape(value)} has a number for each query of one sequence, so a layer with it "
                "cannot generate. Write it as a function of positions, or give it at the calls of `prefill` and `step`."
            )
        return value

    for piece in pieces.values():
        map_fields(piece, check)


def check_hides_the_future(mask: Any, state: Any) -> None:
    """There is a mask, unless keys are not those of the tokens themselves (cross-attention).

    Raises:
        ValueError: there is none, so a chunk would not see the later tokens that a call on the whole sees.
    """
    if mask is None and not isinstance(state, Memory):
        raise ValueError(
            "`mask` must hide the future from self-attention that generates, such as `mask=jattn.masks.Causal()`, of "
            "the layer or of this call: without one, tokens of the whole call see later ones, which are not known "
            "here; got None."
        )


def check_keys_of_pieces(pieces: Any, places: int) -> None:
    """Arrays of pieces over keys have a number for every place of the cache.

    Raises:
        ValueError: naming the array.
    """

    def check(value: Any, axes: tuple[str, ...], name: str) -> Any:
        shape = jnp.shape(value)
        at = axes.index("key") - len(axes) if "key" in axes else 0
        if at and len(shape) >= -at and shape[at] not in (1, places):
            raise ValueError(
                f"`{name}` of shape {shape} has size {shape[at]} on its key axis, but keys are all {places} places of "
                "the cache, those that are still empty included. Write it as a function of positions, such as "
                "`jattn.masks.of(lambda query, key: key <= query)`, or make it that large: in a `Contiguous` cache, "
                "token j is in place j."
            )
        return value

    for piece in pieces:
        for one in piece if isinstance(piece, list | tuple) else (piece,):
            map_fields(one, check)


def check_decoding(state: Any, inputs: Any, kv_heads: int, head_dim: int, cross: bool) -> None:
    """Check that a state matches these inputs and this layer.

    Raises:
        ValueError: names what does not match, and how to make a state that does.
    """
    make = "`initial_state(batch, key_inputs=...)`" if cross else "`initial_state(batch, length=...)`"
    if not isinstance(state, State):
        raise ValueError(
            f"`state` must be what {make}, `prefill` or `step` of the layer gave: the keys and values that these "
            f"tokens attend to; got {describe(state)}."
        )
    cache = state.cache if isinstance(state, Memory) else state
    if cross and not isinstance(state, Memory):
        raise ValueError(
            f"`state` must hold keys computed from other inputs, by {make}, because `in_kv_features` differs from "
            f"`in_features`; got a {type(cache).__name__} for self-attention."
        )
    found = tuple(cache.keys.shape[-2:]), int(cache.values.shape[-1])
    if found != ((kv_heads, head_dim), head_dim):
        raise ValueError(
            f"`state` must hold keys and values of {kv_heads} heads with {head_dim} features, as {make} of this layer "
            f"makes it; got keys of {found[0][0]} heads with {found[0][1]} features, and values with {found[1]}."
        )
    if tuple(inputs.shape[:-2]) != state.lengths.shape:
        raise ValueError(
            f"`inputs` must have the batch axes {state.lengths.shape} of the state; got {tuple(inputs.shape[:-2])}. "
            "`step` takes one token [..., features], without a length axis, and `prefill` several."
        )


def _options(parameters: Mapping[str, Any], sources: tuple, *, rotary: Any, qk_norm: Any, dtype: Any) -> dict[str, Any]:
    return {
        "rotary": rotary,
        "dtype": computation_dtype(dtype, parameters, *sources),
        "norm": norm_of(qk_norm),
    }

"""A call: everything about an attention but its three arrays, checked and brought to one layout."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...foundation.arrays import as_array, counted
from ...foundation.elementwise import mask_reads_positions, score_reads_positions
from ...foundation.known import known_while_tracing
from ...foundation.numerics import accumulation_dtype, without_nonfinite
from ...foundation.pieces import align, indexed
from ...foundation.sharding import auto_devices
from ...foundation.varying import split_axes
from ...masks.base import Mask
from ...masks.placement import check_extent, check_lone_query_positions
from ...normalizers import Normalizer
from ...scores import Bias
from ...scores.base import Score
from ...similarities import Similarity
from ...similarities.base import Prepared
from . import checks
from .dropout import Dropout


@dataclasses.dataclass(frozen=True)
class Call:
    """What is to be computed. Pieces and positions are aligned to `[batch..., head, query, key, own...]`.

    `scores` holds all scores in their order: the similarity's own, the caller's, the normalizer's. A call is a pytree
    of the arrays in it; sizes are static.
    """

    batch: tuple[int, ...]
    q_len: int
    kv_len: int
    q_heads: int
    kv_heads: int
    qk_dim: int
    v_dim: int
    mask: Mask | None
    similarity: Similarity
    scale: float
    scores: tuple[Score, ...]
    normalizer: Normalizer
    dropout: Dropout | None
    query_positions: Any
    key_positions: Any
    devices: int = 1  # over how many the arrays may be split by XLA, which a loop must leave it room for

    @property
    def sizes(self) -> dict[str, int]:
        return {"head": self.q_heads, "query": self.q_len, "key": self.kv_len}


_ARRAYS = ["mask", "similarity", "scores", "normalizer", "dropout", "query_positions", "key_positions"]
jax.tree_util.register_dataclass(
    Call,
    data_fields=_ARRAYS,
    meta_fields=[field.name for field in dataclasses.fields(Call) if field.name not in _ARRAYS],
)


def prepare(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    mask: Any,
    similarity: Any,
    scores: Any,
    normalizer: Any,
    query_positions: Any,
    key_positions: Any,
    dropout: Any,
) -> tuple[Call, jax.Array, jax.Array]:
    """Check everything, and return the call with its prepared query and key."""
    checks.check_arrays(query, key, value)
    mask, similarity, scores, normalizer, dropout = checks.check_pieces(mask, similarity, scores, normalizer, dropout)
    *batch, q_len, q_heads, _ = query.shape
    kv_len, kv_heads, v_dim = value.shape[-3:]
    batch = tuple(batch)
    sizes = {"head": q_heads, "query": q_len, "key": kv_len}

    def aligned(piece: Any) -> Any:
        return align(piece, batch, sizes)

    prepared = _prepare_similarity(similarity, query, key)
    split = split_axes(query)
    mask = aligned(known_while_tracing(indexed(mask, batch, q_heads, split)))
    caller_scores = aligned(indexed(scores, batch, q_heads, split))
    own_scores = aligned(prepared.scores)
    dtype = accumulation_dtype(query, key, value)
    reads = {
        "mask": [mask_reads_positions(mask)],
        "similarity": [score_reads_positions(one, dtype) for one in own_scores],
        "scores": [score_reads_positions(one, dtype) for one in caller_scores],
    }
    if q_len != kv_len and query_positions is None:
        for name, readers in reads.items():
            if any(of_query for of_query, _ in readers):
                checks.reject_ambiguous_positions(q_len, kv_len, name)
    alone = query_positions is not None and key_positions is None and q_len == kv_len
    if query_positions is None and key_positions is not None and q_len == kv_len:
        query_positions = key_positions  # self-attention: one sequence, one set of positions
    columns = _positions("key_positions", key_positions, batch, kv_len, -1)
    rows = _positions("query_positions", query_positions, batch, q_len, -2)
    if alone:
        readers = {name: any(of_key for _, of_key in readers) for name, readers in reads.items()}
        check_lone_query_positions(rows[..., 0], q_len, readers)
    if mask is not None:
        check_extent(mask, rows, columns)
    call = Call(
        batch=batch,
        q_len=q_len,
        kv_len=kv_len,
        q_heads=q_heads,
        kv_heads=kv_heads,
        qk_dim=prepared.query.shape[-1],
        v_dim=v_dim,
        mask=mask,
        similarity=aligned(similarity),
        scale=prepared.scale,
        scores=own_scores + caller_scores + aligned(normalizer.extra_scores()),
        normalizer=aligned(normalizer),
        dropout=None if dropout is None else aligned(dropout.indexed(batch, q_heads, split)),
        query_positions=rows,
        key_positions=columns,
        devices=auto_devices(query, key, value),
    )
    return call, prepared.query, prepared.key


def _prepare_similarity(similarity: Similarity, query: jax.Array, key: jax.Array) -> Prepared:
    """`similarity.prepare`, safe against NaN and inf in keys that are masked out.

    A rewritten key (its norm, a projection) is differentiated outside the implementations, where the zero cotangent
    of a masked key would meet its NaN. So it is rewritten from finite numbers, and a NaN score stands for the rest.
    """
    if not similarity.rewrites_key:
        return similarity.prepare(query, key)
    broken = jnp.where(jnp.isfinite(key).all(-1), 0, jnp.nan).astype(jnp.float32)
    per_head = jnp.repeat(jnp.swapaxes(broken, -1, -2), query.shape[-2] // key.shape[-2], axis=-2)
    prepared = similarity.prepare(query, without_nonfinite(key))
    return prepared._replace(scores=(*prepared.scores, Bias(per_head[..., :, None, :])))


def _positions(name: str, positions: Any, batch: tuple[int, ...], length: int, axis: int) -> Any:
    """Positions as `[batch..., 1, length, 1]` or `[batch..., 1, 1, length]`; NumPy stays NumPy, so that it is known."""
    if positions is None:
        positions = counted(length)
    positions = as_array(positions)
    checks.check_positions(name, positions, batch, length, name.removesuffix("_positions"))
    positions = known_while_tracing(positions)
    backend = np if isinstance(positions, np.ndarray) else jnp
    positions = positions.astype(np.int32)
    lead = positions.shape[:-1]
    shape = [1] * (len(batch) - len(lead)) + [*lead, 1, 1, 1]
    shape[axis] = length
    return backend.reshape(positions, shape)

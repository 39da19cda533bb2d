"""A call: everything about an attention except its three arrays, checked and brought to one layout."""

import contextlib
import dataclasses
import re
from collections.abc import Iterable, Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from ...foundation.arrays import FOREIGN, as_array, describe, dtype_of, iota, known_values, known_while_tracing
from ...foundation.elementwise import mask_reads_positions, score_reads_positions
from ...foundation.fields import LARGEST
from ...foundation.numerics import accumulation_dtype, without_nonfinite
from ...foundation.pieces import Piece, align, indexed
from ...foundation.sharding import auto_devices, split_axes
from ...foundation.target import Target, target_of
from ...masks.base import Mask, as_mask, check_extent
from ...masks.placement import check_lone_query_positions
from ...normalizers import Normalizer, Softmax
from ...scores import Bias
from ...scores.base import Score, as_score
from ...similarities import ScaledDot, Similarity
from ...similarities.dot import Prepared
from .dropout import Dropout


@dataclasses.dataclass(frozen=True)
class Pieces:
    """The pieces and positions of an attention, from the call to the kernel. A pytree of their arrays.

    At first they are as the caller gave them: functions in place of pieces, None for defaults, lists. `checked`
    converts them to instances. In a `Call` every array is aligned to `[batch..., head, query, key, own...]`, so an
    implementation slices them all alike.

    Attributes:
        mask: a `Mask` or None.
        similarity: a `Similarity`; in a call it has already been applied to the query and key (`prepare`).
        scores: a tuple of `Score`s, applied in this order; in a call those of the similarity, the caller, the
            normalizer.
        normalizer: a `Normalizer`.
        dropout: a `Dropout` or None.
        query_positions: integers `[batch..., q_len]`, or None; in a call `[batch..., 1, q_len, 1]`.
        key_positions: integers `[batch..., kv_len]`, or None; in a call `[batch..., 1, 1, kv_len]`.
    """

    mask: Any = None
    similarity: Any = None
    scores: Any = ()
    normalizer: Any = None
    dropout: Any = None
    query_positions: Any = None
    key_positions: Any = None

    def checked(self) -> "Pieces":
        """A copy with instances in place of functions and defaults, and arrays in place of lists.

        Raises:
            ValueError: an argument is not a piece.
        """
        mask, similarity, scores, normalizer, dropout = check_pieces(
            self.mask, self.similarity, self.scores, self.normalizer, self.dropout
        )
        positions = as_array(self.query_positions), as_array(self.key_positions)
        return Pieces(mask, similarity, scores, normalizer, dropout, *positions)

    def indexed(self, batch: tuple[int, ...], q_heads: int, split: tuple[str, ...] = ()) -> "Pieces":
        """A copy with batch and head indices filled in where a piece uses them (`Piece.indexed`)."""
        filled = {name: indexed(getattr(self, name), batch, q_heads, split) for name in ("mask", "scores", "dropout")}
        return dataclasses.replace(self, **filled)


jax.tree_util.register_dataclass(
    Pieces, data_fields=[field.name for field in dataclasses.fields(Pieces)], meta_fields=[]
)


@dataclasses.dataclass(frozen=True)
class Call:
    """What is to be computed. A pytree of the arrays in its pieces; everything else is static.

    Attributes:
        batch: the batch axes.
        q_len, kv_len, q_heads, kv_heads: sizes.
        qk_dim: the number of features of the prepared query and key.
        v_dim: the number of features of a value.
        pieces: aligned.
        scale: the factor on the similarity of a query and a key.
        dtypes: of the prepared query and key, and of the value.
        devices: the number of devices over which XLA may split the arrays; loops must leave room for that.
        target: what the program is compiled for; None if that is decided when it is lowered.
        plan: what the implementation knows about the call before it runs (`Streaming.plan`), or None.
        keys_as_values: whether the values are known to be the keys, so that reading one of them suffices.
        exact_lse: whether the lse is read outside of the implementation. If not, it may be that of rounded weights.
    """

    batch: tuple[int, ...]
    q_len: int
    kv_len: int
    q_heads: int
    kv_heads: int
    qk_dim: int
    v_dim: int
    pieces: Pieces
    scale: float
    dtypes: tuple[str, str, str]
    devices: int = 1
    target: Target | None = None
    plan: Any = None
    keys_as_values: bool = False
    exact_lse: bool = True


jax.tree_util.register_dataclass(
    Call,
    data_fields=["pieces"],
    meta_fields=[field.name for field in dataclasses.fields(Call) if field.name != "pieces"],
)


def prepare(query: jax.Array, key: jax.Array, value: jax.Array, pieces: Pieces) -> tuple[Call, jax.Array, jax.Array]:
    """Check that the pieces match the arrays, and return the call with its prepared query and key.

    Args:
        query: as in `jattn.attention`.
        key: as in `jattn.attention`.
        value: as in `jattn.attention`.
        pieces: as given by the caller, or `checked`.

    Raises:
        ValueError: as in `jattn.attention`.
    """
    check_arrays(query, key, value)
    pieces = pieces.checked()
    *batch, q_len, q_heads, _ = query.shape
    kv_len, kv_heads, v_dim = value.shape[-3:]
    batch = tuple(batch)
    sizes = {"head": q_heads, "query": q_len, "key": kv_len}

    def aligned(piece: Any) -> Any:
        return align(piece, batch, sizes)

    similarity, normalizer = pieces.similarity, pieces.normalizer
    # Before scores are made of their numbers, so that errors name the fields that the caller gave.
    aligned_similarity, aligned_normalizer = aligned(similarity), aligned(normalizer)
    prepared = _prepare_similarity(similarity, query, key)
    pieces = pieces.indexed(batch, q_heads, split_axes(query))
    mask = aligned(known_while_tracing(pieces.mask))
    caller_scores = aligned(pieces.scores)
    own_scores = aligned(prepared.scores)
    dtype = accumulation_dtype(query, key, value)
    reads = {
        "mask": [mask_reads_positions(mask)],
        "similarity": [score_reads_positions(one, dtype) for one in own_scores],
        "scores": [score_reads_positions(one, dtype) for one in caller_scores],
    }
    query_positions, key_positions = pieces.query_positions, pieces.key_positions
    if q_len != kv_len and query_positions is None:
        for name, readers in reads.items():
            if any(of_query for of_query, _ in readers):
                reject_ambiguous_positions(q_len, kv_len, name)
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
        pieces=Pieces(
            mask=mask,
            similarity=aligned_similarity,
            scores=own_scores + caller_scores + aligned(normalizer.extra_scores()),
            normalizer=aligned_normalizer,
            dropout=aligned(pieces.dropout),
            query_positions=rows,
            key_positions=columns,
        ),
        scale=prepared.scale,
        dtypes=(str(prepared.query.dtype), str(prepared.key.dtype), str(value.dtype)),
        devices=auto_devices(query, key, value),
        target=target_of(query, key, value),
        keys_as_values=value is key and prepared.key is key,
    )
    return call, prepared.query, prepared.key


def _prepare_similarity(similarity: Similarity, query: jax.Array, key: jax.Array) -> Prepared:
    """`similarity.prepare`, safe against NaN and inf in masked-out keys.

    A rewritten key (normalized or projected) is differentiated outside of the implementations, where the zero cotangent
    of a masked key would meet its NaN. So it is rewritten from finite numbers, and a score of NaN marks the original
    row.
    """
    if not similarity.rewrites_key:
        return similarity.prepare(query, key)
    poison = jnp.where(jnp.isfinite(key).all(-1), 0, jnp.nan).astype(jnp.float32)
    per_head = jnp.repeat(jnp.swapaxes(poison, -1, -2), query.shape[-2] // key.shape[-2], axis=-2)
    prepared = similarity.prepare(query, without_nonfinite(key))
    return prepared._replace(scores=(*prepared.scores, Bias(per_head[..., :, None, :])))


def _positions(name: str, positions: Any, batch: tuple[int, ...], length: int, axis: int) -> Any:
    """Positions as `[batch..., 1, length, 1]` or `[batch..., 1, 1, length]`. NumPy arrays stay NumPy arrays."""
    if positions is None:
        positions = iota(length)
    positions = as_array(positions)
    check_positions(name, positions, batch, length, name.removesuffix("_positions"))
    positions = known_while_tracing(positions)
    backend = np if isinstance(positions, np.ndarray) else jnp
    positions = positions.astype(np.int32)
    lead = positions.shape[:-1]
    shape = [1] * (len(batch) - len(lead)) + [*lead, 1, 1, 1]
    shape[axis] = length
    return backend.reshape(positions, shape)


# --- what a caller may give ---

LAYOUTS = {
    "query": "[..., q_len, q_heads, qk_dim]",
    "key": "[..., kv_len, kv_heads, qk_dim]",
    "value": "[..., kv_len, kv_heads, v_dim]",
}


def check_arrays(query: Any, key: Any, value: Any) -> None:
    """Check the ranks, dtypes and sizes of query, key and value.

    Raises:
        ValueError: naming the arrays that disagree, their shapes, and the expected layout.
    """
    arrays = {"query": query, "key": key, "value": value}
    for name, item in arrays.items():
        if dtype_of(item) is None:
            raise ValueError(
                f"`{name}` must be an array {LAYOUTS[name]}, of JAX or NumPy; got {describe(item)}. {FOREIGN}"
            )
        if len(item.shape) < 3:
            raise ValueError(
                f"`{name}` must have at least 3 axes, {LAYOUTS[name]}; got shape {item.shape}. "
                f"One head still needs its axis: `{name}[..., None, :]`."
            )
        if not jnp.issubdtype(item.dtype, jnp.floating):
            raise ValueError(
                f"`{name}` must be floating-point; got {item.dtype}. Convert it: `{name}.astype('float32')`."
            )
        if jnp.finfo(item.dtype).bits < 16:
            raise ValueError(
                f"`{name}` must have at least 16 bits, as attention adds up its numbers; got {item.dtype}. Convert it "
                f"(with its scale): `{name}.astype('bfloat16')`."
            )
    try:
        chex.assert_equal_rank([query, key, value])
        chex.assert_equal_shape_prefix([query, key, value], len(query.shape) - 3)
    except AssertionError:
        raise ValueError(
            f"`query`, `key` and `value` must have the same batch axes (all but the last three); got query "
            f"{query.shape}, key {key.shape}, value {value.shape}. Broadcast them explicitly with `jnp.broadcast_to`."
        ) from None
    if key.shape[:-1] != value.shape[:-1]:
        raise ValueError(
            f"`key` {LAYOUTS['key']} and `value` {LAYOUTS['value']} must have the same kv_len and kv_heads; "
            f"got key {key.shape} and value {value.shape}."
        )
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"`query` and `key` must have the same qk_dim (last axis); got query {query.shape}, key {key.shape}. "
            "Project one of them to the other's size first."
        )
    if query.shape[-1] == 0:
        raise ValueError(
            f"`query` and `key` must have at least one feature (qk_dim, the last axis); got query {query.shape} and "
            f"key {key.shape}."
        )
    q_heads, kv_heads = query.shape[-2], key.shape[-2]
    if kv_heads == 0 or q_heads == 0 or q_heads % kv_heads:
        raise ValueError(
            f"`query` must have a multiple of the heads of `key`; got {q_heads} query heads and {kv_heads} key heads "
            f"(query {query.shape}, key {key.shape}, layout [..., length, heads, dim]: are length and heads swapped?)."
        )


def check_pieces(mask: Any, similarity: Any, scores: Any, normalizer: Any, dropout: Any) -> tuple:
    """The pieces, with defaults filled in. A function given as `mask` or among `scores` becomes a piece.

    Raises:
        ValueError: an argument is not the right kind of piece.
    """
    mask = None if mask is None else as_mask(mask)
    similarity = ScaledDot() if similarity is None else similarity
    normalizer = Softmax() if normalizer is None else normalizer
    several = isinstance(scores, Iterable) and not isinstance(scores, Score) and dtype_of(scores) is None
    scores = () if scores is None else tuple(scores) if several else (scores,)  # type: ignore[arg-type]
    scores = tuple(as_score(score) for score in scores)
    for name, value, kind in (
        ("similarity", similarity, Similarity),
        ("normalizer", normalizer, Normalizer),
        ("dropout", dropout, Dropout),
        *((f"scores[{i}]", score, Score) for i, score in enumerate(scores)),
    ):
        if value is not None and not isinstance(value, kind):
            raise ValueError(
                f"`{name}` must be a {kind.__name__} (an instance of a piece, such as those of jattn); "
                f"got {describe(value)}.{_hint(value)}"
            )
    return mask, similarity, scores, normalizer, dropout


def _hint(value: Any) -> str:
    """What to write in place of a wrong argument."""
    if isinstance(value, type) and issubclass(value, Piece):
        return f" Make one of it: `{value.__name__}(...)`."
    if isinstance(value, Mask):
        return " A mask goes to `mask=`."
    if isinstance(value, Score):
        return " A score goes to `scores=`."
    if isinstance(value, float):
        return " `jattn.Dropout(rate, key)` makes one of a rate."
    return ""


def check_positions(name: str, positions: Any, batch: tuple[int, ...], length: int, of: str) -> None:
    """Check that positions are integers `[..., length]`, one per element of `of`."""
    dtype = dtype_of(positions)
    if dtype is None or not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(f"`{name}` must be integers, absolute token indices; got {describe(positions)}.")
    if jnp.iinfo(dtype).max > LARGEST:
        known = known_values(positions)
        if known is not None and known.size and not -LARGEST - 1 <= int(known.min()) <= int(known.max()) <= LARGEST:
            raise ValueError(
                f"`{name}` must fit in 32 bits; got values from {known.min()} to {known.max()}. Count from the first "
                "token of the sequence."
            )
    shape = tuple(positions.shape)
    lead = shape[:-1]
    fits = len(lead) <= len(batch) and all(a in (1, b) for a, b in zip(reversed(lead), reversed(batch), strict=False))
    if not shape or shape[-1] != length or not fits:
        raise ValueError(
            f"`{name}` must have shape [{length}], or [batch..., {length}] with the batch {batch}, one position for "
            f"each element of `{of}`; got {shape}."
        )


@contextlib.contextmanager
def renamed(**names: str) -> Iterator[None]:
    """Errors raised inside use the caller's argument names, as in `renamed(query_positions="positions")`.

    >>> with renamed(query_positions="positions"):
    ...     raise ValueError("`query_positions` must be integers.")
    Traceback (most recent call last):
    ...
    ValueError: `positions` must be integers.
    """
    try:
        yield
    except ValueError as error:
        message = str(error)
        for old, new in names.items():
            message = re.sub(rf"`{re.escape(old)}(?=[`=.\[])", f"`{new}", message)
        error.args = (message,)
        raise


def reject_ambiguous_positions(q_len: int, kv_len: int, what: str) -> None:
    """Refuse different lengths without positions: it is unclear where the queries are among the keys.

    Raises:
        ValueError: always, with both readings.
    """
    raise ValueError(
        f"`{what}` depends on query positions, and q_len {q_len} differs from kv_len {kv_len}: give `query_positions`. "
        f" Bottom-right (the last query sees the last key, as when decoding with a cache): "
        f"`query_positions=numpy.arange({kv_len - q_len}, {kv_len})`. Top-left (query 0 is at key 0): "
        f"`query_positions=numpy.arange({q_len})`."
    )

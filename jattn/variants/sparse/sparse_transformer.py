"""The strided and fixed patterns of the Sparse Transformer (Child et al. 2019)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...foundation.arguments import check_choice, check_counts, check_positive
from ...foundation.pieces import align, indexed
from ...foundation.shapes import check_shapes
from ...masks import Causal, SameSegment, SlidingWindow, Strided
from ...masks import Chunked as OwnChunk
from ...masks.base import Mask, as_mask
from ...masks.blocks import Summaries
from ...masks.flags import split_between_heads
from ...ops.attention.api import partial_attention
from ...ops.attention.by_example import by_example
from ...ops.attention.call import Pieces as AllPieces
from ...ops.attention.call import check_pieces
from ...ops.attention.observed import is_observed, observed
from ...ops.attention.partial import Partial, merge
from .take import take_pieces

HOW = ("merged", "split", "interleaved")
Arrays = tuple[jax.Array, ...]
Pieces = dict[str, Any]


def strided_mask(stride: int, how: str = "merged", *, q_heads: int | None = None, layer: int | None = None) -> Mask:
    """The strided pattern as a mask: a window, and every `stride`-th earlier key,

        window: 0 ≤ i - j < l        columns: j ≤ i and (i - j) mod l = 0        l = stride

    Child et al. 2019 (arXiv:1904.10509). As in the paper's code, the window has l keys, the query's own included; in
    the paper's text it has l + 1, but the additional one is in the columns anyway. A window followed by columns reaches
    every earlier position, so two layers see everything.

    Three ways of assigning the two parts to heads: `"merged"`, each head sees their union; `"split"`, the first half
    of the heads has the window, the second the columns; `"interleaved"`, layers 0, 2, ... have the window and layers
    1, 3, ... the columns.

    Tiles are skipped, but columns closer than a tile fill all causal tiles; `strided_attention` computes the same with
    the columns gathered. For packed documents, use `strided_mask(...) & SameSegment(ids)`.

    Args:
        stride: l, at least 1; about √length.
        how: one of "merged", "split", "interleaved".
        q_heads: number of heads, for "split"; even.
        layer: index of this layer, for "interleaved".

    Raises:
        ValueError: `stride` is below 1; `how` is unknown; `q_heads` or `layer` is missing, or given although not
            needed.

    >>> print(strided_mask(2).picture(5, 5).rsplit(chr(10), 2)[0])
    █····
    ██···
    ███··
    ·███·
    █·███
    """
    check_positive(stride=stride)
    return _given((SlidingWindow(stride - 1, 0), Strided(stride) & Causal()), how, q_heads, layer)


def fixed_mask(
    stride: int, summaries: int = 1, how: str = "merged", *, q_heads: int | None = None, layer: int | None = None
) -> Mask:
    """The fixed pattern as a mask: the query's own block up to itself, and the last few keys of every block,

        block: j ≤ i and ⌊j/l⌋ = ⌊i/l⌋        summaries: j ≤ i and j mod l ≥ l - c        l = stride, c = summaries

    Child et al. 2019 (arXiv:1904.10509), `how` as in `strided_mask`. In heads with summaries only, queries before the
    first summary see nothing, and their output is 0. Blocks count from position 0. For packed documents, use
    `fixed_mask(...) & SameSegment(ids)`, with positions that restart in each (`positions_in_documents`) if blocks
    should start with the document.

    Tiles are skipped; `fixed_attention` computes the same with the summaries gathered.

    Args:
        stride: l, the size of a block, at least 1.
        summaries: c, from 1 to `stride`; 8, 16 or 32 in blocks of 128 in the paper.
        how, q_heads, layer: as in `strided_mask`.

    Raises:
        ValueError: as in `strided_mask`; `summaries` is not within 1 to `stride`.

    >>> print(fixed_mask(2).picture(5, 5).rsplit(chr(10), 2)[0])
    █····
    ██···
    ·██··
    ·███·
    ·█·██
    """
    _check_fixed(stride, summaries)
    return _given((OwnChunk(stride) & Causal(), Summaries(stride, summaries) & Causal()), how, q_heads, layer)


@by_example(query="length heads dim", key="length heads dim", value="length heads dim")
def strided_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    stride: int,
    how: str = "merged",
    *,
    layer: int | None = None,
    mask: Mask | Any = None,
    **options: Any,
) -> jax.Array:
    """Sparse Transformer, strided: a window and every `stride`-th earlier key, gathered so that tiles are skipped.

    Equals `attention` with the mask `strided_mask`, at a cost proportional to its pairs. Child et al. 2019
    (arXiv:1904.10509).

    For the columns, queries and keys are sorted by their residues modulo `stride`, so that those that see one another
    are adjacent, and tiles of different residues are skipped. If a head has both parts, the two partial results are
    merged. Work is O(length · stride + length² / stride) as soon as tiles are no larger than `length / stride`.

    Args:
        query: `[..., length, heads, dim]`.
        key: `[..., length, kv_heads, dim]`: self-attention.
        value: `[..., length, kv_heads, v_dim]`.
        stride, how, layer: as in `strided_mask`.
        mask: an additional mask: `SameSegment(ids)` for packed documents, `Lengths` for padding. Positions are
            0, 1, ..., length - 1.
        **options: `similarity`, `scores` and `implementation` of `attention`; scores see the same positions.

    Returns:
        `[..., length, heads, v_dim]`.

    Raises:
        ValueError: as in `strided_mask` and `attention`; `length` differs between query and key.

    >>> import jax, jattn
    >>> q, k, v = (jax.random.normal(jax.random.key(i), (50, 2, 4)) for i in range(3))
    >>> fast = strided_attention(q, k, v, 7)
    >>> bool(jax.numpy.allclose(fast, jattn.attention(q, k, v, mask=strided_mask(7)), atol=1e-6))
    True
    """
    check_positive(stride=stride)
    length = _length(query, key, value)
    order = np.argsort(np.arange(length) % stride, kind="stable").astype(np.int32)
    back = np.argsort(order)
    window = SlidingWindow(stride - 1, 0)

    def local(arrays: Arrays, pieces: Pieces) -> Partial:
        return partial_attention(*arrays, **_restricted(pieces, window))

    def columns(arrays: Arrays, pieces: Pieces, outside: bool = False) -> Partial:
        own = SameSegment(order % stride) & Causal()
        if outside:
            own = own & ~window
        pieces = {name: take_pieces(piece, queries=order, keys=order) for name, piece in pieces.items()}
        arrays = tuple(jnp.take(array, order, axis=-3) for array in arrays)
        found = partial_attention(*arrays, **_restricted(pieces, own), query_positions=order, key_positions=order)
        axis = found.lse.ndim - 2
        return jax.tree.map(lambda array: jnp.take(array, back, axis=axis), found)

    def whole(q_heads: int | None) -> Mask:
        return strided_mask(stride, how, q_heads=q_heads, layer=layer)

    return _run(local, columns, (query, key, value), mask, options, how, layer, whole)


@by_example(query="length heads dim", key="length heads dim", value="length heads dim")
def fixed_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    stride: int,
    summaries: int = 1,
    how: str = "merged",
    *,
    layer: int | None = None,
    mask: Mask | Any = None,
    **options: Any,
) -> jax.Array:
    """Sparse Transformer, fixed: a query's own block and the last keys of every block, gathered to skip tiles.

    Equals `attention` with the mask `fixed_mask`, at a cost proportional to its pairs. Child et al. 2019
    (arXiv:1904.10509).

    The summaries of all blocks are gathered into one short sequence of keys. If a head has both parts, the partial
    results over its own block and over the summaries of earlier blocks are merged.

    Args, returns and raises: as in `strided_attention` and `fixed_mask`.

    >>> import jax, jattn
    >>> q, k, v = (jax.random.normal(jax.random.key(i), (50, 2, 4)) for i in range(3))
    >>> fast = fixed_attention(q, k, v, 8, 2)
    >>> bool(jax.numpy.allclose(fast, jattn.attention(q, k, v, mask=fixed_mask(8, 2)), atol=1e-6))
    True
    """
    _check_fixed(stride, summaries)
    length = _length(query, key, value)
    chosen = np.flatnonzero(np.arange(length) % stride >= stride - summaries).astype(np.int32)
    at = np.arange(length, dtype=np.int32)
    block = OwnChunk(stride)

    def local(arrays: Arrays, pieces: Pieces) -> Partial:
        return partial_attention(*arrays, **_restricted(pieces, block & Causal()))

    def columns(arrays: Arrays, pieces: Pieces, outside: bool = False) -> Partial:
        query, *rest = arrays
        own = Causal() & ~block if outside else Causal()
        pieces = {name: take_pieces(piece, keys=chosen) for name, piece in pieces.items()}
        gathered = (jnp.take(array, chosen, axis=-3) for array in rest)
        return partial_attention(query, *gathered, **_restricted(pieces, own), query_positions=at, key_positions=chosen)

    def whole(q_heads: int | None) -> Mask:
        return fixed_mask(stride, summaries, how, q_heads=q_heads, layer=layer)

    return _run(local, columns, (query, key, value), mask, options, how, layer, whole)


def _given(parts: tuple[Mask, Mask], how: str, q_heads: int | None, layer: Any) -> Mask:
    """The two parts, assigned in one of the three ways."""
    check_choice("how", how, HOW)
    for name, given, owner in (("q_heads", q_heads, "split"), ("layer", layer, "interleaved")):
        if (given is not None) != (how == owner):
            raise ValueError(f"`{name}` is for `how='{owner}'` and needed there; got {name} {given!r}, how {how!r}.")
    if how == "merged":
        return parts[0] | parts[1]
    if q_heads is not None:
        return split_between_heads(parts, q_heads)
    check_counts(layer=layer)
    return parts[layer % 2]


def _run(
    local: Any, columns: Any, arrays: Arrays, mask: Any, options: Pieces, how: str, layer: Any, pattern: Any
) -> Any:
    """Run each part on the heads that have it. `pattern(q_heads)` is the mask of both, for who observes the whole."""
    check_choice("how", how, HOW)
    if (layer is not None) != (how == "interleaved"):
        raise ValueError(f"`layer` is for `how='interleaved'` and needed there; got layer {layer!r}, how {how!r}.")
    if options.keys() - {"similarity", "scores", "implementation"}:
        raise ValueError(
            f"the options are `similarity`, `scores` and `implementation`; got {sorted(options)}. For others, call "
            "`jattn.attention` with the mask."
        )
    pieces: Pieces = {"mask": None if mask is None else as_mask(mask), **options}
    _check_sizes(arrays, **pieces)
    whole = check_pieces(pieces["mask"], None, options.get("scores"), None, None)
    for name, each in (("mask", whole[0]), ("scores", whole[2])):
        pieces[name] = indexed(each, arrays[0].shape[:-3], arrays[0].shape[-2])  # a half of the heads keeps its indices
    if not is_observed():
        return _parts(local, columns, arrays, pieces, how, layer)
    own = pattern(arrays[0].shape[-2] if how == "split" else None)
    given = _restricted({name: one for name, one in pieces.items() if name != "implementation"}, own)
    return observed(
        lambda: _parts(local, columns, arrays, pieces, how, layer),
        lambda: (arrays[0], arrays[1], arrays[2]),
        AllPieces(**given),
    )


def _parts(local: Any, columns: Any, arrays: Arrays, pieces: Pieces, how: str, layer: Any) -> Any:
    if how == "merged":
        return merge(local(arrays, pieces), columns(arrays, pieces, outside=True)).out
    if how == "interleaved":
        check_counts(layer=layer)
        if layer % 2 == 0:
            return local(arrays, pieces).out
        return columns(arrays, pieces).out
    q_heads, kv_heads = arrays[0].shape[-2], arrays[1].shape[-2]
    if q_heads % 2 or kv_heads % 2:
        raise ValueError(
            f"`how='split'` needs an even number of heads, of the query and of the key; got {q_heads} and {kv_heads}."
        )
    found = []
    for half, part in enumerate((local, columns)):
        heads = np.arange(q_heads // 2) + half * (q_heads // 2)
        own = {name: take_pieces(piece, heads=heads) for name, piece in pieces.items()}
        split = tuple(jnp.split(array, 2, axis=-2)[half] for array in arrays)
        found.append(part(split, own).out)
    return jnp.concatenate(found, axis=-2)


def _check_fixed(stride: int, summaries: int) -> None:
    check_positive(stride=stride, summaries=summaries)
    if summaries > stride:
        raise ValueError(f"`summaries` must be at most `stride`, {stride}; got {summaries}.")


def _length(query: jax.Array, key: jax.Array, value: jax.Array) -> int:
    return check_shapes(
        query=(query, "... length heads dim"),
        key=(key, "... length kv_heads dim"),
        value=(value, "... length kv_heads v_dim"),
    )["length"]


def _check_sizes(
    arrays: Arrays, mask: Any, similarity: Any = None, scores: Any = (), implementation: Any = None
) -> None:
    """Check the pieces against the original call, because pieces after `take_pieces` would always match."""
    del implementation  # checked by each part
    query, key, _ = arrays
    sizes = {"head": query.shape[-2], "query": query.shape[-3], "key": key.shape[-3]}
    for each in check_pieces(mask, similarity, scores, None, None)[:3]:
        align(each, query.shape[:-3], sizes)


def _restricted(pieces: Pieces, mask: Mask) -> Pieces:
    """The pieces of a call, with the mask of a part added."""
    extra = pieces["mask"]
    return {**pieces, "mask": mask if extra is None else mask & extra}

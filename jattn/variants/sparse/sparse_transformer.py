"""The strided and the fixed pattern of the Sparse Transformer (Child et al. 2019)."""

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
from ...ops.attention.checks import check_pieces
from ...ops.attention.partial import Partial, merge
from .take import take_pieces

HOW = ("merged", "split", "interleaved")
Arrays = tuple[jax.Array, ...]
Pieces = dict[str, Any]


def strided_mask(stride: int, how: str = "merged", *, q_heads: int | None = None, layer: int | None = None) -> Mask:
    """A window and every `stride`-th earlier key, as a mask:

        window: 0 ≤ i - j < l        columns: j ≤ i and (i - j) mod l = 0        l = stride

    Child et al. 2019 (arXiv:1904.10509). As in the paper's code, the window has l keys, the query's own among them;
    as the paper writes it, it has l + 1, but the one more is also a column. Window and columns one after the other
    reach every earlier position, so two layers see everything.

    The three ways of giving the two parts to heads: `"merged"`, each head sees their union; `"split"`, the first half
    of the heads has the window, the second the columns; `"interleaved"`, layers 0, 2, ... have the window and layers
    1, 3, ... the columns.

    A mask skips tiles. Columns closer than a tile fill all causal tiles; `strided_attention` computes the same with
    the columns brought together. Packed documents: `strided_mask(...) & SameSegment(ids)`.

    Args:
        stride: l, at least 1; about √length.
        how: one of "merged", "split", "interleaved".
        q_heads: how many heads there are, for "split"; even.
        layer: which layer this is, for "interleaved".

    Raises:
        ValueError: a stride below 1; an unknown `how`; `q_heads` or `layer` missing where needed, or given where not.

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
    """The query's own block up to itself, and the last few keys of every block, as a mask:

        block: j ≤ i and ⌊j/l⌋ = ⌊i/l⌋        summaries: j ≤ i and j mod l ≥ l - c        l = stride, c = summaries

    Child et al. 2019 (arXiv:1904.10509), `how` as in `strided_mask`. Alone, the summaries leave the queries before the
    first of them with nothing to attend: their output is 0. Blocks count from position 0: packed documents are
    `fixed_mask(...) & SameSegment(ids)`, with positions that start again in each (`positions_in_documents`) where
    blocks are to start with the document.

    A mask skips tiles; `fixed_attention` computes the same with the summaries brought together.

    Args:
        stride: l, the size of a block, at least 1.
        summaries: c, from 1 to `stride`; the paper's are 8, 16 or 32 of a block of 128.
        how, q_heads, layer: as in `strided_mask`.

    Raises:
        ValueError: as `strided_mask`; `summaries` not within 1 to `stride`.

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

    `attention` with the mask `strided_mask`, at the cost of its pairs. Child et al. 2019 (arXiv:1904.10509).

    For the columns, queries and keys are put in the order of their residues modulo `stride`: all that see each other
    lie together, and tiles of different residues are skipped. Where a head has both parts, the two partial results
    are merged. Work is O(length · stride + length² / stride) as soon as tiles are no larger than `length / stride`.

    Args:
        query: `[..., length, heads, dim]`.
        key: `[..., length, kv_heads, dim]`: self-attention.
        value: `[..., length, kv_heads, v_dim]`.
        stride, how, layer: as in `strided_mask`.
        mask: further restricts it: `SameSegment(ids)` for packed documents, `Lengths` for padding. Positions are
            0, 1, ..., length - 1.
        **options: `similarity`, `scores` and `implementation` of `attention`; scores read the same positions.

    Returns:
        `[..., length, heads, v_dim]`.

    Raises:
        ValueError: as `strided_mask`; `length` differs between query and key; as `attention`.

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

    return _run(local, columns, (query, key, value), mask, options, how, layer)


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
    """Sparse Transformer, fixed: the own block and the last keys of every block, gathered.

    `attention` with the mask `fixed_mask`, at the cost of its pairs. Child et al. 2019 (arXiv:1904.10509).

    The summaries of all blocks are gathered into one short row of keys; where a head has both parts, the partial
    results over the own block and over the summaries of earlier blocks are merged.

    Args, returns and raises: as `strided_attention` and `fixed_mask`.

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

    return _run(local, columns, (query, key, value), mask, options, how, layer)


def _given(parts: tuple[Mask, Mask], how: str, q_heads: int | None, layer: Any) -> Mask:
    """The two parts, in one of the three ways."""
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


def _run(local: Any, columns: Any, arrays: Arrays, mask: Any, options: Pieces, how: str, layer: Any) -> Any:
    """Both parts on the heads that have them."""
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
    """The pieces fit the call as it came: what is `take_pieces` takes of them would fit in any case."""
    del implementation  # checked by each part
    query, key, _ = arrays
    sizes = {"head": query.shape[-2], "query": query.shape[-3], "key": key.shape[-3]}
    for each in check_pieces(mask, similarity, scores, None, None)[:3]:
        align(each, query.shape[:-3], sizes)


def _restricted(pieces: Pieces, mask: Mask) -> Pieces:
    """The pieces of a call, with a part's own mask added to theirs."""
    extra = pieces["mask"]
    return {**pieces, "mask": mask if extra is None else mask & extra}

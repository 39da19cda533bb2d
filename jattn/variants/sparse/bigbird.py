"""BigBird: random blocks, neighboring blocks, and global blocks (Zaheer et al. 2020)."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from ...foundation.arguments import check_counts, check_flags, check_positive
from ...foundation.arrays import as_known
from ...foundation.fields import LARGEST
from ...foundation.shapes import check_shapes
from ...masks import Blocks, Lengths, Shifted, Sinks
from ...masks.base import Mask


def bigbird_mask(length: int, block: int, random_blocks: Any) -> Mask:
    """BigBird ITC: window, random and global blocks, as a mask.

    Internal global blocks (ITC). Of n = ⌈length / block⌉ blocks, block row i sees

        all blocks                                        for i = 0 and i = n - 1,
        {0, n-1} ∪ {i-1, i, i+1} ∪ R_i                    for the others,    R_i = random_blocks[head, i - 1].

    Zaheer et al. 2020 (arXiv:2007.14062). The pattern is the union of these blocks. A widely used implementation draws
    R only in training, and in evaluation repeats block 0 in the softmax. The last block may be shorter. For padding,
    add `& Lengths(key_lengths, query_lengths)`. The mask is for sequences of this length: positions after the last
    block see nothing and are not seen.

    Tiles are skipped head by head. Random blocks are scattered, so tiles much larger than a block visit nearly all
    pairs: choose tiles of the size of a block, `implementation=Tiled(q_tile=block, k_tile=block)`. A NumPy table is
    known at trace time.

    Demonstrated in `examples/experiments/bigbird_parts.py`.

    Args:
        length: length of the sequence.
        block: tokens per block, at least 1.
        random_blocks: R, integers `[heads or 1, n - 2, r]`, none of which the row sees anyway (`random_blocks` draws
            such a table); batch axes may precede. Traced tables are not checked.

    Raises:
        ValueError: there are fewer than r + 6 blocks, so that rows would see everything: use no mask, or smaller
            blocks; the table has another shape, repeats a block in a row, or names one that does not exist.

    >>> print(bigbird_mask(7, 1, [[[4], [5], [0], [1], [2]]]).picture(7, 7))
    Traceback (most recent call last):
    ...
    ValueError: `random_blocks` must not repeat blocks that its rows see anyway; head 0, row 3 names block 0.
    >>> print(bigbird_mask(7, 1, random_blocks(7, 1, heads=1, count=1, seed=0)).picture(7, 7).splitlines()[-2])
    visited 42 of 49 tiles (85.7%), 42 of them full
    """
    return Blocks(_table(length, block, random_blocks, internal=True), block)


def bigbird_etc_mask(length: int, block: int, random_blocks: Any, global_tokens: int) -> Mask:
    """BigBird ETC: window and random blocks and g extra global tokens, as a mask over g + length positions.

    Zaheer et al. 2020 (arXiv:2007.14062). Positions 0, ..., g - 1 are the extra tokens, which see everything and are
    seen by all. The sequence follows; its block row i sees {i-1, i, i+1} ∪ R_i, R_i = random_blocks[head, i], and none
    of its blocks is global.

    Args:
        length: length of the sequence, without the extra tokens.
        block: as in `bigbird_mask`.
        random_blocks: R, integers `[heads or 1, n, r]`, for every row.
        global_tokens: g, at least 1.

    Raises:
        ValueError: as in `bigbird_mask`, but for fewer than r + 4 blocks; `global_tokens` is below 1.

    >>> table = random_blocks(7, 1, heads=1, count=1, seed=0, internal=False)
    >>> print(bigbird_etc_mask(7, 1, table, global_tokens=2).picture(9, 9).splitlines()[1])
    █████████
    """
    check_positive(global_tokens=global_tokens)
    blocks = Shifted(Blocks(_table(length, block, random_blocks, internal=False), block), global_tokens)
    return blocks | Sinks(global_tokens) | Lengths(LARGEST, global_tokens)


def random_blocks(length: int, block: int, *, heads: int, count: int, seed: int, internal: bool = True) -> np.ndarray:
    """A table R of random blocks: for each head and row, `count` different blocks that the row does not see anyway.

    Args:
        length: length of the sequence.
        block: tokens per block.
        heads: number of different patterns.
        count: r, at least 0.
        seed: seed of NumPy's generator, a nonnegative int.
        internal: True for `bigbird_mask`, False for `bigbird_etc_mask`.

    Returns:
        int32 `[heads, n - 2, r]` (`[heads, n, r]` for `bigbird_etc_mask`), each row ascending.

    Raises:
        ValueError: there are too few blocks, as in `bigbird_mask`; a number is out of range; `internal` is not a flag.

    >>> random_blocks(10, 1, heads=2, count=2, seed=0).shape
    (2, 8, 2)
    """
    check_positive(length=length, block=block, heads=heads)
    check_counts(count=count, seed=seed)
    check_flags(internal=internal)
    blocks = _count_blocks(length, block, count, internal)
    taken = _visible_blocks(blocks, internal)
    order = np.random.default_rng(seed).random((heads, *taken.shape))
    return np.sort(np.argsort(np.where(taken, 2.0, order), axis=-1)[..., :count], axis=-1).astype(np.int32)


def _visible_blocks(blocks: int, internal: bool) -> np.ndarray:
    """For each row with random blocks, the blocks that it sees without them: the window and the global blocks."""
    rows = np.arange(1, blocks - 1) if internal else np.arange(blocks)
    seen = abs(rows[:, None] - np.arange(blocks)) <= 1
    if internal:
        seen[:, [0, -1]] = True
    return seen


def _count_blocks(length: int, block: int, count: int, internal: bool) -> int:
    """The number of blocks, after checking that enough remain to draw from."""
    blocks, needed = -(-length // block), count + (6 if internal else 4)
    if blocks < needed:
        raise ValueError(
            f"`length` must have at least {needed} blocks with {count} random ones in a row; got {blocks} blocks of "
            f"{block} in {length}. Rows would see everything: attend without a mask, or with smaller blocks."
        )
    return blocks


def _table(length: int, block: int, chosen: Any, *, internal: bool) -> Any:
    """Which blocks see which: booleans `[..., heads, n, n]`, a NumPy array if the random blocks are."""
    check_positive(length=length, block=block)
    chosen = as_known(chosen)
    check_shapes(kind=jnp.integer, random_blocks=(chosen, "... heads rows count"))
    blocks = _count_blocks(length, block, chosen.shape[-1], internal)
    seen = _visible_blocks(blocks, internal)
    if chosen.shape[-2] != len(seen):
        raise ValueError(
            f"`random_blocks` must have shape [heads, {len(seen)}, count] for {blocks} blocks; got {chosen.shape}."
        )
    if isinstance(chosen, np.ndarray) and chosen.size:
        _check_chosen(chosen, seen)
    table = seen | (chosen[..., None] == np.arange(blocks)).any(-2)
    if not internal:
        return table
    padding = [(0, 0)] * (table.ndim - 2) + [(1, 1), (0, 0)]
    backend: Any = np if isinstance(table, np.ndarray) else jnp
    return backend.pad(table, padding, constant_values=True)


def _check_chosen(chosen: np.ndarray, seen: np.ndarray) -> None:
    flat = chosen.reshape(-1, *chosen.shape[-2:])
    if not (chosen.min() >= 0 and chosen.max() < seen.shape[1]):
        raise ValueError(
            f"`random_blocks` must be blocks from 0 to {seen.shape[1] - 1}; got {chosen.min()} to {chosen.max()}."
        )
    rows = np.arange(len(seen))[:, None]
    for refused, what in (
        (seen[rows, flat], "repeat blocks that its rows see anyway"),
        (_duplicates(flat), "name a block twice in a row"),
    ):
        if refused.any():
            head, row, place = np.argwhere(refused)[0]
            raise ValueError(
                f"`random_blocks` must not {what}; head {head}, row {row + (len(seen) != seen.shape[1])} names block "
                f"{flat[head, row, place]}."
            )


def _duplicates(flat: np.ndarray) -> np.ndarray:
    """Where an entry repeats an earlier one of its row."""
    same = flat[..., :, None] == flat[..., None, :]
    return np.tril(same, -1).any(-1)

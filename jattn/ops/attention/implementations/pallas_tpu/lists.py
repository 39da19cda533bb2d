"""The tiles to visit as the kernels read them: one padded row for each query tile."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from ...plan import EMPTY, FULL, PARTIAL, Plan
from .geometry import Cut

FIRST = 2
"""Where the tiles of a row begin: before them stand the numbers of full and of visited tiles."""


def rows_of(states: Any, cut: Cut) -> Any:
    """int32 `[batch or 1, steps or 1, chunks, query tiles, FIRST + width]`.

    A row is `[full, visited, tile, tile, ...]`: `full` full tiles, then partial ones, each in ascending order, counted
    from the first tile of the chunk. A row of a known plan has room for the most tiles that any row visits.

    Args:
        states: as in `states_of`.
        cut: the sizes.
    """
    xp: Any = np if isinstance(states, np.ndarray) else jnp
    *outer, q_tiles, _ = states.shape
    states = states.reshape(*outer, q_tiles, cut.chunks, cut.chunk_tiles)
    states = xp.moveaxis(states, -2, -3)
    full, partial = states == FULL, states == PARTIAL
    rank = xp.where(full, 0, xp.where(partial, 1, 2)).astype(np.int32)
    tiles = xp.argsort(rank, axis=-1, stable=True).astype(np.int32)
    counts = xp.stack([full.sum(-1), (full | partial).sum(-1)], -1).astype(np.int32)
    if xp is np:
        tiles = tiles[..., : max(int(counts[..., 1].max(initial=0)), 1)]
    return xp.concatenate([counts, tiles], -1)


def states_of(plan: Plan, cut: Cut) -> Any:
    """The states of tiles as they are visited, `[batch or 1, steps or 1, query tiles, key tiles]`.

    The heads of a step visit a tile together. Full tiles with padding become partial ones.

    Args:
        plan: of tiles of `cut.q_tile` queries and `cut.kv_tile` keys, with the batch axes of the call.
        cut: the sizes.
    """
    states = cut.folded(plan.coarse((), cut.heads).states)
    xp: Any = np if isinstance(states, np.ndarray) else jnp
    q_tiles, kv_tiles = states.shape[-2:]
    edge = np.zeros((q_tiles, kv_tiles), bool)
    edge[-1:] |= cut.ragged[0]
    edge[:, -(-cut.kv_len // cut.kv_tile) - 1 :] |= cut.kv_len % cut.kv_tile != 0
    states = xp.where(edge & (states == FULL), np.uint8(PARTIAL), states)
    missing = cut.kv_tiles - kv_tiles
    if missing:
        states = xp.pad(states, ((0, 0), (0, 0), (0, 0), (0, missing)), constant_values=EMPTY)
    return states


def in_one_loop(states: Any) -> Any:
    """The states with full tiles as partial ones if there may be such: for tiles that cost so much more than a mask
    that a second loop, and its program, is not worth it."""
    if isinstance(states, np.ndarray):
        return states if (states != PARTIAL).all() else np.where(states == FULL, np.uint8(PARTIAL), states)
    return jnp.where(states == FULL, np.uint8(PARTIAL), states)

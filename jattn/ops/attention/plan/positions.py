"""Where queries and keys are: what a mask or a score must be told."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ....masks.base import Mask


def check_extent(mask: Mask, query_positions: Any, key_positions: Any) -> None:
    """No position is known to be beyond the grid, or the table, that a mask is made for."""
    for name, positions, size in zip(
        ("query_positions", "key_positions"), (query_positions, key_positions), mask.extent(), strict=True
    ):
        if size is not None and isinstance(positions, np.ndarray) and positions.size and positions.max() >= size:
            raise ValueError(
                f"`mask` is made for {size} positions, 0 to {size - 1}; the call has `{name}` up to {positions.max()}. "
                "If tokens stand in front of its grid, such as a class token, say how many: `Shifted(mask, 1)` of "
                "`jattn.masks`. If tokens stand behind it: `Shifted(mask, 0)`. By the grid they attend to nothing; "
                "join what they may attend to by `|`."
            )


def check_lone_query_positions(query_positions: Any, length: int, readers: Mapping[str, bool]) -> None:
    """With as many keys as queries, query positions alone leave open where the keys are, unless both readings agree.

    Args:
        query_positions: given without key positions.
        length: of queries and keys.
        readers: the names of arguments, and whether they look at key positions.
    """
    known = query_positions if isinstance(query_positions, np.ndarray) else None
    if known is not None and (known == np.arange(length)).all():
        return
    for name, reads in readers.items():
        if reads:
            raise ValueError(
                f"`query_positions` came alone, with as many keys as queries ({length}), and `{name}` looks at key "
                "positions: are the keys at the same positions, or at 0, 1, ...? Give `key_positions` too. In "
                "self-attention, also of packed sequences, they are the same, and `key_positions` alone will do. In a "
                f"cache: `key_positions=numpy.arange({length})`."
            )

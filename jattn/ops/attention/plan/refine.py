"""Refines doubtful tiles: evaluates them again in smaller boxes, down to single pairs.

Intervals forget how values are related: in `(start[k] <= q) & (q < stop[k])` the two bounds of a key are treated as
independent. A smaller box loses less, and a single pair loses nothing. A tile is known to be partial as soon as one of
its boxes is allowed and another is not, so the diagonal of a causal mask needs one pass. If doubt remains, the tile is
examined key by key and query by query, which is exact for lookups by one position, and then in smaller boxes.

Only plans that are known at trace time are refined, and only within a budget: refinement saves run time and costs
tracing time. So two kinds of plan stay wider than necessary: long plans with more than a few thousand partial tiles,
and plans of traced arrays whose formula looks up both bounds of an interval by one position, takes remainders of a
distance, or compares unsorted table entries of both sides.
"""

import dataclasses
import math

import numpy as np

from .intervals import Question

BUDGET = 2**21
"""The most values that are evaluated for one plan, about 0.2 s on one core. If a single pass over all doubtful tiles
needs more, none is refined."""
CUT = 8
"""A box is cut into this many parts per side."""
SMALL = 16
"""Sides up to this length are cut into single positions at once."""

EMPTY, PARTIAL, FULL = 0, 1, 2


@dataclasses.dataclass
class _Boxes:
    """Boxes of one size, each inside one tile of the plan.

    Attributes:
        tile: the index of the doubtful tile that each box belongs to.
        starts: the first query and the first key of each, `[2, boxes]`.
        sizes: the number of queries and keys of a box.
    """

    tile: np.ndarray
    starts: np.ndarray
    sizes: tuple[int, int]

    def __len__(self) -> int:
        return len(self.tile)

    def chosen(self, which: np.ndarray) -> "_Boxes":
        return _Boxes(self.tile[which], self.starts[:, which], self.sizes)


def refined(question: Question, states: np.ndarray, q_tile: int, k_tile: int) -> np.ndarray:
    """The states of a known plan in which PARTIAL remains only where it is true, or where the budget ends.

    Args:
        question: the question that the plan answers.
        states: `[batch..., head, query tiles, key tiles]`.
        q_tile: queries per tile.
        k_tile: keys per tile.
    """
    alike = states.shape[:-2]
    everywhere = np.broadcast_to(states, (*question.lead, *states.shape[-2:]))
    sizes = min(q_tile, question.lengths[0]), min(k_tile, question.lengths[1])
    count = np.count_nonzero(everywhere == PARTIAL)
    if count == 0 or count * _cost(question, sizes, _parts(sizes)) > BUDGET:
        return states
    states = everywhere.copy()
    doubtful = np.argwhere(states == PARTIAL)
    states[tuple(doubtful.T)] = search(question, doubtful, q_tile, k_tile, BUDGET).verdicts()
    for axis, size in enumerate(alike):  # an array may have a head axis and make no difference
        if size == 1 and (states == states.take([0], axis)).all():
            states = states.take([0], axis)
    return states


def search(question: Question, tiles: np.ndarray, q_tile: int, k_tile: int, budget: int) -> "Search":
    """Examine some tiles in smaller and smaller boxes.

    Args:
        question: the question about the tiles.
        tiles: the index of each tile in the grid, `[tiles, axes]`.
        q_tile: queries per tile.
        k_tile: keys per tile.
        budget: see `BUDGET`.
    """
    found = Search(question, tiles, q_tile, k_tile, budget)
    boxes = found.cut(found.whole(), _parts(found.sizes))
    for strip in ((found.sizes[0], 1), (1, found.sizes[1])):
        still = np.unique(boxes.tile)
        if boxes.sizes == (1, 1) or len(still) * _cost(question, found.sizes, strip) > found.budget:
            break
        boxes = boxes.chosen(np.isin(boxes.tile, found.cut(found.whole().chosen(still), strip).tile))
    while len(boxes) and boxes.sizes != (1, 1):
        boxes = found.cut(boxes, _parts(boxes.sizes))
    return found


def _parts(sizes: tuple[int, int]) -> tuple[int, int]:
    """The size of the parts that a box is cut into."""
    q, k = (1 if size <= SMALL else -(-size // CUT) for size in sizes)
    return q, k


def _cost(question: Question, sizes: tuple[int, int], parts: tuple[int, int]) -> int:
    """The number of values that one pass over a box evaluates."""
    q, k = sizes
    rank = question.rank
    cost = -(-q // parts[0]) * -(-k // parts[1]) + q + k
    for one in question.inputs:
        layout, own = one.shape[:rank], one.shape[rank:]
        if set(layout) > {1}:
            cost += math.prod(own) * (q if layout[-2] > 1 else 1) * (k if layout[-1] > 1 else 1)
    return cost


class Search:
    """What is known so far about some tiles.

    Attributes:
        some_allowed: whether some pair of the tile is allowed.
        some_refused: whether some pair is not.
        unsettled: whether a part was not examined, or a single pair is unknown.
        undecided: whether a single pair is unknown.
    """

    def __init__(self, question: Question, tiles: np.ndarray, q_tile: int, k_tile: int, budget: int):
        self.question, self.lead, self.budget = question, tiles[:, :-2], budget
        self.sizes = min(q_tile, question.lengths[0]), min(k_tile, question.lengths[1])
        self.starts = tiles[:, -2:].T * np.array([[q_tile], [k_tile]])
        self.ends = np.minimum(self.starts + np.array(self.sizes)[:, None], np.array(question.lengths)[:, None])
        self.some_allowed = np.zeros(len(tiles), bool)
        self.some_refused = np.zeros(len(tiles), bool)
        self.unsettled = np.zeros(len(tiles), bool)
        self.undecided = np.zeros(len(tiles), bool)

    def whole(self) -> "_Boxes":
        return _Boxes(np.arange(len(self.lead)), self.starts, self.sizes)

    def tile(self, number: int) -> Question:
        """The question restricted to one of the tiles."""
        return self.asked(self.whole().chosen(np.array([number])))

    def verdicts(self) -> np.ndarray:
        found = np.where(self.some_allowed, FULL, EMPTY)
        partial = self.unsettled | (self.some_allowed == self.some_refused)
        return np.where(partial, PARTIAL, found).astype(np.uint8)

    def cut(self, boxes: _Boxes, sizes: tuple[int, int]) -> _Boxes:
        """Examine the parts of boxes. Returns the parts that are still in doubt."""
        cost = _cost(self.question, boxes.sizes, sizes)
        fit = self.budget // cost
        self.unsettled[boxes.tile[fit:]] = True
        boxes = boxes.chosen(np.arange(min(fit, len(boxes))))
        self.budget -= cost * len(boxes)
        if not len(boxes):
            return boxes
        every, any_ = self.asked(boxes).allowed(*sizes)
        shape = (len(boxes), *(-(-size // part) for size, part in zip(boxes.sizes, sizes, strict=True)))
        every, any_ = np.broadcast_to(every & any_, shape), np.broadcast_to(any_, shape)
        self.some_allowed[boxes.tile[every.any((1, 2))]] = True
        self.some_refused[boxes.tile[~any_.all((1, 2))]] = True
        doubt = any_ & ~every
        doubt[self.some_allowed[boxes.tile] & self.some_refused[boxes.tile]] = False
        box, *parts = np.nonzero(doubt)
        tile = boxes.tile[box]
        starts = np.stack([boxes.starts[side, box] + parts[side] * sizes[side] for side in (0, 1)])
        starts = np.minimum(starts, self.ends[:, tile] - 1)
        if sizes == (1, 1):
            self.unsettled[tile] = self.undecided[tile] = True
        return _Boxes(tile, starts, sizes)

    def asked(self, boxes: _Boxes) -> Question:
        """The question restricted to these boxes: `[box, query, key, own...]`."""
        rank = self.question.rank
        q, k = (
            np.minimum(
                boxes.starts[side][:, None] + np.arange(boxes.sizes[side]), self.ends[side][boxes.tile][:, None] - 1
            )
            for side in (0, 1)
        )
        lead = self.lead[boxes.tile]
        inputs = []
        for one in self.question.inputs:
            one = np.asarray(one)
            shape = one.shape
            if set(shape[:rank]) <= {1}:
                inputs.append(one.reshape((1, 1, 1, *shape[rank:])))
                continue
            place = [lead[:, axis, None, None] if shape[axis] > 1 else 0 for axis in range(rank - 2)]
            place.append(q[:, :, None] if shape[rank - 2] > 1 else np.zeros((1, 1, 1), int))
            place.append(k[:, None, :] if shape[rank - 1] > 1 else np.zeros((1, 1, 1), int))
            inputs.append(one[tuple(place)])
        return Question(self.question.closed, inputs, 3)

"""Rows about sparse patterns: a mask of jattn.variants.sparse, or of a grid, and its definition pair by pair."""

import itertools

import numpy as np

from jattn import masks
from jattn.masks import BlockDiffusion, BlockedLocal
from jattn.variants.sparse import (
    bigbird_etc_mask,
    bigbird_mask,
    fixed_mask,
    longformer_mask,
    positions_in_documents,
    random_blocks,
    shared_prefix_mask,
    strided_mask,
    tree_mask,
)

from .case import Arrays, Case, draw, mask_row


def _window(size):
    return lambda q, k: (k <= q) & (q - k < size)


def _columns(stride):
    return lambda q, k: (k <= q) & ((q - k) % stride == 0)


def _own_block(size):
    return lambda q, k: (k <= q) & (q // size == k // size)


def _summaries(size, count):
    return lambda q, k: (k <= q) & (k % size >= size - count)


def _either(*parts):
    return lambda q, k: np.any(np.broadcast_arrays(*(part(q, k) for part in parts)), 0)


def _split(*parts):
    """The first part on the first half of two heads, the second on the second."""
    return lambda q, k: np.concatenate(np.broadcast_arrays(*(part(q, k) for part in parts)), -3)


def _blocks(size, before, after):
    return lambda q, k: (q // size - before <= k // size) & (k // size <= q // size + after)


def _longformer(window, dilation, flags):
    """Window and dilation per head; flags `[batch or 1, length]`."""

    def allowed(q, k):
        width, step = (np.reshape(one, (-1, 1, 1)) for one in (window, dilation))
        near = (abs(q - k) <= width * step) & ((q - k) % step == 0)
        return near | flags[:, None, :, None] | flags[:, None, None, :]

    return allowed


GLOBAL = np.isin(np.arange(37), [0, 20])[None]


def _bigbird(table, block, length, extra=None):
    """Block by block; `extra` global tokens in front (ETC), or None for global blocks (ITC)."""
    blocks, first = -(-length // block), extra or 0

    def sees(head, i, j):
        if min(i, j) < first:
            return True
        row, column = (i - first) // block, (j - first) // block
        if extra is None:
            if {row, column} & {0, blocks - 1}:
                return True
            return abs(row - column) <= 1 or column in table[head, row - 1]
        return abs(row - column) <= 1 or column in table[head, row]

    whole = length + first
    found = np.zeros((len(table), whole, whole), bool)
    for pair in itertools.product(range(len(table)), range(whole), range(whole)):
        found[pair] = sees(*pair)
    return lambda q, k: found


def _drawn_blocks(rng):
    """For each of two heads and ten rows of twelve, two blocks that the row does not see anyway."""
    rows = [sorted(set(range(1, 11)) - {i - 1, i, i + 1}) for i in range(1, 11)]
    return np.array([[rng.choice(row, 2, replace=False) for row in rows] for _ in range(2)], np.int32)


INTERNAL = random_blocks(63, 8, heads=2, count=2, seed=0)
EXTERNAL = random_blocks(34, 5, heads=2, count=1, seed=0, internal=False)


def _tree(parents, prefix):
    """Up from each node to the root."""

    def allowed(q, k):
        found = np.zeros((len(parents), 1, parents.shape[1], k.shape[-1]), bool)
        for one, (row, start) in enumerate(zip(parents, prefix, strict=True)):
            found[one, 0, :, :start] = True
            for node in range(len(row)):
                at = node
                while at >= 0:
                    found[one, 0, node, start + at] = True
                    at = row[at]
        return found

    return allowed


def _drawn_parents(rng):
    """Two trees of nine nodes; in the second, children come before their parents."""
    first = np.array([rng.integers(-1, node) for node in range(9)])
    second = np.array([rng.integers(node + 1, 10) for node in range(9)])
    return np.stack([first, np.where(second == 9, -1, second)]).astype(np.int32)


def _diffusion(length, block):
    def allowed(q, k):
        own, other = q % length // block, k % length // block
        from_noisy = np.where(k < length, own == other, other < own)
        from_clean = (k >= length) & (other <= own)
        return np.where(q < length, from_noisy, from_clean) & (q < 2 * length) & (k < 2 * length)

    return allowed


def _neighborhood(shape, window, dilation):
    """On each axis, and in each class of coordinates modulo the dilation, a window that shifts inwards at borders."""
    axes = []
    for side, width, step in zip(shape, window, dilation, strict=True):
        near = np.zeros((side, side), bool)
        for at in range(side):
            own = list(range(at % step, side, step))
            start = min(max(at // step - width // 2, 0), len(own) - width)
            near[at, own[start : start + width]] = True
        axes.append(near)
    count = int(np.prod(shape))

    def allowed(q, k):
        inside = (q < count) & (k < count)
        places = (np.unravel_index(np.minimum(one, count - 1), shape) for one in (q, k))
        for near, at, other in zip(axes, *places, strict=True):
            inside = inside & near[at, other]
        return inside

    return allowed


def _drawn_ids(rng):
    """Three documents in each of two rows of 37."""
    ends = np.sort(rng.choice(np.arange(3, 34), (2, 2), replace=False), -1)
    return (1 + (np.arange(37) >= ends[:, :1]) + (np.arange(37) >= ends[:, 1:])).astype(np.int32)


def _same(ids):
    return lambda q, k: ids[:, None, :, None] == ids[:, None, None, :]


def _restarted(ids):
    """The place of each token behind the first of its document."""
    return np.stack([[place - list(row).index(one) for place, one in enumerate(row)] for row in ids])


def _packed(name, mask, truth, **options):
    """A pattern inside of packed documents, with positions that start again in each."""

    def pieces(a: Arrays):
        return {"mask": mask & masks.SameSegment(a["ids"]), "key_positions": positions_in_documents(a["ids"])}

    def meaning(a: Arrays):
        at = _restarted(a["ids"])
        own = lambda q, k: truth(q, k) & _same(a["ids"])(q, k)  # noqa: E731
        return {"mask": own, "query_positions": at, "key_positions": at}

    return Case(name, pieces, meaning, draw(ids=_drawn_ids), q_heads=2, kv_heads=1, bfloat16=False, **options)


PATTERNS = [
    mask_row(
        "strided, merged", lambda a: strided_mask(5), lambda a: _either(_window(5), _columns(5)), q_len=63, kv_len=63
    ),
    mask_row(
        "strided, split", lambda a: strided_mask(6, "split", q_heads=2), lambda a: _split(_window(6), _columns(6))
    ),
    mask_row(
        "strided, layer of columns", lambda a: strided_mask(5, "interleaved", layer=3), lambda a: _columns(5), q_heads=1
    ),
    mask_row("fixed, merged", lambda a: fixed_mask(6, 2), lambda a: _either(_own_block(6), _summaries(6, 2))),
    mask_row(
        "fixed, split",
        lambda a: fixed_mask(7, 1, "split", q_heads=2),
        lambda a: _split(_own_block(7), _summaries(7, 1)),
    ),
    mask_row(  # the queries before the first summary attend nothing
        "fixed, layer of summaries",
        lambda a: fixed_mask(10, 3, "interleaved", layer=1),
        lambda a: _summaries(10, 3),
        q_heads=1,
    ),
    _packed("fixed, in documents", fixed_mask(6, 2), _either(_own_block(6), _summaries(6, 2))),
    _packed(
        "window and sinks, in documents",
        masks.Causal() & (masks.SlidingWindow(3, 0) | masks.Sinks(2)),
        lambda q, k: (k <= q) & ((q - k <= 3) | (k < 2)),
        vmap=False,
    ),
    mask_row(
        "longformer, dilation and globals",
        lambda a: longformer_mask((4, 2), dilation=(1, 3), global_tokens=[0, 20], length=37),
        lambda a: _longformer((4, 2), (1, 3), GLOBAL),
    ),
    mask_row(
        "longformer, traced",
        lambda a: longformer_mask(a["reach"], dilation=a["dilation"], global_tokens=a["flags"]),
        lambda a: _longformer(a["reach"], a["dilation"], a["flags"]),
        arrays=draw(
            reach=lambda rng: rng.integers(1, 5, (2,)),
            dilation=lambda rng: rng.integers(1, 4, (2,)),
            flags=lambda rng: rng.random((2, 37)) < 0.1,
        ),
        bfloat16=True,
    ),
    mask_row(
        "longformer, causal",
        lambda a: longformer_mask(3, dilation=(2, 1), global_tokens=GLOBAL, causal=True),
        lambda a: lambda q, k: (k <= q) & _longformer(3, (2, 1), GLOBAL)(q, k),
    ),
    mask_row(
        "bigbird, a table for each head",
        lambda a: bigbird_mask(63, 8, INTERNAL),
        lambda a: _bigbird(INTERNAL, 8, 63),
        q_len=63,
        kv_len=63,
        tile=(8, 8),
        bfloat16=True,
    ),
    mask_row(
        "bigbird, traced tables",
        lambda a: bigbird_mask(36, 3, a["table"]),
        lambda a: _bigbird(a["table"], 3, 36),
        arrays=draw(table=_drawn_blocks),
        q_len=36,
        kv_len=36,
        tile=(6, 6),
    ),
    mask_row(
        "bigbird, extra globals", lambda a: bigbird_etc_mask(34, 5, EXTERNAL, 3), lambda a: _bigbird(EXTERNAL, 5, 34, 3)
    ),
    mask_row(
        "blocked local",
        lambda a: BlockedLocal(5, np.array([1, 2]), np.array([1, 0])),
        lambda a: _split(_blocks(5, 1, 1), _blocks(5, 2, 0)),
    ),
    mask_row(
        "blocked local, causal",
        lambda a: BlockedLocal(8, 1, 0) & masks.Causal(),
        lambda a: lambda q, k: (k <= q) & (q // 8 - k // 8 <= 1),
    ),
    Case(
        "tree of candidates",
        lambda a: {
            "mask": tree_mask(a["parents"], a["prefix"]),
            "query_positions": a["prefix"][:, None] + np.arange(9)[None],
        },
        lambda a: {
            "mask": _tree(a["parents"], a["prefix"]),
            "query_positions": a["prefix"][:, None] + np.arange(9)[None],
        },
        draw(parents=_drawn_parents, prefix=lambda rng: rng.integers(3, 15, (2,))),
        q_len=9,
        kv_len=27,
        kv_heads=1,
    ),
    mask_row("block diffusion", lambda a: BlockDiffusion(18, 5), lambda a: _diffusion(18, 5)),
    mask_row(
        "continuations of a prefix",
        lambda a: shared_prefix_mask(a["ids"] - 1),
        lambda a: lambda q, k: (k <= q) & (_same(a["ids"])(q, k) | (a["ids"] == 1)[:, None, None, :]),
        arrays=draw(ids=_drawn_ids),
        vmap=False,
    ),
    mask_row(
        "neighborhood, one axis, dilated",
        lambda a: masks.Neighborhood((37,), 5, 2),
        lambda a: _neighborhood((37,), (5,), (2,)),
    ),
    mask_row(
        "neighborhood",
        lambda a: masks.Shifted(masks.Neighborhood((5, 7), (3, 5))),
        lambda a: _neighborhood((5, 7), (3, 5), (1, 1)),
    ),
    mask_row(
        "neighborhood, three axes",
        lambda a: masks.Shifted(masks.Neighborhood((3, 4, 3), (1, 3, 3))),
        lambda a: _neighborhood((3, 4, 3), (1, 3, 3), (1, 1, 1)),
    ),
    mask_row(
        "axial",
        lambda a: masks.Shifted(masks.Axial((5, 7), 0)),
        lambda a: lambda q, k: (q % 7 == k % 7) & (q < 35) & (k < 35),
    ),
    mask_row(
        "axial, three axes",
        lambda a: masks.Shifted(masks.Axial((3, 4, 3), 1)),
        lambda a: lambda q, k: (q % 3 == k % 3) & (q // 12 == k // 12) & (q < 36) & (k < 36),
    ),
]

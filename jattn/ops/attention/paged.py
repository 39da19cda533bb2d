"""Attention over keys and values in pages of a pool, which a kernel reads through their table.

Token t of a sequence is at index `t mod page_size` of page `table[t // page_size]`. An implementation that reads pages
itself touches each once; all others need them gathered in front of each other, block by block. Which it is follows
from the target of the program, so both are derived from one description, `loop`: it is what runs elsewhere, and what
is differentiated.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.custom_batching import custom_vmap

from ...foundation.arrays import is_static
from ...foundation.shard_map import run_split
from ...foundation.sharding import Layout, layout, split_axes, split_of
from ...foundation.target import Target, by_target, target_of
from ..dispatch import WATCHER, Watched
from .call import Call, Pieces, prepare
from .implementations import ATTENTION
from .program import reverse_mode_only
from .split import layouts_of
from .tile import is_float

READERS = ("pallas_tpu",)
"""The implementations with a method `stream_pages`, and a method `refuses_pages` that says why it cannot run a call."""

QUERIES, LANES = 16, 128
"""They read pages for at most so many queries, and for features that are a multiple of this."""


class Pages(NamedTuple):
    """The arrays of a call.

    query: `[batch..., q_len, q_heads, k_dim]`.
    keys: the pool, `[pages, page_size, kv_heads, k_dim]`.
    values: likewise, or None if they are the keys.
    table: int32 `[batch..., slots]`; -1 for a page that holds no tokens of the sequence.
    pieces: checked, with `query_positions`; keys are at 0, 1, ...
    """

    query: jax.Array
    keys: jax.Array
    values: jax.Array | None
    table: jax.Array
    pieces: Pieces

    @property
    def pools(self) -> tuple[jax.Array, jax.Array]:
        """Keys and values."""
        return self.keys, self.keys if self.values is None else self.values

    def places(self) -> tuple[Any, Any]:
        """The shapes of keys and values in all places of the table; one object if they are the same."""
        lead = *self.query.shape[:-3], self.table.shape[-1] * self.keys.shape[1]
        key, value = (jax.ShapeDtypeStruct((*lead, *pool.shape[2:]), pool.dtype) for pool in self.pools)
        return key, key if self.values is None else value

    def call(self, target: Target | None) -> tuple[Call, jax.Array]:
        """The call on all places of the table, and its prepared query. Its similarity does not rewrite keys."""
        key, value = self.places()
        call, query, _ = prepare(self.query, key, value, self.pieces)
        return dataclasses.replace(call, target=target), query


def attend_pages(pages: Pages, loop: Callable[[Pages], jax.Array], implementation: Any) -> jax.Array:
    """`loop(pages)`, by an implementation that reads pages where there is one for the target.

    Args:
        pages: the arrays. Their batch is whole on every device; heads may be split over Explicit mesh axes.
        loop: computes `[batch..., q_len, q_heads, v_dim]` by gathering pages; hashable and differentiable.
        implementation: as in `jattn.attention`.
    """
    reader = _reader(implementation)
    target = target_of(pages.query, *pages.pools)
    elsewhere = target is not None and target.platform != "tpu" and not getattr(reader, "interpret", False)
    if reader is None or elsewhere or not _readable(pages):
        return loop(pages)
    run, rank = _Attend(reader, loop), pages.query.ndim - 3
    rows, pool = layout(rank, None, "head", None), Layout((None, None, "head", None))
    pools = [pool] if pages.values is None else [pool, pool]
    layouts: Any = [rows, *pools, layout(rank, None), layouts_of(pages.pieces)]
    split = split_of(pages, layouts)
    if split is None:
        return run(pages)
    if pages.keys.shape[-2] % split.parts("head"):
        return loop(pages)
    pieces = pages.pieces.indexed(pages.query.shape[:-3], pages.query.shape[-2], split_axes(pages.query))
    return run_split(run, (pages._replace(pieces=pieces),), (layouts,), rows, split, axes=split.explicit)


def _reader(implementation: Any) -> Any:
    """The implementation that reads pages, or its name, if it may be taken; else None."""
    name = getattr(implementation, "name", None)
    if name is not None:
        return implementation if name in READERS else None
    names = [row.name for row in ATTENTION.rows if row.name in READERS and implementation in (None, row.name)]
    return names[0] if names else None


def _readable(pages: Pages) -> bool:
    """Whether a kernel might read the pages; it is imported only then."""
    static = is_static(*pages.query.shape, *pages.table.shape)
    whole = all(pool.shape[-1] % LANES == 0 for pool in pages.pools)
    return static and whole and pages.query.shape[-3] <= QUERIES and not pages.pieces.similarity.rewrites_key


@dataclasses.dataclass(frozen=True)
class _Attend:
    """What runs for each target, differentiable and batched."""

    reader: Any
    loop: Callable[[Pages], jax.Array]

    def __call__(self, pages: Pages) -> jax.Array:
        loop, name = self.loop, ATTENTION.name if isinstance(self.reader, str) else self.reader.name
        leaves, tree = jax.tree.flatten(pages)
        floating = [is_float(leaf) for leaf in leaves]
        floats = [reverse_mode_only(leaf, name) for leaf, one in zip(leaves, floating, strict=True) if one]
        others = [leaf for leaf, one in zip(leaves, floating, strict=True) if not one]

        def joined(floats: list[Any], others: list[Any]) -> Pages:
            rest, whole = iter(floats), iter(others)
            return tree.unflatten([next(rest) if one else next(whole) for one in floating])

        @custom_vmap
        def chosen(floats, others):
            return by_target(self.for_target, joined(floats, others))

        @chosen.def_vmap
        def in_a_loop(size, batched, floats, others):
            del size
            axes = jax.tree.map(lambda one: 0 if one else None, batched)
            return jax.vmap(lambda *arrays: loop(joined(*arrays)), axes)(floats, others), True

        @jax.custom_vjp
        def run(floats, others):
            return chosen(floats, others)

        def run_forward(floats, others):
            return chosen(floats, others), (floats, others)

        def run_backward(saved, cotangent):
            floats, others = saved
            _, pull = jax.vjp(lambda floats: loop(joined(floats, others)), floats)
            return *pull(cotangent), None

        run.defvjp(run_forward, run_backward)
        return run(floats, others)

    def for_target(self, target: Target, pages: Pages) -> jax.Array:
        if target.platform != "tpu" and not getattr(self.reader, "interpret", False):
            return self.loop(pages)
        reader: Any = ATTENTION.named(self.reader)
        call, query = pages.call(target)
        if reader.refuses_pages(call, pages.keys) is not None:
            return self.loop(pages)
        watcher = WATCHER.get()
        if watcher is not None:
            named: dict[str, Any] = dict(zip(("query", "key", "value"), (pages.query, *pages.places()), strict=True))
            watcher(Watched(ATTENTION, call, named, None if isinstance(self.reader, str) else reader))
        found = reader.stream_pages(call, query, *pages.pools, pages.table)
        out = call.pieces.normalizer.rescale(found.out, found.lse, found.remainder)
        return out.astype(pages.pools[1].dtype)

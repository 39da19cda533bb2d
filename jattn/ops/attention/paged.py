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
from jax.sharding import AxisType

from ...foundation.arrays import is_static
from ...foundation.sharding import mesh_of
from ...foundation.target import Target, by_target, target_of
from .call import Call, Pieces, prepare
from .implementations import ATTENTION
from .program import reverse_mode_only
from .tile import is_float

READERS = ("pallas_tpu",)
"""The implementations with a method `stream_pages`, and a method `refuses_pages` that says why it cannot run a call."""


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

    def call(self, target: Target | None) -> tuple[Call, jax.Array]:
        """The call on all places of the table, and its prepared query. Its similarity does not rewrite keys."""
        batch, places = self.query.shape[:-3], self.table.shape[-1] * self.keys.shape[1]
        key, value = (jax.ShapeDtypeStruct((*batch, places, *pool.shape[2:]), pool.dtype) for pool in self.pools)
        value = key if self.values is None else value
        call, query, _ = prepare(self.query, key, value, self.pieces)  # type: ignore[arg-type]  (shapes suffice)
        return dataclasses.replace(call, target=target), query


def attend_pages(pages: Pages, loop: Callable[[Pages], jax.Array], implementation: Any) -> jax.Array:
    """`loop(pages)`, by an implementation that reads pages where there is one for the target.

    Args:
        pages: the arrays.
        loop: computes `[batch..., q_len, q_heads, v_dim]` by gathering pages; hashable and differentiable.
        implementation: as in `jattn.attention`.
    """
    reader = _reader(implementation)
    target = target_of(pages.query, *pages.pools)
    possible = (
        reader is not None
        and (target is None or target.platform == "tpu" or reader.interpret)
        and is_static(*pages.query.shape, *pages.table.shape)
        and not pages.pieces.similarity.rewrites_key
        and AxisType.Explicit not in mesh_of(pages.query, *pages.pools, pages.table).axis_types
    )
    if not possible or reader is None or reader.refuses_pages(pages.call(target or Target("tpu"))[0], pages.keys):
        return loop(pages)
    leaves, tree = jax.tree.flatten(pages)
    floating = [is_float(leaf) for leaf in leaves]
    floats = [reverse_mode_only(leaf, reader.name) for leaf, one in zip(leaves, floating, strict=True) if one]
    others = [leaf for leaf, one in zip(leaves, floating, strict=True) if not one]

    def joined(floats: list[Any], others: list[Any]) -> Pages:
        rest, whole = iter(floats), iter(others)
        return tree.unflatten([next(rest) if one else next(whole) for one in floating])

    @custom_vmap
    def chosen(floats, others):
        return by_target(_ByTarget(reader, loop), joined(floats, others))

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


def _reader(implementation: Any) -> Any:
    """The implementation that reads pages, if it may be taken; else None."""
    rows = {row.name: row for row in ATTENTION.rows}
    for name in READERS:
        if name in rows and (implementation is None or implementation == name):
            return rows[name].load()
        if getattr(implementation, "name", None) == name:
            return implementation
    return None


@dataclasses.dataclass(frozen=True)
class _ByTarget:
    """What runs for a target."""

    reader: Any
    loop: Callable[[Pages], jax.Array]

    def __call__(self, target: Target, pages: Pages) -> jax.Array:
        if target.platform != "tpu" and not self.reader.interpret:
            return self.loop(pages)
        call, query = pages.call(target)
        if self.reader.refuses_pages(call, pages.keys) is not None:
            return self.loop(pages)
        found = self.reader.stream_pages(call, query, *pages.pools, pages.table)
        out = call.pieces.normalizer.rescale(found.out, found.lse, found.remainder)
        return out.astype(pages.pools[1].dtype)

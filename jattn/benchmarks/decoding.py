"""The rows on decoding: one step with a cache, beside the same step with another cache."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .. import masks
from ..layers import caches
from .cases import Bar, Speed
from .sides import Run, Shape, Side

LENGTH, PLACES, WINDOW, PAGE = 4096, 65536, 1024, 128


def _at(cache: Any, length: int) -> Any:
    """The cache, as if each sequence had `length` tokens."""
    return dataclasses.replace(cache, lengths=jnp.full_like(cache.lengths, length))


def _ours(cache: Any, query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, Any]:
    """One step of jattn: the output, and the cache with its lengths as they were."""
    view, after = cache.append(key, value)
    return view.attend(query, mask=masks.Causal()), dataclasses.replace(after, lengths=cache.lengths)


def _of_jax(cache: Any, query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, Any]:
    """The same with `jax.nn.dot_product_attention`, which computes with every place and masks those not filled."""
    _, after = cache.append(key, value)
    mask = jnp.arange(cache.places) < after.lengths[:, None, None, None]
    out = jax.nn.dot_product_attention(query, after.keys, after.values, mask=mask)
    return out, dataclasses.replace(after, lengths=cache.lengths)


def step(label: str, make: Callable[[Shape], Any], function: Callable[..., Any] = _ours) -> Side:
    """A compiled step, with the cache donated. It puts the lengths back, so that every step costs the same.

    Args:
        label: the label in the table.
        make: from a shape to a cache.
        function: from a cache and the query, key and value of a token to an output and a cache.
    """

    def build(shape: Shape) -> Run:
        compiled = jax.jit(function, donate_argnums=0)
        token = dataclasses.replace(shape, length=1)
        shapes = token.query(), token.key(), token.key()
        arrays = [jax.random.normal(jax.random.key(index), each) for index, each in enumerate(shapes)]
        cache = make(shape)

        def run() -> None:
            nonlocal cache
            out, cache = jax.block_until_ready(compiled(cache, *arrays))
            del out

        return run

    return Side(label, build)


def empty(spec: caches.Spec, shape: Shape) -> Any:
    """A cache for the keys of a shape."""
    return spec.create((shape.batch,), shape.kv_heads, shape.dim)


def contiguous(shape: Shape, places: int) -> Any:
    """A cache of `places` places that has `shape.length` tokens once the next one is appended."""
    return _at(empty(caches.Contiguous(places), shape), shape.length - 1)


def rolling(shape: Shape, position: int) -> Any:
    """A cache of a window of `shape.length` tokens, before the token at `position`."""
    return _at(empty(caches.Rolling(shape.length), shape), position)


def paged(shape: Shape, places: int) -> Any:
    """A pool of pages for `places` places that has `shape.length` tokens once the next one is appended."""
    pages = -(-places // PAGE)
    pool = caches.PageAllocator(pages, PAGE)
    table = pool.table([pool.allocate(shape.length) for _ in range(shape.batch)], pages)
    return _at(empty(caches.Paged(pages, PAGE, pages), shape).with_table(table), shape.length - 1)


def decode(length: int = LENGTH, long: int = PLACES) -> tuple[Speed, ...]:
    """The rows for a CPU.

    Args:
        length: tokens in the cache.
        long: places of a long cache.
    """
    window = min(WINDOW, length)
    usual, near = (Shape("Transformer base", each, q_heads=8, kv_heads=8, dim=64) for each in (length, window))
    roomy = step("jattn", functools.partial(contiguous, places=long))
    just = step(f"{length} places", functools.partial(contiguous, places=length))
    full = step(f"jax.nn, {long} places", functools.partial(contiguous, places=long), _of_jax)
    pages = step("jattn", functools.partial(paged, places=long))
    late, early = 1_000_000, 2 * window
    far = step("jattn", functools.partial(rolling, position=late))
    soon = step(f"at token {early}", functools.partial(rolling, position=early))
    return (
        Speed("filled", f"a step with {long} places, {length} of them filled", usual, roomy, just, Bar(1.5, True)),
        Speed("jax", f"a step with {long} places beside jax.nn", usual, roomy, full, Bar(4.0)),
        Speed("rolling", f"a step with a window of {window} at token {late}", near, far, soon, Bar(1.1, True)),
        Speed("paged", f"a step with pages of {PAGE} for {long} tokens", usual, pages, just, Bar(2.0, True)),
    )

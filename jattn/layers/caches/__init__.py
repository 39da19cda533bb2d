"""Caches of keys and values for decoding: a `Spec` is a kind of cache, a `Cache` holds arrays, a `View` is attended to.

cache = caches.Contiguous(4096).create((batch,), kv_heads, k_dim)
view, cache = cache.append(key, value)          # of the new tokens, projected and rotated
out = view.attend(query, mask=masks.Causal())   # their queries see all tokens so far
"""

from .base import Cache, Spec, View
from .contiguous import Contiguous, ContiguousCache
from .paged import Paged, PagedCache
from .pages import PageAllocator
from .rolling import Rolling, RollingCache

__all__ = [
    "Cache",
    "Contiguous",
    "ContiguousCache",
    "PageAllocator",
    "Paged",
    "PagedCache",
    "Rolling",
    "RollingCache",
    "Spec",
    "View",
]

"""The names of attention calls: the path of the calling layer in the model that was called.

Modules of Flax know their parameters but not their callers, and a user's own module may call `jattn.attention` from any
of its methods. So names are read from the call stack: `self` of each method of an nnx or linen module between the
recording and the attention, the model first. This takes place only while a recording is active.
"""

import sys
from contextvars import ContextVar
from types import FrameType
from typing import Any

Segment = tuple[FrameType, str]

SEGMENTS: ContextVar[tuple[Segment, ...]] = ContextVar("SEGMENTS", default=())
"""The names given by `named`, outermost first, each with the frame of its `with` statement."""


class named:
    """Name the attention calls within a block, for `jattn.record` and `jattn.recorded`.

    The name follows that of the module whose method the block is in, and precedes those of the modules that it calls.
    Blocks may be nested.

    Args:
        name: a part of a name, or several joined by dots.

    Raises:
        ValueError: `name` is not a text of dotted parts.

    >>> import jax, jattn
    >>> x = jax.random.normal(jax.random.key(0), (5, 2, 4))
    >>> with jattn.record() as seen, jattn.named("decoder.3"):
    ...     with jattn.named("self"):
    ...         y = jattn.attention(x, x, x)
    ...     with jattn.named("cross"):
    ...         y = jattn.attention(y, x, x)
    >>> list(seen)
    ['decoder.3.self', 'decoder.3.cross']
    """

    def __init__(self, name: str):
        parts = name.split(".") if isinstance(name, str) else [""]
        if not all(parts) or set("#*?[]") & set(name):
            raise ValueError(
                f"`name` must be text such as 'decoder.3.cross', without the characters # * ? [ ]; got {name!r}."
            )
        self.name = name
        self._tokens: list[Any] = []

    def __enter__(self) -> None:
        self._tokens.append(SEGMENTS.set((*SEGMENTS.get(), (sys._getframe(1), self.name))))

    def __exit__(self, *exception: Any) -> None:
        SEGMENTS.reset(self._tokens.pop())


def current_name(start: FrameType | None) -> str:
    """The name of the attention that is being called; empty for a call outside of modules and `named` blocks.

    Args:
        start: the frame in which the recording began. Modules whose methods were called before it are no part of the
            name.
    """
    given = list(SEGMENTS.get())
    found: list[Any] = []  # names and modules, innermost first
    frame: FrameType | None = sys._getframe(1)
    inside = True
    while frame is not None:
        here = [item for item in given if item[0] is frame]
        given = [item for item in given if item[0] is not frame]
        found.extend(name for _, name in reversed(here))
        inside = inside and frame is not start
        owner = _owner(frame) if inside else None
        if owner is not None and (not found or found[-1] is not owner):
            found.append(owner)
        frame = frame.f_back
    found = [*reversed(found), *(name for _, name in given)]  # at last those of generators, which are on no stack
    return ".".join(_joined(found))


def _owner(frame: FrameType) -> Any:
    """The Flax module whose method runs in a frame, or None."""
    code = frame.f_code
    if not code.co_argcount:
        return None
    first: Any = frame.f_locals.get(code.co_varnames[0])
    nnx, linen = sys.modules.get("flax.nnx"), sys.modules.get("flax.linen")
    if nnx is not None and isinstance(first, nnx.Module):
        return first
    if linen is not None and isinstance(first, linen.Module):
        return None if first.scope is None else first
    return None


def _joined(found: list[Any]) -> list[str]:
    """The parts of a name, from names and modules, outermost first.

    A module's path is relative to the nearest module before it that has it. Transformations of nnx call copies, which
    none has: their names follow that of the module which called the transformation.
    """
    parts: list[str] = []
    holders: list[tuple[Any, int]] = []  # modules so far, and the number of parts that name them
    for item in found:
        if isinstance(item, str):
            parts.append(item)
            continue
        for holder, count in reversed(holders):
            path = _path(holder, item)
            if path is not None:
                parts = parts[: len(parts) if holder is holders[-1][0] else count] + path
                break
        holders.append((item, len(parts)))
    return parts


def _path(holder: Any, module: Any) -> list[str] | None:
    """The path of a module in another, or None if it is not in it."""
    linen = sys.modules.get("flax.linen")
    if linen is not None and isinstance(module, linen.Module):
        inside = isinstance(holder, linen.Module) and module.path[: len(holder.path)] == holder.path
        return list(module.path[len(holder.path) :]) if inside else None
    nnx = sys.modules["flax.nnx"]
    if not isinstance(holder, nnx.Module):
        return None
    return next((list(map(str, path)) for path, node in nnx.iter_graph(holder) if node is module), None)

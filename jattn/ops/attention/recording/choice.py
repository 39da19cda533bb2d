"""Which attention calls, heads and queries to record."""

import dataclasses
import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ....foundation.arrays import describe

Layers = str | int | Sequence[str | int] | None
Indices = int | Sequence[int] | None
KEPT = ("weights", "query", "key")
Keep = str | Sequence[str]


def matches(name: str, pattern: str) -> bool:
    """Whether a name is that of the pattern, or below it, or one of several calls of it.

    >>> [matches("decoder.3.cross", one) for one in ("decoder", "decoder.*.cross", "decoder.3.cross", "decoder.3.c")]
    [True, True, True, False]
    >>> matches("encoder.layer#2", "encoder.layer"), matches("encoder.layer#2", "encoder.layer#2")
    (True, True)
    """
    below = (f"{pattern}.*", f"{pattern}#*")
    return any(fnmatch.fnmatchcase(name, one) for one in (pattern, *below))


def abbreviates(short: str, name: str) -> bool:
    """Whether the parts of `short` are among those of a name, in their order.

    >>> [abbreviates(one, "decoder.blocks.3.cross#1") for one in ("decoder.3.cross", "cross#1", "3.decoder", "cross#0")]
    [True, True, False, False]
    """
    name = name if "#" in short else name.partition("#")[0]
    rest = iter(name.split("."))
    return all(part in rest for part in short.split("."))


@dataclasses.dataclass(frozen=True)
class Choice:
    """What to record.

    Attributes:
        layers: patterns of names, and numbers of calls in their order; None for all.
        heads: indices of query heads; None for all.
        queries: indices of queries; None for all.
        limit: the largest number of bytes.
        keep: which arrays, some of `KEPT` in that order.
    """

    layers: tuple[str | int, ...] | None
    heads: tuple[int, ...] | None
    queries: tuple[int, ...] | None
    limit: int
    keep: tuple[str, ...]

    @classmethod
    def of(cls, layers: Any, heads: Any, queries: Any, limit: Any, keep: Any = "weights") -> "Choice":
        """The checked arguments of `record`.

        Raises:
            ValueError: an argument is of the wrong kind.
        """
        if not isinstance(limit, int) or isinstance(limit, bool) or limit <= 0:
            raise ValueError(f"`limit` must be a positive number of bytes, such as `2**30`; got {describe(limit)}.")
        return cls(_layers(layers), _indices("heads", heads), _indices("queries", queries), limit, _keep(keep))

    def has(self, name: str, number: int) -> bool:
        """Whether to record the call of this name, the `number`-th of all."""
        if self.layers is None:
            return True
        return any(number == one if isinstance(one, int) else matches(name, one) for one in self.layers)

    def check_met(self, names: Sequence[str]) -> None:
        """Check that each pattern and number stands for some call.

        Args:
            names: the names of all calls, in their order.

        Raises:
            ValueError: one does not; the message lists the names.
        """
        for one in self.layers or ():
            met = one < len(names) if isinstance(one, int) else any(matches(name, one) for name in names)
            if not met:
                raise ValueError(
                    f"`layers` must be names of layers that attended, patterns such as 'decoder.*.cross', or numbers "
                    f"of calls below {len(names)}; got {one!r}. These attended: {listed(names)}."
                )


def listed(names: Sequence[str], most: int = 40) -> str:
    """Names for an error message.

    >>> listed(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _keep(keep: Any) -> tuple[str, ...]:
    found = (keep,) if isinstance(keep, str) else tuple(keep) if isinstance(keep, Iterable) else ()
    if not found or not all(isinstance(one, str) and one in KEPT for one in found):
        raise ValueError(f"`keep` must be some of {', '.join(map(repr, KEPT))}; got {keep!r}.")
    return tuple(name for name in KEPT if name in found)


def _layers(layers: Any) -> tuple[str | int, ...] | None:
    if layers is None:
        return None
    found = (layers,) if isinstance(layers, str | int | np.integer) else layers
    found = tuple(found) if isinstance(found, Iterable) else ()
    found = tuple(int(one) if isinstance(one, np.integer) else one for one in found)
    right = all(isinstance(one, str | int) and not isinstance(one, bool) for one in found)
    if not found or not right or any(isinstance(one, int) and one < 0 for one in found):
        raise ValueError(
            "`layers` must be a name such as 'decoder.3.cross', a pattern such as 'decoder.*', the number of a call "
            f"(0 for the first), or several of these; got {layers!r}."
        )
    return found


def _indices(name: str, indices: Any) -> tuple[int, ...] | None:
    if indices is None:
        return None
    try:
        found = np.atleast_1d(np.asarray(indices))
    except Exception:  # a tracer
        found = np.zeros(0)
    if found.ndim != 1 or not found.size or not np.issubdtype(found.dtype, np.integer):
        raise ValueError(f"`{name}` must be one or several indices that are known while tracing; got {indices!r}.")
    return tuple(map(int, found))

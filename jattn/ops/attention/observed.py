"""Who is shown every attention besides its caller: `jattn.record`, which recomputes some of the weights."""

import abc
import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

from .partial import Partial

Result = TypeVar("Result", Any, Partial)
Arrays = tuple[Any, Any, Any]


class Observer(abc.ABC):
    """Sees the arrays and pieces of each attention, as its caller gave them."""

    @abc.abstractmethod
    def attend(self, run: Callable[[], Any], arrays: Arrays, pieces: Any) -> Any:
        """The result of `run()`, in the same form.

        Args:
            run: computes the output `[..., q_len, q_heads, v_dim]`, or a `Partial`.
            arrays: query, key and value.
            pieces: the `Pieces` of the call.
        """

    @abc.abstractmethod
    def inside(self, function: Callable[[list[Any]], Any]) -> "Inside":
        """`function`, for a `jax.shard_map` of this library, observed there."""

    @abc.abstractmethod
    def adopt(self, inside: Any, result: Any, arrays: Any) -> Any:
        """Accept the whole arrays of what `inside` returned, and return `result`. It is not called again."""


class Inside(abc.ABC):
    """A function of a list of arrays that returns its result and a tree of arrays for `Observer.adopt`.

    Attributes:
        operands: more arrays, to append to those of the function.
    """

    operands: list[Any]

    @abc.abstractmethod
    def __call__(self, arrays: list[Any]) -> tuple[Any, Any]:
        """The result for these arrays and the operands. It may be traced any number of times."""


OBSERVER: ContextVar[Observer | None] = ContextVar("OBSERVER", default=None)
"""None unless a recording is active, so that other calls pay for one look at this variable, and no equation."""


def observed(run: Callable[[], Result], arrays: Callable[[], Arrays], pieces: Any) -> Result:
    """`run()`, shown to the observer if there is one. `arrays` is a function because some arrays are made for it."""
    observer = OBSERVER.get()
    return run() if observer is None else observer.attend(run, arrays(), pieces)


def is_observed() -> bool:
    """Whether a recording is active."""
    return OBSERVER.get() is not None


@contextlib.contextmanager
def observer_is(observer: Observer | None) -> Iterator[None]:
    """Within it, attention is shown to this observer; None for parts of a call that is observed as a whole."""
    token = OBSERVER.set(observer)
    try:
        yield
    finally:
        OBSERVER.reset(token)

"""How a call finds the implementation that runs it: one contract for all operations.

An operation (attention, a recurrence) has one *definition* and several *implementations*: everything at once, in tiles,
a kernel for one platform. Implementations differ in speed and in what they refuse, never in meaning.

1. *Refusal comes before work.* `refuses(call)` decides from the pieces, shapes and dtypes of a call, never from values,
   and gives a reason. By default the first implementation that does not refuse runs. If a named one refuses, that is an
   error, `Unsupported`, with the verdicts of all others. Nothing is replaced silently.
2. *The order is data.* An `Operation` is an ordered list of `Row`s: a name, where the class is, and the platforms on
   which the default considers it. A kernel for a new platform is a folder with an `Implementation`, and one row. Its
   module is imported when a call for that platform needs it, not before.
3. *The platform is an argument.* The order depends on the `Target` that a program is compiled for, and every decision
   takes it as an argument. `explain(..., target="tpu v5e")` works on any machine.

The contract of an implementation:

    refuses(call) -> reason | None        whether it can run the call, and if not, why
    run(call, *arrays) -> results         the forward computation
    gradients(call, ...) -> gradients     the backward computation, from the results of the whole call
    describe(call) -> (plan, memory)      what `explain` prints

`call` is a frozen, checked record of everything but the operation's main arrays. The operation defines the arguments
and results of `run` and `gradients`; see `jattn.ops.attention.implementations.registry` for attention.

`gradients` is separate from `run`, rather than left to JAX, because code that splits a call into parts (a ring of
devices, a kernel per part) must differentiate each part with the results of the whole.
"""

import abc
import dataclasses
import functools
import importlib
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, ClassVar

from ..foundation.deprecation import Deprecation
from ..foundation.target import Target, expected_target


class Unsupported(ValueError):
    """A call that no implementation, or not the named one, can run. The message has the reason of each."""


class Implementation(abc.ABC):
    """One way to compute an operation.

    To add one, implement the abstract methods and add a `Row` to the operation's registry.

    Attributes:
        name: the name by which a caller asks for it.
        reverse_mode_only: whether it has its own `gradients`, which JAX must use. Otherwise JAX differentiates through
            `run`, in any mode and order.
    """

    name: str
    reverse_mode_only: ClassVar[bool] = False

    @abc.abstractmethod
    def refuses(self, call: Any) -> str | None:
        """Why this call cannot run here, or None if it can. Must not depend on the values of arrays."""

    @abc.abstractmethod
    def run(self, call: Any, *arrays: Any) -> Any:
        """The results of a call that is not refused."""

    def gradients(self, call: Any, *arrays: Any) -> Any:
        """The gradients of a call, or of a part of one, from the results of the whole call.

        Raises:
            Unsupported: this implementation has none of its own; JAX differentiates `run`.
        """
        del call, arrays
        raise Unsupported(f"implementation `{self.name}` has no `gradients` of its own: differentiate `run`.")

    @abc.abstractmethod
    def describe(self, call: Any) -> tuple[Any, str]:
        """What `explain` prints: the plan of the call (None if there is none), and the memory in words.

        The memory is that of a forward and backward pass, beside inputs, outputs and gradients.
        """


@dataclasses.dataclass(frozen=True)
class Row:
    """Where an implementation is, and the platforms on which the default considers it.

    Args:
        name: the name of the implementation.
        module: the dotted name of its module.
        attribute: its class in that module, constructed without arguments.
        platforms: platforms of `jattn.foundation.target.PLATFORMS`; None for all.
        remedy: what to do elsewhere, for the message; a sentence without its period.
    """

    name: str
    module: str
    attribute: str
    platforms: tuple[str, ...] | None = None
    remedy: str = ""

    def load(self) -> Implementation:
        """The implementation. Its module is imported now."""
        return _load(self.module, self.attribute)

    def elsewhere(self, target: Target) -> str | None:
        """Why it is not for this target, or None if it is."""
        if self.platforms is None or target.platform in self.platforms:
            return None
        return f"it is for {' and '.join(self.platforms)}, and the program is for {target.platform}"

    def refused(self, target: Target) -> str | None:
        """`elsewhere`, for a caller who asked for it."""
        reason = self.elsewhere(target)
        return f"{reason}. {self.remedy}" if reason and self.remedy else reason


@functools.cache
def _load(module: str, attribute: str) -> Implementation:
    return getattr(importlib.import_module(module), attribute)()


@dataclasses.dataclass(frozen=True)
class Operation:
    """The implementations of an operation, in the order in which the default tries them.

    Args:
        name: the name of the operation.
        rows: the first row that is for the target and does not refuse a call runs it.
        renamed: old names of implementations, as (old, new, deprecation).

    >>> from jattn.ops.attention.implementations import ATTENTION
    >>> [row.name for row in ATTENTION.rows]
    ['pallas_tpu', 'tiled', 'reference']
    """

    name: str
    rows: tuple[Row, ...]
    renamed: tuple[tuple[str, str, Deprecation], ...] = ()

    @property
    def depends_on_platform(self) -> bool:
        """Whether the default may differ between platforms."""
        return any(row.platforms is not None for row in self.rows)

    def named(self, implementation: str | Implementation) -> Implementation:
        """The implementation of that name. An `Implementation` is returned unchanged.

        Raises:
            ValueError: there is no such name; the message lists all names.
        """
        if isinstance(implementation, Implementation):
            return implementation
        return self._row(implementation).load()

    def _row(self, name: Any) -> Row:
        for old, new, found in self.renamed:
            if isinstance(name, str) and name == old:
                found.warn()
                name = new
        for row in self.rows:
            if isinstance(name, str) and row.name == name:
                return row
        if isinstance(name, type) and issubclass(name, Implementation):
            raise ValueError(
                f"`implementation` must be an object, not the class `{name.__name__}`: write `{name.__name__}()`."
            )
        known = ", ".join(repr(row.name) for row in self.rows)
        raise ValueError(f"`implementation` must be None, an `Implementation`, or one of {known}; got {name!r}.")

    def choose(
        self, call: Any, implementation: str | Implementation | None = None, target: Target | None = None
    ) -> Implementation:
        """The implementation that runs a call: the requested one, or the first that does not refuse.

        Args:
            call: checked.
            implementation: None, a name, or an `Implementation`.
            target: what the program is compiled for; by default, what JAX compiles for on this machine.

        Raises:
            ValueError: there is no implementation of that name.
            Unsupported: the requested implementation refuses, or all do; with the reason of each.
        """
        target = target or expected_target()
        if implementation is None:
            for row in self.rows:
                if row.elsewhere(target) is None and row.load().refuses(call) is None:
                    return row.load()
            raise Unsupported(f"no implementation accepts this call: {self._listed(call, target)}.")
        given = isinstance(
            implementation, Implementation
        )  # an object is accepted on any platform: a kernel may run in interpret mode
        reason = None if given else self._row(implementation).refused(target)
        chosen = self.named(implementation) if reason is None else None
        if chosen is not None:
            reason = chosen.refuses(call)
            if reason is None:
                return chosen
        name = implementation.name if isinstance(implementation, Implementation) else implementation
        others = self._listed(call, target, without=name)
        raise Unsupported(f"implementation `{name}` refuses this call: {reason}. Others: {others}.")

    def verdicts(self, call: Any, target: Target | None = None) -> dict[str, str | None]:
        """Why each implementation cannot run the call, or None if it can. Imports only those for the target."""
        target = target or expected_target()
        return {row.name: row.elsewhere(target) or row.load().refuses(call) for row in self.rows}

    def _listed(self, call: Any, target: Target, without: str | None = None) -> str:
        verdicts = self.verdicts(call, target).items()
        return "; ".join(f"`{name}` {reason or 'accepts'}" for name, reason in verdicts if name != without)

    def reasons(
        self, call: Any, implementation: str | Implementation | None, target: Target | None = None
    ) -> tuple[Implementation, dict[str, str]]:
        """The implementation that runs a call, and why each other one does not.

        Raises:
            Unsupported: as in `choose`.
        """
        chosen = self.choose(call, implementation, target)
        asked = f"`{chosen.name}` was asked for"
        accepts = f"it would accept, but `{chosen.name}` comes first" if implementation is None else asked
        verdicts = self.verdicts(call, target).items()
        return chosen, {name: reason or accepts for name, reason in verdicts if name != chosen.name}


@dataclasses.dataclass(frozen=True)
class Watched:
    """A call that is about to run, as reported to `WATCHER`.

    Args:
        operation: the operation.
        call: checked.
        arrays: the operation's main arrays, by name.
        implementation: as the caller requested it.
    """

    operation: Operation
    call: Any
    arrays: Mapping[str, Any]
    implementation: str | Implementation | None


WATCHER: ContextVar[Callable[[Watched], None] | None] = ContextVar("WATCHER", default=None)
"""Called before a call of any operation runs."""

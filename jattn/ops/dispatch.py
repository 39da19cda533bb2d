"""How a call finds the implementation that runs it: one contract for every operation.

An operation (attention, a recurrence) has a *definition* and may be computed in several ways: all at once, in tiles, by
a kernel for one platform. These are its *implementations*. They differ in speed and in what they refuse, never in
meaning. Three decisions follow from that:

1. *Refusal comes before work.* `refuses(call)` looks at the pieces, shapes and dtypes of a call, never at values, and
   answers with a reason. So the default can take the first implementation that does not refuse; one that was named and
   refuses is an error, `Unsupported`, with the verdicts of all the others. Nothing is replaced silently.
2. *Which comes first is data.* An `Operation` is an ordered list of `Row`s, each with a name, where its class is, and
   the platforms on which the default considers it. A kernel for a new platform is a folder with an `Implementation` and
   one row. Its module is imported when a call for that platform asks for it, not before.
3. *The platform is part of the question.* The order depends on the `Target` that a program is compiled for, and every
   decision takes it as an argument. `explain(..., target="tpu v5e")` asks the same question from any machine.

What an implementation is asked to do:

    refuses(call) -> reason | None        can it, and if not, why
    run(call, *arrays) -> results         the forward computation
    gradients(call, ...) -> gradients     the backward computation, from the results of the whole
    describe(call) -> (plan, memory)      what `explain` prints

`call` is a frozen record of everything but the operation's main arrays, already checked. What `run` and `gradients`
take and return is the operation's to say; see `jattn.ops.attention.implementations.registry` for
attention's.

`gradients` is apart from `run`, rather than left to JAX, because whoever cuts a call into parts (a ring of devices, a
kernel for each part) must differentiate the parts with the results of the whole.
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
    """No implementation, or not the one that was named, can run a call; the message gives each one's reason."""


class Implementation(abc.ABC):
    """A way to compute an operation.

    Attributes:
        name: what a caller asks for it by.
        reverse_mode_only: whether JAX must differentiate it by `gradients`. Otherwise it differentiates through `run`,
            in any mode and order.
    """

    name: str
    reverse_mode_only: ClassVar[bool] = False

    @abc.abstractmethod
    def refuses(self, call: Any) -> str | None:
        """Why this call cannot be run here, or None if it can. Decided without looking at any value."""

    @abc.abstractmethod
    def run(self, call: Any, *arrays: Any) -> Any:
        """The results of a call that is not refused."""

    def gradients(self, call: Any, *arrays: Any) -> Any:
        """The gradients of a call, or of a part of one, from the results of the whole.

        Raises:
            Unsupported: this implementation has none of its own.
        """
        del call, arrays
        raise Unsupported(f"implementation `{self.name}` has no `gradients` of its own: differentiate `run`.")

    @abc.abstractmethod
    def describe(self, call: Any) -> tuple[Any, str]:
        """The plan that the call would run with (None where there is none); and, in words, the memory that a forward
        and backward pass takes beside inputs, outputs and gradients."""


@dataclasses.dataclass(frozen=True)
class Row:
    """Where an implementation is, and where the default considers it.

    Args:
        name: of the implementation.
        module: the dotted name of the module to import.
        attribute: its class there, made without arguments.
        platforms: those of `jattn.foundation.target.PLATFORMS` it is for; None for all.
    """

    name: str
    module: str
    attribute: str
    platforms: tuple[str, ...] | None = None

    def load(self) -> Implementation:
        """The implementation; its module is imported now."""
        return _load(self.module, self.attribute)

    def elsewhere(self, target: Target) -> str | None:
        """Why it is not for this target; None if it is."""
        if self.platforms is None or target.platform in self.platforms:
            return None
        return f"it is for {' and '.join(self.platforms)}, and the program is for {target.platform}"


@functools.cache
def _load(module: str, attribute: str) -> Implementation:
    return getattr(importlib.import_module(module), attribute)()


@dataclasses.dataclass(frozen=True)
class Operation:
    """The implementations of an operation, in the order in which the default tries them.

    Args:
        name: of the operation.
        rows: the first that is for the target and does not refuse a call runs it.
        renamed: old names of implementations: (old, new, what warns of it).

    >>> from jattn.ops.attention.implementations import ATTENTION
    >>> [row.name for row in ATTENTION.rows]
    ['tiled', 'reference']
    """

    name: str
    rows: tuple[Row, ...]
    renamed: tuple[tuple[str, str, Deprecation], ...] = ()

    @property
    def depends_on_platform(self) -> bool:
        """Whether the default may take one implementation on one platform and another elsewhere."""
        return any(row.platforms is not None for row in self.rows)

    def named(self, implementation: str | Implementation) -> Implementation:
        """The implementation of that name; an `Implementation` is its own.

        Raises:
            ValueError: there is none; the message lists the known ones.
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
        known = ", ".join(repr(row.name) for row in self.rows)
        raise ValueError(f"`implementation` must be None, an `Implementation`, or one of {known}; got {name!r}.")

    def choose(
        self, call: Any, implementation: str | Implementation | None = None, target: Target | None = None
    ) -> Implementation:
        """The implementation that runs a call: the one asked for, or the first that does not refuse.

        Args:
            call: checked.
            implementation: None, a name or an `Implementation`.
            target: what the program is compiled for; by default, what JAX compiles for here.

        Raises:
            ValueError: there is no implementation of that name.
            Unsupported: the one that was asked for refuses, or all do; with the reason of each.
        """
        target = target or expected_target()
        if implementation is None:
            for row in self.rows:
                if row.elsewhere(target) is None and row.load().refuses(call) is None:
                    return row.load()
            raise Unsupported(f"no implementation accepts this call: {self._listed(call, target)}.")
        given = isinstance(implementation, Implementation)  # an object is taken anywhere: a kernel may be interpreted
        reason = None if given else self._row(implementation).elsewhere(target)
        chosen = self.named(implementation) if reason is None else None
        if chosen is not None:
            reason = chosen.refuses(call)
            if reason is None:
                return chosen
        name = implementation.name if isinstance(implementation, Implementation) else implementation
        raise Unsupported(f"implementation `{name}` refuses this call: {reason}. Others: {self._listed(call, target)}.")

    def verdicts(self, call: Any, target: Target | None = None) -> dict[str, str | None]:
        """For every implementation, why it cannot run the call, or None if it can. Only those for the target load."""
        target = target or expected_target()
        return {row.name: row.elsewhere(target) or row.load().refuses(call) for row in self.rows}

    def _listed(self, call: Any, target: Target) -> str:
        return "; ".join(f"`{name}` {reason or 'accepts'}" for name, reason in self.verdicts(call, target).items())

    def reasons(
        self, call: Any, implementation: str | Implementation | None, target: Target | None = None
    ) -> tuple[Implementation, dict[str, str]]:
        """The implementation that runs a call, and for every other one why it does not.

        Raises:
            Unsupported: as `choose`.
        """
        chosen = self.choose(call, implementation, target)
        asked = f"`{chosen.name}` was asked for"
        accepts = f"it would accept, but `{chosen.name}` comes first" if implementation is None else asked
        verdicts = self.verdicts(call, target).items()
        return chosen, {name: reason or accepts for name, reason in verdicts if name != chosen.name}


@dataclasses.dataclass(frozen=True)
class Watched:
    """A call that is about to run, for whoever lists the calls within a function.

    Args:
        operation: whose call it is.
        call: checked.
        arrays: the operation's main arrays, by name.
        implementation: as the caller asked for it.
    """

    operation: Operation
    call: Any
    arrays: Mapping[str, Any]
    implementation: str | Implementation | None


WATCHER: ContextVar[Callable[[Watched], None] | None] = ContextVar("WATCHER", default=None)
"""Called whenever a call of any operation is about to run."""

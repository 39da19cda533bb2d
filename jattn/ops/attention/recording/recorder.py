"""Recomputes the weights of chosen heads and queries beside each attention, which itself runs as it would without.

A recording sees the arrays and pieces of every call, as its caller gave them. From them it computes rows of

    A = d ∘ normalizer(scores(similarity(q, k)) | mask)        d: the factors of dropout

by the definition, for nothing but the chosen heads and queries, and returns the output of the call. On request it keeps
q and k too (see `kept`).
"""

import dataclasses
import math
from collections.abc import Callable
from types import FrameType
from typing import Any

import jax
from jax.extend.core import get_opaque_trace_state

from ....foundation.arrays import as_jax, is_static
from ....foundation.numerics import accumulation_dtype
from ....foundation.sharding import vary, varying_axes
from ..api import run_call
from ..call import Call
from ..observed import Arrays, Inside, Observer, observed, observer_is
from ..partial import Partial
from ..split import look_at_call
from .choice import Choice
from .gradients import Zero, perturbed
from .kept import besides, head_major, kept_of
from .names import current_name
from .seen import Record, Seen


class Recorder(Observer):
    """Records the chosen weights of the calls that it is shown.

    Attributes:
        seen: what is recorded so far.
        names: the names of all calls, in order; those of a layer that attended several times are the same.
        zeros: for each recorded call, the array whose gradient is that of the weights; None without gradients.
        like: receives the description of such an array for each recorded call, in the run that comes before; or None.
    """

    def __init__(
        self,
        choice: Choice,
        start: FrameType | None,
        parent: Observer | None,
        *,
        zeros: list[jax.Array] | None = None,
        like: list[Zero] | None = None,
    ):
        self.choice = choice
        self.seen = Seen()
        self.names: list[str] = []
        self.zeros = zeros
        self.like = like
        self._start = start
        self._parent = parent
        self._trace = get_opaque_trace_state()
        self._unnamed = 0
        self._bytes = 0

    def attend(self, run: Callable[[], Any], arrays: Arrays, pieces: Any) -> Any:
        with observer_is(self._parent):
            found = observed(run, lambda: arrays, pieces)
        name, again = self._named(current_name(self._start))
        if not any(self.choice.has(one, len(self.names) - 1) for one in (name, f"{name}#{again}")):
            return found
        self._check_trace(name)
        arrays = as_jax(*arrays)
        with observer_is(None):
            kept, more = self._kept(name, arrays, pieces)
            if self.like is not None:
                self.like.append(Zero.like(kept["weights"]))
            if self.zeros is not None:
                found = self._perturbed(found, arrays[2], kept["allowed"])
        query, key, _ = arrays
        sizes = {"q_heads": query.shape[-2], "q_len": query.shape[-3], "kv_len": key.shape[-3]}
        record = Record(kept.get("weights"), None, self.choice.heads, self.choice.queries, **sizes, **more)
        self.seen.records[f"{name}#{again}" if again else name] = record
        return found

    def _kept(self, name: str, arrays: Arrays, pieces: Any) -> tuple[dict[str, jax.Array], dict[str, Any]]:
        """The arrays that are kept of a call, and the fields of its `Record` other than weights and sizes."""
        whole: list[Call] = []
        if self.choice.keep != ("weights",):
            look_at_call(arrays, pieces, whole.append)
        call = next(iter(whole), None)
        self._check_choice(name, arrays, call)
        kept = kept_of(self.choice, arrays, call, pairs=self.zeros is not None)
        found = run_call(kept, arrays, pieces, kept.results, whole_heads=self.choice.heads is not None)
        more: dict[str, Any] = {one: head_major(found[one]) for one in ("query", "key") if one in found}
        if call is not None:
            more |= {"allowed": found.get("bits"), "besides": besides(call, pieces)}
        return found, more

    def inside(self, function: Callable[[list[Any]], Any]) -> "_Inside":
        return _Inside(function, self)

    def adopt(self, inside: Any, result: Any, arrays: Seen) -> Any:
        inner = inside.inner
        self.names, self._unnamed, self._bytes = inner.names, inner._unnamed, inner._bytes
        for name, record in arrays.records.items():
            self.seen.records[name] = record
            if self.like is not None:
                self.like.append(Zero.like(record.weights))
        inside.recorder = inside.inner = inside.operands = None  # it stays in caches of compiled functions
        for name in dict.fromkeys(self.names):
            self._number(name)
        return result

    def finish(self) -> None:
        """Check that something is recorded.

        Raises:
            ValueError: nothing attended, or nothing that was chosen.
        """
        if not self.names:
            raise ValueError(
                "nothing is recorded: the model never attended through jattn. Weights are recorded of "
                "`jattn.attention` and `dot_product_attention`, and so of jattn's layers and `attention_fn`; not of "
                "`partial_attention`, linear attention, recurrences and others that `help(jattn.record)` lists. A "
                "function that was compiled before (`jax.jit`, `nnx.jit`) does not attend anew: record inside of it, "
                "`jax.jit(jattn.recorded(function))`, which returns `(output, seen)`."
            )
        self.choice.check_met([one if self.names.count(one) == 1 else f"{one}#0" for one in self.names])

    def _named(self, name: str) -> tuple[str, int]:
        """The name of the next call, and how many calls have had it."""
        if not name:
            name = f"attention.{self._unnamed}"
            self._unnamed += 1
        again = self.names.count(name)
        self.names.append(name)
        self._number(name)
        return name, again

    def _number(self, name: str) -> None:
        """Give the first of several calls a number too."""
        if name in self.seen.records and self.names.count(name) > 1:
            records = self.seen.records.items()
            self.seen.records = {f"{name}#0" if one == name else one: kept for one, kept in records}

    def _perturbed(self, found: Any, value: jax.Array, allowed: jax.Array) -> Any:
        """The output of a call, with its cotangent intercepted."""
        assert self.zeros is not None
        zero = vary(self.zeros[len(self.seen)], varying_axes(found, value, allowed))
        if not isinstance(found, Partial):
            return perturbed(self.choice, found, value, allowed, zero)
        return dataclasses.replace(found, out=perturbed(self.choice, found.out, value, allowed, zero))

    def _check_trace(self, name: str) -> None:
        if get_opaque_trace_state() != self._trace:
            raise ValueError(
                f"{name!r} attended inside of a function that JAX transforms within the recording (`jit`, `vmap`, "
                "`grad`, `checkpoint`, `scan`, `cond`, `shard_map`, ...), which its weights cannot leave. Record "
                "inside of the transformation instead: `jattn.recorded(function)` returns `(output, seen)`, and "
                "`seen` is a result like any other, as in `jax.jit(jattn.recorded(function))(x)`, "
                "`jax.value_and_grad(jattn.recorded(loss), has_aux=True)(x)`, or stacked by a `scan`. To leave this "
                "call out, choose others with `layers=`."
            )

    def _check_choice(self, name: str, arrays: Arrays, call: Call | None) -> None:
        """Check the indices and the size of the record.

        Raises:
            ValueError: a head or query does not exist; the record would be too large.
        """
        query, key, _ = arrays
        counts = []
        for argument, indices, count in (
            ("heads", self.choice.heads, query.shape[-2]),
            ("queries", self.choice.queries, query.shape[-3]),
        ):
            if indices is not None and not is_static(count):
                raise ValueError(
                    f"`{argument}` must be None for {name!r}: their number is a symbol of `jax.export`, {count}; got "
                    f"{list(indices)}."
                )
            if indices is not None and not all(-count <= index < count for index in indices):
                raise ValueError(
                    f"`{argument}` must be indices from 0 to {count - 1} for {name!r}, which has {count} {argument}; "
                    f"got {list(indices)}. `layers=` chooses the layers that have them."
                )
            counts.append(count if indices is None else len(indices))
        if not is_static(*query.shape, *key.shape):
            return
        shape = (*query.shape[:-3], *counts, key.shape[-3])
        size = self._size(shape, key.shape[-2], call) * accumulation_dtype(*arrays).itemsize
        self._bytes += size
        if self._bytes > self.choice.limit:
            raise ValueError(
                f"`limit` is {self.choice.limit:,} bytes, and the record would take {self._bytes:,} with {name!r}, "
                f"whose weights have shape {list(shape)} ({size:,} bytes). Choose fewer with `layers=`, `heads=` or "
                "`queries=`, or raise `limit=`. For maps that are computed when they are looked at: "
                '`keep=("query", "key")`.'
            )

    def _size(self, shape: tuple[int, ...], key_heads: int, call: Call | None) -> int:
        """How many numbers are kept of a call whose weights have this shape."""
        keep, features = self.choice.keep, 0 if call is None else call.qk_dim
        *batch, heads, queries, keys = shape
        key_heads = key_heads if self.choice.heads is None else heads
        graded = self.zeros is not None or self.like is not None
        found = math.prod(shape) * (1 + graded) if "weights" in keep else 0
        found += math.prod(batch) * heads * queries * features if "query" in keep else 0
        return found + (math.prod(batch) * key_heads * keys * features if "key" in keep else 0)


class _Inside(Inside):
    """A function that returns what it records beside its result."""

    def __init__(self, function: Callable[[list[Any]], Any], recorder: Recorder):
        self.function = function
        self.recorder: Recorder | None = recorder
        self.inner: Recorder | None = None
        self.operands = [] if recorder.zeros is None else recorder.zeros[len(recorder.seen) :]

    def __call__(self, arrays: list[Any]) -> tuple[Any, Seen]:
        outer = self.recorder
        assert outer is not None
        own = len(arrays) - len(self.operands)
        zeros = None if outer.zeros is None else arrays[own:]
        like = None if outer.like is None else []
        self.inner = inner = Recorder(outer.choice, outer._start, None, zeros=zeros, like=like)
        inner.names, inner._unnamed, inner._bytes = list(outer.names), outer._unnamed, outer._bytes
        with observer_is(inner):
            return self.function(arrays[:own]), inner.seen

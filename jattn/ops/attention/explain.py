"""Explains a call: which implementation runs, why not another, which tiles it visits, and the memory that it takes."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from ...foundation.arrays import as_constant
from ...foundation.stateful import is_stateful, on_copies
from ...foundation.target import Target, compiled_for, expected_target
from ..dispatch import WATCHER, Implementation, Watched
from .call import Call, Pieces, check_arrays
from .implementations import ATTENTION
from .plan import Plan, doubt, picture, size_of_tiles
from .split import gathered, look_at_call


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What a call of an operation would do. Prints as text.

    Attributes:
        implementation: the name of the implementation that would run.
        reasons: for each other one, why it would not.
        plan: for attention the tile plan, for a recurrence its chunks in words; None if there is none.
        memory: the memory, in words.
        shapes: the shapes of the main arrays, in words.
        doubt: if tiles are visited or masked needlessly: the operation of the mask that loses information, its line in
            the user's function, and what would help. None otherwise.
        gathered: arrays that are gathered on all devices before the call runs, because they are split along their
            length or features, as far as their types and shardings show it.
        operation: such as `"attention"` or `"linear_recurrence"`.
        target: what the program is compiled for, such as `"tpu v5e"`.
    """

    implementation: str
    reasons: dict[str, str]
    plan: Any
    memory: str
    shapes: str
    doubt: str | None = None
    gathered: tuple[str, ...] = ()
    operation: str = "attention"
    target: str = "cpu"

    def __str__(self) -> str:
        lines = [f"{self.operation} over {self.shapes}", f"runs: {self.implementation}, compiled for {self.target}"]
        lines += [f"not {name}: {reason}" for name, reason in self.reasons.items()]
        if isinstance(self.plan, Plan):
            if isinstance(self.plan.states, np.ndarray):
                lines += [f"{size_of_tiles(self.plan)}:", picture(self.plan)]
            else:
                lines += ["tiles: decided at run time, from arrays that are not known while tracing"]
        elif self.plan is not None:
            lines += [str(self.plan)]
        if self.gathered:
            lines += [f"gathered on all devices before it runs: {', '.join(self.gathered)}"]
        if self.doubt is not None:
            lines += [self.doubt]
        lines += [f"memory beside inputs, outputs and gradients: {self.memory}"]
        return "\n".join(lines)

    __repr__ = __str__


def explain(
    query: Any,
    key: Any,
    value: Any,
    *,
    implementation: str | Implementation | None = None,
    target: Any = None,
    **options: Any,
) -> Explanation:
    """What `attention` would do with the same arguments. Prints as text; nothing is computed.

    Args:
        query: an array or a `jax.ShapeDtypeStruct`; likewise key, value and the arrays in pieces.
        key: see `query`.
        value: see `query`.
        implementation: as in `attention`.
        target: what the program is compiled for, as text such as `"tpu v5e"`, `"cuda h100"` or `"cpu"`; by default the
            devices of this machine. The target need not be present.
        options: the other arguments of `attention`.

    Raises:
        ValueError: as in `attention` with these arguments, or the target is unknown.

    >>> import jax, jattn
    >>> array = jax.ShapeDtypeStruct((1, 4096, 8, 64), "float32")
    >>> jattn.explain(array, array, array, mask=jattn.masks.Causal()).implementation
    'tiled'
    """
    unknown = options.keys() - {field.name for field in dataclasses.fields(Pieces)}
    if unknown:
        raise ValueError(f"`explain` takes the arguments of `attention`; got {sorted(unknown)}.")
    leaves, tree = jax.tree.flatten(Pieces(**options))
    # Show the plan for the values of concrete arrays, although `attention` itself would read them at run time.
    concrete = [as_constant(leaf) for leaf in leaves]
    abstract = [i for i, leaf in enumerate(concrete) if isinstance(leaf, jax.ShapeDtypeStruct | Tracer | jax.Array)]
    arrays = {"query": query, "key": key, "value": value}
    found: list[Explanation] = []

    def trace(traced, given):
        filled = list(concrete)
        for i, leaf in zip(abstract, given, strict=True):
            filled[i] = leaf
        pieces = jax.tree.unflatten(tree, filled)
        look_at_call(
            traced, pieces, lambda call: found.append(_explained(Watched(ATTENTION, call, arrays, implementation)))
        )
        return ()

    check_arrays(**arrays)
    with contextlib.nullcontext() if target is None else compiled_for(target):
        jax.eval_shape(trace, (query, key, value), [leaves[i] for i in abstract])
    return found[0]


def explain_calls(
    function: Callable[..., Any], *arguments: Any, target: Target | str | None = None, **keywords: Any
) -> list[Explanation]:
    """What every attention and recurrence inside a function would do, in the order of the calls. Nothing is computed.

    For variants that consist of several calls, layers and whole models. Models of Flax NNX are traced as copies, so
    that the counters of their random keys do not change; they are found among the arguments, in the function's closure
    and among the globals that it names. A call in a loop or a differentiated part is listed as often as JAX traces it.
    A call inside a jitted function that was called before is not listed, because JAX does not trace it again.

    Args:
        function: a function of the arguments.
        *arguments: arrays, `jax.ShapeDtypeStruct`s, models, or pytrees of them. Arrays are treated as traced, as under
            `jax.jit`: tiles that depend on them are decided at run time.
        target: what the program is compiled for, such as `"tpu v5e"`, as in `explain`; by default the target in force.
            It is not passed on: for a function with an argument of this name, write a `lambda`.
        **keywords: passed on unchanged: flags, pieces, arrays that are known.

    Raises:
        ValueError: `function` is not callable; or as the function itself raises.

    >>> import jax, jattn
    >>> from jattn.variants.sparse import strided_attention
    >>> array = jax.ShapeDtypeStruct((4096, 8, 64), "float32")
    >>> window, columns = jattn.explain_calls(lambda q, k, v: strided_attention(q, k, v, 256), array, array, array)
    >>> window.plan.states.shape
    (1, 8, 8)
    """
    if not callable(function):
        raise ValueError(
            f"`function` must be a function that attends; got {function!r}. For one call: `jattn.explain`."
        )
    found: list[Explanation] = []
    token = WATCHER.set(lambda watched: found.append(_explained(watched)))
    leaves, tree = jax.tree.flatten(arguments, is_leaf=is_stateful)
    traced = [place for place, leaf in enumerate(leaves) if not is_stateful(leaf)]

    def run(*given: Any) -> None:
        every = {**dict(enumerate(leaves)), **dict(zip(traced, given, strict=True))}
        on_copies(function)(*jax.tree.unflatten(tree, every.values()), **keywords)

    try:
        with contextlib.nullcontext() if target is None else compiled_for(target):
            jax.eval_shape(run, *(leaves[place] for place in traced))
    finally:
        WATCHER.reset(token)
    return found


def _explained(watched: Watched) -> Explanation:
    call, arrays = watched.call, watched.arrays
    target = getattr(call, "target", None) or expected_target(*arrays.values())
    if isinstance(call, Call):
        call = dataclasses.replace(call, target=target)
    chosen, reasons = watched.operation.reasons(call, watched.implementation, target)
    plan, memory = chosen.describe(call)
    shapes = ", ".join(f"{name} {one.shape} {one.dtype}" for name, one in arrays.items())
    found = Explanation(
        chosen.name, reasons, plan, memory, shapes, operation=watched.operation.name, target=str(target)
    )
    if not isinstance(call, Call):
        return found
    doubtful, pieces = None, call.pieces
    if plan is not None:
        if not isinstance(plan.states, np.ndarray):
            plan = dataclasses.replace(plan, states=None)  # a tracer must not escape
        doubtful = doubt(pieces.mask, pieces.query_positions, pieces.key_positions, plan)
    whole = gathered((arrays["query"], arrays["key"], arrays["value"]))
    return dataclasses.replace(found, plan=plan, doubt=doubtful, gathered=whole)

"""How inputs go through the blocks of a model: one after the other, or in a loop over the parameters of equal blocks.

    remat    the gradient computes what is inside of each block again, from the block's input, instead of keeping it
    scan     blocks that are alike are traced and compiled once; `jax.lax.scan` runs them over their stacked parameters

Neither changes the tree of parameters. Parameters are stacked inside of the program that uses them, so a checkpoint, a
sharding or an optimizer sees the same model. The stack is a copy of the parameters, and its gradient is one more.

Blocks repeat with a period: where windows alternate, two blocks are compiled, and the loop takes both at a time.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from ..foundation.arrays import is_tracing
from ..ops.attention.observed import is_observed
from .config import Config

Call = Callable[..., jax.Array]
Pure = Callable[[Any, Any, jax.Array], tuple[jax.Array, Any]]


def through(blocks: Iterable[nnx.Module], x: jax.Array, *inputs: Any, config: Config, **options: Any) -> jax.Array:
    """`x = block(x, *inputs, **options)` for each block.

    While attention is recorded, blocks run one by one and nothing is computed again: values from the inside of a loop
    or of a recomputed block could not leave it. Outside of `jax.jit` there is no program to compile, so `config.scan`
    has no effect.

    Args:
        blocks: modules. One that occurs several times shares its parameters with itself.
        x: the input of the first.
        inputs: further inputs of each.
        config: says whether to `remat` and `scan`.
        options: keyword arguments of each. Modules among them may contain parameters of the block.

    Raises:
        ValueError: `config.scan`, and no two blocks are alike.
    """
    blocks = list(blocks)
    modules = {name: one for name, one in options.items() if isinstance(one, nnx.Module)}
    rest = {name: one for name, one in options.items() if name not in modules}  # masks whose numbers stay known

    def call(node: tuple[Any, dict[str, Any]], x: jax.Array) -> jax.Array:
        block, modules = node
        return block(x, *inputs, **modules, **rest)

    nodes = [(block, modules) for block in blocks]
    if is_observed() or not (config.remat or config.scan):
        for node in nodes:
            x = call(node, x)
        return x
    if not (config.scan and is_tracing()) or len(blocks) < 2:
        return _one_by_one(nodes, x, call, config.remat)
    kinds = _kinds(blocks)
    if len(set(kinds)) == len(kinds):
        raise ValueError(
            f"`scan` must be False for this model: no two of its {len(kinds)} blocks are alike except in the values of "
            "their parameters."
        )
    begin = 0
    for run in runs(kinds):
        end = begin + run.period * run.times
        if run.times == 1:
            x = _one_by_one(nodes[begin:end], x, call, config.remat)
        else:
            x = _scanned([nodes[at : at + run.period] for at in range(begin, end, run.period)], x, call, config.remat)
        begin = end
    return x


class Run(NamedTuple):
    """`times` repetitions of `period` blocks."""

    period: int
    times: int


def runs(kinds: Sequence[int]) -> list[Run]:
    """Divide a sequence into repetitions such that the fewest blocks are compiled.

    >>> runs([0, 0, 0, 0]), runs([0, 1, 0, 1, 0])
    ([Run(period=1, times=4)], [Run(period=2, times=2), Run(period=1, times=1)])
    """
    best: list[tuple[int, list[Run]]] = [(0, [])]  # of the last 0, 1, ... blocks: how many are compiled; runs
    for begin in reversed(range(len(kinds))):
        found = []
        for period in range(1, len(kinds) - begin + 1):
            repeated, times, same = kinds[begin : begin + period], 0, True
            while same:
                times += 1
                end = begin + period * times
                compiled, after = best[len(kinds) - end]
                found.append((compiled + period, [Run(period, times), *after]))
                same = kinds[end : end + period] == repeated
        best.append(min(found, key=lambda one: (one[0], len(one[1]), -one[1][0].period * one[1][0].times)))
    return best[-1][1]


def _kinds(blocks: Sequence[nnx.Module]) -> list[int]:
    """A number for each block: equal for blocks that differ in nothing but the values of their variables.

    A block that occurs several times is of a kind of its own, because its occurrences share what they change.
    """
    found: list[tuple[Any, ...]] = []
    kinds = []
    for block in blocks:
        graph, state = nnx.split(block)
        leaves, tree = jax.tree.flatten(state)
        several = id(block) if sum(one is block for one in blocks) > 1 else None
        kind = (several, graph, tree, [_type(jax.typeof(leaf)) for leaf in leaves])
        kinds.append(next((at for at, one in enumerate(found) if one == kind), len(found)))
        if kinds[-1] == len(found):
            found.append(kind)
    return kinds


def _type(kind: Any) -> Any:
    """Shape, dtype and, on Explicit axes, sharding of a `jax.typeof(...)`."""
    return kind.shape, kind.dtype, kind.sharding


def _one_by_one(nodes: Sequence[Any], x: jax.Array, call: Call, remat: bool) -> jax.Array:
    """`x = call(node, x)` for each node."""
    for node in nodes:
        if not remat:
            x = call(node, x)
            continue
        graph, parameters, others = nnx.split(node, nnx.Param, ...)
        x, changed = _pure(graph, call, remat=True)(parameters, others, x)
        nnx.update(node, changed)
    return x


def _pure(graph: Any, call: Call, *, remat: bool) -> Pure:
    """`call` as a function of the node's parameters and other variables; returns the output, and what it changed."""

    def function(parameters: Any, others: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        node = nnx.merge(graph, parameters, others, copy=True)
        before = dict(nnx.to_flat_state(others))
        x = call(node, x)
        after = nnx.to_flat_state(nnx.state(node, nnx.Not(nnx.Param)))
        return x, nnx.from_flat_state([(path, one) for path, one in after if not _same(one, before.get(path))])

    return jax.checkpoint(function) if remat else function


def _same(one: nnx.Variable, other: nnx.Variable | None) -> bool:
    return other is not None and one.get_raw_value() is other.get_raw_value()


def _scanned(repeats: list[list[Any]], x: jax.Array, call: Call, remat: bool) -> jax.Array:
    """`x = call(node, x)` for each node of each repeat, in a loop over repeats.

    A node that is the same in all repeats is not stacked: its parameters are constants of the loop, and its other
    variables go from one repeat to the next.
    """
    parts = [[nnx.split(node, nnx.Param, ...) for node in repeat] for repeat in repeats]
    functions = [_pure(graph, call, remat=remat) for graph, _, _ in parts[0]]
    shared = [repeats[0][at][0] is repeats[1][at][0] for at in range(len(functions))]
    constants = {at: parts[0][at][1] for at, same in enumerate(shared) if same}
    carried = {at: parts[0][at][2] for at, same in enumerate(shared) if same}

    def body(carry: tuple[jax.Array, dict[int, Any]], stacked: dict[int, Any]) -> tuple[Any, list[Any]]:
        (x, carried), changes = carry, []
        for at, function in enumerate(functions):
            parameters, others = (constants[at], carried[at]) if shared[at] else stacked[at]
            x, changed = function(parameters, others, x)
            carried = carried | ({at: nnx.merge_state(others, changed)} if shared[at] else {})
            changes.append(changed)
        return (x, carried), changes

    own = [at for at, same in enumerate(shared) if not same]
    first = {at: parts[0][at][1:] for at in own}
    after: Any = jax.make_jaxpr(lambda x: body((x, carried), first)[0][0])(x).out_avals[0]
    if _type(after) != _type(jax.typeof(x)):  # such as bfloat16 embeddings of a model with float32 norms
        x = _one_by_one(repeats[0], x, call, remat)
        return _scanned(repeats[1:], x, call, remat) if len(repeats) > 2 else _one_by_one(repeats[1], x, call, remat)
    stacked = {at: tuple(map(_stacked, *(part[at][1:] for part in parts))) for at in own}
    (x, _), changes = jax.lax.scan(body, (x, carried), stacked, length=len(repeats))
    for index, repeat in enumerate(repeats):
        for node, changed in zip(repeat, changes, strict=True):
            nnx.update(node, jax.tree.map(lambda value, index=index: value[index], changed))
    return x


def _stacked(*states: Any) -> Any:
    """The variables of equal nodes, along a first axis; parameters that are split over devices stay so."""

    def stack(*variables: nnx.Variable) -> nnx.Variable:
        value = jnp.stack([one.get_raw_value() for one in variables])
        kept: NamedSharding | None = variables[0].get_metadata().get("kept")
        if kept is not None:
            place = NamedSharding(kept.mesh, PartitionSpec(None, *kept.spec))
            value = jax.lax.with_sharding_constraint(value, place)
        return variables[0].replace(value)

    return jax.tree.map(stack, *states, is_leaf=lambda one: isinstance(one, nnx.Variable))

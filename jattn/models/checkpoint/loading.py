"""From tensors to a model and back, strictly: every tensor is used or named as ignored, every parameter is filled.

    model as shapes  --table-->  tensors that must be there, with shapes  --check-->  arrange, place

Nothing is placed before names, shapes and dtypes of all tensors are known to match, though files are being read
meanwhile. The model exists only as shapes until its arrays arrive, each on the sharding asked for.
"""

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer

from ...foundation.arrays import describe
from ...nnx import PieceArray
from .safetensors import DTYPES, Renamed, Stored, Tensors
from .table import Entry, Table, entries


@runtime_checkable
class Placing(Protocol):
    """Says where the variables of a whole model go, such as `jattn.models.OnMesh`."""

    def place(self, model: nnx.Module) -> None:
        """Give the shapes in the variables of a model their shardings."""
        ...


Shardings = jax.sharding.Sharding | Callable[[str, jax.ShapeDtypeStruct], Any] | Placing | None

FLOATS = {DTYPES[name]: jnp.dtype(name) for name in ("float16", "bfloat16", "float32", "float64")}
FOLLOWS = "shapes and layers follow from config.json, which must be that of these weights"
SEED = 0
"""Of the random streams of models that are loaded."""
LISTED = 8
"""How many names of each kind an error lists."""


def parameters_of(model: nnx.Module) -> dict[str, nnx.Variable]:
    """The variables that a checkpoint holds, by path: parameters and statistics, not random streams or constants.

    >>> sorted(parameters_of(nnx.Linear(2, 3, rngs=nnx.Rngs(0))))
    ['bias', 'kernel']
    """
    return _parted(nnx.state(model))[0]


def load(
    build: Callable[[Any, nnx.Rngs], nnx.Module],
    tensors: Tensors,
    table: Table,
    *,
    param_dtype: Any = None,
    shardings: Shardings = None,
    ignore: Sequence[str] = (),
    source: str = "the checkpoint",
) -> Any:
    """A model with parameters from tensors.

    Args:
        build: makes the model with parameters of a dtype, and random streams; traced for shapes.
        tensors: where parameters come from.
        table: which tensor is which parameter.
        param_dtype: the dtype of parameters; by default each keeps the dtype that it is stored in.
        shardings: a sharding for all parameters, or a function of a parameter's path and shape.
        ignore: patterns of tensors that need not be used, beside those that the table names.
        source: where the tensors are, for errors.

    Raises:
        ValueError: tensors are missing, unexpected, or of another shape or dtype than the model's; the message lists
            all. A tensor that repeats a tied parameter differs from it.
    """
    tensors = Renamed(tensors, table.current) if table.renamed else tensors
    kept = _common_dtype(tensors.stored) if param_dtype is None else jnp.dtype(param_dtype)
    rules = table.named_as(tensors.stored)
    tensors.begin(lambda name: any(rule.keeps(name) for rule in rules))
    graph, state, known, name = _shapes(lambda: build(kept, _streams(SEED)))
    if isinstance(shardings, Placing):
        model = nnx.merge(graph, state)
        shardings.place(model)
        graph, state = nnx.split(model)
    variables, rest = _parted(state)
    wanted = entries(rules, {path: tuple(one.get_value().shape) for path, one in variables.items()})
    check(wanted, tensors.stored, (*table.ignored, *ignore), param_dtype, f"{source} and {name}")
    for some in tensors.read_all([name for name, entry in wanted.items() if not entry.rule.tied]):
        arrays = {}
        for name, tensor in some:
            entry = wanted[name]
            for path, array in zip(entry.paths, entry.rule.load(tensor, entry.parameter_shape), strict=True):
                arrays[path] = array if param_dtype is None else array.astype(jnp.dtype(param_dtype), copy=False)
        places = [_place(path, array, variables[path].get_value(), shardings) for path, array in arrays.items()]
        # On a CPU, an array that is not rearranged becomes the parameter without a copy: nobody else has it.
        for path, array in zip(arrays, jax.device_put(list(arrays.values()), places), strict=True):
            variables[path].set_value(array)
    for name, entry in wanted.items():
        if entry.rule.tied and name in tensors.stored:
            _check_tied(name, entry, tensors, variables, param_dtype)
    _fill(rest, known, lambda: build(kept, nnx.Rngs(SEED)))
    return nnx.merge(graph, state)


def save(model: nnx.Module, table: Table, *, prefixed: bool) -> dict[str, np.ndarray]:
    """The tensors of a model by name, as `load` reads them: arrays in the order of the table.

    Raises:
        ValueError: the model has shapes without values.
    """
    variables = parameters_of(model)
    for path, one in variables.items():
        value = one.get_value()
        if not isinstance(value, jax.Array | np.ndarray) or isinstance(value, Tracer):
            got = f"{describe(value)} as `{path}`"
            raise ValueError(f"`model` must have parameters with known values, outside of `jax.jit`; got {got}.")
    shapes = {path: tuple(one.get_value().shape) for path, one in variables.items()}
    tensors = {}
    for name, entry in entries(table.named(prefixed), shapes).items():
        if not entry.rule.tied:
            parts = [np.asarray(variables[path].get_value()) for path in entry.paths]
            tensors[name] = np.asarray(entry.rule.save(parts), order="C")  # `ascontiguousarray` makes numbers vectors
    return tensors


def check(
    wanted: Mapping[str, Entry], stored: Mapping[str, Stored], ignored: Sequence[str], param_dtype: Any, what: str
) -> None:
    """Check names, shapes and dtypes of all tensors.

    Raises:
        ValueError: something does not match; the message lists what is missing, unexpected, or of the wrong shape or
            dtype.
    """
    unexpected = [
        name for name in stored if name not in wanted and not any(fnmatch.fnmatchcase(name, one) for one in ignored)
    ]
    found = [(name, entry, stored[name]) for name, entry in wanted.items() if name in stored]
    readable = {name for name, one in FLOATS.items() if param_dtype is not None or _enabled(one)}
    problems = {
        "missing": [name for name, entry in wanted.items() if name not in stored and not entry.rule.tied],
        "unexpected": unexpected,
        "wrong shape": [
            f"{name} {one.shape}, not {entry.shape}" for name, entry, one in found if one.shape != entry.shape
        ],
        "wrong dtype": [f"{name} {one.dtype}" for name, _, one in found if one.dtype not in readable],
    }
    if any(problems.values()):
        lines = [
            f"{kind} ({len(names)}): {', '.join(names[:LISTED])}{', ...' if len(names) > LISTED else ''}"
            for kind, names in problems.items()
            if names
        ]
        remedies = {
            "missing": FOLLOWS,
            "unexpected": "tensors that are not needed are named by `ignore=[...]`, patterns with *",
            "wrong shape": FOLLOWS,
            "wrong dtype": f"readable are {', '.join(sorted(readable))}"
            + ("" if "F64" in readable else "; F64 with `param_dtype=jax.numpy.float32`, or with `jax_enable_x64`"),
        }
        remedy = "; ".join(dict.fromkeys(text for kind, text in remedies.items() if problems[kind]))
        raise ValueError("\n    ".join([f"{what} do not match:", *lines, *([f"({remedy}.)"] if remedy else [])]))


def _common_dtype(stored: Mapping[str, Stored]) -> Any:
    """The floating-point dtype of most tensors, among those that are enabled."""
    found = [FLOATS[one.dtype] for one in stored.values() if one.dtype in FLOATS and _enabled(FLOATS[one.dtype])]
    return max(sorted(set(found), key=str), key=found.count, default=jnp.dtype(jnp.float32))


def _enabled(dtype: Any) -> bool:
    """Whether JAX has arrays of this dtype: float64 must be enabled."""
    return jax.dtypes.canonicalize_dtype(dtype) == dtype


def _place(path: str, array: np.ndarray, shape: Any, shardings: Shardings) -> Any:
    """Where a parameter goes: the sharding of its shape, if that has one.

    Raises:
        ValueError: the function that was given for this returns something else.
    """
    if shape.sharding is not None:
        return shape.sharding
    if callable(shardings) and not isinstance(shardings, Placing):
        shardings = shardings(path, jax.ShapeDtypeStruct(array.shape, array.dtype))
        if not isinstance(shardings, jax.sharding.Sharding | jax.Device | None):
            raise ValueError(
                f"`shardings` must return a `jax.sharding.Sharding` or None for each parameter; got "
                f"{describe(shardings)} for `{path}`."
            )
    assert not isinstance(shardings, Placing)
    return shardings


def _check_tied(name: str, entry: Entry, tensors: Tensors, variables: Mapping[str, Any], param_dtype: Any) -> None:
    """Check that a tensor equals the parameter that it is tied to.

    Raises:
        ValueError: it does not.
    """
    (path,) = entry.paths
    (array,) = entry.rule.load(tensors.read(name), entry.parameter_shape)
    if param_dtype is not None:
        array = array.astype(jnp.dtype(param_dtype))
    if not np.array_equal(array, np.asarray(variables[path].get_value()), equal_nan=True):
        raise ValueError(
            f"{name!r} must equal the parameter `{path}` that config.json ties it to, and does not: these weights "
            "are not tied, so `tie_word_embeddings` must be false."
        )


def _parted(state: Any) -> tuple[dict[str, nnx.Variable], dict[tuple, nnx.Variable]]:
    """The variables of a state: those that a checkpoint holds, and random streams and constants of pieces."""
    held, rest = {}, {}
    for path, variable in nnx.to_flat_state(state):
        if isinstance(variable, nnx.RngState | PieceArray):
            rest[path] = variable
        else:
            held[".".join(map(str, path))] = variable
    return held, rest


def _shapes(build: Callable[[], nnx.Module]) -> tuple[Any, Any, dict[tuple, jax.Array], str]:
    """A model without values: its graph, its state as shapes, and its name.

    The third is what no checkpoint holds and is known while the model is traced, such as keys of dropout.
    """
    found: dict[str, Any] = {}

    def traced() -> Any:
        model = build()
        graph, state = nnx.split(model)
        values = {path: variable.get_raw_value() for path, variable in _parted(state)[1].items()}
        known = {path: value for path, value in values.items() if not isinstance(value, Tracer)}
        found.update(graph=graph, known=known, name=type(model).__name__)
        return state

    state = jax.eval_shape(traced)
    return found["graph"], state, found["known"], found["name"]


def _fill(rest: Mapping[tuple, nnx.Variable], known: Mapping[tuple, Any], build: Callable[[], nnx.Module]) -> None:
    """Fill what no checkpoint holds with what is known of it; if that is not all, build the model once more."""
    values = dict(known)
    lacking = [path for path in rest if path not in known]
    if lacking:  # the compiler drops the parameters, which nothing needs

        def made() -> list[Any]:
            made = _parted(nnx.state(build()))[1]
            return [made[path].get_value() for path in lacking]

        values |= dict(zip(lacking, jax.jit(made)(), strict=True))
    for path, variable in rest.items():
        place = variable.get_value().sharding
        variable.set_value(values[path] if place is None else jax.device_put(values[path], place))


class _Stream(nnx.RngStream):
    """A random stream that does not compute keys of parameters, since only shapes of parameters are needed.

    Streams that it forks, for dropout, are those of `nnx.RngStream`, and values even while a program is traced.
    """

    def __init__(self, seed: int):
        with jax.ensure_compile_time_eval():
            super().__init__(seed, tag="default")
            self.first = self.key.get_raw_value()
        self.drawn = 0

    def __call__(self) -> jax.Array:
        self.drawn += 1
        return self.first

    def fork(self, **options: Any) -> nnx.RngStream:
        """The stream that `nnx.RngStream.fork` returns after as many keys."""
        with jax.ensure_compile_time_eval():
            made = nnx.RngStream(jax.random.fold_in(self.first, self.drawn), tag=self.tag, **options)
        self.drawn += 1
        return made


def _streams(seed: int) -> nnx.Rngs:
    """`nnx.Rngs(seed)` for a model of which only shapes are needed."""
    rngs: Any = nnx.Rngs(seed)
    rngs.default = _Stream(seed)
    return rngs

"""From tensors to a model and back, strictly: every tensor is used or named as ignored, every parameter is filled.

    model as shapes  --table-->  tensors that must be there, with shapes  --check-->  read (two ahead), arrange, place

Nothing is read before names, shapes and dtypes of all tensors are known to match. The model exists only as shapes until
its arrays arrive, each on the sharding asked for.
"""

import fnmatch
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
AHEAD = 2
"""How many tensors are read while another is arranged and placed."""
LISTED = 8
"""How many names of each kind an error lists."""


def parameters_of(model: nnx.Module) -> dict[str, nnx.Variable]:
    """The variables that a checkpoint holds, by path: parameters and statistics, not random streams or constants.

    >>> sorted(parameters_of(nnx.Linear(2, 3, rngs=nnx.Rngs(0))))
    ['bias', 'kernel']
    """
    state = nnx.to_flat_state(nnx.state(model))
    return {
        ".".join(map(str, path)): variable
        for path, variable in state
        if not isinstance(variable, nnx.RngState | PieceArray)
    }


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
    known: dict[tuple, jax.Array] = {}

    def traced() -> nnx.Module:
        model = build(kept, _streams(SEED))
        known.update(_known(model))
        return model

    model: nnx.Module = nnx.eval_shape(traced)
    if isinstance(shardings, Placing):
        shardings.place(model)
    variables = parameters_of(model)
    wanted = entries(
        table.named_as(tensors.stored), {path: tuple(one.get_value().shape) for path, one in variables.items()}
    )
    check(wanted, tensors.stored, (*table.ignored, *ignore), param_dtype, f"{source} and {type(model).__name__}")
    for name, tensor in _read_ahead(tensors, [name for name, entry in wanted.items() if not entry.rule.tied]):
        entry = wanted[name]
        for path, array in zip(entry.paths, entry.rule.load(tensor, entry.parameter_shape), strict=True):
            shape = variables[path].get_value()
            variables[path].set_value(_placed(path, array, shape, param_dtype, shardings))
    for name, entry in wanted.items():
        if entry.rule.tied and name in tensors.stored:
            _check_tied(name, entry, tensors, variables, param_dtype)
    _fill_rest(model, known, lambda: build(kept, nnx.Rngs(SEED)))
    return model


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


def _read_ahead(tensors: Tensors, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Tensors in this order. While one is arranged and placed, the next `AHEAD` are read."""
    with ThreadPoolExecutor(AHEAD) as pool:
        reading: deque[tuple[str, Future[np.ndarray]]] = deque()
        for name in names:
            reading.append((name, pool.submit(tensors.read, name)))
            if len(reading) > AHEAD:
                first, found = reading.popleft()
                yield first, found.result()
        for name, found in reading:
            yield name, found.result()


def _common_dtype(stored: Mapping[str, Stored]) -> Any:
    """The floating-point dtype of most tensors, among those that are enabled."""
    found = [FLOATS[one.dtype] for one in stored.values() if one.dtype in FLOATS and _enabled(FLOATS[one.dtype])]
    return max(sorted(set(found), key=str), key=found.count, default=jnp.dtype(jnp.float32))


def _enabled(dtype: Any) -> bool:
    """Whether JAX has arrays of this dtype: float64 must be enabled."""
    return jax.dtypes.canonicalize_dtype(dtype) == dtype


def _placed(path: str, array: np.ndarray, shape: Any, param_dtype: Any, shardings: Shardings) -> jax.Array:
    """A parameter on its devices: those of its shape, if that has a sharding."""
    if param_dtype is not None:
        array = array.astype(jnp.dtype(param_dtype))
    if shape.sharding is not None:
        shardings = shape.sharding
    elif callable(shardings) and not isinstance(shardings, Placing):
        shardings = shardings(path, jax.ShapeDtypeStruct(array.shape, array.dtype))
        if not isinstance(shardings, jax.sharding.Sharding | jax.Device | None):
            raise ValueError(
                f"`shardings` must return a `jax.sharding.Sharding` or None for each parameter; got "
                f"{describe(shardings)} for `{path}`."
            )
    assert not isinstance(shardings, Placing)
    # On a CPU, an array that is not rearranged becomes the parameter without a copy: nobody else has it.
    return jax.device_put(array, shardings)


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


def _rest(model: nnx.Module) -> dict[tuple, nnx.Variable]:
    """What no checkpoint holds, by path: random streams for dropout, constants of pieces."""
    flat = nnx.to_flat_state(nnx.state(model))
    return {path: variable for path, variable in flat if isinstance(variable, nnx.RngState | PieceArray)}


def _known(model: nnx.Module) -> dict[tuple, jax.Array]:
    """What no checkpoint holds and is known while the model is traced, such as keys of dropout."""
    values = {path: variable.get_raw_value() for path, variable in _rest(model).items()}
    return {path: value for path, value in values.items() if not isinstance(value, Tracer)}


def _fill_rest(model: nnx.Module, known: Mapping[tuple, jax.Array], build: Callable[[], nnx.Module]) -> None:
    """Fill what no checkpoint holds with what is known of it; if that is not all, build the model once more."""
    rest, values = _rest(model), dict(known)
    lacking = [path for path in rest if path not in known]
    if lacking:  # the compiler drops the parameters, which nothing needs

        def made() -> list[Any]:
            found = _rest(build())
            return [found[path].get_value() for path in lacking]

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

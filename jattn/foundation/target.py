"""The target: the platform, and its generation, for which a program is compiled.

A program may be traced on one machine and compiled for another (`jax.export`, ahead-of-time compilation for a TPU that
is not present). So the target is a value that is passed along, not a question to the machine at hand.
"""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import jax
from jax.core import Tracer
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import mlir

from .arrays import is_tracing
from .sharding import mesh_of

PLATFORMS = ("cpu", "tpu", "cuda", "rocm")
"""JAX's names of the platforms for which a program can be lowered."""

_ALIASES = {"gpu": "cuda"}
_NONE = r"(?!)"  # matches nothing
_GENERATIONS = {
    "cpu": _NONE,
    "tpu": r"v?\d+[a-z]?",
    "cuda": r"[a-z]{1,3}\d{1,4}[a-z]?",
    "rocm": r"mi\d{3}[a-z]?",
}
_LITE = {"v5 lite": "v5e", "v6 lite": "v6e", "v5": "v5p"}  # what devices report as their kind

_GIVEN: ContextVar["Target | None"] = ContextVar("_GIVEN", default=None)


@dataclasses.dataclass(frozen=True)
class Target:
    """What a program is compiled for.

    Args:
        platform: `"cpu"`, `"tpu"`, `"cuda"`, `"rocm"`, or another platform that JAX has a plugin for.
        generation: such as `"v5e"` or `"h100"`; None if unknown.

    >>> print(Target("tpu", "v5e"), Target("cpu"))
    tpu v5e cpu
    """

    platform: str
    generation: str | None = None

    def __str__(self) -> str:
        return self.platform if self.generation is None else f"{self.platform} {self.generation}"


def as_target(value: Any) -> Target:
    """Convert text (where "gpu" means "cuda"), a device or an abstract device to a `Target`.

    Raises:
        ValueError: it is something else, an unknown platform, or not a generation of the platform.

    >>> as_target("tpu v5e")
    Target(platform='tpu', generation='v5e')
    """
    if isinstance(value, Target):
        return value
    if isinstance(value, str):
        platform, _, generation = value.lower().strip().partition(" ")
        platform = _ALIASES.get(platform, platform)
        if platform in PLATFORMS and (not generation or re.fullmatch(_GENERATIONS[platform], generation)):
            return Target(platform, generation or None)
    elif hasattr(value, "device_kind") and hasattr(value, "platform"):
        return _of_device(value)
    raise ValueError(
        f"`target` must be one of {', '.join(map(repr, PLATFORMS))}, perhaps with a generation, as in 'tpu v5e' or "
        f"'cuda h100', or a `Target`, or a device; got {value!r}."
    )


@functools.cache
def _of_device(device: Any) -> Target:
    platform, kind = str(device.platform).lower(), str(device.device_kind).lower()
    amd = platform == "gpu" and re.search(r"\bamd\b|\binstinct\b|\bmi\d{3}", kind)
    platform = "rocm" if amd else _ALIASES.get(platform, platform)
    name = kind.removeprefix(platform).strip()
    found = re.search(rf"\b{_GENERATIONS.get(platform, _NONE)}\b", _LITE.get(name, name))
    return Target(platform, found.group() if found else None)


@contextlib.contextmanager
def compiled_for(target: Any) -> Iterator[Target]:
    """A context in which programs are traced for this target, regardless of what they are lowered for.

    Args:
        target: as in `as_target`.

    >>> with compiled_for("tpu v5e"):
    ...     print(given_target())
    tpu v5e
    """
    found = as_target(target)
    token = _GIVEN.set(found)
    try:
        yield found
    finally:
        _GIVEN.reset(token)


def given_target() -> Target | None:
    """The target of the innermost `compiled_for`, or None."""
    return _GIVEN.get()


def expected_target(*arrays: Any) -> Target:
    """The target that a program of these arrays will most likely be compiled for.

    This is the target of `compiled_for`; otherwise that of the arrays' mesh or of `jax.set_mesh`; otherwise JAX's first
    device. The platform is a guess: a program may be lowered for another.
    """
    given = _GIVEN.get()
    device = getattr(mesh_of(*arrays), "abstract_device", None)
    return given or as_target(jax.devices()[0] if device is None else device)


def target_of(*arrays: Any) -> Target | None:
    """The target of a program of these arrays if it is known, or None if only lowering will tell.

    It is known inside of `compiled_for`, and outside of `jit`, also under `jax.grad` and `jax.vmap`: the program then
    runs here, where the arrays are.
    """
    given = _GIVEN.get()
    if given is not None or is_tracing():
        return given
    for array in arrays:
        if isinstance(array, jax.Array) and not isinstance(array, Tracer):
            return as_target(next(iter(array.sharding.device_set)))
    return expected_target(*arrays)


def by_target(function: Callable[..., Any], *arrays: Any) -> Any:
    """`function(target, *arrays)`, with the target of the program that contains it.

    JAX traces a function before it knows what it is lowered for, and may even lower one trace for several platforms
    (`jax.export`). So the function is traced for the expected target, and again when the program is lowered for another
    platform. Unlike `jax.lax.platform_dependent`, nothing is traced or imported for platforms that are not used, and a
    program for the expected one is the same as if the function had been called directly.

    To differentiate and batch it, wrap it in `jax.custom_vjp` and `jax.custom_batching.custom_vmap`.

    Args:
        function: takes a `Target` and arrays, and returns a pytree of arrays of the same shapes and dtypes for every
            target. It must not close over traced arrays.
        arrays: pytrees of arrays.

    >>> import jax.numpy as jnp
    >>> def add(target, x):
    ...     return x + {"cpu": 1, "tpu": 2}[target.platform]
    >>> print(jax.jit(lambda x: by_target(add, x))(jnp.zeros(2)))
    [1. 1.]
    """
    target = target_of(*jax.tree.leaves(arrays))
    if target is not None:
        return function(target, *arrays)
    leaves, tree = jax.tree.flatten(arrays)
    expected, flat = expected_target(*leaves), _Flat(function, tree)
    closed, shapes = jax.make_jaxpr(functools.partial(function, expected), return_shape=True)(*arrays)
    out = _by_target.bind(*leaves, traced=_Traced(closed), expected=expected, function=flat)
    return jax.tree.structure(shapes).unflatten(out)


@dataclasses.dataclass(frozen=True)
class _Flat:
    """A function of a target and a pytree of arrays, as a function of leaves."""

    function: Callable[..., Any]
    tree: Any

    def __call__(self, target: Target, *leaves: Any) -> list[Any]:
        return jax.tree.leaves(self.function(target, *self.tree.unflatten(leaves)))


class _Traced:
    """Hides a jaxpr from JAX, which may otherwise require a nonpublic rule for the primitive that holds it."""

    def __init__(self, closed: Any):
        self.closed = closed


_by_target = Primitive("jattn_by_target")
_by_target.multiple_results = True


@_by_target.def_abstract_eval
def _shapes(*avals: Any, traced: _Traced, **others: Any) -> list[Any]:
    del avals, others
    return list(traced.closed.out_avals)


@_by_target.def_impl
def _run(*leaves: Any, expected: Target, function: _Flat, traced: _Traced) -> list[Any]:  # with `jax.disable_jit`
    del traced
    return function(target_of(*leaves) or expected, *leaves)


def _lowered(
    platform: str | None, context: Any, *operands: Any, traced: _Traced, expected: Target, function: _Flat
) -> Any:
    name = context.module_context.platforms[0] if platform is None else platform
    program = jaxpr_as_fun(traced.closed) if name == expected.platform else functools.partial(function, Target(name))
    return mlir.lower_fun(program, multiple_results=True)(context, *operands)


for _platform in PLATFORMS:
    mlir.register_lowering(_by_target, functools.partial(_lowered, _platform), platform=_platform)
mlir.register_lowering(_by_target, functools.partial(_lowered, None))

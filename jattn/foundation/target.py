"""The target: the platform, and its generation, for which a program is compiled.

A program may be traced on one machine and compiled for another (`jax.export`, ahead-of-time compilation for a TPU that
is not present). So the target is a value that is passed along, not a question to the machine at hand.
"""

import contextlib
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.core import Tracer
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import mlir
from jax.sharding import AbstractDevice, AbstractMesh

from .arrays import is_tracing
from .sharding import mesh_of

PLATFORMS = ("cpu", "tpu", "cuda", "rocm")
"""JAX's names of the platforms for which a program can be lowered."""

KERNELS_WHOLE = ("tpu",)
"""Platforms with kernels that XLA cannot divide over devices by itself."""

_ALIASES = {"gpu": "cuda"}
_NONE = r"(?!)"  # matches nothing
_GENERATIONS = {
    "cpu": _NONE,
    "tpu": r"v?\d+[a-z]?",
    "cuda": r"[a-z]{1,3}\d{1,4}[a-z]?",
    "rocm": r"mi\d{3}[a-z]?",
}
_TPU_KINDS = {
    "v4": ("TPU v4", 1),
    "v5e": ("TPU v5 lite", 1),
    "v5p": ("TPU v5", 2),
    "v6e": ("TPU v6 lite", 1),
    "7x": ("TPU7x", 1),
}
"""What a TPU reports as its kind, and its cores as one device."""

_RENAMED = {"v5 lite": "v5e", "v6 lite": "v6e", "v5": "v5p", "v7x": "7x"}  # some are what devices report as their kind

_given: Any = jax.make_user_context(None)
"""The target of `compiled_for`, or None. JAX does not use what it traced for another one."""


@dataclasses.dataclass(frozen=True)
class Target:
    """What a program is compiled for.

    Args:
        platform: `"cpu"`, `"tpu"`, `"cuda"`, `"rocm"`, or another platform that JAX has a plugin for.
        generation: such as `"v5e"` or `"h100"`; None if unknown.
        auto_devices: the number of devices that XLA divides the program over by itself (Auto mesh axes), as far as only
            lowering tells; known on a TPU, whose kernels XLA cannot divide.

    >>> print(Target("tpu", "v5e"), Target("cpu"))
    tpu v5e cpu
    """

    platform: str
    generation: str | None = None
    auto_devices: int = dataclasses.field(default=1, repr=False)

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
        platform, _, generation = value.lower().strip().replace("tpu7x", "tpu 7x").partition(" ")
        platform = _ALIASES.get(platform, platform)
        if platform in PLATFORMS and (not generation or re.fullmatch(_GENERATIONS[platform], generation)):
            return Target(platform, _RENAMED.get(generation, generation) or None)
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
    found = re.search(rf"\b{_GENERATIONS.get(platform, _NONE)}\b", _RENAMED.get(name, name))
    return Target(platform, found.group() if found else None)


@contextlib.contextmanager
def compiled_for(target: Any) -> Iterator[Target]:
    """A context in which functions are traced for this target, whatever this machine is.

    For ahead-of-time compilation: JAX does not say while it traces which TPU or GPU a function will be lowered for. The
    choice of implementations and their tile sizes then follow this target. A program that is lowered for another
    platform after all, or runs on this machine, is the one for that platform.

    Args:
        target: text such as `"tpu v5e"`, `"cuda h100"` or `"cpu"`, a device, or a `Target`.

    Raises:
        ValueError: the target is unknown.

    >>> import jattn
    >>> with jattn.compiled_for("tpu v5e") as target:
    ...     print(target)
    tpu v5e
    """
    found = as_target(target)
    with _given(found), _device_kind(found):
        yield found


def expected_target(*arrays: Any) -> Target:
    """The target that a program of these arrays will most likely be compiled for.

    This is the target of `compiled_for`; otherwise that of the arrays' mesh or of `jax.set_mesh`; otherwise JAX's first
    device. The platform is a guess: a program may be lowered for another.
    """
    given = _given.value
    device = getattr(mesh_of(*arrays), "abstract_device", None)
    return given or as_target(jax.devices()[0] if device is None else device)


def target_of(*arrays: Any) -> Target | None:
    """The target of a program of these arrays if it is known, or None if only lowering will tell.

    It is known outside of `jit`, also under `jax.grad` and `jax.vmap`: the program then runs where the arrays are.
    """
    if is_tracing():
        return None
    concrete = [array for array in arrays if isinstance(array, jax.Array) and not isinstance(array, Tracer)]
    if not concrete:
        return _known_better(as_target(jax.devices()[0]))
    found = _known_better(as_target(next(iter(concrete[0].sharding.device_set))))
    # The type of an array names its mesh, but a sharding without a mesh leaves all to XLA.
    without_mesh = (array for array in concrete if jax.typeof(array).sharding.mesh.empty)
    devices = max((len(array.sharding.device_set) for array in without_mesh), default=1)
    return dataclasses.replace(found, auto_devices=devices) if found.platform in KERNELS_WHOLE else found


def _known_better(found: Target) -> Target:
    """The target of `compiled_for` if it is for the platform that was found."""
    given = _given.value
    return given if given is not None and given.platform == found.platform else found


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
    leaves, tree = jax.tree.flatten(arrays)
    target = target_of(*leaves)
    if target is not None:
        return function(target, *arrays)
    expected, flat = expected_target(*leaves), _Flat(function, tree)
    closed, shapes = jax.make_jaxpr(functools.partial(function, expected), return_shape=True)(*arrays)
    if closed.effects:  # of a kernel that is simulated: JAX must see them, and no other target has such a program
        return jax.tree.structure(shapes).unflatten(jaxpr_as_fun(closed)(*leaves))
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
def _run(*leaves: Any, expected: Target, function: _Flat, **others: Any) -> list[Any]:  # with `jax.disable_jit`
    del others
    return function(target_of(*leaves) or expected, *leaves)


def _lowered(
    platform: str | None, context: Any, *operands: Any, traced: _Traced, expected: Target, function: _Flat
) -> Any:
    name = context.module_context.platforms[0] if platform is None else platform
    found = expected if name == expected.platform else Target(name)
    if name in KERNELS_WHOLE:
        found = dataclasses.replace(found, auto_devices=_auto_devices(context.module_context.axis_context))
    program = jaxpr_as_fun(traced.closed) if found == expected else functools.partial(function, found)
    with _device_kind(found):
        return mlir.lower_fun(program, multiple_results=True)(context, *operands)


def _auto_devices(axis_context: Any) -> int:
    """The number of devices over which XLA divides what is being lowered."""
    mesh, manual = getattr(axis_context, "mesh", None), getattr(axis_context, "manual_axes", ())
    if mesh is None or not manual:
        return getattr(axis_context, "num_devices", 1) if mesh is None else math.prod(mesh.shape.values())
    manual = {*manual, *mesh.manual_axes}
    return math.prod(size for name, size in mesh.shape.items() if name not in manual)


def _is_foreign(target: Target) -> bool:
    """Whether a program for this target is compiled ahead of time, on a machine without such a device."""
    return target.platform in KERNELS_WHOLE and jax.default_backend() != target.platform


@contextlib.contextmanager
def _device_kind(target: Target) -> Iterator[None]:
    """A context in which kernels are lowered for this target although the machine has no such device.

    Pallas asks the mesh of the context for the kind of TPU, and otherwise the machine.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.abstract_device is not None or not _is_foreign(target):
        yield
        return
    generation = target.generation or "v5e"
    kind, cores = _TPU_KINDS.get(generation, (f"TPU {generation}", 1))
    device = AbstractDevice(device_kind=kind, num_cores=cores, platform="tpu")
    mesh = AbstractMesh(mesh.axis_sizes, mesh.axis_names, axis_types=mesh.axis_types, abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        yield


for _platform in PLATFORMS:
    mlir.register_lowering(_by_target, functools.partial(_lowered, _platform), platform=_platform)
mlir.register_lowering(_by_target, functools.partial(_lowered, None))

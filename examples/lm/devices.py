"""The devices of a run: all devices of all processes, as a mesh `data` x `model`.

The batch is split over `data`. Heads and feed-forward layers are split over `model`, as in Megatron-LM (Shoeybi et al.
2019, arXiv:1909.08053). Everything else is replicated.
"""

import contextlib
import importlib.util
import re
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jattn.parallel import Heads

from .text import Text

DATA, MODEL = "data", "model"
SPLIT = {
    r"attention\.(query|key|value)\.kernel": PartitionSpec(None, MODEL),  # [features, heads, head_dim]
    r"attention\.out\.kernel": PartitionSpec(MODEL),  # [heads, head_dim, features]
    r"widen\.kernel": PartitionSpec(None, MODEL),
    r"widen\.bias": PartitionSpec(MODEL),
    r"narrow\.kernel": PartitionSpec(MODEL),
}
"""How parameters are split over `model`, by their names. The optimizer's moments have the names of their parameters."""


def join_processes(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Join the processes of one run. Must be called before JAX initializes its devices.

    Args:
        coordinator: `HOST:PORT` of process 0, the same in every process. None if JAX can find out by itself (on a TPU
            pod slice), or if there is only one process.
        processes: the number of processes.
        process: the index of this process, from 0.
    """
    if coordinator is not None:
        jax.distributed.initialize(coordinator, processes, process)
    elif importlib.util.find_spec("libtpu") is not None:
        with contextlib.suppress(RuntimeError, ValueError):  # JAX finds no cluster: this host is alone
            jax.distributed.initialize()


def is_first() -> bool:
    """Whether this is process 0, which prints and draws."""
    return jax.process_index() == 0


def make_mesh(devices: int | None, model_parallel: int) -> Mesh:
    """The mesh `data` x `model` over the first `devices` devices, by default all.

    Raises:
        SystemExit: there are fewer devices, or `model_parallel` does not divide their number.
    """
    found = jax.devices()
    count = len(found) if devices is None else devices
    if count > len(found):
        raise SystemExit(f"--devices {count}: there are {len(found)}.")
    if count % model_parallel:
        raise SystemExit(f"--model-parallel {model_parallel} must divide the number of devices, {count}.")
    return jax.make_mesh(
        (count // model_parallel, model_parallel), (DATA, MODEL), (AxisType.Auto,) * 2, devices=found[:count]
    )


def heads_over(mesh: Mesh) -> Heads | None:
    """How attention is split over the mesh, or None on one device."""
    return Heads(MODEL, batch=DATA, mesh=mesh) if mesh.size > 1 else None


def shardings_of(state: Any, mesh: Mesh) -> Any:
    """The sharding of every array of a state (parameters, moments), by its name."""

    def one(path: Any, leaf: Any) -> NamedSharding:
        del leaf
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        specs = [spec for pattern, spec in SPLIT.items() if re.search(rf"{pattern}(\.|$)", name)]
        return NamedSharding(mesh, specs[0] if specs else PartitionSpec())

    return jax.tree.map_with_path(one, state)


def rows(text: Text, starts: np.ndarray, length: int, mesh: Mesh) -> tuple[jax.Array, jax.Array]:
    """`text.rows(starts, length)`, split over `data`. Each process reads only the rows of its own devices."""
    sharding = NamedSharding(mesh, PartitionSpec(DATA))

    def part(which: int) -> jax.Array:
        def cut(index: Any) -> np.ndarray:
            return text.rows(starts[index[0]], length)[which]

        return jax.make_array_from_callback((len(starts), length + 1), sharding, cut)

    return part(0), part(1)


def fetch(tree: Any) -> Any:
    """The whole arrays as NumPy arrays, in every process."""
    return multihost_utils.process_allgather(tree, tiled=True)


def wait_for_all(what: str) -> None:
    """Wait until all processes have reached this point."""
    multihost_utils.sync_global_devices(what)


def describe(mesh: Mesh) -> str:
    """The mesh in words."""
    kind = jax.devices()[0].device_kind
    if mesh.size == 1:
        return kind
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    sizes = " x ".join(map(str, mesh.shape.values()))
    return f"{mesh.size} x {kind}{processes} ({sizes}: {' x '.join(mesh.shape)})"

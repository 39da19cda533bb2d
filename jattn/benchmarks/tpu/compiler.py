"""Compile for a TPU that is not present: libtpu has the compiler, and needs no device."""

import dataclasses
import importlib.util
import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ...foundation.target import compiled_for
from ...ops.attention.implementations.pallas_tpu.estimate import CHIPS, Chip


@dataclasses.dataclass(frozen=True)
class Generation:
    """A generation of TPUs.

    Attributes:
        name: such as "v6e".
        topology: the smallest that libtpu describes.
    """

    name: str
    topology: str

    @property
    def target(self) -> str:
        """The target, as `jattn.compiled_for` takes it."""
        return self.name if self.name.startswith("tpu") else f"tpu {self.name}"

    @property
    def chip(self) -> Chip:
        """Its clock and its memory."""
        return CHIPS[self.name.removeprefix("tpu")]


GENERATIONS = {
    each.name: each
    for each in (
        Generation("v4", "v4:2x2x1"),
        Generation("v5e", "v5e:2x2"),
        Generation("v5p", "v5p:2x2x1"),
        Generation("v6e", "v6e:2x2"),
        Generation("tpu7x", "tpu7x:2x2x1"),
    )
}

ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # do not ask Google Cloud about this machine
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several processes: none of them uses a device
}
"""What libtpu needs where no TPU is. It reads this when it is loaded."""


def missing() -> str | None:
    """Why nothing can be compiled for a TPU here, or None."""
    if importlib.util.find_spec("libtpu") is None:
        return "libtpu is not installed (Linux only): pip install 'jattn[tpu]'"
    return None


def libtpu_version() -> str:
    """The version of the compiler."""
    try:
        return version("libtpu")
    except PackageNotFoundError:
        return "not installed"


def devices(generation: str) -> np.ndarray:
    """Devices of the smallest topology of a generation, as in `devices_of`."""
    return devices_of(GENERATIONS[generation].topology)


def devices_of(topology: str) -> np.ndarray:
    """Devices of a topology, such as "v5e:4x4". They can be compiled for, and nothing else.

    Sets what libtpu needs in the environment of this process.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    return np.array(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)


def lower(generation: str, function: Callable[..., Any], arguments: Any) -> jax.stages.Lowered:
    """`function(*arguments)` lowered for one device of a generation.

    Args:
        generation: a key of `GENERATIONS`.
        function: a function of arrays.
        arguments: a tuple of pytrees of `jax.ShapeDtypeStruct`s.
    """
    one = NamedSharding(Mesh(devices(generation)[:1], ("device",)), PartitionSpec())
    with compiled_for(GENERATIONS[generation].target):
        return jax.jit(function, in_shardings=jax.tree.map(lambda _: one, arguments)).lower(*arguments)

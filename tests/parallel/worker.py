"""One of several processes that attend to arrays spread over all their devices: `worker.py PORT PROCESSES PROCESS`.

Each process computes everything on one of its own devices too, and compares the shards it holds.
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import jattn
from jattn import masks, scores

BATCH, LENGTH, HEADS, DIM = 8, 12, 8, 4
SPLITS = {
    "batch": ({"batch": ("data", "model")}, ["lengths"]),
    "heads": ({"heads": ("data", "model")}, ["slopes"]),
    "both": ({"batch": "data", "heads": "model"}, ["causal", "segments", "lengths", "slopes"]),
}
"""What is split over which mesh axes, and the cases that are."""


def spec(axes: tuple[str | None, ...], over: dict[str, object]) -> PartitionSpec:
    return PartitionSpec(*(None if axis is None else over.get(axis) for axis in axes))


def arrays() -> tuple[dict[str, np.ndarray], dict[str, tuple[str | None, ...]]]:
    """What is attended to, and the axes that each array rides on."""
    draw = np.random.default_rng(0)
    qkv = ("query", "key", "value")
    values = {name: draw.normal(size=(BATCH, LENGTH, HEADS, DIM)).astype(np.float32) for name in qkv}
    values["slopes"] = draw.uniform(0, 1, HEADS).astype(np.float32)
    values["segments"] = np.sort(draw.integers(0, 3, (BATCH, LENGTH)).astype(np.int32), 1)
    values["lengths"] = np.arange(1, 1 + BATCH, dtype=np.int32)
    axes = {name: ("batch", None, "heads", None) for name in qkv}
    return values, {**axes, "slopes": ("heads",), "segments": ("batch", None), "lengths": ("batch",)}


CASES = {
    "causal": lambda given: {"mask": masks.Causal()},
    "segments": lambda given: {"mask": masks.Causal() & masks.SameSegment(given["segments"])},
    "lengths": lambda given: {"mask": masks.Lengths(given["lengths"])},
    "slopes": lambda given: {"mask": masks.Causal(), "scores": scores.ALiBi(given["slopes"])},
}
FLOATS = ("query", "key", "value", "slopes")


@functools.cache
def everything(case: str):
    """The output, and the gradients of all floating-point arrays."""

    def run(given):
        def attend(floats):
            given_now = {**given, **floats}
            qkv = (given_now[name] for name in ("query", "key", "value"))
            return jattn.attention(*qkv, **CASES[case](given_now), implementation="tiled")

        out, pull = jax.vjp(attend, {name: given[name] for name in FLOATS})
        return out, *pull(jnp.cos(out))

    return jax.jit(run)


def main(port: str, processes: str, process: str) -> None:
    jax.distributed.initialize(f"127.0.0.1:{port}", int(processes), int(process))
    count = jax.device_count()
    assert count == 8 and jax.local_device_count() == count // int(processes)
    mesh = jax.make_mesh((4, 2), ("data", "model"))
    values, axes = arrays()
    alone = jax.device_put(values, jax.local_devices()[0])
    for name, (over, cases) in SPLITS.items():
        given = {
            one: jax.make_array_from_callback(
                array.shape, NamedSharding(mesh, spec(axes[one], over)), lambda index, array=array: array[index]
            )
            for one, array in values.items()
        }
        for case in cases:
            run = everything(case)
            (want, want_gradients), (out, gradients) = run(alone), run(given)
            compare(f"{name}, {case}: output", out, want, given["query"].sharding)
            for one in FLOATS:
                compare(f"{name}, {case}: gradient of {one}", gradients[one], want_gradients[one], given[one].sharding)
    # Nothing is fetched: a plan of arrays that no process has whole is one that is not known yet.
    piece = masks.SameSegment(given["segments"])
    assert piece == piece and piece == masks.SameSegment(given["segments"])
    qkv = [given[one] for one in ("query", "key", "value")]
    for one in (piece, masks.Lengths(given["lengths"]), masks.Causal() & piece):
        assert "tiled" in str(jattn.explain(*qkv, mask=one))
    print("equal")


def compare(what: str, got: jax.Array, want: jax.Array, sharding: NamedSharding) -> None:
    assert got.sharding.is_equivalent_to(sharding, got.ndim), (what, got.sharding, sharding)
    whole = np.asarray(want)
    for shard in got.addressable_shards:
        np.testing.assert_allclose(shard.data, whole[shard.index], rtol=2e-5, atol=2e-5, err_msg=what)


if __name__ == "__main__":
    main(*sys.argv[1:])

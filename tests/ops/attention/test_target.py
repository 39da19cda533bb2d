"""One program, lowered for several platforms: each gets its own tiles and implementation."""

import dataclasses
import sys
import types

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from measure import near, random

import jattn
from jattn.foundation.target import Target, by_target, compiled_for
from jattn.ops import dispatch
from jattn.ops.attention.implementations import ATTENTION, Tiled, registry
from jattn.ops.attention.implementations.tiled import implementation as tiled_module

ARRAYS = random((2, 40, 4, 8), (2, 40, 2, 8), (2, 40, 2, 8))
PLATFORMS = ("cpu", "tpu", "cuda")


def loss(query, key, value):
    ids = jnp.arange(40) // 15
    mask = jattn.masks.Causal() & jattn.masks.SameSegment(ids[None])
    return jattn.attention(query, key, value, mask=mask, implementation="tiled").sum()


@pytest.fixture
def chosen(monkeypatch):
    """The platforms that tiles were chosen for."""
    seen = []
    choose = tiled_module.tiling.choose

    def spy(call, *sizes):
        seen.append(call.target and call.target.platform)
        return choose(call, *sizes)

    monkeypatch.setattr(tiled_module.tiling, "choose", spy)
    return seen


@pytest.mark.exhaustive
def test_each_platform_gets_its_own_tiles(chosen):
    step = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
    exported = jax.export.export(step, platforms=PLATFORMS)(*ARRAYS)
    assert set(chosen) == set(PLATFORMS)
    for got, want in zip(*map(jax.tree.leaves, (exported.call(*ARRAYS), step(*ARRAYS))), strict=True):
        near(got, want)
    chosen.clear()
    jax.export.export(step, platforms=("tpu",))(*ARRAYS)
    assert "tpu" in chosen and "cuda" not in chosen


def test_constants_of_a_program_do_not_decide_its_target(chosen):
    jax.export.export(jax.jit(lambda: jattn.attention(*ARRAYS, implementation="tiled")), platforms=("tpu",))()
    assert "tpu" in chosen


def test_nothing_is_traced_for_a_platform_that_nobody_asks_for(chosen):
    jax.jit(jax.grad(loss)).lower(*ARRAYS)
    jattn.attention(*ARRAYS, mask=jattn.masks.Causal())
    jax.vmap(lambda query: jattn.attention(query, *ARRAYS[1:]))(jnp.stack([ARRAYS[0]] * 2))
    assert set(chosen) == {"cpu"}


def _once(array):
    return jattn.attention(array, array, array, implementation="tiled")


def _in_shards(array):
    mesh = jax.typeof(array).sharding.mesh
    return jax.shard_map(jax.jit(_once), mesh=mesh, in_specs=P("x"), out_specs=P("x"))(array)


@pytest.mark.parametrize(
    ("function", "axis", "length"),  # of another length each, so that nothing was traced for another test
    [
        pytest.param(_once, None, 16, id="replicated"),
        pytest.param(_once, "x", 17, id="split"),
        pytest.param(jax.vmap(_once), "x", 18, id="vmap"),
        pytest.param(jax.checkpoint(_once), "x", 19, id="checkpoint"),
        pytest.param(_in_shards, "x", 20, id="shard_map"),
    ],
)
def test_nothing_is_taken_from_what_was_traced_for_another_generation(function, axis, length, monkeypatch):
    seen, choose = [], tiled_module.tiling.choose
    monkeypatch.setattr(
        tiled_module.tiling, "choose", lambda call, *sizes: seen.append(str(call.target)) or choose(call, *sizes)
    )
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:2])
    array = jax.device_put(jnp.zeros((2, 2, length, 2, 8)), NamedSharding(mesh, P(axis)))
    for target in ("tpu v4", "tpu v6e", "cuda h100", "cuda a100"):
        seen.clear()
        with compiled_for(target):
            jax.jit(function).lower(array)
        assert target in seen


@pytest.mark.parametrize(("platform", "rounds"), [("cpu", False), ("tpu", True), ("cuda", True)])
def test_the_program_rounds_weights_where_there_are_matrix_units(platform, rounds):
    low = [array.astype(jnp.bfloat16) for array in ARRAYS]
    attend = jax.jit(lambda *arrays: jattn.attention(*arrays, implementation="tiled"))
    text = jax.export.export(attend, platforms=(platform,))(*low).mlir_module()
    products = [line for line in text.splitlines() if "dot_general" in line and "x40x" in line]
    # The second product is that of weights and values.
    assert products and ("bf16" in products[-1].split("->")[0].split(":")[-1]) == rounds


def test_explain_says_from_anywhere_what_runs_there():
    shape = jax.ShapeDtypeStruct((1, 4096, 8, 64), "bfloat16")
    here, there = (jattn.explain(shape, shape, shape, target=target) for target in (None, "tpu v5e"))
    assert (here.target, there.target) == ("cpu", "tpu v5e")
    assert here.memory != there.memory
    assert "for tpu v5e" in str(there)
    old = jattn.explain(shape, shape, shape, target="tpu v3")
    assert old.implementation == "tiled" and "generations v4, v5e" in old.reasons["pallas_tpu"]
    with compiled_for("cuda"):
        listed = jattn.explain_calls(lambda x: jattn.attention(x, x, x), shape)
    listed += jattn.explain_calls(lambda x: jattn.attention(x, x, x), shape, target="tpu v5e")
    assert [one.target for one in listed] == ["cuda", "tpu v5e"]
    with pytest.raises(ValueError, match="`target` must be one of"):
        jattn.explain(shape, shape, shape, target="abacus")


@dataclasses.dataclass(frozen=True)
class Kernel(Tiled):
    """What a kernel for one platform would be: its own module, and refusals of its own."""

    name = "kernel"

    def refuses(self, call):
        return "it has no dropout" if call.pieces.dropout is not None else super().refuses(call)

    def stream(self, call, query, key, value):
        assert call.target is not None and call.target.platform == "tpu"
        streamed = super().stream(call, query, key, value)
        return dataclasses.replace(streamed, out=streamed.out + 1)


@pytest.fixture
def kernel(monkeypatch):
    row = dispatch.Row("kernel", "module_of_a_kernel", "Kernel", ("tpu",))
    operation = dataclasses.replace(ATTENTION, rows=(row, *(one for one in ATTENTION.rows if one.platforms is None)))
    for module in ("jattn.ops.attention.api", "jattn.ops.attention.explain"):
        monkeypatch.setattr(sys.modules[module], "ATTENTION", operation)
    module = types.ModuleType("module_of_a_kernel")
    module.Kernel = Kernel  # pyright: ignore[reportAttributeAccessIssue]
    yield lambda: monkeypatch.setitem(sys.modules, "module_of_a_kernel", module)
    dispatch._load.cache_clear()
    jax.clear_caches()


def test_a_kernel_for_one_platform_is_one_row(kernel):
    attend = jax.jit(lambda *arrays: jattn.attention(*arrays))
    step = jax.jit(jax.grad(lambda *arrays: jattn.attention(*arrays).sum()))
    want = attend(*ARRAYS)  # its module is not there yet, and nobody asks for it
    step(*ARRAYS)
    jax.clear_caches()
    with pytest.raises(ModuleNotFoundError, match="module_of_a_kernel"):
        jax.export.export(attend, platforms=("cpu", "tpu"))(*ARRAYS)
    kernel()
    exported = jax.export.export(attend, platforms=("cpu", "tpu"))(*ARRAYS)
    near(exported.call(*ARRAYS), want)
    jax.export.export(step, platforms=("cpu", "tpu"))(*ARRAYS)
    shape = jax.ShapeDtypeStruct((1, 64, 4, 8), "float32")
    explained = jattn.explain(shape, shape, shape, target="tpu")
    assert explained.implementation == "kernel"
    dropout = jattn.Dropout(0.1, jax.random.key(0))
    explained = jattn.explain(shape, shape, shape, target="tpu", dropout=dropout)
    assert (explained.implementation, explained.reasons["kernel"]) == ("tiled", "it has no dropout")
    with pytest.raises(jattn.Unsupported, match="it is for tpu, and the program is for cpu"):
        attend_by = jattn.attention(*ARRAYS, implementation="kernel")
        del attend_by


def test_by_target_keeps_trees_and_runs_anywhere():
    def name(target, tree):
        return {"sum": tree["a"] + tree["b"], "cpu": jnp.float32(target == Target("cpu"))}

    tree = {"a": jnp.ones(3), "b": np.ones(3, np.float32)}
    for run in (lambda tree: by_target(name, tree), jax.jit(lambda tree: by_target(name, tree))):
        got = run(tree)
        np.testing.assert_array_equal(got["sum"], 2 * np.ones(3))
        assert got["cpu"] == 1
    with jax.disable_jit():
        assert jax.vmap(lambda x: x)(by_target(name, tree)["sum"]).shape == (3,)
    assert registry.ATTENTION is ATTENTION


def test_by_target_knows_what_xla_divides_over_the_devices_of_a_tpu():
    seen = []

    def look(target, array):
        seen.append(target)
        return array

    def targets(function, **options):
        """The targets that a function is traced for, last what it is lowered for."""
        seen.clear()
        jax.export.export(jax.jit(function, **options), platforms=("tpu",))(jnp.zeros(16))
        return seen[-1]

    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    both, data = (NamedSharding(mesh, P(axes)) for axes in (("data", "model"), "data"))

    def attend(array):
        return by_target(look, array)

    def in_shards(axes, names):
        return jax.shard_map(attend, mesh=mesh, in_specs=P(axes), out_specs=P(axes), axis_names=names)

    assert targets(attend) == Target("tpu")
    assert targets(attend, in_shardings=data) == Target("tpu", None, 8)
    everywhere = in_shards(("data", "model"), {"data", "model"})
    assert targets(everywhere, in_shardings=both) == Target("tpu")
    with compiled_for("tpu v6e"):  # JAX does not take what it traced before
        assert targets(attend) == Target("tpu", "v6e")
        assert targets(attend, in_shardings=data) == Target("tpu", "v6e", 8)


def test_a_kernel_runs_where_it_can():
    """The default on a TPU is the kernel, decided when the program is lowered; and nowhere else."""
    step = jax.jit(jax.grad(lambda *arrays: jattn.attention(*arrays, mask=jattn.masks.Causal()).sum(), (0, 1, 2)))

    def kernels(function, *platforms, **options):
        return (
            jax.export.export(jax.jit(function, **options), platforms=platforms)(*ARRAYS)
            .mlir_module()
            .count("tpu_custom_call")
        )

    assert kernels(step, "tpu") == 2  # forward and backward
    assert kernels(step, "cpu") == 0
    exported = jax.export.export(step, platforms=("cpu", "tpu"))(*ARRAYS)
    for got, want in zip(exported.call(*ARRAYS), step(*ARRAYS), strict=True):
        near(got, want)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, P("data"))
    assert kernels(step, "tpu", in_shardings=(split,) * 3) == 0  # XLA cannot divide a kernel
    with compiled_for("tpu v5e"):
        assert kernels(step, "cpu") == 0
        near(jattn.attention(*ARRAYS), jax.jit(lambda *arrays: jattn.attention(*arrays))(*ARRAYS))

    def named(*arrays):
        return jattn.attention(*arrays, implementation="pallas_tpu")

    with pytest.raises(jattn.Unsupported, match=r"jattn.compiled_for.*interpret=True"):
        named(*ARRAYS)
    with compiled_for("tpu v5e"):
        assert kernels(named, "tpu") == 1
        with pytest.raises(jattn.Unsupported, match="the program is for cpu"):
            jax.jit(named)(*ARRAYS)
        with pytest.raises(jattn.Unsupported, match="Auto mesh axes"):
            kernels(named, "tpu", in_shardings=(split,) * 3)
    with compiled_for("tpu v3"):
        assert kernels(step, "tpu") == 0
        with pytest.raises(jattn.Unsupported, match="generations v4, v5e"):
            kernels(named, "tpu")

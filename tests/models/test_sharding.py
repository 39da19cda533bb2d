"""Models on eight emulated devices: values and gradients of one device, and the collectives that the split needs."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import model_peers
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType
from model_cases import CASES, objective
from model_runs import close, made
from tiers import rows

from jattn import models
from jattn.models.gpt2 import GPT2Config, GPT2ForCausalLM
from jattn.models.layers import MLP
from jattn.models.llama import LlamaConfig, LlamaForCausalLM
from jattn.models.sharding import SplitParam
from jattn.nnx import Layer

AUTO = AxisType.Auto
AXES = {
    "batch": {"batch": "data"},
    "heads": {"heads": "model"},
    "parameters": {"batch": "data", "parameters": "data"},
    "all": {"batch": ("data", "rest"), "heads": "model", "parameters": "rest"},
}
ALWAYS = {"gpt2 batch", "llama all"}
SUMMED_ONCE = ("bert", "gpt2", "llama", "vit", "whisper")
"""Families whose every layer is used once, and whose attention is `MultiHeadAttention`."""
ROWS = [f"{family} {how}" for family in CASES for how in AXES]
LLAMA = LlamaConfig(vocabulary=41, features=16, depth=2, heads=4, kv_heads=2, mlp_features=24)


@functools.cache
def mesh(*shape):
    return jax.make_mesh(shape or (2, 2, 2), ("data", "model", "rest")[: len(shape) or 3], (AUTO,) * (len(shape) or 3))


def found(compiled):
    """Collectives and the shapes of their results."""
    lines = re.findall(r"= (.*?) (all-\w+|reduce-scatter|collective-\w+?)(?:-start)?\(", compiled.as_text())
    return [(kind, re.findall(r"\w+\[([\d,]*)\]", shapes)) for shapes, kind in lines]


def kinds(collectives):
    return {kind for kind, _ in collectives}


@pytest.mark.parametrize("row", rows(ROWS, ALWAYS))
def test_values_gradients_and_collectives(row):
    family, how = row.split()
    case = next(iter(CASES[family].values()))
    inputs = {name: np.concatenate([one] * 4) if one.ndim else one for name, one in case.inputs.items()}
    model = made(case)
    cotangents = model_peers.cotangents(jax.eval_shape(lambda: case.call(model, inputs)))

    def split(model):
        graph, parameters, rest = nnx.split(model, nnx.Param, ...)

        def outputs(parameters):
            return case.call(nnx.merge(graph, parameters, rest), inputs)

        def loss(parameters):
            found = outputs(parameters)
            return objective(found, cotangents), found

        return outputs, jax.jit(jax.value_and_grad(loss, has_aux=True)), parameters

    _, run, parameters = split(model)
    (_, want), want_gradients = run(parameters)
    model = models.shard(model, mesh(), **AXES[how])
    outputs, run, parameters = split(model)
    compiled = run.lower(parameters).compile()
    (_, got), gradients = compiled(parameters)
    for name, one in got.items():
        close(one, want[name], 1e-5, name)
    largest = max(np.abs(one).max() for one in jax.tree.leaves(want_gradients))
    for one, wish, place in zip(*map(jax.tree.leaves, (gradients, want_gradients, parameters)), strict=True):
        close(one, wish, 1e-4, "a gradient", 1e-3 * largest)
        assert how != "parameters" or one.sharding.is_equivalent_to(place.sharding, one.ndim)
    collectives = found(compiled)
    allowed = {"batch": {"all-reduce"}, "heads": {"all-reduce"}}.get(
        how, {"all-reduce", "all-gather", "reduce-scatter"}
    )
    assert "all-reduce" in kinds(collectives)
    contrastive = family == "clip"  # every text is compared with every image
    assert contrastive or kinds(collectives) <= allowed, collectives
    shapes = {",".join(map(str, one.shape)) for one in jax.tree.leaves(parameters)}
    for kind, results in collectives:  # of parameters, never of activations
        assert kind != "all-gather" or contrastive or "heads" in AXES[how] or set(results) <= shapes, results
    if how == "heads":
        once = [node for _, node in nnx.iter_graph(model) if isinstance(node, Layer | MLP)]
        forward = found(jax.jit(outputs).lower(parameters).compile())
        assert kinds(forward) == {"all-reduce"}
        sums = sum(len(results) for _, results in forward)  # XLA may join two in one
        assert sums == len(once) or family not in SUMMED_ONCE, forward


@pytest.mark.parametrize(("kv_heads", "scan"), [(2, True), pytest.param(1, False, marks=pytest.mark.exhaustive)])
def test_a_step_of_an_optimizer_keeps_every_part_in_its_place(kv_heads, scan):
    config = dataclasses.replace(LLAMA, kv_heads=kv_heads, remat=True, scan=scan)
    tokens = np.arange(32).reshape(4, 8)
    transform = optax.adamw(1e-2)
    build = lambda: LlamaForCausalLM(config, rngs=nnx.Rngs(0))  # noqa: E731

    @nnx.jit
    def step(model, optimizer):
        loss, gradients = nnx.value_and_grad(lambda model: models.next_token_loss(model(tokens), tokens))(model)
        optimizer.update(model, gradients)
        return loss

    losses = []
    whole = LlamaForCausalLM(dataclasses.replace(config, remat=False, scan=False), rngs=nnx.Rngs(0))
    for model in (whole, models.shard(build, mesh(2, 4), batch="data", heads="model", parameters="data")):
        optimizer = nnx.Optimizer(model, transform, wrt=nnx.Param)
        places = [one.sharding for one in jax.tree.leaves(nnx.state(model))]
        moments = [one for one in jax.tree.leaves(nnx.state(optimizer)) if one.ndim]
        assert [one.sharding for one in moments[: len(places)]] == places
        losses.append([float(step(model, optimizer)) for _ in range(3)])
        after = jax.tree.leaves(nnx.state(model))
        assert all(one.sharding.is_equivalent_to(place, one.ndim) for one, place in zip(after, places, strict=True))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    kept = model.blocks[0].mlp.up.kernel
    assert isinstance(kept, SplitParam)
    assert kept.get_value().addressable_shards[0].data.shape == (8, 6)


@pytest.mark.parametrize("cache", ["contiguous", pytest.param("paged", marks=pytest.mark.exhaustive)])
def test_generates_the_tokens_of_one_device(cache):
    model = LlamaForCausalLM(LLAMA, rngs=nnx.Rngs(0))
    prompts = [[3, 4, 5], [6], [7, 8], [9]]
    want = models.generate(model, prompts, max_new_tokens=4, cache=cache)
    models.shard(model, mesh(4, 2), batch="data", heads="model", parameters="data")
    got = models.generate(model, prompts, max_new_tokens=4, cache=cache)
    assert got.lists() == want.lists()
    state = model.initial_state(4, 8)
    assert state[0].keys.sharding.spec == jax.sharding.PartitionSpec("data", None, "model", None)
    step = jax.jit(lambda model, tokens, state: model.step(tokens, state))
    compiled = step.lower(model, jnp.zeros(4, int), state).compile()
    parts = {",".join(map(str, one.shape)) for one in jax.tree.leaves(nnx.state(model))}
    gathered = {shape for kind, shapes in found(compiled) for shape in shapes if kind == "all-gather"}
    assert not [shape for shape in gathered if len(shape.split(",")) > 3], gathered
    assert parts & gathered
    assert compiled(model, jnp.zeros(4, int), state)[1][0].keys.sharding.is_equivalent_to(state[0].keys.sharding, 4)


def test_is_read_straight_onto_its_devices(tmp_path):
    pytest.importorskip("safetensors")
    model = LlamaForCausalLM(LLAMA, rngs=nnx.Rngs(0))
    models.to_directory(model, tmp_path)
    axes = dict(batch="data", heads="model", parameters="data")
    read = models.from_directory(tmp_path, shardings=models.OnMesh(mesh(4, 2), **axes))
    shapes = models.shard(nnx.eval_shape(lambda: LlamaForCausalLM(LLAMA, rngs=nnx.Rngs(0))), mesh(4, 2), **axes)
    models.shard(model, mesh(4, 2), **axes)
    for one, shape, want in zip(*(jax.tree.leaves(nnx.state(each)) for each in (read, shapes, model)), strict=True):
        assert one.sharding == shape.sharding == want.sharding
        np.testing.assert_array_equal(one, want)
    kinds_of = lambda model: [(path, type(one)) for path, one in nnx.to_flat_state(nnx.state(model))]  # noqa: E731
    assert kinds_of(read) == kinds_of(shapes) == kinds_of(model)
    again = models.to_tensors(read)
    assert all(np.array_equal(one, again[name]) for name, one in models.to_tensors(model).items())


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (
            {"batch": "rows"},
            r"`batch` must name an axis of the mesh, which has \('data', 'model', 'rest'\); got 'rows'",
        ),
        ({"parameters": ("rest", "all")}, r"`parameters` must name an axis .* got 'all'"),
        ({"batch": ("data", "data")}, r"`batch` must name each axis of the mesh once"),
        ({"batch": "data", "heads": "data"}, r"`heads` and `batch` must be different axes of the mesh; got 'data'"),
        ({"heads": "model", "parameters": "model"}, r"`heads` and `parameters` must be different axes"),
        ({}, r"`batch`, `heads` or `parameters` must name an axis"),
        (
            {"heads": "model"},
            r"`heads` must .* 2 devices divide the 3 heads of `blocks.0.attention.\w+`; use one of 1",
        ),
    ],
)
def test_bad_axes(axes, message):
    config = GPT2Config(vocabulary=11, features=12, depth=1, heads=3, max_length=9)
    model = nnx.eval_shape(lambda: GPT2ForCausalLM(config, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=message):
        models.shard(model, mesh(), **axes)
    assert not any(isinstance(one, SplitParam) for _, one in nnx.iter_graph(model))


def test_bad_models_meshes_and_batches():
    for other in (nnx.Linear(2, 3, rngs=nnx.Rngs(0)), "gpt2", lambda: nnx.Linear(2, 3, rngs=nnx.Rngs(0))):
        with pytest.raises(ValueError, match=r"`model` must be a model of `jattn.models`"):
            models.shard(other, mesh(), batch="data")
    with pytest.raises(ValueError, match=r"`mesh` must be a `jax.sharding.Mesh`.* got 'data'"):
        models.OnMesh("data", batch="data")  # pyright: ignore
    explicit = jax.make_mesh((8,), ("data",), (AxisType.Explicit,))
    with pytest.raises(ValueError, match=r"`mesh` must have the axes 'data' as Auto axes.* `jax.sharding.Mesh\(mesh"):
        models.OnMesh(explicit, batch="data")
    models.OnMesh(jax.sharding.Mesh(explicit.devices, explicit.axis_names), batch="data")
    model = models.shard(lambda: LlamaForCausalLM(LLAMA, rngs=nnx.Rngs(0)), mesh(), batch="data")
    with pytest.raises(ValueError, match=r"batch axis 0 of `inputs` must be a multiple of the 2 devices"):
        model(np.zeros((3, 5), int))
    with pytest.raises(ValueError, match=r"`shard` must be called outside of `jax.jit`"):
        nnx.jit(lambda model: models.shard(model, mesh(), batch="data"))(model)

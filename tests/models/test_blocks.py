"""Blocks in a loop over stacked parameters, and computed again in the gradient: values, gradients, random streams."""

import dataclasses

import jax
import jax.numpy as jnp
import model_peers
import numpy as np
import pytest
from flax import nnx
from model_cases import CASES, objective
from model_runs import close, made
from tiers import rows

import jattn
from jattn import models
from jattn.models.bert import BertConfig, BertForMaskedLM
from jattn.models.bigbird import BigBirdConfig
from jattn.models.gpt2 import GPT2Config, GPT2ForCausalLM
from jattn.models.llama import LlamaConfig, LlamaForCausalLM

HOW = {"scan": {"scan": True}, "remat": {"remat": True}, "both": {"scan": True, "remat": True}}
DIFFERENT = {  # no two blocks of these are alike
    "gpt2/untied, scaled by depth",
    "llama/qwen2, windows above",
    "llama/gemma2",
    "llama/gemma3",
    "llama/gpt-oss",
    "longformer/global tokens",
    "longformer/classes",
}
TABLE = [
    f"{family}/{name}/{how}"
    for family, cases in CASES.items()
    for name in cases
    for how in HOW
    if family != "bigbird" or how == "remat"
]
ALWAYS = {"llama/llama, scaled/both", "bert/albert/scan"}
TOKENS = np.arange(12).reshape(2, 6) % 11


def lengths(function, *inputs):
    """The number of repeats of each scan in a function's program."""

    def inside(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "scan":
                yield equation.params["length"]
            for one in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda one: hasattr(one, "eqns")):
                one = getattr(one, "jaxpr", one)
                if hasattr(one, "eqns"):
                    yield from inside(one)

    return sorted(inside(jax.make_jaxpr(function)(*inputs).jaxpr))


def copy(model, **how):
    """The same model, run in another way."""
    config = dataclasses.replace(model.config, **how)
    return models.from_tensors(models.to_tensors(model), config, model=type(model))


def trained(model, tokens=TOKENS):
    """The loss, its gradients, and the random streams after it."""
    graph, parameters, rest = nnx.split(model, nnx.Param, ...)

    def loss(parameters):
        model = nnx.merge(graph, parameters, rest, copy=True)
        return (model(tokens).astype(jnp.float32) ** 2).mean(), nnx.state(model, nnx.RngCount)

    (value, counts), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(parameters)
    return value, gradients, jax.tree.leaves(counts)


def alike(got, want):
    """As in the tests on a mesh: gradients that are 0 but for rounding, of biases of keys, are compared with others."""
    got, want = jax.tree.leaves(got), jax.tree.leaves(want)
    largest = max(np.abs(one).max() for one in want)
    for one, wish in zip(got, want, strict=True):
        close(one, wish, 1e-4, "a value or gradient", 1e-3 * largest)


@pytest.mark.parametrize("row", rows(TABLE, ALWAYS))
def test_every_family(row):
    family, name, how = row.split("/")
    case, found, scans = CASES[family][name], [], []
    for options in ({}, HOW[how]):
        model = copy(made(case), **options)
        graph, parameters, rest = nnx.split(model, nnx.Param, ...)

        def outputs(parameters, graph=graph, rest=rest):
            return case.call(nnx.merge(graph, parameters, rest), case.inputs)

        if "scan" in options and f"{family}/{name}" in DIFFERENT:
            with pytest.raises(ValueError, match="`scan` must be False for this model: no two of its 2 blocks"):
                jax.eval_shape(outputs, parameters)
            return
        cotangents = model_peers.cotangents(jax.eval_shape(outputs, parameters))
        run = jax.value_and_grad(lambda one: objective(outputs(one), cotangents))  # noqa: B023
        found.append(jax.jit(run)(parameters))
        scans.append(bool(lengths(outputs, parameters)))
    alike(*reversed(found))
    assert scans == [False, "scan" in HOW[how]]


SIZES = {"vocabulary": 11, "features": 8, "heads": 2, "mlp_features": 12}
ALTERNATING = LlamaConfig(**SIZES, depth=5, windows=(2, None, 2, None, 2), attention_dropout=0.5)
SHARED = BertConfig(**SIZES, depth=3, max_length=9, groups=1, dropout=0.5)


@pytest.mark.parametrize(
    ("kind", "config", "repeats"),
    [
        pytest.param(LlamaForCausalLM, ALTERNATING, [2], id="windows alternate"),
        pytest.param(BertForMaskedLM, SHARED, [3], id="parameters are shared", marks=pytest.mark.exhaustive),
    ],
)
def test_dropout_is_that_of_blocks_one_by_one(kind, config, repeats):
    found = []
    for how in ({}, {"scan": True, "remat": True}):
        model = kind(dataclasses.replace(config, **how), rngs=nnx.Rngs(0))
        assert lengths(model, TOKENS) == (repeats if how else [])
        model.train()
        found.append(trained(model))
    alike(*reversed(found))
    assert all(count > 0 for count in found[1][2])


def test_float32_norms_of_bfloat16_models():
    model = LlamaForCausalLM(LlamaConfig(**SIZES, depth=4, scan=True), param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    for block in model.blocks:
        block.mlp_norm.scale.set_value(jnp.ones(8, jnp.float32))
    assert lengths(model, TOKENS) == [3]  # the first block returns another dtype than it gets
    got, want = (jax.jit(lambda tokens, one=one: one(tokens))(TOKENS) for one in (model, copy(model, scan=False)))
    close(got, want, 2e-2, "logits")


def test_recordings_and_generation_go_block_by_block():
    model = LlamaForCausalLM(LlamaConfig(**SIZES, depth=2), rngs=nnx.Rngs(0))
    found = []
    for one in (copy(model, scan=True, remat=True), model):
        with jattn.record() as seen:
            one(TOKENS)
        found.append([seen[name] for name in seen])
        found[-1].append(models.generate(one, TOKENS, max_new_tokens=2).tokens)
    alike(*found)
    assert len(found[0]) == 3


def test_refuses_what_does_not_repeat():
    config = GPT2Config(vocabulary=11, features=8, depth=2, heads=2, max_length=9, scale_by_depth=True, scan=True)
    with pytest.raises(ValueError, match="`scan` must be False for this model: no two of its 2 blocks are alike"):
        jax.eval_shape(GPT2ForCausalLM(config, rngs=nnx.Rngs(0)), TOKENS)
    with pytest.raises(ValueError, match="`scan` must be False for sparse attention"):
        BigBirdConfig(scan=True)

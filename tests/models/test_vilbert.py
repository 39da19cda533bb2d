"""ViLBERT against its definition in NumPy, in float64, by the names of the authors' files; gradients by differences."""

import jax
import numpy as np
import pytest
from flax import nnx
from model_cases import random_tensor
from scipy.special import erf

from jattn import models
from jattn.models.vilbert import ViLBERT, ViLBERTConfig

CONFIG = ViLBERTConfig(
    vocabulary=13,
    max_length=8,
    features=8,
    depth=3,
    heads=2,
    mlp_features=10,
    region_features=5,
    image_features=6,
    image_depth=2,
    image_heads=3,
    image_mlp_features=7,
    shared_features=4,
    shared_heads=2,
    text_connections=(1, 2),
    image_connections=(0, 2),  # the second after all blocks of regions
)
RANDOM = np.random.default_rng(0)
WORDS = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
REGIONS = np.array([[1, 1, 0, 0], [1, 1, 1, 1]])
TOKENS = RANDOM.integers(0, 13, WORDS.shape)
INPUTS = (TOKENS, *(RANDOM.standard_normal((2, 4, size)).astype(np.float32) for size in (5, 5)))
OPTIONS = {"attention_mask": WORDS, "image_attention_mask": REGIONS, "token_types": TOKENS % 2}


def defined(weights):
    """Hidden states of words and regions, zeros for padding, and the pooled vectors."""

    def linear(name, x):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(name, x):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-12)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def attend(q, k, v, heads, valid):
        q, k, v = (np.moveaxis(one.reshape(*one.shape[:2], heads, -1), 2, 1) for one in (q, k, v))
        scores = q @ np.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1]) + np.where(valid, 0, -np.inf)[:, None, None]
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        seen = np.moveaxis(shares / shares.sum(-1, keepdims=True) @ v, 1, 2)
        return seen.reshape(*seen.shape[:2], -1)

    def mlp(up, down, last, x):
        inner = linear(up, x)
        return norm(last, x + linear(down, inner * (1 + erf(inner / np.sqrt(2))) / 2))

    def block(name, x, heads, valid):
        q, k, v = (linear(f"{name}.attention.self.{one}", x) for one in ("query", "key", "value"))
        out = linear(f"{name}.attention.output.dense", attend(q, k, v, heads, valid))
        x = norm(f"{name}.attention.output.LayerNorm", x + out)
        return mlp(f"{name}.intermediate.dense", f"{name}.output.dense", f"{name}.output.LayerNorm", x)

    def connect(name, x, y):
        (q1, k1, v1), (q2, k2, v2) = (
            [linear(f"{name}.biattention.{one}{number}", stream) for one in ("query", "key", "value")]
            for number, stream in ((1, y), (2, x))
        )
        image = linear(f"{name}.biOutput.dense1", attend(q1, k2, v2, 2, WORDS))
        text = linear(f"{name}.biOutput.dense2", attend(q2, k1, v1, 2, REGIONS))
        y, x = norm(f"{name}.biOutput.LayerNorm1", y + image), norm(f"{name}.biOutput.LayerNorm2", x + text)
        x = mlp(f"{name}.t_intermediate.dense", f"{name}.t_output.dense", f"{name}.t_output.LayerNorm", x)
        return x, mlp(f"{name}.v_intermediate.dense", f"{name}.v_output.dense", f"{name}.v_output.LayerNorm", y)

    indices = {"word": TOKENS, "token_type": TOKENS % 2, "position": np.maximum(WORDS.cumsum(1) - 1, 0)}
    x = sum(weights[f"embeddings.{name}_embeddings.weight"][index] for name, index in indices.items())
    x = norm("embeddings.LayerNorm", x)
    y = linear("v_embeddings.image_embeddings", INPUTS[1]) + linear("v_embeddings.image_location_embeddings", INPUTS[2])
    y = norm("v_embeddings.LayerNorm", y)
    for step in ("layer.0", "c_layer.0", "layer.1", "v_layer.0", "v_layer.1", "c_layer.1", "layer.2"):
        if step.startswith("c"):
            x, y = connect(f"encoder.{step}", x, y)
        elif step.startswith("v"):
            y = block(f"encoder.{step}", y, 3, REGIONS)
        else:
            x = block(f"encoder.{step}", x, 2, WORDS)
    pooled = [np.maximum(linear(f"{name}_pooler.dense", one[:, 0]), 0) for name, one in (("t", x), ("v", y))]
    return [x * WORDS[..., None], y * REGIONS[..., None], *pooled]


def computed(model):
    found = model(*INPUTS, **OPTIONS)
    return [found.text * WORDS[..., None], found.image * REGIONS[..., None], *found[2:]]


def test_is_as_defined():
    shapes = {name: one.shape for name, one in models.to_tensors(ViLBERT(CONFIG, rngs=nnx.Rngs(0))).items()}
    tensors = {name: random_tensor(name, shape) for name, shape in shapes.items()}
    model = models.from_tensors({f"bert.{name}": one for name, one in tensors.items()}, CONFIG, ViLBERT)
    weights = {name: one.astype(np.float64) for name, one in tensors.items()}
    want = defined(weights)
    cotangents = [np.random.default_rng(1).standard_normal(one.shape) for one in want]
    graph, parameters, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def both(parameters):
        def total(parameters):
            found = computed(nnx.merge(graph, parameters, rest))
            return sum((one * np.float32(by)).sum() for one, by in zip(found, cotangents, strict=True)), found

        return jax.grad(total, has_aux=True)(parameters)

    found, got = both(parameters)
    for one, other in zip(got, want, strict=True):
        assert np.abs(one - other).max() <= 1e-5 * np.abs(other).max()
    gradients = models.to_tensors(nnx.merge(graph, found, rest))
    assert gradients.keys() == tensors.keys()
    largest = max(np.linalg.norm(one) for one in gradients.values())
    for name, gradient in gradients.items():
        step = 1e-5 * np.random.default_rng(2).standard_normal(gradient.shape)
        ends = [defined(weights | {name: weights[name] + sign * step}) for sign in (1, -1)]
        change = sum((by * (one - other)).sum() for by, one, other in zip(cotangents, *ends, strict=True)) / 2
        error = abs(change - (gradient * step).sum()) / 1e-5
        assert error <= 1e-4 * max(np.linalg.norm(gradient), 1e-3 * largest), name


def test_configuration_is_written_as_it_was_read():
    assert ViLBERTConfig.from_json(CONFIG.to_json()) == CONFIG


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"t_biattention_id": [3, 1, 2, 4, 5, 6]}, "`text_connections` must be ascending"),
        ({"v_biattention_id": [0]}, "as many for both"),
        ({"bi_num_attention_heads": 3}, "shared_heads"),
        ({"hidden_act": "relu"}, "`activation` must be 'gelu'"),
    ],
)
def test_refuses_configurations(settings, message):
    with pytest.raises(ValueError, match=message):
        ViLBERTConfig.from_json({"model_type": "vilbert", **settings})


def test_refuses_inputs():
    def call(*inputs, **options):
        nnx.eval_shape(lambda: ViLBERT(CONFIG, rngs=nnx.Rngs(0))(*inputs, **options))

    with pytest.raises(ValueError, match=r"`locations` must be floating-point \[..., 4, 5\]"):
        call(TOKENS, INPUTS[1], INPUTS[2][:, :3])
    with pytest.raises(ValueError, match="`image_attention_mask`"):
        call(*INPUTS, image_attention_mask=WORDS)

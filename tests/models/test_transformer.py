"""The Transformer by its equations; its recipe; configurations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jattn import models
from jattn.models.transformer import TransformerConfig, TransformerForConditionalGeneration, noam_rate

SIZES = {"vocabulary": 11, "features": 8, "heads": 2, "decoder_heads": 2, "mlp_features": 16}
SIZES |= {"decoder_mlp_features": 16, "depth": 1, "decoder_depth": 1}


def norm(x, p):
    centered = x - x.mean(-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def attend(x, y, p, causal=False):
    query, key, value = (
        np.einsum("lf,fhd->hld", one, p[name]["kernel"]) + p[name]["bias"][:, None]
        for name, one in {"query": x, "key": y, "value": y}.items()
    )
    scores = np.einsum("hqd,hkd->hqk", query, key) / np.sqrt(query.shape[-1])
    if causal:
        scores = np.where(np.tri(len(x), len(y)) > 0, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("hqk,hkd,hdf->qf", weights, value, p["out"]["kernel"]) + p["out"]["bias"]


def feed(x, p):
    return np.maximum(x @ p["up"]["kernel"] + p["up"]["bias"], 0) @ p["down"]["kernel"] + p["down"]["bias"]


def placed(tokens, p):
    angles = np.arange(len(tokens))[:, None] * 10000.0 ** -(np.arange(4) / 4)
    return p["embedding"][tokens] * np.sqrt(8) + np.concatenate([np.sin(angles), np.cos(angles)], -1)


def logits(p, source, target):
    """With norms before the layers, in float64."""
    x, one = placed(source, p["source_embedding"]), p["encoder"]["blocks"][0]
    y = norm(x, one["attention_norm"])
    x = x + attend(y, y, one["attention"])
    x = x + feed(norm(x, one["mlp_norm"]), one["mlp"])
    encoded = norm(x, p["encoder"]["norm"])
    x, one = placed(target, p["embedding"]), p["decoder"]["blocks"][0]
    y = norm(x, one["attention_norm"])
    x = x + attend(y, y, one["attention"], causal=True)
    x = x + attend(norm(x, one["cross_norm"]), encoded, one["cross"])
    x = x + feed(norm(x, one["mlp_norm"]), one["mlp"])
    return norm(x, p["decoder"]["norm"]) @ p["embedding"]["embedding"].T


def test_norms_before_layers_are_the_equations_and_padding_does_not_count():
    """Inputs have an embedding of their own, and padding on the left changes nothing."""
    config = TransformerConfig(**SIZES, pre_norm=True, source_vocabulary=13)
    graph, state = nnx.split(TransformerForConditionalGeneration(config, rngs=nnx.Rngs(0)))
    random = np.random.default_rng(0)
    state = jax.tree.map(lambda one: one + np.asarray(0.1 * random.standard_normal(one.shape), np.float32), state)
    source, target = np.array([12, 3, 4, 5]), np.array([1, 7, 8])
    padded, mask = (
        np.array([[12, 3, 4, 5, 0, 0], [0, 0, 12, 3, 4, 5]]),
        np.array([[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1]]),
    )
    call = jax.jit(lambda state: nnx.merge(graph, state)(padded, np.stack([target] * 2), attention_mask=mask))
    want = logits(jax.tree.map(lambda one: np.asarray(one, np.float64), nnx.to_pure_dict(state)), source, target)
    for got in call(state):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_noam_rate_is_a_schedule_that_rises_then_falls():
    rate = noam_rate(64, warmup=10, factor=2.0)
    want = [2 / 8 * min(step**-0.5, step * 10**-1.5) for step in range(1, 30)]
    np.testing.assert_allclose([rate(count) for count in range(29)], want, rtol=1e-6)
    optimizer = optax.sgd(rate)
    update, _ = optimizer.update(jnp.ones(()), optimizer.init(jnp.ones(())))
    np.testing.assert_allclose(update, -want[0], rtol=1e-6)


@pytest.mark.exhaustive
def test_learns_to_copy_by_its_recipe():
    """The Annotated Transformer's first example: greedy decoding, step by step, copies sequences never seen."""
    sizes = SIZES | {"features": 32, "mlp_features": 64, "decoder_mlp_features": 64}
    config = TransformerConfig(**sizes, pre_norm=True, dropout=0.0)
    model = TransformerForConditionalGeneration(config, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(noam_rate(32, warmup=60), b1=0.9, b2=0.98, eps=1e-9), wrt=nnx.Param)

    @nnx.jit
    def train(model, optimizer, labels):
        def loss(model):
            inputs = models.shifted_right(labels, config.decoder_start_token)
            return models.smoothed_loss(model(labels, inputs), labels, 0.1, padding=0)

        value, gradient = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradient)
        return value

    random = np.random.default_rng(0)
    for _ in range(400):
        loss = train(model, optimizer, random.integers(2, 11, (32, 8)))
    assert loss < 0.1

    @nnx.jit
    def copied(model, source):
        state = model.initial_state(len(source), 8, encoded=model.encode(source))
        tokens, found = jnp.full(len(source), config.decoder_start_token), []
        for _ in range(8):
            logits, state = model.step(tokens, state)
            tokens = logits.argmax(-1)
            found.append(tokens)
        return jnp.stack(found, -1)

    source = np.random.default_rng(1).integers(2, 11, (16, 8))
    assert (copied(model, source) == source).mean() > 0.95


def test_reads_a_published_configuration():
    settings = {  # as opus-mt-en-de has it
        "activation_function": "swish",
        "add_bias_logits": False,
        "add_final_layer_norm": False,
        "architectures": ["MarianMTModel"],
        "bad_words_ids": [[58100]],
        "bos_token_id": 0,
        "classif_dropout": 0.0,
        "d_model": 512,
        "decoder_attention_heads": 8,
        "decoder_ffn_dim": 2048,
        "decoder_layerdrop": 0.0,
        "decoder_layers": 6,
        "decoder_start_token_id": 58100,
        "dropout": 0.1,
        "encoder_attention_heads": 8,
        "encoder_ffn_dim": 2048,
        "encoder_layerdrop": 0.0,
        "encoder_layers": 6,
        "eos_token_id": 0,
        "extra_pos_embeddings": 58101,
        "forced_eos_token_id": 0,
        "is_encoder_decoder": True,
        "max_position_embeddings": 512,
        "model_type": "marian",
        "normalize_before": False,
        "normalize_embedding": False,
        "num_beams": 6,
        "num_hidden_layers": 6,
        "pad_token_id": 58100,
        "scale_embedding": True,
        "static_position_embeddings": True,
        "vocab_size": 58101,
    }
    config = TransformerConfig.from_json(settings)
    assert (config.activation, config.max_length, config.scale_embedding, config.pre_norm) == (
        "swish",
        512,
        True,
        False,
    )
    with pytest.raises(ValueError, match="`model_type` must be 'transformer' for `pre_norm`"):
        TransformerConfig.from_json(settings | {"normalize_before": True})
    with pytest.raises(ValueError, match="`share_encoder_decoder_embeddings`"):
        TransformerConfig.from_json(settings | {"share_encoder_decoder_embeddings": False})


def test_a_longer_text_than_positions_is_an_error():
    model = TransformerForConditionalGeneration(TransformerConfig(**SIZES, max_length=4), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="`inputs` must be at most 4 long"):
        model.encode(np.zeros((1, 5), int))

"""What is particular to Whisper: keys without bias, positions that are not trained, its configurations, its inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn.models.whisper import Whisper, WhisperConfig

SIZES = {"features": 8, "heads": 2, "decoder_heads": 2, "mlp_features": 16, "decoder_mlp_features": 16}
CONFIG = WhisperConfig(vocabulary=11, mels=4, max_inputs=6, max_length=5, depth=1, decoder_depth=1, **SIZES)
MODEL = Whisper(CONFIG, rngs=nnx.Rngs(0))


def test_keys_have_no_bias():
    block = MODEL.decoder.blocks[0]
    for attention in (MODEL.encoder.blocks[0].attention, block.attention, block.cross):
        assert {name: "bias" in one for name, one in attention.arrays().items()} == {
            "query": True,
            "key": False,
            "value": True,
            "out": True,
        }


def test_positions_of_inputs_are_sinusoids_and_no_parameters():
    paths = {path[0] for path, _ in nnx.to_flat_state(nnx.state(MODEL, nnx.Param))}
    assert "position_embedding" in paths
    assert "input_positions" not in paths
    angles = np.arange(6)[:, None] * 10000.0 ** -(np.arange(4) / 3)
    want = np.concatenate([np.sin(angles), np.cos(angles)], -1)
    np.testing.assert_allclose(MODEL.input_positions[...], want, atol=1e-6)


@pytest.mark.parametrize(("frames", "positions"), [(12, 6), (5, 3)])
def test_two_frames_are_a_position(frames, positions):
    shape = jax.eval_shape(MODEL.encode, jax.ShapeDtypeStruct((2, 4, frames), jnp.float32)).shape
    assert shape == (2, positions, 8)


def test_what_is_no_sound_is_an_error():
    for shape in ((2, 5, 12), (2, 4, 13), (12,), (2, 4, 0)):
        with pytest.raises(ValueError, match=r"`inputs` must be log-mel features \[..., 4, frames\] of at most 12"):
            MODEL.encode(np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match="`inputs` must be log-mel features"):
        MODEL.encode(np.zeros((2, 4, 12), np.int16))
    with pytest.raises(ValueError, match="`tokens` must be at most 5 long"):
        MODEL.decode(np.zeros((2, 6), int), np.zeros((2, 6, 8), np.float32))
    with pytest.raises(ValueError, match="`capacity` must be at most 5"):
        MODEL.initial_state(2, 6, encoded=np.zeros((2, 6, 8), np.float32))


def test_reads_a_published_configuration():
    settings = {  # as whisper-tiny.en has it
        "activation_dropout": 0.0,
        "activation_function": "gelu",
        "apply_spec_augment": False,
        "architectures": ["WhisperForConditionalGeneration"],
        "attention_dropout": 0.0,
        "begin_suppress_tokens": [220, 50256],
        "bos_token_id": 50257,
        "classifier_proj_size": 256,
        "d_model": 384,
        "decoder_attention_heads": 6,
        "decoder_ffn_dim": 1536,
        "decoder_layerdrop": 0.0,
        "decoder_layers": 4,
        "decoder_start_token_id": 50257,
        "dropout": 0.0,
        "encoder_attention_heads": 6,
        "encoder_ffn_dim": 1536,
        "encoder_layerdrop": 0.0,
        "encoder_layers": 4,
        "eos_token_id": 50256,
        "forced_decoder_ids": [[1, 50362]],
        "init_std": 0.02,
        "is_encoder_decoder": True,
        "mask_feature_length": 10,
        "mask_time_prob": 0.05,
        "max_length": 448,
        "max_source_positions": 1500,
        "max_target_positions": 448,
        "model_type": "whisper",
        "num_hidden_layers": 4,
        "num_mel_bins": 80,
        "pad_token_id": 50256,
        "scale_embedding": False,
        "suppress_tokens": [1, 2, 7],
        "use_weighted_layer_sum": False,
        "vocab_size": 51864,
    }
    config = WhisperConfig.from_json(settings)
    assert (config.vocabulary, config.max_inputs, config.max_length) == (51864, 1500, 448)
    with pytest.raises(ValueError, match=r"`encoder_layerdrop` in config\.json must be 0\.0"):
        WhisperConfig.from_json(settings | {"encoder_layerdrop": 0.1})

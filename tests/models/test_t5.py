"""What is particular to T5: one table of biases for each stack, its configurations, its errors."""

import jax
import numpy as np
import pytest
from flax import nnx

from jattn.models.t5 import FAMILY, T5, T5Config, T5ForConditionalGeneration

SMALL = {"vocabulary": 11, "features": 8, "heads": 2, "head_dim": 4, "mlp_features": 16, "depth": 2}


def made(kind=T5, **settings):
    return kind(T5Config(**SMALL | settings), rngs=nnx.Rngs(0))


def test_blocks_of_a_stack_share_the_biases_of_the_first():
    """There is one table for each stack, and a change of it reaches every block, also of a copy."""
    model = made()
    tables = [path for path, _ in nnx.to_flat_state(nnx.state(model)) if path[-1] == "table"]
    assert tables == [(stack, "blocks", 0, "attention", "scores", "0", "table") for stack in ("decoder", "encoder")]
    other = nnx.clone(model)
    table = other.encoder.blocks[0].attention.layer.scores[0].table
    changed = np.arange(table.size, dtype=np.float32).reshape(table.shape)
    state = nnx.state(other)
    state["encoder"]["blocks"][0]["attention"]["scores"]["0"]["table"].set_value(changed)
    nnx.update(other, state)
    for block in other.encoder.blocks:
        assert np.array_equal(block.attention.arrays()["scores"]["0"]["table"], changed)
    assert not other.decoder.blocks[1].attention.arrays()["scores"]["0"]["table"].any()


def test_queries_begin_smaller_because_scores_are_not_scaled():
    block = made().encoder.blocks[0].attention
    ratio = float(np.std(block.query.kernel[...]) / np.std(block.key.kernel[...]))
    assert 0.3 < ratio < 0.8  # 1 / sqrt(head_dim) is 0.5
    assert block.layer.similarity.scale == 1


@pytest.mark.parametrize(
    ("settings", "want"),
    [
        (  # as t5-small has it
            {
                "architectures": ["T5WithLMHeadModel"],
                "d_ff": 2048,
                "d_kv": 64,
                "d_model": 512,
                "decoder_start_token_id": 0,
                "dropout_rate": 0.1,
                "eos_token_id": 1,
                "initializer_factor": 1.0,
                "is_encoder_decoder": True,
                "layer_norm_epsilon": 1e-06,
                "model_type": "t5",
                "n_positions": 512,
                "num_heads": 8,
                "num_layers": 6,
                "output_past": True,
                "pad_token_id": 0,
                "relative_attention_num_buckets": 32,
                "task_specific_params": {"summarization": {"num_beams": 4}},
                "vocab_size": 32128,
            },
            {"tie_embeddings": True, "scale_output": True, "gated": False, "activation": "relu", "dropout": 0.1},
        ),
        (  # as flan-t5-small has it
            {"model_type": "t5", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "is_gated_act": True},
            {"tie_embeddings": False, "scale_output": False, "gated": True, "activation": "gelu_new"},
        ),
    ],
)
def test_reads_published_configurations(settings, want):
    config = T5Config.from_json(settings)
    assert {name: getattr(config, name) for name in want} == want
    assert T5Config.from_json(config.to_json()) == config
    assert settings.get("architectures", ["T5Model"])[0] in FAMILY.models


def test_is_called_with_what_fits():
    model = made(T5ForConditionalGeneration)
    encoded, mask = np.zeros((2, 5, 8), np.float32), np.ones((2, 5), int)
    with pytest.raises(ValueError, match=r"`inputs` must be in \[0, 11\).*got 11 to 11"):
        model(np.full((2, 5), 11), np.zeros((2, 3), int))
    with pytest.raises(ValueError, match="`tokens` must be integers"):
        model.decode(np.zeros((2, 3)), encoded)
    with pytest.raises(ValueError, match="encoded"):
        model.decode(np.zeros((2, 3), int), encoded[..., :4])
    with pytest.raises(ValueError, match=r"`encoded` must be \[3, 'inputs', 'features'\]; got shape \(2, 5, 8\)"):
        model.initial_state(3, 9, encoded=encoded)
    with pytest.raises(ValueError, match="capacity"):
        model.initial_state(2, encoded=encoded)
    with pytest.raises(ValueError, match="`encoded_mask` must be booleans or ones and zeros"):
        model.initial_state(2, 9, encoded=encoded, encoded_mask=mask * 0.5)
    with pytest.raises(ValueError, match="`state` must be what"):
        model.step(np.zeros(2, int), ())
    with pytest.raises(ValueError, match="`activation` must be one of"):
        T5Config(feed_forward="gated-gelu-new")
    assert (
        jax.eval_shape(lambda: model.initial_state(2, 9, encoded=encoded, encoded_mask=mask))[0][0].keys.shape[1] == 9
    )

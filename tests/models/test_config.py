"""Configurations: what a `config.json` may lack, and what is refused."""

import json

import pytest
from model_peers import needed as peers

from jattn.models.bert import BertConfig
from jattn.models.gpt2 import GPT2Config
from jattn.models.llama import LlamaConfig
from jattn.models.registry import family_of
from jattn.models.rope import Rope
from jattn.positions import YaRN

MODEL_TYPES = (
    "albert",
    "bert",
    "roberta",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_oss",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
)


@peers
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_defaults_are_those_of_transformers(model_type):
    """A `config.json` may lack what is a default there."""
    import transformers

    config = family_of(model_type).config
    full = transformers.AutoConfig.for_model(model_type).to_dict()
    assert config.from_json(full) == config.from_json({"model_type": model_type})


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(depth=1),
        LlamaConfig(depth=2, model_type="mistral", windows=7, bos_token=3, eos_token=(4, 5)),
        LlamaConfig(depth=2, model_type="qwen2", windows=(None, 7), use_bias=("query", "key", "value")),
        LlamaConfig(depth=1, rope=Rope(1e6, YaRN(4.0, original_length=8, ramp="index"), share=0.5)),
        GPT2Config(attention_dropout=0.2, labels=5),
        BertConfig(model_type="roberta", pad_token=1, position_offset=2),
        BertConfig(model_type="albert", embedding_features=8, groups=2),
    ],
    ids=repr,
)
def test_json_gives_back_what_was_written(config):
    """Also through text, and with settings that are not the defaults of a `config.json`."""
    assert type(config).from_json(json.loads(json.dumps(config.to_json()))) == config


def test_choices_that_json_cannot_hold_are_refused():
    with pytest.raises(ValueError, match="`model_type` 'llama' implies other values of qk_norm"):
        LlamaConfig(qk_norm=True).to_json()
    with pytest.raises(ValueError, match="`windows` must have one size"):
        LlamaConfig(model_type="mistral", depth=2, windows=(2, 3)).to_json()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "`rope_type` in config.json must be .*got 'dynamic'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 1}}, "has beta_fast, which 'linear' does not"),
        ({"num_local_experts": 4}, "`num_local_experts` in config.json is for gpt_oss"),
        ({"layer_types": ["chunked_attention"] * 32}, "`layer_types` in config.json must be"),
        (
            {"quantization_config": {"quant_method": "mxfp4"}},
            "settings that LlamaConfig knows; got 'quantization_config'",
        ),
        ({"num_key_value_heads": 3}, "`heads` must be a multiple of `kv_heads`"),
        (
            {"model_type": "gemma3_text", "attn_logit_softcapping": 3.0},
            "`attn_logit_softcapping` in config.json must be",
        ),
        ({"model_type": "gemma", "use_bidirectional_attention": True}, "`use_bidirectional_attention` in config.json"),
        ({"rope_scaling": "linear"}, "`rope_parameters` in config.json must be an object; got 'linear'"),
        ({"rope_scaling": {"type": "linear"}}, "`rope_parameters` in config.json must have factor for 'linear'"),
        ({"rope_theta": "1e4"}, "`rope_theta` must be a finite number above 1; got '1e4'"),
        ({"partial_rotary_factor": 2.0}, "`share` must be at most 1"),
        ({"attention_bias": "no"}, "`attention_bias` in config.json must be true or false; got 'no'"),
        ({"layer_types": 3}, "`layer_types` in config.json must be"),
        ({"query_pre_attn_scalar": 0}, "`scale_dim` must be a finite number above 0; got 0.0"),
        ({"attn_logit_softcapping": float("nan")}, "`soft_cap` must be a finite number above 0; got nan"),
        (
            {"model_type": "gpt_oss", "num_local_experts": 2},
            "`experts_per_token` must be at most the 2 `experts`; got 4",
        ),
        ({"id2label": 5.5}, "`labels` must be int; got 5.5"),
    ],
)
def test_settings_that_are_not_computed_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LlamaConfig.from_json({"model_type": "llama", **settings})


def test_early_forms_of_settings():
    """`rope_theta` beside `rope_scaling`, the local base of Gemma 3, and gelu that means its approximation."""
    old = {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    new = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}}
    assert LlamaConfig.from_json(old) == LlamaConfig.from_json(new)
    gemma3 = LlamaConfig.from_json({"model_type": "gemma3_text", **old, "rope_local_base_freq": 3e4})
    assert gemma3.rope.base == 5e5 and gemma3.rope.scaling is not None
    assert gemma3.local_rope == Rope(3e4) and gemma3.windows[4:6] == (4096, None)
    assert LlamaConfig.from_json({"model_type": "gemma", "hidden_act": "gelu"}).activation == "gelu_pytorch_tanh"
    qwen2 = {"model_type": "qwen2", "sliding_window": 9, "max_window_layers": 30}
    assert LlamaConfig.from_json(qwen2).windows == (None,) * 32  # windows are off unless they are asked for
    assert LlamaConfig.from_json(qwen2 | {"use_sliding_window": True}).windows == (None,) * 30 + (9, 9)

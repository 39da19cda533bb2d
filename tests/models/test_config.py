"""Configurations: what a `config.json` may lack, and what is refused."""

import pytest
from model_peers import needed as peers

from jattn.models.registry import family_of

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

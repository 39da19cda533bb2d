"""Rotary frequencies of `config.json` beside those of Hugging Face; types that depend on the length are refused."""

import model_peers
import numpy as np
import pytest

from jattn.models.rope import SCALINGS, Rope
from jattn.positions import rotary_frequencies

LONGEST, HEAD = 64, 16
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
KNOWN = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 2.5},
    "linear, partial": {"rope_type": "linear", "factor": 2.5, "partial_rotary_factor": 0.5},
    "llama3": LLAMA3,
    "proportional": {"rope_type": "proportional", "partial_rotary_factor": 0.3},
    "proportional, scaled": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "factor": 2.0},
    "yarn": YARN,
    "yarn, ends": YARN | {"beta_fast": 8.0, "beta_slow": 2.0, "truncate": False},
    "yarn, attention": YARN | {"attention_factor": 1.3},
    "yarn, DeepSeek": YARN | {"mscale": 0.7, "mscale_all_dim": 1.2},
    "yarn, partial": YARN | {"partial_rotary_factor": 0.5},
}
LENGTH_DEPENDENT = {
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "longrope": {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
}


def hugging_face(parameters: dict) -> tuple[np.ndarray, float]:
    """The frequencies, and the factor on rotated features."""
    import transformers
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    sizes = {"hidden_size": 4 * HEAD, "num_attention_heads": 4, "max_position_embeddings": LONGEST}
    config = transformers.LlamaConfig(rope_parameters=dict(parameters), **sizes)
    if parameters["rope_type"] == "default":
        found, factor = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        found, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, None)
    return found.numpy(), factor


@model_peers.needed
@pytest.mark.parametrize("name", KNOWN)
def test_frequencies_are_those_of_transformers(name):
    parameters = KNOWN[name] | {"rope_theta": 500.0}
    rope = Rope.from_json(parameters, LONGEST)
    dims = int(HEAD * rope.share)
    ours, factor = rotary_frequencies(rope.base, dims), 1.0
    if rope.scaling is not None:
        ours, factor = rope.scaling.frequencies(rope.base, dims), rope.scaling.factor_on_features()
    want, wanted = hugging_face(parameters)
    np.testing.assert_allclose(ours, want, rtol=1e-6)
    np.testing.assert_allclose(factor, wanted, rtol=1e-6)


@model_peers.needed
def test_every_type_of_transformers_is_known_or_refused_by_name():
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    assert {*ROPE_INIT_FUNCTIONS} == {*SCALINGS} | {*LENGTH_DEPENDENT}


@pytest.mark.parametrize("name", LENGTH_DEPENDENT)
def test_types_that_depend_on_the_length_are_refused(name):
    with pytest.raises(ValueError, match=f"`rope_type` in config.json must be default.*got '{name}'"):
        Rope.from_json(LENGTH_DEPENDENT[name], LONGEST)

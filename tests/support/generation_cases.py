"""What is generated with Hugging Face's models and with ours: tiny models with random weights, and ways to choose."""

import dataclasses
import warnings
from typing import Any

import numpy as np
from flax import nnx
from model_cases import Case, random_tensor
from model_cases.t5 import SETTINGS as T5

from jattn import models
from jattn.models.registry import family_of

PROMPTS = [[3, 17, 5, 30], [22], [9, 9, 1]]
NEW = 7

MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": 41,
        "n_positions": 12,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 4,
        "tie_word_embeddings": False,  # tied, a model with random weights repeats its input
    },
    "llama": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 41,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 32,
    },
    "t5": T5 | {"tie_word_embeddings": False},
}
"""`config.json` by name."""


@dataclasses.dataclass(frozen=True)
class Way:
    """How tokens are chosen, by names that are the same on both sides but for beams."""

    stop_tokens: tuple[int, ...] = ()
    beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False


STOP = (24, 27, 33)
WAYS = {
    "greedy": Way(STOP),
    "beams": Way(STOP, 3),
    "beams, short": Way(STOP, 3, -1.5),
    "beams, long": Way(STOP, 3, 2.0),
    "beams, stops early": Way(STOP, 3, 1.0, True),
    "beams, stops early, long": Way(STOP, 3, 2.0, True),
    "beams, never stops early": Way(STOP, 3, 1.0, "never"),
    "beams, never stops early, long": Way(STOP, 3, 2.0, "never"),
    "beams, never stops early, sums": Way(STOP, 3, 0.0, "never"),
}


def arguments(name: str) -> dict[str, Any]:
    """What the model is to continue, or to encode."""
    return {"inputs" if name == "t5" else "tokens": PROMPTS}


def weights(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Weights that make what follows depend on the last token: large embeddings."""
    return random_tensor(name, shape) * np.float32(
        20 if any(part in name for part in ("wte", "wpe", "embed", "shared")) else 1
    )


def ended(row: list[int], stop: tuple[int, ...]) -> list[int]:
    """A sequence up to its first stop token."""
    at = [index for index, token in enumerate(row) if token in stop]
    return row[: at[0] + 1] if at else row


def made(name: str) -> Any:
    """Our model."""
    settings = MODELS[name]
    family = family_of(settings["model_type"])
    model = family.models[settings["architectures"][0]](family.config.from_json(settings), rngs=nnx.Rngs(0))
    return models.from_tensors(
        {name: weights(name, one.shape) for name, one in models.to_tensors(model).items()}, settings
    )


def peer(name: str) -> Any:
    """Hugging Face's."""
    import model_peers
    import torch

    model = model_peers.model_of(Case(MODELS[name], {}))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(weights(key, tuple(parameter.shape))))
    return model


def hugging_face(model: Any, way: Way) -> dict[str, np.ndarray]:
    """New tokens, and the scores of beams, by Hugging Face's `generate`.

    Prompts are padded on the left, inputs of an encoder on the right.

    Args:
        model: Hugging Face's model.
        way: how tokens are chosen.
    """
    import torch

    longest = max(map(len, PROMPTS))
    encodes = model.config.is_encoder_decoder
    ids, mask = np.zeros((2, len(PROMPTS), longest), np.int64)
    for row, (prompt, ones) in enumerate(zip(ids, mask, strict=True)):
        count = len(PROMPTS[row])
        at = slice(count) if encodes else slice(longest - count, longest)
        prompt[at], ones[at] = PROMPTS[row], 1
    options = {"num_beams": way.beams, "length_penalty": way.length_penalty, "early_stopping": way.early_stopping}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = model.generate(
            torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask),
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=list(way.stop_tokens) or None,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
            **(options if way.beams > 1 else {}),
        )
    new = [ended(row, way.stop_tokens) for row in found.sequences[:, 1 if encodes else longest :].tolist()]
    tokens = np.array([row + [0] * (NEW - len(row)) for row in new], np.int32)
    scores = {"scores": found.sequences_scores.numpy()} if way.beams > 1 else {}
    return {"tokens": tokens, "lengths": np.array([len(row) for row in new], np.int32), **scores}

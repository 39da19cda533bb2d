"""What is generated with Hugging Face's models and with ours: tiny models with random weights, and ways to choose."""

import dataclasses
import warnings
from typing import Any

import numpy as np
from flax import nnx
from model_cases import Case, random_tensor
from model_cases.llama import CASES as LLAMA
from model_cases.t5 import SETTINGS as T5
from model_cases.whisper import SETTINGS as WHISPER
from model_cases.whisper import heard

from jattn import models
from jattn.models.registry import family_of

PROMPTS = [[3, 17, 5, 30], [22], [9, 9, 1]]
NEW = 7

WINDOWS = ("mistral", "gemma3", "gpt-oss")
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
    **{name: {**LLAMA[name].settings, "tie_word_embeddings": False} for name in WINDOWS},
}
"""`config.json` by name. Those beside Llama have windows of 3 tokens, in all blocks or in every other."""
OPTIONS = {name: {"cache": "rolling"} for name in WINDOWS}
"""Other arguments of `generate`."""


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
    return {"inputs" if name == "t5" else "tokens": PROMPTS, **OPTIONS.get(name, {})}


EMBEDDINGS = {"wte": 20, "wpe": 20, "embed": 20, "shared": 20}
ATTENTION = EMBEDDINGS | {"v_proj.weight": 6, "o_proj.weight": 6}
SOUND = {"embed_tokens": 20, "decoder.embed_positions": 20, "encoder_attn.v_proj": 8, "encoder_attn.out_proj": 8}
LARGE = {
    "whisper": SOUND,
    "mistral": ATTENTION,
    "gemma3": ATTENTION | {"post_attention_layernorm": 8},
    "gpt-oss": ATTENTION,
}
"""Factors on weights: those that make what follows depend on the last token, and on all tokens of a window as much."""


def weights(model: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weights of a tensor of a model."""
    large = LARGE.get(model, EMBEDDINGS)
    return random_tensor(name, shape) * np.float32(max([1, *(large[part] for part in large if part in name)]))


def ended(row: list[int], stop: tuple[int, ...]) -> list[int]:
    """A sequence up to its first stop token."""
    at = [index for index, token in enumerate(row) if token in stop]
    return row[: at[0] + 1] if at else row


def made(name: str) -> Any:
    """Our model."""
    settings = MODELS_WITH_RULES[name]
    family = family_of(settings["model_type"])
    model = family.models[settings["architectures"][0]](family.config.from_json(settings), rngs=nnx.Rngs(0))
    return models.from_tensors(
        {key: weights(name, key, one.shape) for key, one in models.to_tensors(model).items()},
        settings,
    )


def peer(name: str) -> Any:
    """Hugging Face's."""
    import model_peers
    import torch

    model = model_peers.model_of(Case(MODELS_WITH_RULES[name], {}))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(weights(name, key, tuple(parameter.shape))))
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


SPEECH = {
    "decoder_start_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "is_multilingual": False,
    "no_timestamps_token_id": 40,  # tokens after it are times
    "return_timestamps": False,
    "max_length": 20,
    "alignment_heads": [[0, 0], [1, 1]],
}
LANGUAGES = {"lang_to_id": {"<|de|>": 4, "<|en|>": 5}, "task_to_id": {"transcribe": 6}, "is_multilingual": True}
RULED: dict[str, tuple[str, dict[str, Any]]] = {
    "speech": (
        "whisper",
        SPEECH
        | {"forced_decoder_ids": [[1, 40]], "suppress_tokens": [3, 9, 17, 31], "begin_suppress_tokens": [32, 29]},
    ),
    "speech, a language": (
        "whisper",
        SPEECH | LANGUAGES | {"language": "en", "task": "transcribe", "begin_suppress_tokens": [32]},
    ),
    "many": (
        "llama",
        {
            "repetition_penalty": 1.3,
            "no_repeat_ngram_size": 2,
            "bad_words_ids": [[33], [9], [7, 29], [27]],
            "suppress_tokens": [24, 39],
            "min_new_tokens": 3,
            "length_penalty": -1.0,
            "early_stopping": True,
        },
    ),
    "repeats": ("llama", {"repetition_penalty": 0.6}),
    "single": ("llama", {"no_repeat_ngram_size": 1, "min_length": 8}),
    "forced": ("llama", {"forced_bos_token_id": 7, "forced_eos_token_id": 2, "begin_suppress_tokens": [9, 29]}),
    "normal": ("llama", {"suppress_tokens": [9, 34, 1], "renormalize_logits": True}),
    "an encoder": (
        "t5",
        {
            "repetition_penalty": 1.7,
            "no_repeat_ngram_size": 2,
            "min_length": 5,
            "forced_bos_token_id": 8,
            "decoder_start_token_id": T5["decoder_start_token_id"],
        },
    ),
}
"""A model by name and its `generation_config.json`."""
MODELS_WITH_RULES = MODELS | {"whisper": WHISPER | {"max_target_positions": 20, "tie_word_embeddings": False}}
BEAMS = (1, 3)


def ruled_arguments(name: str) -> dict[str, Any]:
    """What the model is to continue or to encode; Whisper's prompt is what its settings say."""
    return {"inputs": heard(padded=False)["input_features"]} if name == "whisper" else arguments(name)


def hugging_face_ruled(rules: str, beams: int) -> dict[str, np.ndarray]:
    """As `hugging_face`, by a `generation_config.json`. Prompts are alone, as padding would count."""
    import torch
    import transformers

    name, settings = RULED[rules]
    model = peer(name)
    speech = name == "whisper"
    stop = {} if speech else {"eos_token_id": list(STOP), "pad_token_id": 0}
    model.generation_config = transformers.GenerationConfig.from_dict(settings | stop)
    rows, scores = [], []
    for index, prompt in enumerate(PROMPTS):
        given = {"input_ids": torch.tensor([prompt]), "attention_mask": torch.ones(1, len(prompt), dtype=torch.long)}
        if speech:
            given = {"input_features": torch.from_numpy(ruled_arguments(name)["inputs"][index : index + 1])}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = model.generate(
                **given,
                max_new_tokens=NEW,
                num_beams=beams,
                do_sample=False,
                return_dict_in_generate=True,
                output_scores=True,
                **({"temperature": 0.0} if speech else {}),
            )
        row = found["sequences"][0].tolist()
        row = row[row.index(40) + 1 if speech else 1 if model.config.is_encoder_decoder else len(prompt) :]
        rows.append(ended(row, (2,) if speech else STOP))
        scores += [float(found["sequences_scores"][0])] if beams > 1 else []
    tokens = np.array([row + [0] * (NEW - len(row)) for row in rows], np.int32)
    lengths = np.array([len(row) for row in rows], np.int32)
    return {"tokens": tokens, "lengths": lengths, **({"scores": np.array(scores)} if beams > 1 else {})}

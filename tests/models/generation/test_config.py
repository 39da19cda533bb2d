"""`generation_config.json`: what is followed, kept, refused by name, and read from directories."""

import json

import numpy as np
import pytest
from flax import nnx
from generation_cases import RULED, made

from jattn import models
from jattn.models import GenerationConfig
from jattn.models.generation.prompts import Prompts
from jattn.models.generation.rules import Rules
from jattn.models.gpt2 import GPT2Config, GPT2ForCausalLM

TINY = GPT2Config(vocabulary=11, features=8, depth=1, heads=2, max_length=9)


@pytest.mark.parametrize("rules", RULED)
def test_is_written_as_it_was_read(rules):
    settings = GenerationConfig.from_json(RULED[rules][1])
    again = GenerationConfig.from_json(settings.to_json())
    assert again == settings
    given = {key: [2] if key == "eos_token_id" else value for key, value in RULED[rules][1].items()}
    assert {**given, **again.to_json()} == given


STARTS = {
    "none": ({}, None),
    "the start": ({"decoder_start_token_id": 1}, (1,)),
    "forced": ({"decoder_start_token_id": 1, "forced_decoder_ids": [[1, 5], [2, 6]]}, (1, 5, 6)),
    "no times": (RULED["speech"][1], (1, 40)),
    "a language": (RULED["speech, a language"][1], (1, 5, 6, 40)),
    "to be detected": (RULED["speech, a language"][1] | {"language": None, "task": None}, (1, None, 40)),
    "a null": ({"decoder_start_token_id": 1, "forced_decoder_ids": [[1, None], [2, 6]]}, (1, None, 6)),
}


@pytest.mark.parametrize("name", STARTS)
def test_what_a_decoder_begins_with(name):
    settings, start = STARTS[name]
    assert GenerationConfig.from_json(settings).start_tokens == start


def test_languages_are_not_detected():
    settings = GenerationConfig.from_json(STARTS["to be detected"][0])
    sounds = np.zeros((1, 5, 12), np.float32)
    with pytest.raises(ValueError, match=r"`tokens` must be what the decoder begins with.*\[1, None, 40\]"):
        models.generate(made("whisper"), inputs=sounds, max_new_tokens=2, settings=settings)


REFUSED = {
    "guidance_scale": 3.0,
    "encoder_no_repeat_ngram_size": 3,
    "num_beam_groups": 2,
    "sequence_bias": [[[3], 1.0]],
    "stop_strings": ["."],
    "a_new_processor": 1,
    "return_timestamps": True,
    "language": "xx",
    "task": "sing",
    "forced_decoder_ids": [[2, 6]],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_computed_is_refused_by_name(name):
    settings = GenerationConfig.from_json({"decoder_start_token_id": 1, name: REFUSED[name]})
    model = GPT2ForCausalLM(TINY, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=f"`settings` of the checkpoint ask for {name} = .*without\\('{name}'\\)"):
        models.generate(model, [[1]], max_new_tokens=2, settings=settings)
    assert not settings.without(name).refused
    assert settings.to_json()[name] == REFUSED[name]


NEUTRAL = {
    "max_length": 20,
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.9,
    "num_beams": 1,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "guidance_scale": None,
    "encoder_no_repeat_ngram_size": 0,
    "repetition_penalty": 1.0,
    "remove_invalid_values": False,
    "min_length": 0,
    "transformers_version": "4.30.0",
}


def test_defaults_are_no_rules():
    settings = GenerationConfig.from_json(NEUTRAL)
    assert not settings.refused
    assert Rules.of(settings, np.array([[1]]), (2,), 3, 11) is None


BAD = {
    "an array": ([1], "must be a JSON object"),
    "a word": ({"suppress_tokens": "all"}, "`suppressed` must be a sequence of tokens"),
    "floats": ({"suppress_tokens": [0.5]}, "`suppressed` must hold tokens"),
    "a penalty of 0": ({"repetition_penalty": 0}, "`repetition_penalty` must be a number above 0"),
    "a text as penalty": ({"repetition_penalty": "much"}, "`repetition_penalty` must be a number above 0"),
    "below 0": ({"no_repeat_ngram_size": -1}, "`no_repeat_ngram`"),
    "no beams": ({"num_beams": 0}, "`beams`"),
    "an empty word": ({"bad_words_ids": [[]]}, "`bad_words` must be sequences of at least one token"),
}


@pytest.mark.parametrize("name", BAD)
def test_refuses(name):
    given, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        GenerationConfig.from_json(given)


def test_tokens_must_be_of_the_vocabulary():
    model = GPT2ForCausalLM(TINY, rngs=nnx.Rngs(0))
    for name in ("suppressed", "suppressed_at_first", "bad_words", "forced_first", "forced_last"):
        value = {"bad_words": ((11,),)}.get(name, 11 if name.startswith("forced") else (11,))
        with pytest.raises(ValueError, match=rf"`settings.{name}` must hold tokens in \[0, 11\)"):
            models.generate(model, [[1]], max_new_tokens=2, settings=GenerationConfig(**{name: value}))
    with pytest.raises(ValueError, match="`settings` must be a `jattn"):
        models.generate(model, [[1]], max_new_tokens=2, settings={"beams": 2})  # pyright: ignore


def test_directories_say_how_to_generate(tmp_path):
    """In a file of its own, or as older ones in `config.json`; `generate` follows it, and it is written again."""
    model = GPT2ForCausalLM(TINY, rngs=nnx.Rngs(0))
    plain = models.generate(model, [[1, 2]], max_new_tokens=3).lists()[0]
    models.to_directory(model, tmp_path / "plain")
    assert not (tmp_path / "plain" / "generation_config.json").exists()
    (tmp_path / "plain" / "generation_config.json").write_text(
        json.dumps({"suppress_tokens": plain, "eos_token_id": [3, 5], "top_k": 50})
    )
    read = models.from_directory(tmp_path / "plain")
    assert not set(plain) & set(models.generate(read, [[1, 2]], max_new_tokens=3).lists()[0])
    assert models.generate(read, [[1, 2]], max_new_tokens=3, settings=GenerationConfig()).lists() == [plain]
    assert read.generation.stop_tokens == (3, 5)
    models.to_directory(read, tmp_path / "again")
    assert models.from_directory(tmp_path / "again").generation == read.generation

    older = json.loads((tmp_path / "again" / "config.json").read_text()) | {"suppress_tokens": plain}
    assert models.from_tensors(models.to_tensors(model), older).generation.suppressed == tuple(plain)


def test_prompts_without_their_padding():
    """A row counts its own tokens alone, on whichever side its padding is."""
    tokens, mask = np.array([[1, 2, 0], [0, 3, 4], [5, 6, 7]]), np.array([[1, 1, 0], [0, 1, 1], [1, 1, 1]])
    assert Prompts.of(tokens, mask, 9).on_the_right.tolist() == [[-1, 1, 2], [-1, 3, 4], [5, 6, 7]]

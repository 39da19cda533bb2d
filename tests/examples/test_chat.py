"""The example of a chat: what the cache keeps from turn to turn changes nothing."""

import importlib.util

import jax
import numpy as np
import pytest
from flax import nnx

from jattn import models
from jattn.models.llama import LlamaConfig, LlamaForCausalLM

SPECIAL = ["<|im_start|>", "<|im_end|>"]
LETTERS = [chr(code) for code in range(32, 127)] + ["\n"]


class Letters:
    """A tokenizer of letters."""

    tokens = (*SPECIAL, *LETTERS)

    def token_to_id(self, token):
        return self.tokens.index(token) if token in self.tokens else None

    def id_to_token(self, index):
        return self.tokens[index]

    def encode(self, text, add_special_tokens=True):
        assert not add_special_tokens, "the template has them"
        return type("Encoding", (), {"ids": [self.token_to_id(letter) for letter in text]})

    def decode(self, tokens, skip_special_tokens=True):
        return "".join(self.tokens[token] for token in tokens if token > 1 or not skip_special_tokens)


@pytest.fixture(scope="module")
def model():
    config = LlamaConfig(vocabulary=len(Letters.tokens), features=16, depth=1, heads=2, kv_heads=1, mlp_features=24)
    return nnx.jit(lambda: LlamaForCausalLM(config, rngs=nnx.Rngs(0)))()


def test_turns_give_what_the_whole_gives(example, model):
    Conversation = example("chatting.conversation").Conversation
    random = np.random.default_rng(0)
    kept = Conversation(model, 160, stop=[1])
    for length, most in ((40, 5), (3, 4), (1, 3)):
        answer = list(kept.answer(random.integers(2, 90, length).tolist(), most))
        assert len(answer) <= most and kept.tokens[-1] == 1
        before = kept.tokens[: len(kept.tokens) - len(answer) - 1]
        whole = list(Conversation(model, 160, stop=[1]).answer(before, most))
        assert answer == whole
    with pytest.raises(ValueError, match=r"must have at most 160 tokens; it has \d+, 50 are new"):
        next(kept.answer([5] * 50, 90))
    sampled = [list(Conversation(model, 160, [1], temperature=2.0, seed=seed).answer([5, 6], 4)) for seed in (0, 0, 1)]
    assert sampled[0] == sampled[1] != sampled[2]


@pytest.mark.exhaustive
def test_a_given_conversation(example, model, monkeypatch, tmp_path, capsys):
    chat = example("chat")
    monkeypatch.setattr(chat, "load", lambda directory: (model, Letters()))
    flags = ["--longest", "4", "--capacity", "160", "--out", str(tmp_path)]
    figures = chat.main(["--say", "Hello there.", "--say", "Is it so?", *flags])
    assert 60 < figures["tokens before the last answer"] < 160
    printed = capsys.readouterr().out
    assert "> Hello there." in printed and "seconds to read all of them" in printed
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit):
        chat.main(["--say", "x" * 200, *flags])
    assert "must have at most 160 tokens" in capsys.readouterr().err


def test_templates(example):
    templates = example("chatting.templates")
    template = templates.chosen(Letters(), None)
    assert template == templates.TEMPLATES["chatml"]
    tokens = templates.encode(Letters(), template.user, "Hi")
    assert (
        Letters().decode(tokens, skip_special_tokens=False) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    with pytest.raises(ValueError, match=r"the template 'gemma' needs <bos>, <start_of_turn>"):
        templates.chosen(Letters(), "gemma")


def test_what_is_not_there_is_refused(example, tmp_path, monkeypatch, capsys):
    chat = example("chat")
    for flags, message in (
        (["--top-p", "0"], "--top-p: must be a number of at least 0.001 and at most 1: 0"),
        ([str(tmp_path)], "pip install tokenizers"),
    ):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(SystemExit):
            chat.main(flags)
        assert message in capsys.readouterr().err


@pytest.mark.skipif(not importlib.util.find_spec("tokenizers"), reason="NOT TESTED: tokenizers not installed")
def test_a_directory(example, model, tmp_path, capsys):
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers import models as kinds

    tokenizer = Tokenizer(kinds.BPE({token: index for index, token in enumerate(Letters.tokens)}, []))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    chat = example("chat")
    with pytest.raises(SystemExit):
        chat.main([str(tmp_path), "--say", "Hi"])
    assert "must have a tokenizer.json" in capsys.readouterr().err
    models.to_directory(model, tmp_path)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    figures = chat.main([str(tmp_path), "--say", "Hi", "--longest", "3", "--out", str(tmp_path)])
    assert figures["tokens before the last answer"] > 20


@pytest.mark.published
@pytest.mark.exhaustive
@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("tokenizers", "gguf")),
    reason="NOT TESTED: tokenizers or gguf not installed (extra `peers`)",
)
def test_smollm2_knows_capitals(example, tmp_path):
    try:
        figures = example("chat").main(["--capitals", "--out", str(tmp_path)])
    except ConnectionError as error:
        pytest.skip(f"NOT TESTED with published weights: {error}")
    assert figures["capitals"] >= 0.5 > 0.1 > figures["capitals, always the same"]
    jax.clear_caches()

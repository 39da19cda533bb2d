"""The main job: it learns, goes on after an interruption as if there had been none, and draws its pictures."""

import dataclasses
import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

EXAMPLES = Path(__file__).parents[2] / "examples"
FLAGS = ["--size=tiny", "--mask=packed", "--device=cpu"]
FLAGS += ["--steps=20", "--batch=4", "--length=32", "--checkpoint-every=8"]


@pytest.fixture(scope="module")
def lm():
    """The script and its parts, imported as `python examples/train_lm.py` does."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        parts = {name: importlib.import_module(f"lm.{name}") for name in ("text", "model", "pictures", "sample")}
        yield SimpleNamespace(script=importlib.import_module("train_lm"), **parts)
    finally:
        sys.path.remove(str(EXAMPLES))


def result_of(out: Path) -> dict:
    return json.loads((out / "result.json").read_text())


def test_a_resumed_run_equals_an_uninterrupted_one(lm, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(lm.model.SIZES, "tiny", dataclasses.replace(lm.model.SIZES["tiny"], layers=1))
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert lm.script.main([*FLAGS, "--out", str(whole)]) == 0

    batch = lm.text.Text.batch

    def interrupted(self, seed, step, *sizes):
        if step == 13:
            raise KeyboardInterrupt
        return batch(self, seed, step, *sizes)

    with monkeypatch.context() as patch:
        patch.setattr(lm.text.Text, "batch", interrupted)
        assert lm.script.main([*FLAGS, "--out", str(halves)]) == 130
    assert not (halves / "result.json").exists()
    capsys.readouterr()
    assert lm.script.main([*FLAGS, "--out", str(halves)]) == 0
    assert "resumed from the checkpoint after step 8 of 20" in capsys.readouterr().out

    one, other = result_of(whole), result_of(halves)
    assert one == other
    assert (whole / "sample.txt").read_text() == (halves / "sample.txt").read_text()
    losses = one["history"]["train"]
    assert len(losses) == 20
    assert np.mean(losses[-5:]) < losses[0] - 2
    assert one["held_out"] < losses[0] - 2

    for name in ("loss.png", "heads.png", "plan.png"):
        assert (halves / name).read_bytes().startswith(b"\x89PNG")

    with pytest.raises(SystemExit, match=r"made with \{'seed': 0\}.*--no-resume"):
        lm.script.main([*FLAGS, "--seed", "1", "--out", str(halves)])


def test_packed_topics_keep_apart(lm):
    size = dataclasses.replace(lm.model.SIZES["tiny"], layers=1)
    model = nnx.jit(lambda: lm.model.GPT(size, jnp.float32, rngs=nnx.Rngs(0)))()
    random = np.random.default_rng(0)
    row = random.integers(256, size=(1, 24))
    topic = np.array([[1] * 10 + [2] * 14])
    together = nnx.jit(lambda model, row: model(row, lm.model.mask_of("packed", 24, topic)))(model, row)
    alone = nnx.jit(lambda model, row: model(row, lm.model.mask_of("causal", 14, topic)))(model, row[:, 10:])
    np.testing.assert_allclose(together[:, 10:], alone, atol=2e-5)


def test_the_text_is_split_without_repeats(lm):
    training, held_out = lm.text.load()
    assert 0.05 < len(held_out.data) / len(training.data) < 0.15
    paragraphs = {" ".join(p.split()) for p in training.data.tobytes().decode(errors="replace").split("\n\n")}
    repeated = [
        p for p in held_out.data.tobytes().decode(errors="replace").split("\n\n")
        if len(p) > 80 and " ".join(p.split()) in paragraphs
    ]  # fmt: skip
    assert not repeated
    tokens, topic = training.batch(0, 3, 4, 32)
    assert tokens.shape == topic.shape == (4, 33)
    np.testing.assert_array_equal(tokens, training.batch(0, 3, 4, 32)[0])
    assert not np.array_equal(tokens, training.batch(0, 4, 4, 32)[0])


def test_baselines(lm):
    alternating = np.tile([7, 9], 5000)
    assert lm.text.unigram_entropy(alternating, alternating) == pytest.approx(1, abs=0.05)
    assert lm.text.bigram_entropy(alternating, alternating) < 0.01
    noise = np.random.default_rng(0).integers(256, size=200_000)
    assert lm.text.bigram_entropy(noise, noise[::-1]) > 8


@pytest.mark.parametrize(("kind", "share"), [("causal", 136 / 256), ("window", 70 / 256), ("packed", None)])
def test_the_plan_in_the_picture(lm, kind, share):
    topic = np.repeat([1, 2, 3, 4], 64)
    states = lm.pictures.plan_states(kind, 256, topic, 16)
    assert states.shape == (16, 16)
    if share is None:  # four topics of four tiles each
        share = 4 * 10 / 256
    assert (states > 0).mean() == pytest.approx(share)


def test_heads_are_chosen_by_what_they_do(lm):
    weights = np.zeros((2, 3, 30, 30))
    weights[:, :, :, 0] = 1
    weights[1, 2] = np.eye(30, k=-1)
    weights[1, 2, 0, 0] = 1
    chosen = lm.pictures.choose_heads(weights, np.arange(30) % 7)
    assert chosen[0] == (1, 2, "100% on the byte before")
    assert len({(layer, head) for layer, head, _ in chosen}) == 4


def test_bad_flags(lm, capsys):
    with pytest.raises(SystemExit):
        lm.script.main(["--steps", "0"])
    assert "--steps is too small" in capsys.readouterr().err
    assert jax.default_backend() == "cpu"

"""Encoder-decoders over caches give what they give on the whole; their inputs are checked."""

import jax
import jax.numpy as jnp
import model_peers
import numpy as np
import pytest
from flax import nnx
from model_cases import CASES
from model_runs import close, made
from tiers import rows
from translation import source

from jattn import models

ROWS = {
    family: next(iter(cases.values()))
    for family, cases in CASES.items()
    if "decoder_input_ids" in next(iter(cases.values())).inputs
}


@pytest.mark.parametrize("family", rows(ROWS, []))
def test_generates_what_it_computes_on_the_whole(family):
    """Prefill of a chunk and steps, padding left out; keys of the encoder are computed once."""
    case = ROWS[family]
    model, tokens = made(case), case.inputs["decoder_input_ids"]
    mask = case.inputs.get("attention_mask")
    valid = case.inputs.get("decoder_attention_mask", np.ones_like(tokens)) != 0

    @nnx.jit
    def both(model):
        encoded = model.encode(source(case.inputs), attention_mask=mask)
        whole = model.decode(tokens, encoded, attention_mask=mask, decoder_attention_mask=valid.astype(int))
        state = model.initial_state(len(tokens), tokens.shape[1], encoded=encoded, encoded_mask=mask)
        del encoded
        first, state = model.prefill(tokens[:, :3], state, valid=valid[:, :3], every=True)
        second, state = model.step(tokens[:, 3], state, valid=valid[:, 3].astype(int))
        third, state = model.step(tokens[:, 4], state, valid=valid[:, 4])
        return whole, jnp.concatenate([first, second[:, None], third[:, None]], 1)

    whole, parts = (np.where(valid[..., None], one, 0) for one in both(model))
    close(parts, whole, 1e-5, family)


@model_peers.needed
@pytest.mark.parametrize("family", ROWS)
def test_generates_the_tokens_of_hugging_face(family):
    """Greedy, and by beam search, from padded inputs."""
    import torch
    import transformers

    case = ROWS[family]
    model, peer = made(case), model_peers.model_of(case)
    given = {
        name: case.inputs[name] for name in ("input_ids", "input_features", "attention_mask") if name in case.inputs
    }
    masks = {"inputs_mask": given["attention_mask"]} if "attention_mask" in given else {}
    stop, pad = case.settings.get("eos_token_id", 1), 0
    for beams in (1, 3):
        found = models.generate(model, inputs=source(given), **masks, max_new_tokens=6, beams=beams)
        want = transformers.GenerationMixin.generate(
            peer,
            **{name: torch.from_numpy(one) for name, one in given.items()},
            generation_config=transformers.GenerationConfig(
                max_new_tokens=6,
                num_beams=beams,
                do_sample=False,
                eos_token_id=stop,
                pad_token_id=pad,
                decoder_start_token_id=case.settings["decoder_start_token_id"],
            ),
        ).numpy()[:, 1:]
        for ours, theirs in zip(found.lists(), want.tolist(), strict=True):
            theirs = theirs[: theirs.index(stop) + 1] if stop in theirs else theirs
            assert ours == theirs, beams


@pytest.mark.parametrize("tokens", [None, "abc", [[1], [2, 3]], [0.5]], ids=str)
def test_refuses_a_next_token_that_is_none(tokens):
    with pytest.raises(ValueError, match="`tokens` must be integers"):
        made(ROWS["t5"]).step(tokens, ())


@pytest.mark.parametrize("family", ["t5", "transformer", "whisper"])
def test_refuses_a_mask_of_another_shape(family):
    """By the name of the argument, to encode and to decode."""
    case = next(iter(CASES[family].values()))
    model = made(case)
    inputs = case.inputs["input_features" if family == "whisper" else "input_ids"]
    encoded = jax.eval_shape(lambda: model.encode(inputs))
    good = np.ones(encoded.shape[:2], int)
    for wrong in (good[:, 1:], good[:1], good[..., None], [1, 0], 1):
        for call in (
            lambda wrong=wrong: model.encode(inputs, attention_mask=wrong),
            lambda wrong=wrong: model.decode(
                np.ones((encoded.shape[0], 3), int), jnp.zeros(encoded.shape), attention_mask=wrong
            ),
        ):
            with pytest.raises(ValueError, match="`attention_mask` must be ones and zeros of shape"):
                jax.eval_shape(call)
    assert jax.eval_shape(lambda: model.encode(inputs, attention_mask=good)).shape == encoded.shape

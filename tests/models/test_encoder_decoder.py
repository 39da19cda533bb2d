"""Encoder-decoders over caches give what they give on the whole; their inputs are checked."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from model_cases import CASES
from model_runs import close, made
from translation import source

ROWS = {
    family: next(iter(cases.values()))
    for family, cases in CASES.items()
    if "decoder_input_ids" in next(iter(cases.values())).inputs
}


@pytest.mark.parametrize("family", ROWS)
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

"""BigBird's random blocks: as Hugging Face draws them in training, and by a seed against a dense mask."""

import dataclasses

import jax
import model_peers
import numpy as np
import pytest
from flax import nnx
from model_cases import CASES, random_tensor

from jattn import models
from jattn.masks import Dense
from jattn.models.bigbird import BigBird, BigBirdConfig
from jattn.variants.sparse import random_blocks

CASE = CASES["bigbird"]["block sparse"]
TOKENS, MASK = CASE.inputs["input_ids"], CASE.inputs["attention_mask"]
BLOCKS = 10
CONFIG = BigBirdConfig.from_json({**CASE.settings, "num_hidden_layers": 1})


def filled(config):
    model = BigBird(config, rngs=nnx.Rngs(0))
    return {name: random_tensor(name, one.shape) for name, one in models.to_tensors(model).items()}


def test_seed_draws_the_blocks_of_a_dense_mask():
    tensors = filled(CONFIG)
    sparse = models.from_tensors(tensors, dataclasses.replace(CONFIG, seed=3), BigBird)
    full = models.from_tensors(tensors, dataclasses.replace(CONFIG, sparsity="original_full"), BigBird)
    drawn = random_blocks(TOKENS.shape[1], 2, heads=2, count=1, seed=3)
    allowed = np.zeros((2, BLOCKS, BLOCKS), bool)
    for head in range(2):
        for row in range(BLOCKS):
            ends = row in (0, BLOCKS - 1)
            seen = range(BLOCKS) if ends else {0, BLOCKS - 1, row - 1, row, row + 1, *drawn[head, row - 1]}
            allowed[head, row, list(seen)] = True
    mask = allowed.repeat(2, 1).repeat(2, 2)[:, : TOKENS.shape[1], : TOKENS.shape[1]]
    got = sparse(TOKENS, attention_mask=MASK).hidden
    want = full(TOKENS, attention_mask=MASK, mask=Dense(mask[None])).hidden
    error = np.abs(np.where(MASK[..., None], got - want, 0)).max() / np.abs(want).max()
    assert error <= 1e-5
    with pytest.raises(ValueError, match="`random_blocks` must be a table for each of the 1 layers"):
        sparse(TOKENS, random_blocks=[drawn, drawn])


@model_peers.needed
def test_random_blocks_are_those_of_hugging_face_in_training():
    import torch

    settings = CASE.settings | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    case = dataclasses.replace(CASE, settings=settings)
    peer = model_peers.model_of(case).train()
    found = peer(**{name: torch.from_numpy(one) for name, one in CASE.inputs.items()})
    tables = []
    for layer in peer.encoder.layer:
        attention = layer.attention.self
        lengths, counts = attention._get_rand_attn_plan(2 * BLOCKS, 2, 1)
        np.random.seed(attention.seed)  # as the forward pass does
        tables.append(
            np.stack(attention._bigbird_block_rand_mask_with_head(2 * BLOCKS, 2 * BLOCKS, 2, 2, 2, lengths, counts))
        )
    assert all(one.any() for one in tables)
    want = found.last_hidden_state * torch.from_numpy(MASK)[..., None]
    want.square().sum().backward()
    expected = {name: one.grad.numpy() for name, one in peer.named_parameters() if one.grad is not None}

    tensors = {name: one.detach().numpy() for name, one in peer.named_parameters()}
    model = models.from_tensors(tensors, settings)
    graph, parameters, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def both(parameters):
        def loss(parameters):
            model = nnx.merge(graph, parameters, rest)
            options = {"attention_mask": MASK, "token_types": CASE.inputs["token_type_ids"]}
            hidden = model(TOKENS, **options, random_blocks=tables).hidden * MASK[..., None]
            return (hidden**2).sum(), hidden

        return jax.grad(loss, has_aux=True)(parameters)

    gradients, hidden = both(parameters)
    assert np.abs(hidden - want.detach().numpy()).max() <= 1e-5 * np.abs(hidden).max()
    gradients = models.to_tensors(nnx.merge(graph, gradients, rest))
    largest = max(np.abs(one).max() for one in expected.values())
    for name, one in expected.items():
        error = np.abs(gradients[name] - one).max() / max(np.abs(one).max(), 1e-3 * largest)
        assert error <= 1e-4, f"{name}: {error}"

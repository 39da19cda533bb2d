"""Generation: the tokens of Hugging Face, of calls on the whole, of rows alone; sampling; errors."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import model_peers
import numpy as np
import pytest
from flax import nnx
from generation_cases import (
    BEAMS,
    MODELS,
    NEW,
    PROMPTS,
    RULED,
    STOP,
    WAYS,
    Way,
    arguments,
    hugging_face,
    hugging_face_ruled,
    made,
    peer,
    ruled_arguments,
)
from model_cases.llama import CASES as LLAMA
from model_runs import made as built
from tiers import rows

from jattn import models
from jattn.layers import caches
from jattn.models.generation.prompts import Prompts
from jattn.models.generation.sampling import Sampling, most_likely
from jattn.models.generation.states import reorder_rows
from jattn.models.gpt2 import GPT2, GPT2Config, GPT2ForCausalLM

peers = pytest.mark.skipif(not model_peers.INSTALLED, reason="NOT COMPARED: torch and transformers are not installed")


@pytest.fixture(scope="module")
def gpt2():
    return made("gpt2")


def check(name: str, model, way: Way, want) -> None:
    equal(models.generate(model, **arguments(name), max_new_tokens=NEW, **dataclasses.asdict(way)), want)


def equal(found: models.Generated, want) -> None:
    lists = [row[:length].tolist() for row, length in zip(want["tokens"], want["lengths"], strict=True)]
    assert found.lists() == lists
    if "scores" in want:
        np.testing.assert_allclose(found.scores, want["scores"], rtol=1e-4)


def given(prefix: str) -> dict[str, np.ndarray]:
    """What Hugging Face gave."""
    with np.load(Path(__file__).parents[1] / "expected" / "generation.npz") as file:
        return {key.removeprefix(prefix): file[key] for key in file.files if key.startswith(prefix)}


@pytest.mark.parametrize("name", rows(MODELS, always=("gpt2", "t5", "mistral")))
def test_gives_what_hugging_face_gave(name):
    """Also with windows, over rolling caches whose rows beams reorder."""
    model = made(name)
    for way, options in WAYS.items():
        check(name, model, options, given(f"{name}/{way}/"))


def follow(rules: str, beams: int) -> models.Generated:
    name, settings = RULED[rules]
    options = ruled_arguments(name) | ({} if name == "whisper" else {"stop_tokens": STOP})
    settings = models.GenerationConfig.from_json(settings)
    return models.generate(made(name), **options, max_new_tokens=NEW, beams=beams, settings=settings)


@pytest.mark.parametrize("beams", BEAMS)
@pytest.mark.parametrize("rules", rows(RULED, always=("speech", "many")))
def test_follows_a_generation_config_as_hugging_face_did(rules, beams):
    equal(follow(rules, beams), given(f"{rules}/{beams}/"))


@peers
@pytest.mark.parametrize("beams", BEAMS)
@pytest.mark.parametrize("rules", ["speech", "speech, a language", "many"])
def test_follows_a_generation_config_as_transformers(rules, beams):
    equal(follow(rules, beams), hugging_face_ruled(rules, beams))


@peers
@pytest.mark.parametrize("name", MODELS)
def test_agrees_with_transformers(name):
    model, other = made(name), peer(name)
    for way in WAYS.values():
        check(name, model, way, hugging_face(other, way))


def test_equals_calls_on_the_whole(gpt2):
    """With their log probabilities as scores."""
    whole = nnx.jit(lambda model, tokens: jax.nn.log_softmax(model(tokens)))
    found = models.generate(gpt2, PROMPTS, max_new_tokens=NEW)
    for prompt, new, score in zip(PROMPTS, found.lists(), found.scores, strict=True):
        row, total = [*prompt], 0.0
        for _ in range(NEW):
            log_p = whole(gpt2, np.array([row + [0] * (12 - len(row))]))[0, len(row) - 1]
            row.append(int(log_p.argmax()))
            total += float(log_p.max())
        assert row[len(prompt) :] == new
        np.testing.assert_allclose(score, total, rtol=1e-5)


LEFT = np.array([[0] * (4 - len(one)) + one for one in PROMPTS])
SAMPLED = {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "stop_tokens": STOP, "max_new_tokens": NEW}


@pytest.mark.exhaustive
def test_rows_are_as_alone(gpt2):
    """Sampled with a key of each, padded on either side, over every cache, streamed or not."""
    key = jax.random.key(5)
    want = models.generate(gpt2, PROMPTS, key=key, **SAMPLED)
    assert len({*map(tuple, want.lists())}) == 3
    assert min(want.lengths) < max(want.lengths)
    for row in (0, 1):
        alone = models.generate(gpt2, [PROMPTS[row]], key=jax.random.fold_in(key, row)[None], capacity=12, **SAMPLED)
        assert alone.lists() == want.lists()[row : row + 1]
        np.testing.assert_allclose(alone.scores[0], want.scores[row], rtol=1e-5)
    padded = {"tokens": LEFT, "attention_mask": (LEFT > 0).astype(int)}
    shown = []
    others = {
        "left": padded,
        "pages": {"cache": caches.Paged(pages=15, page_size=2, slots=6)},
        "rolling": {"cache": "rolling", "capacity": 12},
        "streamed": {"callback": shown.append},
    }
    for name, options in others.items():
        found = models.generate(gpt2, **({"tokens": PROMPTS} | options), key=key, **SAMPLED)
        assert found.lists() == want.lists(), name
    assert np.isfinite(models.generate(gpt2, PROMPTS, key=key, **SAMPLED | {"temperature": 1e300}).scores).all()
    steps = np.array(shown)
    assert steps.shape == (max(want.lengths), 3)
    assert [[int(token) for token in row if token >= 0] for row in steps.T] == want.lists()


@pytest.mark.parametrize("cache", ["rolling", "paged"])
def test_beams_over_every_cache(gpt2, cache):
    options = {"max_new_tokens": NEW, "stop_tokens": STOP, "beams": 3}
    want = models.generate(gpt2, PROMPTS, **options)
    found = models.generate(gpt2, PROMPTS, cache=cache, **options)
    assert found.lists() == want.lists()
    np.testing.assert_allclose(found.scores, want.scores, rtol=1e-5)


WINDOWED = {name: case for name, case in LLAMA.items() if "sliding_window" in case.settings}


@pytest.mark.parametrize("name", rows(WINDOWED, always=("gemma3",)))
def test_windows_over_every_cache(name):
    """Greedy tokens and their log probabilities are those of a call on the whole, with windows of 3 in some blocks."""
    model = built(WINDOWED[name])
    assert 3 in model.config.windows
    want = None
    for cache in ("rolling", "paged"):
        found = models.generate(model, PROMPTS, max_new_tokens=NEW, stop_tokens=(), cache=cache)
        if want is None:
            texts = [prompt + new for prompt, new in zip(PROMPTS, found.lists(), strict=True)]
            tokens = np.array([row + [0] * (max(map(len, texts)) - len(row)) for row in texts])
            log_p = jax.nn.log_softmax(nnx.jit(lambda model, tokens: model(tokens))(model, tokens))
            spans = [(row, np.arange(len(text) - NEW - 1, len(text) - 1)) for row, text in enumerate(texts)]
            want = (
                [log_p[row, at].argmax(-1).tolist() for row, at in spans],
                [float(log_p[row, at].max(-1).sum()) for row, at in spans],
            )
        assert found.lists() == want[0], cache
        np.testing.assert_allclose(found.scores, want[1], rtol=1e-5, err_msg=cache)


def test_a_cache_whose_rows_are_unknown_is_refused():
    class Other(caches.RollingCache.__base__):
        append = view = None

    with pytest.raises(ValueError, match="`cache` must be contiguous, rolling or paged"):
        reorder_rows((Other(),), jnp.arange(2))


def test_training_mode_does_not_matter(gpt2):
    config = GPT2Config.from_json(MODELS["gpt2"] | {"resid_pdrop": 0.5, "attn_pdrop": 0.5})
    model = GPT2ForCausalLM(config, rngs=nnx.Rngs(0))
    model = models.from_tensors(models.to_tensors(gpt2), config, GPT2ForCausalLM)
    model.train()
    want = models.generate(gpt2, PROMPTS, max_new_tokens=NEW)
    assert models.generate(model, PROMPTS, max_new_tokens=NEW).lists() == want.lists()


CHOICES = [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.6}, {"temperature": 2.0, "top_k": 6, "top_p": 0.8}]


def test_the_limit_of_small_temperatures_is_the_most_likely_token():
    """Down to temperatures that float32 rounds to 0."""
    log_p = jax.nn.log_softmax(jnp.array([[1.0, 3.0, 2.0], [0.0, -9.0, -5.0]]))
    for temperature in (1e-3, 1e-38, 1e-45, 1e-60):
        how = Sampling(1, (), 0, jnp.float32(temperature), None, None, jax.random.split(jax.random.key(0), 2))
        assert how.choose(log_p, jnp.int32(0)).tolist() == [1, 0], temperature


@pytest.mark.parametrize("options", CHOICES, ids=str)
def test_samples_with_the_exact_probabilities(options):
    """The frequencies of 40,000 samples, beside probabilities computed one by one."""
    logits = np.random.default_rng(0).standard_normal(12) * 2
    p = np.exp(logits / options.get("temperature", 1))
    p /= p.sum()
    order = np.argsort(-p)[: options.get("top_k")]
    kept, mass = [], 0.0
    for token in order:
        if mass / p[order].sum() >= options.get("top_p", 1):
            break
        kept.append(token)
        mass += p[token]
    want = np.zeros(12)
    want[kept] = p[kept] / mass
    count = 40000
    how = Sampling(1, (), 0, jnp.float32(options.get("temperature", 1)), options.get("top_k"), options.get("top_p"))
    how = dataclasses.replace(how, keys=jax.random.split(jax.random.key(1), count))
    tokens = jax.jit(lambda how, log_p: how.choose(jnp.broadcast_to(log_p, (count, 12)), 3))(how, logits)
    found = np.bincount(tokens, minlength=12) / count
    assert (found[want == 0] == 0).all()
    assert (np.abs(found - want) < 5 * np.sqrt(want * (1 - want) / count) + 1e-9).all()


def test_keeps_ties_and_at_least_one():
    tied = jnp.log(jnp.array([0.3, 0.3, 0.3, 0.1]))
    assert jnp.isfinite(most_likely(tied, top_k=2)).tolist() == [True, True, True, False]
    assert jnp.isfinite(most_likely(tied, top_p=0.5)).tolist() == [True, True, True, False]
    assert jnp.isfinite(most_likely(jnp.array([0.0, -50.0]), top_p=1e-6)).tolist() == [True, False]


BAD = {
    "an empty list": ({"tokens": []}, r"`tokens` must be integers \[batch, length\]"),
    "an empty prompt": ({"tokens": [[1], []]}, r"at least one token in each prompt.*rows \[1\]"),
    "no token at all": ({"tokens": np.zeros((2, 0), int)}, "at least one token in each prompt"),
    "one prompt": ({"tokens": [1, 2]}, "one prompt is a batch of one"),
    "floats": ({"tokens": np.ones((1, 2))}, "`tokens` must be integers"),
    "lists of floats": ({"tokens": [[0.5], [1, 2]]}, r"`tokens\[0\]` must be a list of integers"),
    "out of the vocabulary": ({"tokens": [[41]]}, r"`tokens` must be in \[0, 41\)"),
    "no tokens": ({"tokens": None}, "`tokens` must be the prompts"),
    "a mask of lists": ({"attention_mask": np.ones((3, 4))}, "`attention_mask` belongs to `tokens` in one array"),
    "another mask": ({"tokens": LEFT, "attention_mask": np.ones((3, 3))}, "`attention_mask` must be ones and zeros"),
    "masked rows": ({"tokens": LEFT, "attention_mask": 0 * LEFT}, r"empty prompts in the rows \[0, 1, 2\]"),
    "no new tokens": ({"max_new_tokens": 0}, "`max_new_tokens` must be"),
    "beyond positions": ({"max_new_tokens": 9}, "`max_new_tokens` must be at most 8.* 12 positions"),
    "beyond capacity": ({"capacity": 10}, "`capacity` must have places for 11 tokens"),
    "beyond a cache": ({"cache": caches.Contiguous(10)}, "`cache` must have places for 11 tokens"),
    "too few pages": ({"cache": caches.Paged(8, 2, 6)}, "`cache` must have pages for 11 tokens of a sequence and 29"),
    "too few slots": ({"cache": caches.Paged(40, 2, 5)}, "`cache` must have pages for 11 tokens"),
    "capacity of a cache": (
        {"cache": caches.Rolling(4), "capacity": 12},
        "`capacity` is that of a cache given by name",
    ),
    "an unknown cache": ({"cache": "static"}, "`cache` must be .*contiguous.*rolling.*paged.*'static'"),
    "no dtype": ({"cache_dtype": "floaty"}, "`cache_dtype`"),
    "top_p of 0": ({"top_p": 0, "temperature": 1}, "`top_p` must be above 0"),
    "top_p above 1": ({"top_p": 1.1}, "`top_p` must be from 0 to 1"),
    "top_k of 0": ({"top_k": 0}, "`top_k` must be"),
    "below 0": ({"temperature": -1.0}, "`temperature` must be 0 or more"),
    "infinite": ({"temperature": float("inf")}, "`temperature` must be 0 or more"),
    "no key": ({"temperature": 1.0}, "`key` must be a random key"),
    "too few keys": (
        {"temperature": 1.0, "key": jax.random.split(jax.random.key(0), 2)},
        "`key` must be one random key",
    ),
    "a stop token": ({"stop_tokens": 41}, r"`stop_tokens` must be tokens in \[0, 41\)"),
    "beams and a callback": ({"beams": 2, "callback": print}, "`callback` cannot be given with `beams`"),
    "beams and temperature": ({"beams": 2, "temperature": 1.0}, "`temperature` cannot be given with `beams`"),
    "beams and top_p": ({"beams": 2, "top_p": 0.5}, "`top_p` cannot be given with `beams`"),
    "a callback": ({"callback": 3}, "`callback` must be a function of tokens"),
    "no prompts": ({"tokens": np.zeros((0, 3), int)}, "`tokens` must have at least one prompt"),
    "a flag for a token": ({"stop_tokens": True}, r"`stop_tokens` must be tokens in \[0, 41\)"),
    "too many beams": ({"beams": 21}, "`beams` must be at most 20"),
    "no beams": ({"beams": 0}, "`beams` must be"),
    "stopping": ({"early_stopping": "always"}, '`early_stopping` must be False, True or "never"'),
    "penalty": ({"beams": 2, "length_penalty": "long"}, "`length_penalty` must be a finite number"),
    "inputs": ({"inputs": [[1]]}, "`inputs` and `inputs_mask` are for a model with an encoder"),
    "a function": ({"model": print}, "`model` must be an `nnx.Module`"),
}


@pytest.mark.parametrize("name", BAD)
def test_refuses(gpt2, name):
    options, message = BAD[name]
    options = {"model": gpt2, "tokens": PROMPTS, "max_new_tokens": NEW} | options
    with pytest.raises(ValueError, match=message):
        models.generate(**options)


SOURCE = np.array([[3, 4, 0], [5, 6, 7]])
BAD_INPUTS = {
    "out of the vocabulary": ({"inputs": [[3, 99]]}, r"`inputs` must be in \[0, "),
    "no example": ({"inputs": np.zeros((0, 2), int)}, "`inputs` must be at least one example"),
    "an empty example": ({"inputs": [[3], []]}, "`inputs` must have at least one token"),
    "a masked example": ({"inputs": SOURCE, "inputs_mask": SOURCE > 4}, "`inputs` must have at least one token"),
    "a wider mask of ones": (
        {"inputs": SOURCE, "inputs_mask": np.ones((2, 4))},
        r"`inputs_mask` must be ones and zeros of the shape \(2, 3\) of `inputs`",
    ),
    "a mask of NaN": (
        {"inputs": SOURCE, "inputs_mask": np.full((2, 3), np.nan)},
        "`inputs_mask` must be ones and zeros",
    ),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_refuses_inputs(name):
    options, message = BAD_INPUTS[name]
    with pytest.raises(ValueError, match=message):
        models.generate(made("t5"), max_new_tokens=2, **options)


def test_refuses_models_without_a_head():
    config = GPT2Config(vocabulary=41, features=8, depth=1, heads=2, max_length=12)
    with pytest.raises(ValueError, match="`model` must give the logits of the next token"):
        models.generate(GPT2(config, rngs=nnx.Rngs(0)), PROMPTS, max_new_tokens=2)


def test_refuses_to_be_traced(gpt2):
    with pytest.raises(ValueError, match="`generate` must be called outside of"):
        jax.jit(lambda tokens: models.generate(gpt2, tokens, max_new_tokens=2))(LEFT)


def test_arrays_without_padding_are_taken_as_they_are():
    tokens = np.array([[1, 2], [3, 4]])
    prompts = Prompts.of(tokens, np.ones((2, 2)), 5)
    assert prompts.valid is None and (prompts.tokens == tokens).all()


def test_windows_equal_calls_on_the_whole():
    """Beyond the window, of ragged prompts, over caches that keep only what it sees."""
    model = made("mistral")
    whole = nnx.jit(lambda model, tokens: jax.nn.log_softmax(model(tokens)))
    found = models.generate(model, PROMPTS, max_new_tokens=NEW, cache="rolling", stop_tokens=())
    for prompt, new, score in zip(PROMPTS, found.lists(), found.scores, strict=True):
        row = np.array([[*prompt, *new] + [0] * (4 - len(prompt))])
        log_p = np.asarray(whole(model, row))[0, len(prompt) - 1 : len(prompt) + NEW - 1]
        assert log_p.argmax(-1).tolist() == new
        np.testing.assert_allclose(score, log_p.max(-1).sum(), rtol=1e-5)

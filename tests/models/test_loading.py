"""Loading: what is refused, by an error that names it and before anything is read; placement; pickles."""

import dataclasses
import json
import struct
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn import models
from jattn.models.checkpoint import reading
from jattn.models.checkpoint.reading import ALIGNMENT
from jattn.models.checkpoint.safetensors import Files
from jattn.models.gpt2 import GPT2, GPT2Config, GPT2ForCausalLM
from jattn.models.llama import LlamaConfig, LlamaForCausalLM

safetensors = pytest.importorskip("safetensors.numpy")

CONFIG = GPT2Config(vocabulary=11, features=8, depth=2, heads=2, max_length=9)
MODEL = GPT2ForCausalLM(CONFIG, rngs=nnx.Rngs(0))
TENSORS = models.to_tensors(MODEL)
SETTINGS = {"architectures": ["GPT2LMHeadModel"], **CONFIG.to_json()}


def directory(path: Path, settings=SETTINGS, tensors=TENSORS) -> Path:
    if settings is not None:
        text = settings if isinstance(settings, str) else json.dumps(settings)
        (path / "config.json").write_text(text, encoding="utf-8")
    if tensors is not None:
        safetensors.save_file(tensors, path / "model.safetensors")
    return path


def header(path: Path, change) -> Path:
    """A file whose header is changed, its data not."""
    file = directory(path) / "model.safetensors"
    data = file.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    described = json.loads(data[8 : 8 + size])
    change(described)
    text = json.dumps(described).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
    return path


def cut(path: Path, where: int) -> Path:
    file = directory(path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:where])
    return path


def pickled(path: Path, settings=SETTINGS) -> Path:
    (path / "pytorch_model.bin").write_bytes(b"\x80\x02cos\nsystem\n")
    return directory(path, settings, None)


def indexed(path: Path, files: dict) -> Path:
    directory(path, SETTINGS, None)
    safetensors.save_file(TENSORS, path / "model-00001-of-00002.safetensors")
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}), encoding="utf-8")
    return path


def without(*names: str) -> dict:
    return {name: one for name, one in TENSORS.items() if name not in names}


WTE = "transformer.wte.weight"
ALL = dict.fromkeys(TENSORS, "model-00001-of-00002.safetensors")

REFUSED = {
    "a file": (lambda p: directory(p) / "config.json", "`path` must be a directory"),
    "no config": (lambda p: directory(p, None), "`path` must be a directory with a config.json"),
    "no JSON": (lambda p: directory(p, "{"), "config.json must be JSON"),
    "a folder for settings": (
        lambda p: ((directory(p) / "generation_config.json").mkdir(), p)[1],
        "generation_config.json must be a file of JSON; it is a directory",
    ),
    "no object": (lambda p: directory(p, "[]"), "config.json must be a JSON object"),
    "no weights": (lambda p: directory(p, tensors=None), "must have a model.safetensors"),
    "a pickle": (pickled, r"pytorch_model.bin\. Reading a pickle can run any code(.|\n)*python -c"),
    "a pickle alone": (lambda p: pickled(p, None), "pytorch_model.bin"),
    "an unknown model": (
        lambda p: directory(p, {**SETTINGS, "model_type": "gpt5"}),
        r"`model_type` must be one of .*bert.*gpt2.*llama.*; got 'gpt5'",
    ),
    "an unknown architecture": (
        lambda p: directory(p, {**SETTINGS, "architectures": ["GPT2ForJokes"]}),
        "`model` must be given, one of GPT2, GPT2ForCausalLM",
    ),
    "an unknown setting": (lambda p: directory(p, {**SETTINGS, "mixture": 3}), "GPT2Config knows; got 'mixture': 3"),
    "a setting that is not computed": (
        lambda p: directory(p, {**SETTINGS, "add_cross_attention": True}),
        "`add_cross_attention` in config.json must be False",
    ),
    "a wrong type": (lambda p: directory(p, {**SETTINGS, "n_embd": "8"}), "`features` must be int; got '8'"),
    "an architecture that is no name": (
        lambda p: directory(p, {**SETTINGS, "architectures": 5}),
        "`model` must be given",
    ),
    "a number that is not finite": (
        lambda p: directory(p, {**SETTINGS, "layer_norm_epsilon": float("nan")}),
        "`epsilon` must be a finite number above 0; got nan",
    ),
    "a wrong size": (lambda p: directory(p, {**SETTINGS, "n_head": 3}), "`features` must be a multiple of `heads`"),
    "an unknown activation": (lambda p: directory(p, {**SETTINGS, "activation_function": "gel"}), "`activation` must"),
    "cut in the data": (lambda p: cut(p, -10), "model.safetensors must be a whole safetensors file"),
    "cut in the header": (lambda p: cut(p, 100), "must be a whole safetensors file"),
    "cut at once": (lambda p: cut(p, 3), "must be a whole safetensors file"),
    "offsets beyond the file": (
        lambda p: header(p, lambda d: d[WTE].update(data_offsets=[0, 10**9])),
        "must be a whole safetensors file",
    ),
    "a shape of another size": (
        lambda p: header(p, lambda d: d[WTE].update(shape=[11, 9])),
        "must be a whole safetensors file",
    ),
    "a dtype of another size": (lambda p: header(p, lambda d: d[WTE].update(dtype="F64")), "whole safetensors file"),
    "overlapping tensors": (
        lambda p: header(p, lambda d: d[WTE].update(data_offsets=d["transformer.ln_f.bias"]["data_offsets"])),
        "must be a whole safetensors file",
    ),
    "a missing tensor": (
        lambda p: directory(p, tensors=without(WTE)),
        rf"(?s)do not match:\s+missing \(1\): {WTE}\s.*config.json, which must be that of these weights",
    ),
    "an unexpected tensor": (
        lambda p: directory(p, tensors={**TENSORS, "extra": np.zeros(3, np.float32)}),
        r"(?s)unexpected \(1\): extra.*ignore=",
    ),
    "integers": (
        lambda p: directory(p, tensors={**TENSORS, WTE: TENSORS[WTE].astype(np.int32)}),
        rf"(?s)wrong dtype \(1\): {WTE} I32\s.*readable are BF16, F16, F32",
    ),
    "float64": (
        lambda p: directory(p, tensors={**TENSORS, WTE: TENSORS[WTE].astype(np.float64)}),
        rf"(?s)wrong dtype \(1\): {WTE} F64\s.*F64 with `param_dtype=jax.numpy.float32`",
    ),
    "another width": (
        lambda p: directory(p, {**SETTINGS, "n_inner": 16}),
        r"wrong shape \(6\): transformer.h.0.mlp.c_fc.weight \(8, 32\), not \(8, 16\)",
    ),
    "fewer blocks": (lambda p: directory(p, {**SETTINGS, "n_layer": 1}), r"unexpected \(12\): transformer.h.1"),
    "more blocks": (lambda p: directory(p, {**SETTINGS, "n_layer": 3}), r"missing \(12\): transformer.h.2"),
    "untied, but without a head": (
        lambda p: directory(p, {**SETTINGS, "tie_word_embeddings": False}),
        r"missing \(1\): lm_head.weight",
    ),
    "tied, but with another head": (
        lambda p: directory(p, tensors={**TENSORS, "lm_head.weight": 2 * TENSORS[WTE]}),
        "'lm_head.weight' must equal the parameter `embedding.embedding`",
    ),
    "a file that is not there": (
        lambda p: indexed(p, {**ALL, WTE: "model-00002-of-00002.safetensors"}),
        "lists 'model-00002-of-00002.safetensors', which must be a file in the same directory",
    ),
    "a file elsewhere": (lambda p: indexed(p, {**ALL, WTE: "../model.safetensors"}), "must be a file in the same"),
    "an index that lacks a tensor": (
        lambda p: indexed(p, {name: file for name, file in ALL.items() if name != WTE}),
        f"has the tensor '{WTE}', which .* says is in None",
    ),
    "an index with a tensor more": (
        lambda p: indexed(p, {**ALL, "more": "model-00001-of-00002.safetensors"}),
        "lists tensors that its files lack: more",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name, tmp_path):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        models.from_directory(make(tmp_path))


def test_reads_prefixes_buffers_ties_and_indices(tmp_path):
    """Names without the prefix, buffers, a head that repeats the embedding: as published checkpoints have them."""
    bare = {name.removeprefix("transformer."): one for name, one in TENSORS.items()}
    bare |= {"h.0.attn.bias": np.ones((1, 1, 9, 9), np.float32), "lm_head.weight": TENSORS[WTE]}
    model = models.from_directory(directory(tmp_path, tensors=bare))
    assert all(np.array_equal(one, TENSORS[name]) for name, one in models.to_tensors(model).items())
    extra = {**TENSORS, "other.head": np.zeros(3, np.float32)}
    models.from_tensors(extra, CONFIG, GPT2ForCausalLM, ignore=["other.*"])
    base = models.from_tensors(TENSORS, CONFIG, GPT2)
    assert type(base) is GPT2
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    assert models.from_directory(indexed(tmp_path / "a", ALL)).config == CONFIG
    ignored = models.from_directory(directory(tmp_path / "b", {**SETTINGS, "mix": 3}), ignore_settings=["mix"])
    assert ignored.config == CONFIG
    with pytest.raises(ValueError, match="`path` must be a directory without safetensors"):
        models.to_directory(MODEL, tmp_path)


def test_places_and_converts():
    """Each parameter on the sharding asked for, in the dtype asked for."""
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))

    def shardings(path, shape):
        spec = jax.P(None, "x") if path.endswith("mlp.up.kernel") else jax.P()
        assert shape.dtype == jnp.bfloat16
        return jax.NamedSharding(mesh, spec)

    model = models.from_tensors(
        TENSORS, CONFIG, GPT2ForCausalLM, param_dtype=jnp.bfloat16, dtype=jnp.float32, shardings=shardings
    )
    kernel = model.blocks[0].mlp.up.kernel[...]
    assert kernel.dtype == jnp.bfloat16 and kernel.sharding.spec == jax.P(None, "x")
    assert {one.sharding.mesh for one in jax.tree.leaves(nnx.state(model, nnx.Param))} == {mesh}
    assert jax.eval_shape(model, jnp.zeros((1, 3), int)).dtype == jnp.float32


def test_dropout_is_off_until_training():
    """Random streams are made although no checkpoint has them."""
    config = {**SETTINGS, "resid_pdrop": 0.5, "attn_pdrop": 0.5}
    model = models.from_tensors(TENSORS, config)
    tokens = np.arange(5)[None]
    quiet = model(tokens)
    np.testing.assert_allclose(quiet, MODEL(tokens), atol=1e-6)
    model.train()
    assert np.abs(model(tokens) - quiet).max() > 1e-3


def test_random_streams_are_those_of_a_model_that_is_made():
    config = dataclasses.replace(CONFIG, attention_dropout=0.5, residual_dropout=0.5)
    model = GPT2ForCausalLM(config, rngs=nnx.Rngs(0))
    loaded = models.from_tensors(models.to_tensors(model), config, model=GPT2ForCausalLM)
    model.train(), loaded.train()
    for _ in range(2):
        np.testing.assert_array_equal(loaded([3, 4, 5]), model([3, 4, 5]))


def test_loads_from_the_hub(tmp_path, monkeypatch):
    """What is downloaded is a directory like any other: configuration and safetensors, never pickles."""
    hub = types.ModuleType("huggingface_hub")
    asked = []

    def snapshot_download(name, *, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        return str(directory(tmp_path))

    hub.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert models.from_hub("someone/gpt2", revision="v1").config == CONFIG
    assert asked == [
        ("someone/gpt2", "v1", ["config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"])
    ]
    with pytest.raises(ValueError, match="`name` must be that of a repository"):
        models.from_hub("gpt 2")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'jattn\[hf\]'"):
        models.from_hub("someone/gpt2")


STATE = MODEL.initial_state(1, 4)
TOKENS = np.arange(5)[None]
CALLS = {
    "tokens below 0": (lambda: MODEL([[-1, 2]]), r"`tokens` must be in \[0, 11\), the vocabulary.*; got -1 to 2"),
    "tokens above": (lambda: MODEL.prefill([[3, 11]], STATE), r"`tokens` must be in \[0, 11\)"),
    "a token above": (lambda: MODEL.step([11], STATE), r"`tokens` must be in \[0, 11\)"),
    "floats": (lambda: MODEL(np.ones((1, 3))), r"`tokens` must be integers \[..., length\]"),
    "no tokens": (lambda: MODEL(np.zeros((2, 0), int)), "`tokens` must have at least one token"),
    "an empty prompt": (lambda: MODEL.prefill(np.zeros((1, 0), int), STATE), "`tokens` must have at least one token"),
    "more tokens than positions": (lambda: MODEL(np.zeros((1, 10), int)), "`tokens` must be at most 9 long"),
    "a capacity above": (lambda: MODEL.initial_state(1, 10), "`capacity` must be at most 9, the positions"),
    "no capacity": (lambda: MODEL.initial_state(1), "`capacity` must be a positive int; got None"),
    "an unknown cache": (lambda: MODEL.initial_state(1, 4, cache="pages"), "`cache` must be one of"),
    "an overflow": (lambda: MODEL.prefill(TOKENS, STATE), "`tokens` must end within the 4 places of the cache"),
    "a state of another": (lambda: MODEL.prefill(TOKENS[:, :2], STATE[:1]), "`state` must be what `initial_state`"),
    "another batch": (lambda: MODEL.prefill(TOKENS.repeat(2, 0)[:, :2], STATE), "`tokens` must have the batch axes"),
    "a mask of another shape": (
        lambda: MODEL(TOKENS, attention_mask=np.ones((1, 4), int)),
        r"`attention_mask` must be ones and zeros of the shape \(1, 5\)",
    ),
    "a mask of other numbers": (lambda: MODEL(TOKENS, attention_mask=TOKENS), "`attention_mask`"),
    "positions of another shape": (lambda: MODEL(TOKENS, positions=np.arange(4)), "`positions` must be integers of"),
    "positions above": (lambda: MODEL(TOKENS, positions=np.arange(5) + 5), r"`positions` must be in \[0, 9\)"),
    "tensors of another library": (lambda: models.from_tensors({"a": object()}, CONFIG, GPT2), "`tensors` must hold"),
    "tensors that are traced": (
        lambda: jax.jit(lambda one: models.from_tensors(one, CONFIG, GPT2).norm.scale[...])(TENSORS),
        "`tensors` must hold arrays .* with known values",
    ),
    "no names of tensors": (
        lambda: models.from_tensors({1: TENSORS[WTE]}, CONFIG, GPT2),
        "`tensors` must be a mapping",
    ),
    "no path": (lambda: models.from_directory(None), "`path` must be the path of a directory"),
    "a pattern in place of patterns": (
        lambda: models.from_tensors(TENSORS, SETTINGS, ignore="cls.*"),
        "`ignore` must be a list of strings",
    ),
    "a setting in place of settings": (
        lambda: models.from_tensors(TENSORS, SETTINGS, ignore_settings="m"),
        "`ignore_settings` must be a list of strings",
    ),
    "a spec without a mesh": (
        lambda: models.from_tensors(TENSORS, SETTINGS, shardings=jax.P("x")),
        "`shardings` must be a `jax.sharding.Sharding`",
    ),
    "a function of no shardings": (
        lambda: models.from_tensors(TENSORS, SETTINGS, shardings=lambda path, shape: "x"),
        "`shardings` must return a `jax.sharding.Sharding` or None for each parameter; got 'x'",
    ),
    "float64 that is not enabled": (
        lambda: models.from_tensors(TENSORS, SETTINGS, param_dtype=np.float64),
        "`param_dtype` may be float64 only after",
    ),
    "a state of other things": (lambda: MODEL.step([1], (3, 4)), "`state` must be what `initial_state`"),
    "a token that is none": (lambda: MODEL.step(None, STATE), "`tokens` must be integers, one for each sequence"),
    "valid of other numbers": (
        lambda: MODEL.prefill([[1, 2]], STATE, valid=[[2, 1]]),
        "`valid` must be booleans or ones",
    ),
    "no tensors": (lambda: models.from_tensors([], CONFIG, GPT2), "`tensors` must be a mapping"),
    "no configuration": (lambda: models.from_tensors({}, 3, GPT2), "`config` must be a configuration"),
    "a model of another family": (lambda: models.from_tensors({}, CONFIG, nnx.Linear), "`model` must be one of GPT2"),
    "a model of the user's": (lambda: models.to_tensors(nnx.Linear(2, 2, rngs=nnx.Rngs(0))), "`model` must be a model"),
}


@pytest.mark.parametrize("name", CALLS)
def test_refuses_calls(name):
    call, message = CALLS[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_writes_all_or_nothing(tmp_path):
    """A model that could not be read again is refused before anything is written."""
    unlike = LlamaForCausalLM(
        LlamaConfig(vocabulary=11, features=8, depth=1, heads=2, mlp_features=12, qk_norm=True), rngs=nnx.Rngs(0)
    )
    edited = models.from_tensors(TENSORS, SETTINGS)
    edited.blocks[0].mlp.up.kernel.set_value(jnp.zeros((8, 16)))
    shapes = nnx.eval_shape(lambda: GPT2ForCausalLM(CONFIG, rngs=nnx.Rngs(0)))
    refused = {
        "implies other values of qk_norm": unlike,
        r"\(8, 32\) for `blocks.0.mlp.up": edited,
        "known values": shapes,
    }
    for message, model in refused.items():
        with pytest.raises(ValueError, match=message):
            models.to_directory(model, tmp_path / "new")
        assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="`path` must be a directory, or new"):
        models.to_directory(MODEL, directory(tmp_path) / "config.json")


def test_copies_once_and_keeps_no_array_of_others(tmp_path):
    """What is read becomes a parameter as it is, on a CPU; arrays that are given stay with who gave them."""
    file = directory(tmp_path) / "model.safetensors"
    with Files(tmp_path) as files:
        for name, want in TENSORS.items():
            got = files.read(name)
            assert got.ctypes.data % ALIGNMENT == 0
            assert jax.device_put(got).unsafe_buffer_pointer() == got.ctypes.data
            np.testing.assert_array_equal(got, want)
        file.write_bytes(file.read_bytes()[:-8])
        with pytest.raises(ValueError, match=r"model\.safetensors ends within a tensor: it has been truncated"):
            _ = [files.read(name) for name in files.stored]
    given = {name: np.array(one) for name, one in TENSORS.items()}
    model = models.from_tensors(given, SETTINGS)
    for one in given.values():
        one[...] = np.nan
    assert not any(np.isnan(one).any() for one in models.to_tensors(model).values())


@pytest.mark.parametrize("readv", [True, False])
@pytest.mark.parametrize(("ahead", "together"), [(2**29, 2**27), (900, 500), (900, 70), (0, 1000)])
def test_reads_ahead(tmp_path, monkeypatch, ahead, together, readv):
    """In portions of any size, over shards; what is kept shares memory where it may, and nothing is read twice."""
    monkeypatch.setattr(reading, "AHEAD", ahead)
    monkeypatch.setattr(reading, "TOGETHER", together)
    if not readv:
        monkeypatch.delattr(reading.os, "readv", raising=False)
    models.to_directory(MODEL, tmp_path, shard_bytes=2000)
    wanted = [name for name in TENSORS if "ln_f" not in name]
    with Files(tmp_path) as files:
        files.begin(lambda name: "mlp" in name)
        got = dict(one for some in files.read_all(wanted) for one in some)
    assert got.keys() == set(wanted)
    for name, one in got.items():
        np.testing.assert_array_equal(one, TENSORS[name])
        assert one.ctypes.data % ALIGNMENT == 0
        one[...] = 0  # memory of its own
    own = [name for name in wanted if "mlp" not in name]
    assert not any(np.shares_memory(got[own[0]], got[name]) for name in own[1:])

"""Every model against Hugging Face's with the same random weights: outputs, loss, and the gradients of all parameters.

Against files everywhere, and against transformers itself where it is installed.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import model_peers
import numpy as np
import pytest
from flax import nnx
from model_cases import CASES, Case, objective
from model_runs import close, made

from jattn import models

ROWS = [pytest.param(family, name, id=f"{family}: {name}") for family, cases in CASES.items() for name in cases]
ONE_OF_EACH = {
    "bert: bert",
    "bigbird: masked, two random blocks, no bias",
    "clip: texts and images",
    "gpt2: padded",
    "llama: llama, scaled",
    "llama: gemma3",
    "llama: gpt-oss",
    "longformer: global tokens",
    "t5: padded",
    "transformer: padded",
    "vit: hidden and pooled",
    "whisper: padded",
}
"""Of each family the case that is compared in every run, and of the most used one, windows and sinks too."""
ALWAYS = ("padded", "gemma3")
"""Cases that generate in every run: absolute positions, and rotary ones with windows beside none."""
GENERATES = [
    pytest.param(*row.values, id=row.id, marks=() if row.values[1] in ALWAYS else pytest.mark.exhaustive)
    for row in ROWS
    if CASES[row.values[0]][row.values[1]].generates
]
peers = model_peers.needed


def run(case: Case) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The outputs of a model, and the gradients of all parameters as tensors of its checkpoint."""
    model = made(case)
    graph, parameters, rest = nnx.split(model, nnx.Param, ...)
    shapes = jax.eval_shape(lambda: case.call(model, case.inputs))
    cotangents = model_peers.cotangents(shapes)

    @jax.jit
    def both(parameters):
        def loss(parameters):
            found = case.call(nnx.merge(graph, parameters, rest), case.inputs)
            found = {name: case.marked(name, one) for name, one in found.items()}
            return objective(found, cotangents), found

        (_, outputs), gradients = jax.value_and_grad(loss, has_aux=True)(parameters)
        return outputs, gradients

    outputs, gradients = both(parameters)
    tensors = models.to_tensors(nnx.merge(graph, gradients, rest))
    return {name: np.asarray(one) for name, one in outputs.items()}, tensors


def check_outputs(got: dict[str, Any], want: dict[str, Any]) -> None:
    assert got.keys() == want.keys()
    for name, one in got.items():
        close(one, want[name], 1e-5, name)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        pytest.param(*row.values, id=row.id, marks=() if row.id in ONE_OF_EACH else pytest.mark.exhaustive)
        for row in ROWS
    ],
)
def test_gives_what_hugging_face_gave(family, name):
    path = Path(__file__).parent / "expected" / f"{family}.npz"
    with np.load(path) as file:
        kept = {key.removeprefix(f"{name}/"): file[key] for key in file.files if key.startswith(f"{name}/")}
    outputs, gradients = run(CASES[family][name])
    check_outputs(outputs, {key.removeprefix("output/"): one for key, one in kept.items() if key.startswith("output/")})
    want = dict(zip(kept["names"].tolist(), kept["gradients"], strict=True))
    check_names(gradients, want, CASES[family][name])
    largest = max(one[0] for one in want.values())
    for key, (norm, projection) in want.items():
        got = model_peers.summary({key: gradients[key]})[key]
        error = np.abs(got - [norm, projection]).max() / max(norm, 1e-3 * largest)
        assert error <= 1e-4, f"the gradient of {key}: {error}"


@peers
@pytest.mark.parametrize(("family", "name"), ROWS)
@pytest.mark.parametrize("attention", ["eager", pytest.param("sdpa", marks=pytest.mark.exhaustive)])
def test_agrees_with_transformers(family, name, attention):
    case = CASES[family][name]
    if attention == "sdpa" and not model_peers.has_sdpa(case):
        pytest.skip("transformers computes this model without PyTorch's attention")
    outputs, gradients = run(case)
    want, want_gradients = model_peers.run(case, attention)
    check_outputs(outputs, want)
    check_names(gradients, want_gradients, case)
    largest = max(np.abs(one).max() for one in want_gradients.values())
    for key, one in want_gradients.items():
        close(gradients[key], one, 1e-4, f"the gradient of {key}", 1e-3 * largest)


def check_names(gradients: dict[str, Any], want: dict[str, Any], case: Case) -> None:
    """Every parameter has a gradient in both; those that only one computes are zero or named."""
    assert not want.keys() - gradients.keys()
    lost = [name for name in gradients.keys() - want.keys() if name not in case.unused and gradients[name].any()]
    assert not lost, lost


@pytest.mark.parametrize(("family", "name"), GENERATES)
def test_generates_what_it_computes_on_the_whole(family, name):
    """Prefill of two chunks and a step, over caches, padding left out; without padding also to the last token."""
    case = CASES[family][name]
    model: Any = made(case)
    tokens = case.inputs["input_ids"]
    valid = case.inputs.get("attention_mask", np.ones_like(tokens)) != 0

    @nnx.jit
    def whole(model):
        return model(tokens, attention_mask=case.inputs.get("attention_mask"))

    @nnx.jit
    def in_parts(model):
        state = model.initial_state(len(tokens), tokens.shape[1])
        first, state = model.prefill(tokens[:, :4], state, valid=valid[:, :4], every=True)
        second, state = model.prefill(tokens[:, 4:6], state, valid=valid[:, 4:6].astype(int), every=True)
        last, state = model.step(tokens[:, 6], state, valid=valid[:, 6])
        rolling = model.initial_state(len(tokens), tokens.shape[1], cache="rolling")
        shortened, _ = model.prefill(tokens, rolling, valid=valid)
        return first, second, last, shortened

    want = np.where(valid[..., None], whole(model), 0)
    first, second, last, shortened = in_parts(model)
    got = np.concatenate([first, second, last[:, None]], 1)
    close(np.where(valid[..., None], got, 0), want, 1e-5, "contiguous")
    ends = valid.shape[1] - 1 - valid[:, ::-1].argmax(1)
    close(shortened, want[np.arange(len(want)), ends], 1e-5, "rolling, the last valid token")


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        pytest.param(family, dtype, marks=() if dtype == "float32" or family == "llama" else pytest.mark.exhaustive)
        for family in CASES
        for dtype in ("float32", "bfloat16")
    ],
)
def test_is_written_as_it_was_read(family, dtype, tmp_path):
    """Bit for bit, in shards."""
    pytest.importorskip("safetensors")
    case = next(iter(CASES[family].values()))
    want = {name: one.astype(jnp.dtype(dtype)) for name, one in models.to_tensors(made(case)).items()}
    model = models.from_tensors(want, case.settings)
    models.to_directory(model, tmp_path / "one", shard_bytes=3000)
    assert len(list((tmp_path / "one").glob("*.safetensors"))) > 1
    again = models.from_directory(tmp_path / "one")
    assert again.config == model.config
    got = models.to_tensors(again)
    assert list(got) == list(want)
    assert all(np.array_equal(got[key], one) and got[key].dtype == one.dtype for key, one in want.items())


@peers
@pytest.mark.parametrize("family", CASES)
def test_is_read_by_transformers(family, tmp_path):
    """What is written has the names and the configuration that transformers expects, without a word of warning."""
    pytest.importorskip("safetensors")
    case = next(iter(CASES[family].values()))
    models.to_directory(made(case), tmp_path)
    model_peers.read(case, tmp_path)

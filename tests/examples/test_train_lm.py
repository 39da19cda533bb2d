"""The training example: it learns, resumes after an interruption as if there had been none, and draws its pictures."""

import dataclasses
import importlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from processes import free_port, start_python
from tpu import needs_libtpu

from jattn.benchmarks.tpu import compiler

EXAMPLES = Path(__file__).parents[2] / "examples"
FLAGS = ["--size=tiny", "--mask=packed", "--device=cpu"]
FLAGS += ["--steps=20", "--batch=8", "--length=32", "--checkpoint-every=8"]


def compiled_once(make_steps):
    """The same steps for every run over the same devices, whose programs are then compiled once."""
    made = {}

    def steps(definition, transform, kind, shardings):
        name = kind, str(shardings)
        if name not in made:
            made[name] = make_steps(definition, transform, kind, shardings)
        return made[name]

    return steps


@pytest.fixture(scope="module")
def lm():
    """The script and its parts, imported as `python examples/train_lm.py` does."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        parts = {
            name: importlib.import_module(f"lm.{name}") for name in ("devices", "text", "model", "pictures", "sample")
        }
        sizes = parts["model"].SIZES
        sizes["tiny"] = dataclasses.replace(sizes["tiny"], layers=1)
        script = importlib.import_module("train_lm")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(script, "make_steps", compiled_once(script.make_steps))
            yield SimpleNamespace(script=script, **parts)
    finally:
        sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def whole(lm, tmp_path_factory):
    """The folder of a run on one device that nobody interrupted."""
    out = tmp_path_factory.mktemp("whole")
    assert lm.script.main([*FLAGS, "--devices=1", "--out", str(out)]) == 0
    return out


def result_of(out: Path) -> dict:
    return json.loads((out / "result.json").read_text())


def assert_same_run(one: dict, other: dict) -> None:
    """Equal, but for the order in which devices add up."""

    def curve(result: dict) -> np.ndarray:
        return np.concatenate([result["history"]["train"], np.ravel(result["history"]["held_out"])])

    np.testing.assert_allclose(curve(one), curve(other), atol=2e-5)
    for name in one.keys() - {"history", "held_out"}:
        assert one[name] == other[name]


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("begun", "finished"),
    [
        (("--devices=1", "on cpu;"), ("--devices=1", "on cpu;")),
        (("--devices=8", "8 x cpu (8 x 1: data x model)"), ("--model-parallel=2", "8 x cpu (4 x 2: data x model)")),
    ],
    ids=["one device", "other devices"],
)
def test_a_resumed_run_equals_an_uninterrupted_one(lm, whole, tmp_path, monkeypatch, capsys, begun, finished):
    halves = tmp_path
    batch = lm.text.Text.batch

    def interrupted(self, seed, step, *sizes):
        if step == 13:
            raise KeyboardInterrupt
        return batch(self, seed, step, *sizes)

    with monkeypatch.context() as patch:
        patch.setattr(lm.text.Text, "batch", interrupted)
        assert lm.script.main([*FLAGS, begun[0], "--out", str(halves)]) == 130
    assert not (halves / "result.json").exists()
    assert begun[1] in capsys.readouterr().out
    assert lm.script.main([*FLAGS, finished[0], "--out", str(halves)]) == 0
    printed = capsys.readouterr().out
    assert finished[1] in printed
    assert "resumed from the checkpoint after step 8 of 20" in printed

    one, other = result_of(whole), result_of(halves)
    assert_same_run(one, other)
    losses = one["history"]["train"]
    assert len(losses) == 20
    assert np.mean(losses[-5:]) < losses[0] - 2
    assert one["held_out"] < losses[0] - 2

    for name in ("loss.png", "heads.png", "plan.png"):
        assert (halves / name).read_bytes().startswith(b"\x89PNG")

    with pytest.raises(SystemExit, match=r"made with \{'seed': 0\}.*--no-resume"):
        lm.script.main([*FLAGS, "--seed", "1", "--out", str(halves)])


PROCESS = """
import dataclasses, os, pathlib, signal, sys, time
sys.path.insert(0, {examples!r})
import train_lm
from lm.model import SIZES
from lm.text import Text

SIZES["tiny"] = dataclasses.replace(SIZES["tiny"], layers=1)

batch = Text.batch

def killed(self, seed, step, *sizes):
    if step == 13:
        while not pathlib.Path({checkpoint!r}).exists():  # written in the background
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)
    return batch(self, seed, step, *sizes)

if {dies}:
    Text.batch = killed
sys.exit(train_lm.main({flags!r}))
"""


@pytest.mark.exhaustive
def test_two_processes_make_one_run_and_start_again_after_one_was_killed(lm, whole, tmp_path, capsys):
    out = tmp_path

    def start(process: int, port: int, dies: bool = False) -> subprocess.Popen:
        flags = [*FLAGS, "--out", str(out), "--model-parallel=2"]
        flags += [f"--coordinator=127.0.0.1:{port}", "--processes=2", f"--process={process}"]
        source = PROCESS.format(
            examples=str(EXAMPLES), checkpoint=str(out / "checkpoints" / "8"), dies=dies, flags=flags
        )
        return start_python("-c", source)

    port = free_port()
    first, second = start(0, port), start(1, port, dies=True)
    try:
        _, _ = second.communicate(timeout=300)
        assert second.returncode == -signal.SIGKILL
    finally:
        for one in (first, second):
            one.kill()
            one.communicate()
    assert not (out / "result.json").exists()

    port = free_port()
    both = [start(process, port) for process in range(2)]
    try:
        printed = [one.communicate(timeout=300)[0] for one in both]
    finally:
        for one in both:
            one.kill()
    assert [one.returncode for one in both] == [0, 0], printed
    assert "8 x cpu in 2 processes (4 x 2: data x model)" in printed[0]
    assert "resumed from the checkpoint after step 8 of 20" in printed[0]
    assert "bits per byte" not in printed[1]

    assert_same_run(result_of(out), result_of(whole))
    # One process takes over what two have written.
    capsys.readouterr()
    assert lm.script.main([*FLAGS, "--devices=1", "--out", str(out)]) == 0
    assert "resumed from the checkpoint after step 20 of 20" in capsys.readouterr().out


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
    starts = training.batch(0, 3, 4, 32)
    tokens, topic = training.rows(starts, 32)
    assert tokens.shape == topic.shape == (4, 33)
    np.testing.assert_array_equal(starts, training.batch(0, 3, 4, 32))
    assert not np.array_equal(starts, training.batch(0, 4, 4, 32))


def test_held_out_rows_fill_every_batch(lm):
    text = lm.text.Text(np.arange(100, dtype=np.uint8), np.ones(100, np.int32))
    np.testing.assert_array_equal(text.cover(4, 10), [[0, 10, 20, 30], [40, 50, 60, 70]])
    np.testing.assert_array_equal(text.cover(4, 40), [[0, 40, 0, 40]])


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


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "0"], "--steps is too small"),
        (["--model-parallel", "0"], "--model-parallel is too small"),
        (["--processes", "2"], "--coordinator, --processes and --process go together"),
        (["--coordinator=127.0.0.1:1", "--processes=2", "--process=2"], "--process counts from 0 to 1: 2"),
        (["--devices", "9"], "--devices 9: there are 8"),
        (["--model-parallel", "3"], "must divide the number of devices, 8"),
        (["--model-parallel", "8"], "must divide the 4 heads of the tiny model"),
        (["--batch", "12"], "must be a multiple of the 8 devices that share it, such as 16"),
    ],
)
def test_bad_flags(lm, capsys, tmp_path, flags, message):
    with pytest.raises(SystemExit) as stopped:
        lm.script.main(["--size=tiny", "--out", str(tmp_path), *flags])
    assert message in capsys.readouterr().err + str(stopped.value)
    assert jax.default_backend() == "cpu"


@pytest.mark.exhaustive
def test_the_batch_is_made_to_fit_the_devices(lm, whole, tmp_path, capsys):
    given = lm.script.arguments(["--size=small", "--out", str(whole)])
    mesh = lm.devices.make_mesh(1, 1)
    with lm.script.Checkpoints(whole / "checkpoints", mesh, resume=True) as keep:
        assert lm.script.sizes_of(given, mesh, keep.saved_settings()).batch == 8, "of the checkpoint"
    given = lm.script.arguments(["--size=small", "--out", str(tmp_path)])
    assert lm.script.sizes_of(given, lm.devices.make_mesh(None, 1), None).batch == 8
    assert "8 rows in a step instead of 6" in capsys.readouterr().out
    assert lm.script.sizes_of(given, lm.devices.make_mesh(2, 1), None).batch == 6


@needs_libtpu
def test_its_step_compiles_for_a_tpu_with_the_kernel_inside(lm):
    """On the four devices of a v5e host, two of which share a model."""
    size = lm.model.SIZES["tiny"]
    transform = lm.script.optimizer(size)
    mesh = Mesh(compiler.devices("v5e").reshape(2, 2), ("data", "model"))

    def build(rngs):
        return lm.model.GPT(size, jnp.dtype("bfloat16"), lm.devices.heads_over(mesh), rngs=rngs)

    def begin():
        params = nnx.split(build(nnx.Rngs(0)))[1]
        return params, transform.init(params)

    def placed(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    state = jax.eval_shape(begin)
    shardings = lm.devices.shardings_of(state, mesh)
    rows = jax.ShapeDtypeStruct((8, size.length + 1), "int32", sharding=NamedSharding(mesh, PartitionSpec("data")))
    definition = nnx.graphdef(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    step, _ = lm.script.make_steps(definition, transform, "packed", shardings)
    text = step.lower(jax.tree.map(placed, state, shardings), rows, rows).compile().as_text()
    assert "jattn_forward" in text and "jattn_backward" in text

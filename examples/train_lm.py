"""Train a small byte-level GPT, built from `jattn.nnx`, on the help texts that come with every Python.

    pip install -e '.[examples]'                                         # in a clone of the repository
    python examples/train_lm.py                                          # under two minutes on two CPU cores
    python examples/train_lm.py --mask window --out runs/window          # or packed: topics in a row stay separate
    python examples/train_lm.py --size medium --out runs/medium          # on a GPU or TPU, in bfloat16 by default

It uses all devices: the batch is split over them, or, with `--model-parallel N`, heads and feed-forward layers are
split over groups of N. Several processes can form one run. On a TPU pod slice they find each other; elsewhere start
each with the same coordinator, its own index, and an `--out` that all of them can write to:

    python examples/train_lm.py --coordinator HOST:PORT --processes 2 --process 0    # and --process 1 on the other

Prints bits per byte on held-out text, compared with byte frequencies and byte bigrams, and a sample. Writes `loss.png`,
`heads.png` (what a few heads attend to), `plan.png` (the tiles that the mask visits), `sample.txt` and `result.json` to
`--out`. After an interruption, the same command continues from the last checkpoint, also on a different number of
devices or processes.
"""

import argparse
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from lm import devices, pictures, text
from lm.checkpoints import Checkpoints
from lm.model import GPT, SIZES, Size, bits_per_byte
from lm.sample import sample
from tqdm import tqdm

WARM_UP = 50  # steps, but at most a tenth of all
EVALUATIONS = 5
SAMPLE = 300  # bytes
EXCERPT = 44  # bytes; more labels would not be readable in the picture of the weights
PLATFORMS = {"cpu": "cpu", "gpu": "cuda,cpu", "tpu": "tpu,cpu"}


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--mask", choices=("causal", "window", "packed"), default="causal")
    parser.add_argument("--steps", type=int, help="by default from --size, like the two below")
    parser.add_argument("--batch", type=int, help="rows per step")
    parser.add_argument("--length", type=int, help="bytes per row")
    parser.add_argument("--device", choices=("auto", *PLATFORMS), default="auto")
    parser.add_argument("--devices", type=int, metavar="N", help="use the first N; by default all")
    parser.add_argument("--model-parallel", type=int, default=1, metavar="N", help="devices per model")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0, for a run of several processes")
    parser.add_argument("--processes", type=int, metavar="N", help="the number of processes; with --coordinator")
    parser.add_argument(
        "--process", type=int, metavar="I", help="the index of this process, from 0; with --coordinator"
    )
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="of the computation")
    parser.add_argument("--out", type=Path, default=Path("runs/lm"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint-every", type=int, default=50, metavar="STEPS")
    parser.add_argument(
        "--resume", action=argparse.BooleanOptionalAction, default=True, help="from the checkpoint in --out"
    )
    parser.add_argument("--prompt", default="The ", help="how the sample begins")
    given = parser.parse_args(argv)
    joined = (given.coordinator, given.processes, given.process)
    if any(one is None for one in joined) and any(one is not None for one in joined):
        parser.error("--coordinator, --processes and --process go together")
    if given.coordinator is not None and not 0 <= given.process < given.processes:
        parser.error(f"--process counts from 0 to {given.processes - 1}: {given.process}")
    for name in ("steps", "batch", "length", "checkpoint_every", "devices", "model_parallel"):
        value = getattr(given, name)
        if value is not None and value < (16 if name == "length" else 1):
            parser.error(f"--{name.replace('_', '-')} is too small: {value}")
    return given


def optimizer(size: Size) -> optax.GradientTransformation:
    warm_up = min(WARM_UP, size.steps // 10)
    schedule = optax.warmup_cosine_decay_schedule(
        0, size.learning_rate, warm_up, max(size.steps, warm_up + 1), size.learning_rate / 20
    )
    decayed = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)  # noqa: E731
    adamw = optax.adamw(schedule, b2=0.98, weight_decay=0.1, mask=decayed)
    return optax.chain(optax.clip_by_global_norm(1.0), adamw)


def make_steps(
    definition: Any, transform: optax.GradientTransformation, kind: str, shardings: Any
) -> tuple[Callable, Callable]:
    """The compiled training step, which donates its state, and the compiled evaluation."""

    def loss(params, tokens, topic):
        return bits_per_byte(nnx.merge(definition, params), kind, tokens, topic)

    def train(state, tokens, topic):
        params, moments = state
        bits, gradients = jax.value_and_grad(loss)(params, tokens, topic)
        updates, moments = transform.update(gradients, moments, params)
        return (optax.apply_updates(params, updates), moments), bits

    return jax.jit(train, donate_argnums=0, out_shardings=(shardings, None)), jax.jit(loss)


def evaluate(loss: Callable, params: Any, held_out: text.Text, size: Size, mesh: Mesh) -> float:
    """Mean bits per byte over the held-out text."""
    batches = held_out.cover(size.batch, size.length)
    return float(np.mean([float(loss(params, *devices.rows(held_out, one, size.length, mesh))) for one in batches]))


def train(state: Any, size: Size, given: argparse.Namespace, steps: tuple, texts: tuple, keep: Checkpoints) -> Any:
    """Train from the last checkpoint, if there is one. Returns the state and the history of the loss."""
    train_step, loss = steps
    training, held_out = texts
    mesh = keep.mesh
    first, history = 0, {"train": [], "held_out": []}
    restored = keep.restore(state)
    if restored is not None:
        first, state, history = restored
        say(f"resumed from the checkpoint after step {first} of {size.steps}")
    at_evaluation = {round(size.steps * (i + 1) / EVALUATIONS) for i in range(EVALUATIONS)}
    losses: list[Any] = []
    started, compiled = time.perf_counter(), None
    quiet = not devices.is_first()
    with tqdm(total=size.steps, initial=first, unit="step", dynamic_ncols=True, file=sys.stdout, disable=quiet) as bar:
        for step in range(first + 1, size.steps + 1):
            starts = training.batch(given.seed, step, size.batch, size.length)
            state, bits = train_step(state, *devices.rows(training, starts, size.length, mesh))
            losses.append(bits)
            if compiled is None:
                bits.block_until_ready()
                compiled = time.perf_counter()
            # Wait for the previous step: the bar stays accurate, and the device always has one more step queued.
            bar.set_description(f"{float(losses[-2:][0]):.2f} bits per byte", refresh=False)
            if step in at_evaluation:
                history["held_out"].append([step, evaluate(loss, state[0], held_out, size, mesh)])
                bar.set_postfix_str(f"held out {history['held_out'][-1][1]:.2f}")
            if step % given.checkpoint_every == 0 or step == size.steps:
                history["train"] += [float(bits) for bits in losses]
                losses = []
                keep.save(step, state, history)
            bar.update()
    ended = time.perf_counter()
    if compiled is not None:
        seconds, rest = ended - started, ended - compiled
        done = size.steps - first
        rate = (done - 1) * size.batch * size.length / rest
        say(f"{done} steps in {seconds:.1f} s, {seconds - rest:.1f} s of it for the first; {rate:,.0f} bytes/s")
    return state, history


def sizes_of(given: argparse.Namespace, mesh: Mesh, saved: dict[str, Any] | None) -> Size:
    """The requested sizes, with a batch that the mesh divides.

    Args:
        given: the command line.
        mesh: of all devices.
        saved: the settings of the checkpoint that the run goes on from, if there is one.

    Raises:
        SystemExit: the mesh divides neither the requested batch nor the heads.
    """
    chosen = {name: getattr(given, name) for name in ("steps", "batch", "length")}
    if given.resume and given.batch is None:  # a run that began on fewer devices may have a smaller batch
        chosen["batch"] = (saved or {}).get("batch")
    size = dataclasses.replace(
        SIZES[given.size], **{name: value for name, value in chosen.items() if value is not None}
    )
    data, model = mesh.shape.values()
    if size.heads % model:
        raise SystemExit(f"--model-parallel {model} must divide the {size.heads} heads of the {given.size} model.")
    if size.batch % data:
        wider = -(-size.batch // data) * data
        if chosen["batch"] is not None:
            raise SystemExit(
                f"--batch {size.batch} must be a multiple of the {data} devices that share it, such as {wider}."
            )
        say(f"{wider} rows in a step instead of {size.batch}, so that {data} devices share them evenly")
        size = dataclasses.replace(size, batch=wider)
    return size


def say(*words: Any) -> None:
    """Print, from the first process."""
    if devices.is_first():
        print(*words, flush=True)


def main(argv: list[str] | None = None) -> int:
    given = arguments(argv)
    if given.device != "auto":
        jax.config.update("jax_platforms", PLATFORMS[given.device])
    devices.join_processes(given.coordinator, given.processes, given.process)
    began = time.perf_counter()
    mesh = devices.make_mesh(given.devices, given.model_parallel)
    keep = Checkpoints(given.out / "checkpoints", mesh, resume=given.resume)
    size = sizes_of(given, mesh, keep.saved_settings())
    dtype = given.dtype if given.dtype != "auto" else "float32" if jax.default_backend() == "cpu" else "bfloat16"
    texts = text.load()
    bytes_of = [part.data for part in texts]
    baselines = {
        "byte frequencies": text.unigram_entropy(*bytes_of),
        "byte bigrams": text.bigram_entropy(*bytes_of),
    }
    build = functools.partial(GPT, size, jnp.dtype(dtype))
    transform = optimizer(size)

    def begin() -> Any:
        _, params = nnx.split(build(devices.heads_over(mesh), rngs=nnx.Rngs(given.seed)))
        return params, transform.init(params)

    shardings = devices.shardings_of(jax.eval_shape(begin), mesh)
    state = jax.jit(begin, out_shardings=shardings)()
    definition = nnx.graphdef(nnx.eval_shape(lambda: build(devices.heads_over(mesh), rngs=nnx.Rngs(0))))
    count = sum(leaf.size for leaf in jax.tree.leaves(state[0]))
    say(
        f"{given.size} model, {count:,} parameters, {given.mask} mask, {dtype}, on {devices.describe(mesh)}; "
        f"{len(bytes_of[0]):,} bytes to train on, {len(bytes_of[1]):,} held out"
    )
    given.out.mkdir(parents=True, exist_ok=True)
    keep.settings = {**dataclasses.asdict(size), "mask": given.mask, "dtype": dtype, "seed": given.seed}
    steps = make_steps(definition, transform, given.mask, shardings)
    try:
        with keep:
            (params, _), history = train(state, size, given, steps, texts, keep)
    except KeyboardInterrupt:
        say(
            f"\ninterrupted; the same command goes on from the last checkpoint in {given.out / 'checkpoints'}, "
            f"written every {given.checkpoint_every} steps"
        )
        return 130
    whole = devices.fetch(params)
    if devices.is_first():  # the rest needs only one device
        model = nnx.merge(nnx.graphdef(nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0)))), whole)
        results = {**baselines, "parameters": count, **keep.settings, "history": history}
        report(given, model, texts, size, baselines, results)
        print(f"pictures in {given.out}; {time.perf_counter() - began:.0f} s in all")
    devices.wait_for_all("the report is written")
    return 0


def report(given: argparse.Namespace, model: GPT, texts: tuple, size: Size, baselines: dict, results: dict) -> None:
    """Print the final loss and a sample, and write everything to `--out`."""
    bits = results["history"]["held_out"][-1][1]
    print(f"held out: {bits:.3f} bits per byte; " + "; ".join(f"{name} {one:.3f}" for name, one in baselines.items()))
    written = sample(model, given.mask, given.prompt, SAMPLE, size.length, given.seed)
    print(f"--- sample ---\n{written}\n--------------")
    (given.out / "sample.txt").write_text(written, encoding="utf-8")
    (given.out / "result.json").write_text(json.dumps({"held_out": bits, **results}, indent=2), encoding="utf-8")
    pictures.save_loss(given.out / "loss.png", results["history"], baselines)
    excerpt = texts[1].excerpt(min(size.length, EXCERPT))
    pictures.save_heads(given.out / "heads.png", model, given.mask, size.length, excerpt)
    pictures.save_plan(given.out / "plan.png", given.mask, texts[0], size.length)


if __name__ == "__main__":
    sys.exit(main())

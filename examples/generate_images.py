"""Paint handwritten digits pixel by pixel: GPT-2 whose words are shades of gray, conditioned on what to paint.

    pip install -e '.[examples]'               # in a clone of the repository
    python examples/generate_images.py         # two minutes on two CPU cores

An image of 8x8 pixels of 17 shades is a text of 64 tokens, row by row, and its label is the prompt (image GPT, Chen et
al. 2020, "Generative Pretraining From Pixels"). A causal `GPT2ForCausalLM` of three blocks learns 1,500 images, and
`jattn.models.generate` paints new ones, or completes images that were held out and that it sees the upper half of.

Prints bits per pixel on held-out images beside those of simpler models of a pixel, and how many of the painted digits a
classifier of real ones takes for what they should be. Writes `samples.png`, `heads.png` (how far from the pixel that is
painted each head looks) and `result.json` to `--out`.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from images import commands, digits, training
from images.digits import LEVELS, SIDE, Digits
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.svm import SVC

import jattn
from jattn import models
from jattn.models.gpt2 import GPT2Config, GPT2ForCausalLM

PIXELS = SIDE * SIDE
PAINTED = 10  # images of each digit


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Run the example. Returns its figures."""
    given = commands.parser(__doc__, steps=900, batch=32, features=96).parse_args(argv)
    out = given.out or Path("runs/generate_images")
    known, held_out = digits.load()
    model = build(given.features, given.seed)

    def batch(random: np.random.Generator) -> tuple[np.ndarray]:
        chosen = random.integers(len(known.labels), size=given.batch)
        return (as_tokens(known.images[chosen], known.labels[chosen]),)

    training.train(model, loss, batch, given.steps, learning_rate=3e-3, seed=given.seed)

    out.mkdir(parents=True, exist_ok=True)
    bits = nnx.jit(loss)(model, jnp.asarray(as_tokens(held_out.images, held_out.labels))) / np.log(2)
    figures = {"transformer": float(bits), **baselines(known, held_out)}
    commands.report(out, figures, title=f"bits per pixel of {len(held_out.labels)} held-out images")

    labels = np.repeat(np.arange(10), PAINTED)
    painted = paint(model, labels[:, None] + LEVELS, given.seed)
    classifier = SVC().fit(known.images.reshape(-1, PIXELS), known.labels)
    right = {
        "painted digits": classifier.score(painted.reshape(-1, PIXELS), labels),
        "held-out digits": classifier.score(held_out.images.reshape(-1, PIXELS), held_out.labels),
    }
    print("taken for what they should be by a classifier of real digits (chance 0.1):")
    print(*(f"  {name:15}  {share:.3f}" for name, share in right.items()), sep="\n")

    one_each = [np.flatnonzero(held_out.labels == digit)[0] for digit in range(10)]
    begun = Digits(held_out.images[one_each], held_out.labels[one_each])
    upper = as_tokens(begun.images, begun.labels)[:, : 1 + PIXELS // 2]
    completed = np.stack([paint(model, upper, given.seed + 1 + i) for i in range(4)])
    draw_samples(out / "samples.png", known, painted, begun, completed)
    draw_heads(out / "heads.png", model, held_out)
    print(f"pictures: {out / 'samples.png'}, {out / 'heads.png'}")
    return figures | right


def build(features: int, seed: int) -> GPT2ForCausalLM:
    """Its tokens are 17 shades and 10 labels."""
    config = GPT2Config(
        vocabulary=LEVELS + 10,
        max_length=1 + PIXELS,
        features=features,
        depth=3,
        heads=4,
        embedding_dropout=0.15,
        residual_dropout=0.15,
        attention_dropout=0.0,
    )
    return GPT2ForCausalLM(config, rngs=nnx.Rngs(seed))


def as_tokens(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A label and the pixels row by row, `[images, 65]`."""
    return np.concatenate([labels[:, None] + LEVELS, images.reshape(len(images), PIXELS)], 1)


def loss(model: GPT2ForCausalLM, tokens: jax.Array) -> jax.Array:
    """The mean of -log p(pixel) over all pixels."""
    return models.token_loss(model(tokens[:, :-1]), tokens[:, 1:])


def paint(model: GPT2ForCausalLM, begun: np.ndarray, seed: int) -> np.ndarray:
    """Continue labels, and pixels if any, to images `[images, 8, 8]`."""
    missing = 1 + PIXELS - begun.shape[1]
    made = models.generate(
        model, begun, max_new_tokens=missing, stop_tokens=(), temperature=1.0, key=jax.random.key(seed)
    )
    pixels = np.concatenate([begun, made.tokens], 1)[:, 1:].reshape(-1, SIDE, SIDE)
    return np.where(pixels < LEVELS, pixels, 0)  # a label in the place of a pixel is left blank


def baselines(known: Digits, held_out: Digits) -> dict[str, float]:
    """Bits per pixel by counting: with c the count of a shade where it stands, p = (c + 1/2) / (n + 17/2)."""

    def bits(contexts: np.ndarray, unseen: np.ndarray) -> float:
        counts = np.full((contexts.max() + 1, LEVELS), 0.5)
        np.add.at(counts, (contexts, known.images.reshape(-1, PIXELS)), 1)
        share = counts / counts.sum(-1, keepdims=True)
        return float(-np.log2(share[unseen, held_out.images.reshape(-1, PIXELS)]).mean())

    def previous(one: Digits) -> np.ndarray:
        pixels = one.images.reshape(-1, PIXELS)
        return np.pad(pixels[:, :-1], ((0, 0), (1, 0)))

    places = np.arange(PIXELS)
    return {
        "histogram of all pixels": bits(0 * previous(known), 0 * previous(held_out)),
        "given the previous pixel": bits(previous(known), previous(held_out)),
        "given the place": bits(places + 0 * previous(known), places + 0 * previous(held_out)),
        "given place and label": bits(
            places + PIXELS * known.labels[:, None], places + PIXELS * held_out.labels[:, None]
        ),
    }


def draw_samples(path: Path, known: Digits, painted: np.ndarray, begun: Digits, completed: np.ndarray) -> None:
    """Real digits, painted ones, and held-out ones with several lower halves."""
    figure = Figure(figsize=(11, 4.1), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(PAINTED, PAINTED, 5))
    real = known.draw(np.random.default_rng(0), np.repeat(np.arange(10), PAINTED))
    _grid(left, real.reshape(10, PAINTED, SIDE, SIDE), "real")
    _grid(middle, painted.reshape(10, PAINTED, SIDE, SIDE), "painted, given the digit")
    rows = np.stack([begun.images, *completed], 1)
    _grid(right, rows, "held out, then four times\nthe lower half painted")
    figure.savefig(path, dpi=80)


def _grid(axes: Axes, images: np.ndarray, title: str) -> None:
    """Images `[rows, columns, 8, 8]` with a pixel between them."""
    images = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    rows, columns, height, width = images.shape
    axes.imshow(
        images.transpose(0, 2, 1, 3).reshape(rows * height, columns * width), cmap="gray_r", interpolation="nearest"
    )
    axes.set_title(title, fontsize=11)
    axes.set_axis_off()


def draw_heads(path: Path, model: GPT2ForCausalLM, held_out: Digits) -> None:
    """For each head, its mean weight on the pixel at each distance from the one that it helps to paint."""
    tokens = as_tokens(held_out.images, held_out.labels)[:64, :-1]
    _, seen = nnx.jit(jattn.recorded(lambda model, tokens: model(tokens)))(model, tokens)
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    panels = figure.subplots(len(seen), model.config.heads)
    for layer, weights in enumerate(seen.values()):
        for head, mean in enumerate(np.asarray(weights).mean(0)):
            axes = panels[layer, head]
            axes.imshow(by_distance(mean[:, 1:]), cmap="magma_r", extent=(-SIDE + 0.5, SIDE - 0.5, 0.5, -SIDE + 0.5))
            axes.plot(0, 0, "s", color="#2b6cb0", markersize=5)
            axes.set_title(f"block {layer}, head {head}: {mean[:, 0].mean():.0%} on the label", fontsize=8)
            axes.tick_params(labelsize=6)
    figure.suptitle("Where each head looks, from the pixel that comes next (blue)", fontsize=11)
    figure.savefig(path, dpi=80)


def by_distance(weights: np.ndarray) -> np.ndarray:
    """Mean weights by rows above (7 to 0) and columns beside (-7 to 7), `[8, 15]`, of `[64 pixels, 63 before]`."""
    total, count = np.zeros((SIDE, 2 * SIDE - 1)), np.zeros((SIDE, 2 * SIDE - 1))
    queries, keys = np.nonzero(np.tri(PIXELS, PIXELS - 1, -1))
    place = SIDE - 1 + keys // SIDE - queries // SIDE, SIDE - 1 + keys % SIDE - queries % SIDE
    np.add.at(total, place, weights[queries, keys])
    np.add.at(count, place, 1)
    return total / np.maximum(count, 1)


if __name__ == "__main__":
    main()

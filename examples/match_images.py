"""Match images with captions: a small CLIP, tested on pairs of digits that never met in training.

    pip install -e '.[examples]'               # in a clone of the repository
    python examples/match_images.py            # a minute and a half on two CPU cores

An image shows two handwritten digits and a caption says how they stand: "three left of seven" or "three above seven".
Of the 45 pairs of different digits, the 10 that differ by 3 (0 and 3, 1 and 4, ..., 9 and 2) are held out, and so are
the handwritten digits of the test. A CLIP of `jattn.models` learns the other pairs by contrast.

Each held-out image then chooses among the 40 held-out captions, and each caption among 40 images. Four captions have
the same two digits, so that whoever only knows which digits there are, and not how they stand, is right one time in
four. Writes `matches.png` (cosines of images and captions, and where the vision transformer looks) and `result.json` to
`--out`.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from images import commands, digits, scenes, training
from images.digits import NAMES, Digits
from matplotlib.figure import Figure
from shared.flags import several

import jattn
from jattn.models.clip import CLIP, CLIPConfig, CLIPTextConfig, CLIPVisionConfig

WORDS = (*NAMES, "left", "of", "above", "<end>")
SHEET = 20  # pixels
TESTS = 10  # images of each held-out caption


class Caption(NamedTuple):
    """One digit left of another, or above it."""

    first: int
    left: bool
    second: int

    def __str__(self) -> str:
        return f"{NAMES[self.first]} {'left of' if self.left else 'above'} {NAMES[self.second]}"


EVERY = [Caption(first, left, second) for first in range(10) for second in range(10) for left in (True, False)]
HELD_OUT = [one for one in EVERY if (one.first - one.second) % 10 in (3, 7)]
LEARNED = [one for one in EVERY if one.first != one.second and one not in HELD_OUT]


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Run the example. Returns its figures."""
    # With a batch of one, the contrastive loss is 0 and nothing is learned.
    given = commands.parser(__doc__, steps=1600, batch=70, features=64, batch_type=several).parse_args(argv)
    out = given.out or Path("runs/match_images")
    known, held_out = digits.load()
    model = build(given.features, given.seed)

    def batch(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Captions that all differ: two images with one caption would count as a mistake."""
        chosen = random.permutation(len(LEARNED))[: given.batch]
        captions = [LEARNED[i] for i in chosen]
        return as_tokens(captions), draw(captions, known, random)

    training.train(model, loss, batch, given.steps, learning_rate=7e-4, seed=given.seed)

    random = np.random.default_rng(given.seed + 1)
    compare = nnx.jit(lambda model, tokens, images: model(tokens, images).logits)
    tests = [np.asarray(compare(model, as_tokens(HELD_OUT), draw(HELD_OUT, held_out, random))) for _ in range(TESTS)]
    logits, pairs = np.stack(tests), np.array([{one.first, one.second} for one in HELD_OUT])  # [tests, images, texts]
    best = logits.argmax(-1)
    figures = {
        "a caption for an image": float((best == np.arange(len(HELD_OUT))).mean()),
        "an image for a caption": float((logits.argmax(-2) == np.arange(len(HELD_OUT))).mean()),
        "the two digits alone": float((pairs[best] == pairs).mean()),
        "chance": 1 / len(HELD_OUT),
        "digits known, order guessed": 1 / 4,
    }
    out.mkdir(parents=True, exist_ok=True)
    commands.report(out, figures, title=f"right, of {len(HELD_OUT)} captions of pairs that never met in training")
    draw_matches(out / "matches.png", model, held_out, random)
    print(f"picture: {out / 'matches.png'}")
    return figures


def build(features: int, seed: int) -> CLIP:
    """Two blocks read, three look at 25 patches."""
    sizes: dict[str, Any] = {"features": features, "heads": 4, "mlp_features": 4 * features}
    text = CLIPTextConfig(vocabulary=len(WORDS), max_length=5, eos_token=len(WORDS) - 1, depth=2, **sizes)
    vision = CLIPVisionConfig(image_size=SHEET, patch_size=4, channels=1, depth=3, **sizes)
    model = CLIP(CLIPConfig(text=text, vision=vision, projected_features=features), rngs=nnx.Rngs(seed))
    # Kernels of CLIP begin with a standard deviation of .02, for 512 features and more; with few, vectors begin all
    # but equal.
    larger = lambda path, x: x * (features**-0.5 / 0.02) if "blocks" in path and "kernel" in path else x  # noqa: E731
    nnx.update(model, nnx.map_state(larger, nnx.state(model, nnx.Param)))
    return model


def as_tokens(captions: list[Caption]) -> np.ndarray:
    """Words by number, `[captions, 5]`: "above" is followed by "of", so that all are equally long."""
    words = [[*str(one).replace("above", "above of").split(), "<end>"] for one in captions]
    return np.array([[WORDS.index(word) for word in one] for one in words])


def draw(captions: list[Caption], known: Digits, random: np.random.Generator) -> np.ndarray:
    """An image of each caption, `[captions, 20, 20, 1]`: new handwriting, at places that vary."""
    pair = known.draw(random, np.array([[one.first, one.second] for one in captions]))
    along = random.integers(0, 3, (len(captions), 2)) + np.array([0, SHEET // 2])
    across = random.integers(3, 10, (len(captions), 2))
    left = np.array([one.left for one in captions])[:, None]
    corners = np.stack([np.where(left, across, along), np.where(left, along, across)], -1)
    return scenes.compose(pair, corners, SHEET)


def loss(model: CLIP, tokens: jax.Array, images: jax.Array) -> jax.Array:
    """CLIP's contrastive loss."""
    return model.loss(model(tokens, images))


def draw_matches(path: Path, model: CLIP, held_out: Digits, random: np.random.Generator) -> None:
    """Cosines of eight images and their captions; over each image, where its class token looks in the last block."""
    captions = [one for one in HELD_OUT if {one.first, one.second} in ({0, 3}, {4, 7})]
    images = draw(captions, held_out, random)
    found, seen = nnx.jit(jattn.recorded(lambda model, tokens, images: model(tokens, images)))(
        model, as_tokens(captions), images
    )
    looks = np.asarray(list(seen.values())[-1])  # the last block's, [images, heads, 26, 26]
    looks = looks[:, :, 0, 1:].mean(1).reshape(-1, 5, 5)
    figure = Figure(figsize=(8, 7), layout="constrained")
    grid = figure.add_gridspec(3, len(captions), height_ratios=(1, 1, 7))
    for column, image in enumerate(images):
        for row in range(2):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(image[..., 0], cmap="gray_r", interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            if row:
                extent = (-0.5, SHEET - 0.5, SHEET - 0.5, -0.5)
                axes.imshow(looks[column], cmap="Oranges", alpha=0.6, extent=extent, interpolation="nearest")
    axes = figure.add_subplot(grid[2, :])
    cosines = np.asarray(found.images @ found.texts.T).T
    axes.imshow(cosines, vmin=-1, vmax=1, cmap="RdBu_r", aspect="auto")
    for (row, column), cosine in np.ndenumerate(cosines):
        axes.text(column, row, f"{cosine:.2f}", ha="center", va="center", fontsize=8)
    axes.set_yticks(range(len(captions)), [str(one) for one in captions])
    axes.set(xticks=[], xlabel="cosines; right is the diagonal. Above: the images, and where the class token looks")
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()

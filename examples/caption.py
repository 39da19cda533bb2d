"""Name the digits of an image one after another, and show where the model looks at each word.

    pip install -e '.[examples]'               # in a clone of the repository
    python examples/caption.py                 # under two minutes on two CPU cores

An image shows two to four handwritten digits somewhere on a sheet; its caption names them row by row, such as "three
seven zero". Like Show, Attend and Tell (Xu et al. 2015, arXiv:1502.03044): convolutions give a vector for each place of
the image, and an LSTM writes the caption, with `CaptioningAttention` of `jattn.variants` to these vectors at each word.

Prints how many words and captions are right on digits that were held out, beside always saying the most frequent word
at its place, and how much of the attention falls on the digit that is named, beside the share of the area that a digit
takes. Nobody told the model where they are. Writes `caption.png` (the attention at each word, over the image) and
`result.json` to `--out`.
"""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from images import commands, digits, scenes, training
from images.digits import NAMES, SIDE, Digits
from matplotlib.figure import Figure

import jattn.nnx
from jattn import models
from jattn.variants.vision import CaptioningAttention

WORDS = (*NAMES, "<end>", "<start>")
END, START = len(WORDS) - 2, len(WORDS) - 1
CELL, CELLS = 10, 3  # a digit is somewhere in a cell; pixels of a cell, cells along each side of the sheet
SHEET = CELL * CELLS
LONGEST = 4  # digits
PLACES = 8  # along each side of the feature map
TESTS = 1000  # images


class Captioner(nnx.Module):
    """Images `[images, 30, 30, 1]` and the words so far -> logits of the next word.

    a = W convolutions(image) + positions                   64 annotations
    z_t = attention(h_{t-1}, a),    h_t = LSTM([word_{t-1}; z_t], h_{t-1}),    logits_t = W [h_t; z_t]
    """

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        sizes = itertools.pairwise((1, features // 4, features // 2, features))
        self.convolutions = nnx.List(
            [nnx.Conv(*size, (3, 3), strides=stride, rngs=rngs) for size, stride in zip(sizes, (1, 2, 2), strict=True)]
        )
        self.last = nnx.Conv(features, features, (3, 3), rngs=rngs)
        self.positions = nnx.Param(0.1 * jax.random.normal(rngs.params(), (PLACES**2, features)))
        self.embedding = nnx.Embed(len(WORDS), features, rngs=rngs)
        self.attention = jattn.nnx.Layer(CaptioningAttention(features, features, features), rngs=rngs)
        self.lstm = nnx.OptimizedLSTMCell(2 * features, features, rngs=rngs)
        self.head = nnx.Linear(2 * features, len(WORDS), rngs=rngs)

    def annotate(self, images: jax.Array) -> jax.Array:
        """Annotations `[images, 64, features]`."""
        for convolution in self.convolutions:
            images = nnx.relu(convolution(images))
        found = self.last(images)
        return found.reshape(len(found), -1, found.shape[-1]) + self.positions[...]

    def begin(self, annotations: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The state of the LSTM before the first word: zeros."""
        zeros = jnp.zeros_like(annotations[:, 0])
        return zeros, zeros

    def step(self, annotations: jax.Array, state: tuple, word: jax.Array) -> tuple[tuple, jax.Array]:
        """The next state, and the logits of the next word `[images, words]`."""
        seen = self.attention(state[1][:, None], annotations)[:, 0]
        state, out = self.lstm(state, jnp.concatenate([self.embedding(word), seen], -1))
        return state, self.head(jnp.concatenate([out, seen], -1))

    def __call__(self, images: jax.Array, words: jax.Array) -> jax.Array:
        """Logits `[images, length, words]` of each word given those before it, `[images, length]`."""
        annotations = self.annotate(images)
        inputs = models.shifted_right(words, START)
        step = lambda state, word: self.step(annotations, state, word)  # noqa: E731
        return jax.lax.scan(step, self.begin(annotations), inputs.T)[1].swapaxes(0, 1)

    def write(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The likeliest word after another, `[images, length]`, and the attention at each, `[images, length, 64]`."""
        annotations = self.annotate(images)

        def step(carry, _):
            state, word = carry
            weights = self.attention.run("attention_weights", state[1][:, None], annotations)[:, 0]
            state, logits = self.step(annotations, state, word)
            word = logits.argmax(-1)
            return (state, word), (word, weights)

        first = (self.begin(annotations), jnp.full(len(images), START))
        words, weights = jax.lax.scan(step, first, length=LONGEST + 1)[1]
        return words.T, weights.swapaxes(0, 1)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Run the example. Returns its figures."""
    given = commands.parser(__doc__, steps=2500, batch=48, features=64).parse_args(argv)
    out = given.out or Path("runs/caption")
    known, held_out = digits.load()
    model = Captioner(given.features, rngs=nnx.Rngs(given.seed))

    def batch(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return draw(given.batch, known, random)[:2]

    training.train(model, loss, batch, given.steps, learning_rate=3e-3, seed=given.seed)

    images, words, corners = draw(TESTS, held_out, np.random.default_rng(given.seed + 1))
    written, weights = map(np.asarray, nnx.jit(Captioner.write)(model, jnp.asarray(images)))
    constant = frequent(draw(TESTS, known, np.random.default_rng(given.seed + 2))[1])
    named = (written == words) & (words < END)
    figures = {
        "words right": right(written, words),
        "words right, most frequent": right(constant, words),
        "captions right": same(written, words),
        "captions right, most frequent": same(constant, words),
        "attention on the digit named": float(on_digit(weights, corners)[named].mean()) if named.any() else 0.0,
        "area of a digit": (SIDE / SHEET) ** 2,
    }
    out.mkdir(parents=True, exist_ok=True)
    commands.report(out, figures, title=f"{TESTS} images of held-out digits")
    draw_attention(out / "caption.png", images, written, weights)
    print(f"picture: {out / 'caption.png'}")
    return figures


def draw(count: int, known: Digits, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images `[count, 30, 30, 1]`, captions `[count, 5]` that end in at least one `<end>`, and where digits are.

    The last are the corners of `images.scenes.compose`, with -1 for digits that are not there.
    """
    there = np.arange(LONGEST) < random.integers(2, LONGEST + 1, count)[:, None]
    cells = random.permuted(np.tile(np.arange(CELLS**2), (count, 1)), axis=1)[:, :LONGEST]
    cells = np.sort(np.where(there, cells, CELLS**2), axis=1)  # row by row, those that are not there at the end
    places = np.stack([cells // CELLS, cells % CELLS], -1)
    corners = places * CELL + random.integers(0, CELL - SIDE + 1, places.shape)
    corners = np.where(there[..., None], corners, -1)
    labels = random.integers(10, size=there.shape)
    words = np.pad(np.where(there, labels, END), ((0, 0), (0, 1)), constant_values=END)
    return scenes.compose(known.draw(random, labels), corners, SHEET), words, corners


def loss(model: Captioner, images: jax.Array, words: jax.Array) -> jax.Array:
    """The mean of -log p(word) up to the first `<end>`."""
    ended = jnp.cumsum(words == END, -1) > 1
    return models.token_loss(model(images, words), jnp.where(ended, -100, words))


def frequent(words: np.ndarray) -> np.ndarray:
    """The caption `[1, 5]` of the most frequent word at each place."""
    return np.array([[np.bincount(column).argmax() for column in words.T]])


def right(written: np.ndarray, words: np.ndarray) -> float:
    """The share of right words, of all up to the first `<end>`."""
    counted = np.cumsum(words == END, -1) <= 1
    return float((written == words)[counted].mean())


def same(written: np.ndarray, words: np.ndarray) -> float:
    """The share of captions that are right up to the first `<end>`."""
    ended = np.cumsum(words == END, -1) > 1
    return float(((written == words) | ended).all(-1).mean())


def on_digit(weights: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """The share of the attention at each word that falls on the pixels of the digit it names, `[images, 5]`."""
    share = np.zeros(weights.shape[:2])
    edges = np.arange(PLACES + 1) * SHEET / PLACES
    for word in range(corners.shape[1]):
        first = corners[:, word, :, None]  # [images, 2, 1]
        overlap = np.clip(np.minimum(edges[1:], first + SIDE) - np.maximum(edges[:-1], first), 0, None)
        part = overlap / (SHEET / PLACES)  # of a place, along each axis
        share[:, word] = np.einsum("ni,nj,nij->n", part[:, 0], part[:, 1], weights[:, word].reshape(-1, PLACES, PLACES))
    return share


def draw_attention(path: Path, images: np.ndarray, written: np.ndarray, weights: np.ndarray) -> None:
    """Four images; at each word, the attention over the image."""
    figure = Figure(figsize=(7.6, 6.4), layout="constrained")
    panels = figure.subplots(4, 2 + LONGEST)
    for row, (image, words, looks) in enumerate(zip(images, written, weights, strict=False)):
        if row == len(panels):
            break
        said = int(np.argmax(np.append(words, END) == END))
        for axes in panels[row]:
            axes.set_axis_off()
        panels[row, 0].imshow(image[..., 0], cmap="gray_r", interpolation="nearest")
        panels[row, 0].set_axis_on()
        panels[row, 0].set(xticks=[], yticks=[])
        for axes, word, look in zip(panels[row, 1:], words[: said + 1], looks, strict=False):
            axes.imshow(image[..., 0], cmap="gray_r", interpolation="nearest")
            extent = (-0.5, SHEET - 0.5, SHEET - 0.5, -0.5)
            axes.imshow(look.reshape(PLACES, PLACES), cmap="Oranges", alpha=0.6, extent=extent, interpolation="nearest")
            axes.set_title(WORDS[word], fontsize=11)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()

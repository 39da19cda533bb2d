"""Write the first line of a docstring from the rest of it, with a pointer-generator, and see what it copies.

    pip install -e '.[examples,models]'        # in a clone of the repository
    python examples/summarize.py               # three minutes on two CPU cores

The documents are docstrings of Python's standard library, numpy, scipy, jax and matplotlib, as they are installed: the
name of a function and what follows the first line, some 40 words. A Transformer writes the first line. It generates
words of a vocabulary, or copies words of the document, among them those that it has never seen
(`jattn.variants.seq2seq.GenerationGate` and `pointer_log_probability`, See, Liu & Manning 2017, arXiv:1704.04368).

Prints ROUGE-1 and ROUGE-L on held-out documents beside the lead baseline, as many words from the beginning of the
document, and the share of words that are copied. Writes `copied.png`, where words are copied from, and `result.json`,
to `--out`. Measured: ROUGE-1 0.289 and ROUGE-L 0.272 on 300 documents of 8,000, where the lead has 0.183 and 0.163;
0.40 of the words are copied.
"""

import argparse
import functools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from shared.flags import multiple, positive
from texts import docstrings, scores
from texts.docstrings import Document
from tqdm import tqdm

import jattn.nnx
from jattn.models import shifted_right
from jattn.models.transformer import Transformer, TransformerConfig, noam_rate
from jattn.variants.seq2seq import GenerationGate, pointer_log_probabilities, pointer_log_probability

PACKAGES = ("", "numpy", "scipy", "jax", "matplotlib")
SOURCE, HEADLINE = 40, (3, 14)  # words
HELD_OUT = 300  # documents
VOCABULARY = 1500  # words
PAD, START, END, UNKNOWN = range(4)
BATCH, WARM_UP = 64, 300
DRAWN = 3


class Rows(NamedTuple):
    """Documents as numbers. Words that only a document has are numbered from `VOCABULARY` on.

    Attributes:
        source: `[rows, SOURCE]`, padded with -1.
        target: `[rows, most words + 1]`, padded with -1.
        words: the words beyond the vocabulary, of each row.
    """

    source: np.ndarray
    target: np.ndarray
    words: list[list[str]]


class PointerGenerator(nnx.Module):
    """A Transformer whose words are generated, or copied from the source by one more attention.

    Args:
        config: of the Transformer.
        rngs: random streams for parameters and dropout.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        linear = functools.partial(nnx.Linear, config.features, config.features, use_bias=False, rngs=rngs)
        self.transformer = Transformer(config, rngs=rngs)
        self.query, self.key = linear(), linear()
        self.gate = jattn.nnx.Layer(GenerationGate(*3 * (config.features,)), rngs=rngs)

    def encode(self, source: jax.Array) -> jax.Array:
        """The hidden states of a source, `[batch, words, features]`."""
        return self.transformer.encode(known(source), attention_mask=source >= 0)

    def __call__(self, source: jax.Array, encoded: jax.Array, inputs: jax.Array) -> tuple[jax.Array, ...]:
        """Logits of the vocabulary, the logit of generating, and scores of copying, of the word after each input."""
        valid = source >= 0
        inputs = known(inputs)
        hidden = self.transformer.decode(inputs, encoded, attention_mask=valid)
        scores = jnp.einsum("btf,bsf->bts", self.query(hidden), self.key(encoded)) / encoded.shape[-1] ** 0.5
        weights = jax.nn.softmax(jnp.where(valid[:, None], scores, -1e9))
        gate = self.gate(weights @ encoded, hidden, self.transformer.embedding(inputs))
        return self.transformer.embedding.attend(hidden), gate, scores


def known(words: jax.Array) -> jax.Array:
    """Words as the model reads them: those beyond the vocabulary are unknown, and -1 pads."""
    return jnp.where(words < 0, PAD, jnp.where(words < VOCABULARY, words, UNKNOWN))


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Run the example. Returns ROUGE on held-out documents, of the model and of baselines."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--epochs", type=positive, default=12)
    parser.add_argument("--features", type=multiple(4), default=128, help="features inside the model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/summarize"), help="folder for pictures")
    given = parser.parse_args(arguments)

    documents = docstrings.documents(tqdm(PACKAGES, desc="packages"), SOURCE, HEADLINE)
    order = np.random.default_rng(given.seed).permutation(len(documents))
    held_out, training = ([documents[i] for i in part] for part in np.split(order, [min(HELD_OUT, len(order) // 10)]))
    common = Counter(word for document in training for word in (*document.source, *document.headline))
    vocabulary = ["<pad>", "<start>", "<end>", "<unknown>"]
    vocabulary += [word for word, _ in common.most_common(VOCABULARY - len(vocabulary))]
    model = make_model(given.features, given.seed)
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    print(f"{count:,} parameters, {len(training):,} documents to train on, {len(held_out)} held out")
    train(model, as_rows(training, vocabulary), given.epochs, given.seed)

    written, copied = headlines(model, as_rows(held_out, vocabulary), vocabulary)
    length = round(np.mean([len(document.headline) for document in training]))
    found = {
        "lead": [lead(document, length) for document in held_out],
        "name and lead": [document.source[:length] for document in held_out],
        "pointer-generator": written,
    }
    wanted = [document.headline for document in held_out]
    figures: dict[str, float] = {}
    for name, texts in found.items():
        for kind, score in (("ROUGE-1", scores.rouge_n), ("ROUGE-L", scores.rouge_l)):
            figures[f"{kind} {name}"] = float(np.mean([score(*pair) for pair in zip(texts, wanted, strict=True)]))
    figures["words copied"] = float(np.concatenate([one.sum(1) for one in copied]).mean())
    for name, figure in figures.items():
        print(f"{name:32}{figure:.3f}")
    for document, words in zip(held_out[: 2 * DRAWN], written, strict=False):
        source, first_line = " ".join(document.source), " ".join(document.headline)
        print(f"  {source}\n    wanted   {first_line}\n    written  {' '.join(words)}")

    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "result.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    best = sorted(range(len(written)), key=lambda i: -scores.rouge_l(written[i], wanted[i]) * (len(wanted[i]) > 5))
    draw([(held_out[i], written[i], copied[i]) for i in best[:DRAWN]], given.out / "copied.png")
    print(f"picture: {given.out / 'copied.png'}")
    return figures


def make_model(features: int, seed: int) -> PointerGenerator:
    """One block on either side."""
    sizes: dict[str, Any] = {"features": features, "mlp_features": 4 * features, "decoder_mlp_features": 4 * features}
    sizes |= {"depth": 1, "decoder_depth": 1, "heads": 4, "decoder_heads": 4}
    config = TransformerConfig(vocabulary=VOCABULARY, dropout=0.1, pre_norm=True, **sizes)
    return PointerGenerator(config, rngs=nnx.Rngs(seed))


def as_rows(documents: Sequence[Document], vocabulary: Sequence[str]) -> Rows:
    """Documents as numbers. A word of a headline that is neither known nor in the document is unknown."""
    index = {word: number for number, word in enumerate(vocabulary)}
    source = np.full((len(documents), SOURCE), -1, np.int32)
    target = np.full((len(documents), HEADLINE[1] + 1), -1, np.int32)
    beyond = []
    for row, document in enumerate(documents):
        words = list(dict.fromkeys(word for word in document.source if word not in index))
        own = index | {word: VOCABULARY + number for number, word in enumerate(words)}
        source[row, : len(document.source)] = [own[word] for word in document.source]
        target[row, : len(document.headline) + 1] = [*(own.get(word, UNKNOWN) for word in document.headline), END]
        beyond.append(words)
    return Rows(source, target, beyond)


@nnx.jit
def train_step(model: PointerGenerator, optimizer: nnx.Optimizer, source: Any, target: Any) -> jax.Array:
    """One update by a batch. Returns its loss, the mean of -log P of each word."""

    def loss(model: PointerGenerator) -> jax.Array:
        inputs = shifted_right(target, START)
        logits, gate, scores = model(source, model.encode(source), inputs)
        log_p = pointer_log_probability(logits, gate, scores, source, target)
        return -jnp.where(target >= 0, log_p, 0).sum() / (target >= 0).sum()

    value, gradients = nnx.value_and_grad(loss)(model)
    optimizer.update(model, gradients)
    return value


def train(model: PointerGenerator, rows: Rows, epochs: int, seed: int) -> None:
    """Train on all rows several times, in random order."""
    adam = optax.adam(noam_rate(model.transformer.config.features, WARM_UP), b1=0.9, b2=0.98, eps=1e-9)
    optimizer = nnx.Optimizer(model, adam, wrt=nnx.Param)
    random, size = np.random.default_rng(seed), min(BATCH, len(rows.source))
    full = len(rows.source) // size * size
    batches = [part for _ in range(epochs) for part in random.permutation(len(rows.source))[:full].reshape(-1, size)]
    model.train()
    losses: list[Any] = []
    bar = tqdm(batches, unit="step", dynamic_ncols=True)
    for part in bar:
        losses.append(train_step(model, optimizer, rows.source[part], rows.target[part]))
        if len(losses) % 25 == 0:
            bar.set_description(f"loss {np.mean([float(one) for one in losses[-25:]]):.2f}", refresh=False)
    model.eval()


def headlines(
    model: PointerGenerator, rows: Rows, vocabulary: Sequence[str]
) -> tuple[list[list[str]], list[np.ndarray]]:
    """The likeliest words one after the other, and for each the probability that it is copied from each place of the
    source, `[words, SOURCE]`."""
    numbers, copied = (np.asarray(one) for one in write(model, rows.source))
    texts, places = [], []
    for row, beyond, weights in zip(numbers, rows.words, copied, strict=True):
        names = [*vocabulary, *beyond]
        length = (row == END).argmax() if END in row else len(row)
        texts.append([names[number] for number in row[:length]])
        places.append(weights[:length])
    return texts, places


@nnx.jit
def write(model: PointerGenerator, source: Any) -> tuple[jax.Array, jax.Array]:
    """Headlines `[rows, words]`, greedily, and where their words are copied from, `[rows, words, SOURCE]`."""
    encoded = model.encode(source)
    count = HEADLINE[1] + 1

    def one(step: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        numbers, copied = carry
        parts = model(source, encoded, shifted_right(numbers, START))
        logits, gate, scores = (jax.lax.dynamic_slice_in_dim(part, step, 1, 1) for part in parts)
        log_p = pointer_log_probabilities(logits, gate, scores, source, VOCABULARY + SOURCE)
        number = log_p.at[..., jnp.array([PAD, START, UNKNOWN])].set(-jnp.inf).argmax(-1).astype(jnp.int32)
        here = jnp.where(source[:, None] == number[..., None], scores, -jnp.inf)
        weights = jnp.exp(here - jax.nn.logsumexp(jnp.where(source[:, None] >= 0, scores, -jnp.inf), -1, keepdims=True))
        weights = weights * jax.nn.sigmoid(-gate)[..., None] / jnp.exp(log_p.max(-1, keepdims=True))
        numbers = jax.lax.dynamic_update_slice_in_dim(numbers, number, step, 1)
        return numbers, jax.lax.dynamic_update_slice_in_dim(copied, weights, step, 1)

    rows = len(source)
    empty = jnp.zeros((rows, count), jnp.int32), jnp.zeros((rows, count, SOURCE))
    return jax.lax.fori_loop(0, count, one, empty)


def lead(document: Document, length: int) -> tuple[str, ...]:
    """The first words of the document, without the name."""
    body = document.source[document.source.index(":") + 1 :]
    return body[:length]


def draw(examples: Sequence[tuple[Document, list[str], np.ndarray]], path: Path) -> None:
    """Documents, with the probability that each word of the headline is copied from each of theirs."""
    figure, all_axes = plt.subplots(
        len(examples), figsize=(9, 2.6 * len(examples)), layout="constrained", squeeze=False
    )
    for axes, (document, words, copied) in zip(all_axes[:, 0], examples, strict=True):
        axes.imshow(copied[:, : len(document.source)], vmin=0, vmax=1, cmap="Blues", aspect="auto")
        axes.set_xticks(range(len(document.source)), document.source, rotation=90, fontsize=7)
        axes.set_yticks(range(len(words)), words, fontsize=8)
    figure.suptitle("Words that are written (rows), and where they are copied from")
    figure.savefig(path, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    main()

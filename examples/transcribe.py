"""Transcribe speech with Whisper, and time each word by where the decoder listens.

    pip install -e '.[examples,models]' tokenizers        # in a clone of the repository
    python examples/transcribe.py                         # under a minute on two CPU cores; downloads 71 MB
    python examples/transcribe.py speech.wav              # 16 kHz, mono, 16 bits, up to 30 seconds

Whisper tiny.en turns log-mel features of sound into text, greedily and by beam search. Some heads of its decoder attend
to the sound of the word that is next. Dynamic time warping of their weights, which `jattn.record` gives, says when each
word begins.

Without a file it hears eight prompts of Debian's alsa-utils in a row: 16 words, with pauses of several lengths. Prints
how many of them are right, and how far the beginnings of words are off, beside words spread evenly over the sound.
Writes `words.png`, the weights and the words, and `result.json` to `--out`. Measured: all 16 words are right, and their
beginnings are off by 0.095 seconds on average, where words spread evenly are off by 0.455.
"""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from published import language, packages, sounds
from shared.flags import positive
from speech.word_times import SECONDS, word_times
from tqdm import tqdm

import jattn
from jattn.analysis import Word
from jattn.models import generate
from jattn.models.audio import log_mel

BEGIN, WITHOUT_TIMES, END = 50257, 50362, 50256
PAUSES = (0.5, 1.5, 0.2, 2.0, 0.8, 1.2, 0.3, 0.6)
"""Seconds of silence after each prompt."""
ALIGNMENT_HEADS = ((1, 0), (2, 0), (2, 5), (3, 0), (3, 1), (3, 2), (3, 3), (3, 4))
"""Blocks and heads that follow the sound, as the published configuration lists them."""
NEW_TOKENS = 100
BEAMS = 5


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Run the example. Returns the share of words heard right and the errors of their times, of the prompts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("sound", nargs="?", type=Path, help="a wav file; by default prompts of Debian")
    parser.add_argument("--beams", type=positive, default=BEAMS, help="sequences that the search keeps")
    parser.add_argument("--out", type=Path, default=Path("runs/transcribe"), help="folder for pictures")
    given = parser.parse_args(arguments)
    try:
        samples, said = prompts() if given.sound is None else (from_file(given.sound), [])
        features = log_mel(samples, sounds.RATE)
        model, tokenizer = language.whisper(packages.opened(packages.WHISPER))
    except (ValueError, OSError, ImportError) as error:
        parser.error(str(error))

    texts = {}
    for beams in tqdm((1, given.beams), desc="searches", leave=False):
        found = generate(model, [[BEGIN, WITHOUT_TIMES]], inputs=features[None], max_new_tokens=NEW_TOKENS, beams=beams)
        texts[beams] = [token for token in found.lists()[0] if token < END]
    greedy, best = texts[1], texts[given.beams]
    print(f"greedy    {tokenizer.decode(greedy).strip()}\n{given.beams} beams   {tokenizer.decode(best).strip()}")
    weights = cross_weights(model, features, best)
    words = word_times(best, weights, tokenizer, len(samples) / sounds.RATE)
    for word in words:
        print(f"{word.start:7.2f} {word.end:7.2f}  {word.text}")

    figures = {}
    if said:
        heard = [re.sub(r"\W", "", word.text).lower() for word in words]
        right = [word.text for word in said]
        figures = {
            "words right, always the most common": max(right.count(word) for word in right) / len(right),
            "words right": 1 - distance(heard, right) / len(right),
        }
        if heard == right:
            true = np.array([word.start for word in said])
            evenly = np.arange(len(said)) * len(samples) / sounds.RATE / len(said)
            figures["seconds off, spread evenly"] = float(np.abs(evenly - true).mean())
            figures["seconds off"] = float(np.abs(np.array([word.start for word in words]) - true).mean())
        for name, figure in figures.items():
            print(f"{name:40}{figure:.3f}")

    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "result.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    draw(np.asarray(features), weights, best, words, tokenizer, len(samples) / sounds.RATE, given.out / "words.png")
    print(f"picture: {given.out / 'words.png'}")
    return figures


def prompts() -> tuple[np.ndarray, list[Word]]:
    """The prompts with pauses, and when each of their words is said."""
    parts, said, now = [], [], 0.0
    for name, pause in zip(sounds.SHA256, PAUSES, strict=True):
        samples = sounds.prompt(name)
        first, second = onsets(samples)
        samples = np.pad(samples, (0, round(pause * sounds.RATE)))
        duration = len(samples) / sounds.RATE
        texts = name.lower().split("_")
        said += [Word(texts[0], now + first, now + second), Word(texts[1], now + second, now + duration)]
        parts.append(samples)
        now += duration
    return np.concatenate(parts), said


def onsets(samples: np.ndarray) -> tuple[float, float]:
    """When the two words of a prompt begin: its first loud moment, and the one after its longest pause."""
    hop = sounds.RATE // 100
    energy = np.convolve(np.square(samples), np.ones(2 * hop), "same")[::hop]
    loud = np.flatnonzero(energy > 0.01 * energy.max())
    return loud[0] / 100, loud[np.diff(loud).argmax() + 1] / 100


def from_file(path: Path) -> np.ndarray:
    """The samples of a wav file.

    Raises:
        ValueError: it is of another rate, or longer than 30 seconds.
        OSError: it cannot be read.
    """
    if not path.is_file():
        raise ValueError(f"the sound must be a file; there is none at {path}")
    samples, rate = sounds.read(path.read_bytes())
    if rate != sounds.RATE:
        raise ValueError(
            f"{path} must have {sounds.RATE} samples a second; it has {rate}. sox converts: "
            f"sox {path} -r {sounds.RATE} sound.wav"
        )
    if len(samples) > 30 * sounds.RATE:
        raise ValueError(
            f"{path} must be at most 30 seconds long; it is {len(samples) / rate:.1f}. sox cuts: "
            f"sox {path} sound.wav trim 0 30"
        )
    return samples


def cross_weights(model: Any, features: Any, tokens: Sequence[int]) -> np.ndarray:
    """The weights of the heads that follow the sound: `[heads, 1 + tokens, positions]`."""
    with jattn.record(layers="decoder.blocks.*.cross") as seen:
        model(features[None], np.array([[BEGIN, WITHOUT_TIMES, *tokens]]))
    layers = [np.asarray(weights)[0] for weights in seen.values()]
    return np.stack([layers[layer][head, 1:] for layer, head in ALIGNMENT_HEADS])


def distance(found: Sequence[str], wanted: Sequence[str]) -> int:
    """How many words are to be inserted, deleted or replaced (Levenshtein).

    >>> distance("a b c".split(), "a c d".split())
    2
    """
    row = list(range(len(wanted) + 1))
    for i, one in enumerate(found, 1):
        before, row = row, [i]
        for j, other in enumerate(wanted, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (one != other)))
    return row[-1]


def draw(
    features: np.ndarray,
    weights: np.ndarray,
    tokens: Sequence[int],
    words: Sequence[Word],
    tokenizer: Any,
    seconds: float,
    path: Path,
) -> None:
    """The sound, and below it the mean weights of each token, with the beginnings of words."""
    frames = round(seconds / SECONDS)
    names = {row: tokenizer.decode([token]).strip() for row, token in enumerate(tokens)}
    names = {row + 0.5: name for row, name in names.items() if name.isalnum()}
    figure, (above, below) = plt.subplots(2, sharex=True, figsize=(9, 5), layout="constrained", height_ratios=(1, 2))
    above.imshow(features[:, : 2 * frames], extent=(0, seconds, 0, len(features)), aspect="auto", origin="lower")
    above.set(ylabel="mel band", title="Words, timed by the attention of the decoder")
    shown = weights.mean(0)[: len(tokens), :frames]
    shown = shown / shown.max(1, keepdims=True)
    below.imshow(shown, extent=(0, seconds, len(tokens), 0), aspect="auto", cmap="cividis")
    below.set_yticks(list(names), list(names.values()))
    below.set(xlabel="seconds", ylabel="token that is next")
    for index, word in enumerate(words):
        for axes in (above, below):
            axes.axvline(word.start, color="white", linewidth=0.8)
        height = (0.97 - 0.1 * (index % 2)) * len(features)  # so that neighbors do not overlap
        above.text(word.start + 0.02, height, word.text, color="white", va="top", fontsize=8)
    figure.savefig(path, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    main()

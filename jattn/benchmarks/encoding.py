"""The rows on whole models that encode, beside Hugging Face's on PyTorch, and on loading: random weights."""

import functools
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from .. import models
from ..masks import SameSegment
from .cases import Bar, Speed
from .generating import GPT2, missing_peers, model_of, peer
from .sides import Run, Shape, Side

BERT: dict[str, Any] = {"model_type": "bert", "architectures": ["BertModel"]}
LONGFORMER: dict[str, Any] = {
    "model_type": "longformer",
    "architectures": ["LongformerModel"],
    "vocab_size": 50265,
    "max_position_embeddings": 4098,
    "type_vocab_size": 1,
}
"""The sizes of the base models."""

LENGTHS = (512, 384, 310, 256, 190, 128, 96, 64)
"""Tokens of the eight texts of a batch: half of it is padding."""


def packed(lengths: Sequence[int], length: int) -> tuple[np.ndarray, np.ndarray]:
    """Texts in as few rows as first-fit finds, longest first: the text of each token, -1 for none, and its position.

    >>> packed((3, 2, 1), 4)[0].tolist()
    [[0, 0, 0, 2], [1, 1, -1, -1]]
    """
    rows: list[list[int]] = []
    for text in sorted(range(len(lengths)), key=lambda text: -lengths[text]):
        fits = [row for row in rows if sum(lengths[one] for one in row) + lengths[text] <= length]
        (fits[0] if fits else rows.append([]) or rows[-1]).append(text)
    texts, positions = np.full((len(rows), length), -1), np.zeros((len(rows), length), int)
    for index, row in enumerate(rows):
        ids = np.repeat(row, [lengths[text] for text in row])
        texts[index, : len(ids)] = ids
        positions[index, : len(ids)] = np.concatenate([np.arange(lengths[text]) for text in row])
    return texts, positions


def _lengths(shape: Shape) -> list[int]:
    """Those of `LENGTHS` for the longest text of the shape."""
    return [max(1, length * shape.length // LENGTHS[0]) for length in LENGTHS[: shape.batch]]


def _tokens(settings: dict[str, Any], *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(3, settings.get("vocab_size", 30522), shape)


def packed_texts(settings: dict[str, Any]) -> Side:
    """A batch of texts of different lengths, packed into rows without padding between them."""

    def build(shape: Shape) -> Run:
        texts, positions = packed(_lengths(shape), shape.length)
        tokens = np.where(texts < 0, 0, _tokens(settings, *texts.shape))
        run = nnx.jit(lambda model, tokens, mask, positions: model(tokens, mask=mask, positions=positions))
        model, mask = model_of(settings), SameSegment(texts, padding_id=-1)
        return lambda: jax.block_until_ready(run(model, tokens, mask, positions))

    return Side("jattn, packed", build)


def long_text(settings: dict[str, Any]) -> Side:
    """One long text, whose first token is global."""

    def build(shape: Shape) -> Run:
        tokens = _tokens(settings, shape.batch, shape.length)
        seen = np.broadcast_to(np.arange(shape.length) == 0, tokens.shape).astype(np.int32)
        model = model_of(settings)
        run = nnx.jit(lambda model, tokens: model(tokens, global_attention_mask=seen))
        return lambda: jax.block_until_ready(run(model, tokens))

    return Side("jattn", build)


def hugging_face(settings: dict[str, Any], *, padded: bool) -> Side:
    """Hugging Face's encoder, with padding masked out, or with the first token global."""

    def build(shape: Shape) -> Run:
        torch, model = peer(settings)
        tokens = torch.from_numpy(_tokens(settings, shape.batch, shape.length))
        places = np.arange(shape.length)
        if padded:
            marked = {"attention_mask": places < np.array(_lengths(shape))[:, None]}
        else:
            marked = {"global_attention_mask": np.broadcast_to(places == 0, tokens.shape)}
        options = {name: torch.from_numpy(one.astype(np.int64)) for name, one in marked.items()}

        def run() -> None:
            with torch.no_grad():
                model(tokens, **options)

        return run

    return Side("Hugging Face", build, missing=missing_peers)


@functools.cache
def _directory(vocabulary: int) -> tempfile.TemporaryDirectory:
    """A checkpoint of GPT-2 small with this vocabulary, removed at the end of the process."""
    folder = tempfile.TemporaryDirectory()
    models.to_directory(model_of(GPT2 | {"vocab_size": vocabulary}), folder.name)
    return folder


def _forget(path: Path) -> None:
    """Drop a file from the system's memory, where that can be asked for (Linux), so that it is read from the disk."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def loading(vocabulary: int) -> Side:
    """`jattn.models.from_directory`, from the disk."""

    def build(shape: Shape) -> Run:
        del shape
        folder = Path(_directory(vocabulary).name)

        def run() -> None:
            _forget(folder / "model.safetensors")
            jax.block_until_ready(jax.tree.leaves(nnx.state(models.from_directory(folder))))

        return run

    return Side("jattn", build)


def reading(vocabulary: int) -> Side:
    """The same file, read from the disk into memory."""

    def build(shape: Shape) -> Run:
        del shape
        path = Path(_directory(vocabulary).name) / "model.safetensors"

        def run() -> None:
            _forget(path)
            np.fromfile(path, np.uint8, os.path.getsize(path))

        return run

    return Side("reading the file", build)


def encoding(length: int = 4096) -> tuple[Speed, ...]:
    """The rows for a CPU.

    Args:
        length: tokens of the long text.
    """
    bert = Shape("BERT base", min(512, length), q_heads=12, kv_heads=12, dim=64, batch=8)
    longformer = Shape("Longformer base", length, q_heads=12, kv_heads=12, dim=64)
    gpt2 = Shape("GPT-2 small", 1024, q_heads=12, kv_heads=12, dim=64)
    pair = packed_texts(BERT), hugging_face(BERT, padded=True)
    long_pair = long_text(LONGFORMER), hugging_face(LONGFORMER, padded=False)
    return (
        Speed("bert", "BERT base, texts of 64 to 512 tokens", bert, *pair, Bar(1.0), rounds=3),
        Speed("longformer", "Longformer base", longformer, *long_pair, Bar(2.0), rounds=3),
        Speed(
            "load",
            "498 MB of safetensors, from the disk",
            gpt2,
            loading(50257),
            reading(50257),
            Bar(1.5, at_most=True),
            rounds=7,
        ),
    )

"""Pictures of a trained model: its loss, the weights of a few heads, the tiles that its mask visits."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch

import jattn

from .model import GPT, mask_of
from .text import Text

INK = "#222222"
BLUE, ORANGE, GRAY = "#2b6cb0", "#dd6b20", "#718096"
TILE_COLORS = {"skipped": "#edf2f7", "partial": "#f6ad55", "full": "#2b6cb0"}


def save_loss(path: Path, history: dict, baselines: dict[str, float]) -> None:
    """Bits per byte over the steps, with the baselines."""
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    train = np.array(history["train"])
    steps = np.arange(1, len(train) + 1)
    width = -(-len(train) // 25)
    smooth = np.convolve(train, np.ones(width) / width, "valid")
    axes.plot(steps, train, color=BLUE, alpha=0.25, linewidth=0.8, label="training")
    axes.plot(steps[width - 1 :], smooth, color=BLUE, linewidth=1.8, label=f"training, mean of {width} steps")
    at, held_out = np.array(history["held_out"]).T
    axes.plot(at, held_out, "o-", color=ORANGE, linewidth=1.8, markersize=5, label=f"held out: {held_out[-1]:.2f}")
    for (name, bits), style in zip(baselines.items(), ("--", ":"), strict=True):
        axes.axhline(bits, color=GRAY, linestyle=style, linewidth=1.2, label=f"{name}: {bits:.2f}")
    axes.set(xlabel="step", ylabel="bits per byte", xlim=(0, len(train) * 1.01), title="Loss")
    axes.set_ylim(0, min(8.5, max(train.max(), *baselines.values()) * 1.05))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def save_heads(path: Path, model: GPT, kind: str, length: int, text: bytes) -> None:
    """The weights of four heads on `text`: for each of four patterns, the head that follows it most."""
    tokens = np.frombuffer(text, np.uint8).astype(np.int32)
    mask = mask_of(kind, length, np.ones((1, len(tokens)), np.int32))
    weights = all_weights(model, mask, tokens)  # [layers, heads, q_len, kv_len]
    figure = Figure(figsize=(13, 13.6), layout="constrained")
    panels = figure.subplots(2, 2)
    image = None
    for axes, (layer, head, habit) in zip(panels.flat, choose_heads(weights, tokens), strict=True):
        image = _weights(axes, weights[layer, head], text)
        axes.set_title(f"layer {layer + 1}, head {head + 1}: {habit}", fontsize=12, color=INK)
    assert image is not None
    bar = figure.colorbar(image, ax=panels, location="bottom", shrink=0.5, aspect=40, pad=0.02)
    bar.set_label("attention weight (each row, a byte that reads, sums to 1 over the columns, the bytes that are read)")
    figure.savefig(path, dpi=110)


def all_weights(model: GPT, mask: jattn.masks.Mask, tokens: np.ndarray) -> np.ndarray:
    """The weights of every head, `[layers, heads, length, length]`."""

    @nnx.jit
    def compute(model: GPT, tokens: jax.Array) -> jax.Array:
        x = model.embed(tokens[None])
        weights = []
        for block in model.blocks:
            weights.append(block.attention.attention_weights(block.attention_norm(x), mask=mask)[0])
            x = block(x, mask, None)
        return jnp.stack(weights).astype(jnp.float32)

    return np.asarray(compute(model, jnp.asarray(tokens)))


def choose_heads(weights: np.ndarray, tokens: np.ndarray) -> list[tuple[int, int, str]]:
    """(layer, head, description) of four different heads, each the one with most weight on one pattern."""
    length = len(tokens)
    query, key = np.arange(length)[:, None], np.arange(length)[None]
    earlier = key < query
    before = np.concatenate([[-1], tokens[:-1]])
    patterns = {
        "on the byte before": key == query - 1,
        "after an earlier same byte": earlier & (before[None] == tokens[:, None]),
        "on earlier same bytes": earlier & (tokens[None] == tokens[:, None]),
        "far back, by 10 bytes or more": key <= query - 10,
    }
    chosen: list[tuple[int, int, str]] = []
    for habit, pattern in patterns.items():
        shares = (weights * pattern).sum((2, 3)) / np.maximum(pattern.any(1).sum(), 1)
        for layer, head, _ in chosen:
            shares[layer, head] = -1
        layer, head = np.unravel_index(int(shares.argmax()), shares.shape)
        chosen.append((int(layer), int(head), f"{100 * shares[layer, head]:.0f}% {habit}"))
    return chosen


def _weights(axes: Axes, weights: np.ndarray, text: bytes):
    future = np.triu(np.ones(weights.shape, bool), 1)
    image = axes.imshow(np.ma.array(weights, mask=future), cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    axes.set_facecolor("#f2f2f2")
    labels = [{" ": "␣", "\n": "↵"}.get(chr(byte), chr(byte) if byte < 128 else "·") for byte in text]
    style = {"family": "monospace", "fontsize": 7.5}
    axes.set_xticks(range(len(labels)), labels, **style)
    axes.set_yticks(range(len(labels)), labels, **style)
    axes.tick_params(length=0, pad=2, labeltop=True, labelbottom=True, labelright=False)
    axes.spines[:].set_visible(False)
    return image


def save_plan(path: Path, kind: str, text: Text, length: int) -> None:
    """The tiles that attention visits under the mask: for one row of the run, and for a row 16 times as long."""
    figure = Figure(figsize=(12, 6.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, (size, tile) in zip(panels, ((length, length // 16), (16 * length, length // 2)), strict=True):
        size = min(size, len(text.data) - 1)
        start = busiest_start(text.topic, size)
        states = plan_states(kind, length, text.topic[start : start + size], tile)
        _tiles(axes, states, size, tile)
    handles = [Patch(facecolor=color, edgecolor="#cbd5e0", label=name) for name, color in TILE_COLORS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=11)
    figure.suptitle(f"What the {kind} mask asks attention to compute, in tiles small enough to see", fontsize=14)
    figure.savefig(path, dpi=120)


def busiest_start(topic: np.ndarray, size: int) -> int:
    """The start of the row of this size that contains most topics."""
    changes = np.concatenate([[0], np.cumsum(np.diff(topic) != 0)])
    return int((changes[size - 1 :] - changes[: len(changes) - size + 1]).argmax())


def plan_states(kind: str, length: int, topic: np.ndarray, tile: int) -> np.ndarray:
    """For each tile 0 (skipped), 1 (the mask is applied) or 2 (all pairs attend)."""
    array = jax.ShapeDtypeStruct((1, len(topic), 1, 16), jnp.float32)
    tiled = jattn.implementations.Tiled(q_tile=tile, k_tile=tile)
    explanation = jattn.explain(array, array, array, mask=mask_of(kind, length, topic[None]), implementation=tiled)
    return explanation.plan.states.reshape(explanation.plan.states.shape[-2:])


def _tiles(axes: Axes, states: np.ndarray, size: int, tile: int) -> None:
    extent = (0, states.shape[1] * tile, states.shape[0] * tile, 0)
    axes.imshow(states, cmap=ListedColormap(list(TILE_COLORS.values())), vmin=0, vmax=2, extent=extent)
    for edge in range(0, extent[1] + 1, tile):
        axes.axhline(edge, color="white", linewidth=0.8)
        axes.axvline(edge, color="white", linewidth=0.8)
    visited = int((states > 0).sum())
    axes.set_title(f"{size:,} bytes in tiles of {tile}: {visited:,} of {states.size:,} visited", fontsize=12)
    axes.set(xlabel="byte that is read", ylabel="byte that reads")
    axes.spines[:].set_visible(False)

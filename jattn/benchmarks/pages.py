"""The sizes of pages of attention maps, beside BertViz's for the same arrays."""

import dataclasses
import importlib.util

import numpy as np

from .. import visualization
from .row import Row

LAYERS, HEADS = 12, 12
LARGEST_PEER = 256  # tokens; at 512 BertViz would make 1.7 GB


@dataclasses.dataclass(frozen=True)
class Page:
    """A row: the size of one page. Nothing is timed.

    Attributes:
        length: the number of tokens.
        most: the target, in MB.
    """

    length: int
    most: float

    @property
    def name(self) -> str:
        return f"page-{self.length}"

    def run(self) -> Row:
        """Make both pages."""
        weights = random_maps(self.length)
        tokens = [f"t{place}" for place in range(self.length)]
        page = visualization.view(weights, tokens, labels=False)
        ours = len(page.html.encode()) / 1e6
        other, told = _bertviz(weights, tokens)
        return Row(
            self.name,
            f"one page of {LAYERS} layers of {HEADS} heads",
            f"{self.length} tokens",
            f"{ours:.1f} MB",
            told,
            ours,
            f"{ours:.1f} MB" if other is None else f"{other / ours:.0f} x smaller",
            f"at most {self.most:g} MB",
            ours <= self.most,
            {"ours": [ours], "other": [] if other is None else [other]},
        )


def random_maps(length: int) -> list[np.ndarray]:
    """Maps of each layer, `[1, heads, length, length]`: a softmax of normal numbers, which compresses worst."""
    draw = np.random.default_rng(0).normal(size=(LAYERS, 1, HEADS, length, length))
    weights = np.exp(draw - draw.max(-1, keepdims=True)).astype(np.float32)
    return list(weights / weights.sum(-1, keepdims=True))


def _bertviz(weights: list[np.ndarray], tokens: list[str]) -> tuple[float | None, str]:
    """The size of BertViz's model view in MB, and that in words."""
    if len(tokens) > LARGEST_PEER:
        return None, f"BertViz: not made, above {LARGEST_PEER} tokens"
    if not (importlib.util.find_spec("bertviz") and importlib.util.find_spec("torch")):
        return None, "BertViz: not installed"
    import torch  # pyright: ignore[reportMissingImports]
    from bertviz import model_view  # pyright: ignore[reportMissingImports]

    made = model_view([torch.tensor(one) for one in weights], tokens, html_action="return")
    size = len(made.data.encode()) / 1e6
    return size, f"BertViz {size:.1f} MB, and three scripts from the network"


def pages() -> tuple[Page, ...]:
    """The rows."""
    return Page(32, 1), Page(128, 5), Page(256, 10), Page(512, 15)

"""`view`: attention maps as one page."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..analysis import Maps, read
from ..foundation.arguments import check_choice
from ..foundation.arrays import describe
from ..masks import Mask
from ..masks.base import as_mask
from . import encoding
from .absent import absent, check_computed, is_absent, without_weights
from .contents import Beside, check_sentences, contents
from .document import framed, written
from .grids import picture
from .labels import labels as made_labels
from .tiles import fits, plan_of, tiles

VIEWS = ("overview", "heads", "map", "neuron", "image", "text")
STATE = ("group", "layer", "head", "shown", "query", "key", "sort", "find", "theme", "tiles", "filter", "side", "view")
LIMIT, NOTEBOOK_LIMIT = 15_000_000, 2_000_000


@dataclasses.dataclass(frozen=True, eq=False)
class Page:
    """A page that shows attention maps. In a notebook it shows itself; `save` writes it to a file.

    Attributes:
        maps: what it shows, of one example.
        beside: labels, sentences, an image, a plan.
        limit: the most bytes of packed weights in a file.
        notebook_limit: the same for a notebook, which stores what it shows: by default only as many layers as fit.
        height: of the frame in a notebook, in pixels.
    """

    maps: Maps
    beside: Beside
    limit: int = LIMIT
    notebook_limit: int = NOTEBOOK_LIMIT
    height: int = 640

    @property
    def html(self) -> str:
        """The page as text: one document, which needs no other file and no network.

        Raises:
            ValueError: the maps take more than `limit` even in four bits, and there are no queries and keys to compute
                them from.
        """
        return _html(self.maps, self.beside, self.limit)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page to a file, and return its path.

        Raises:
            ValueError: as in `html`; the path is not that of a file in a directory that exists.
        """
        if not isinstance(path, str | os.PathLike) or Path(path).is_dir() or not Path(path).parent.is_dir():
            raise ValueError(f"`path` must be that of a file in a directory that exists; got {describe(path)}.")
        path = Path(path)
        path.write_text(self.html, encoding="utf-8")
        return path

    def _repr_html_(self) -> str:
        return framed(self.notebook_html, self.height, self.beside.title)

    @property
    def notebook_html(self) -> str:
        """The page that a notebook shows: of all layers if they fit into `notebook_limit`, else of a few."""
        total = len(self.maps)
        for count in (total, *(one for one in (12, 8, 6, 4, 3, 2, 1) if one < total)):
            places = sorted({round(place) for place in np.linspace(0, total - 1, count)})
            chosen = Maps(tuple(self.maps[place] for place in places))
            stored = _stored(chosen)
            if encoding.predicted_size(stored, encoding.BITS[0]) <= self.notebook_limit or count == 1:
                break
        notes = self.beside.notes
        if count < total:
            notes = (
                f"{count} of {total} layers, as a notebook keeps what it shows. The file that .save(path) writes has "
                "all; layers= chooses others, and notebook_limit= allows more.",
                *notes,
            )
        return _html(chosen, dataclasses.replace(self.beside, notes=notes), self.notebook_limit, least=count == 1)

    def __repr__(self) -> str:
        heads = sum(len(layer.heads) for layer in self.maps)
        counts = f"{heads} head{'s'[: heads != 1]} in {len(self.maps)} layer{'s'[: len(self.maps) != 1]}"
        return f"Page of {counts}: .save(path) writes it to a file"


def view(
    source: Any,
    tokens: Any = None,
    *,
    key_tokens: Any = None,
    sentences: Any = None,
    mask: Any = None,
    valid: Any = None,
    query: Any = None,
    key: Any = None,
    labels: Any = None,
    plan: Any = None,
    image: Any = None,
    grid: Any = None,
    first_patch: int | None = None,
    layers: Any = None,
    heads: Any = None,
    example: int = 0,
    side: str | None = None,
    start: Mapping[str, Any] | str | None = None,
    title: str = "Attention",
    limit: int = LIMIT,
    notebook_limit: int = NOTEBOOK_LIMIT,
    height: int = 640,
) -> Page:
    """One page that shows attention maps in six ways, offline, in a browser or a notebook.

    - **overview**: all heads as thumbnails; a click opens one;
    - **heads**: lines between two columns of tokens, a color for each head;
    - **map**: one head at full size, the mask drawn as a mask, the tiles that attention visits laid over it;
    - **neuron**: a query and the keys, their products feature by feature, the scores and their softmax;
    - **image**: the weights over the patches of an image;
    - **text**: the tokens as text, colored by the weights of the one under the pointer.

    Weights are stored as their square root in eight bits, or in fewer if they would take more than `limit` bytes (see
    `jattn.visualization.encoding`); the page says so, and numbers in it are true to that. If four bits are too many,
    or weights were not kept, the browser computes those of a head from its queries and keys when it is looked at.

    Args:
        source: `seen` of `jattn.record` or `jattn.recorded`; a list of arrays `[batch, heads, queries, keys]` of JAX,
            NumPy or PyTorch, one for each layer; a mapping from names to arrays, or from "encoder", "decoder" and
            "cross" to lists; `jattn.analysis.Maps`. None computes all from `query` and `key`.
        tokens: the texts of the tokens; `{"encoder": [...], "decoder": [...]}` if there are two sequences.
        key_tokens: those of the keys, by default the same.
        sentences: for pairs of sentences: the number of the first token of the second, or 0 and 1 for each token.
        mask: which pairs may attend, a mask of `jattn.masks` or booleans. By default pairs whose weight is 0 in every
            head of the layer are drawn as masked.
        valid: ones and zeros `[batch, tokens]`, zeros for padding, as Hugging Face's `attention_mask`.
        query, key: for the neuron view, as in `jattn.analysis.read`: a list or a mapping of arrays `[batch, heads,
            length, features]` whose products are the scores; by default those that `seen` has, of
            `jattn.record(keep=("weights", "query", "key"))`. They are stored as int8.
        labels: what `jattn.analysis.describe` says of the heads, by default of these maps; or a mapping from `(layer,
            head)` to a text; or False for no labels and no measures.
        plan: what `jattn.explain` returns for a call of this size: the tiles that it visits. By default the page cuts
            the mask into tiles of a size that is chosen there.
        image: an array, a file or an image of Pillow that tokens are patches of.
        grid: the rows and columns of the patches.
        first_patch: the number of the token that is the first patch; by default the patches are the last tokens.
        layers, heads: names, patterns or numbers of what to show; by default all.
        example: the number of the example in the batch.
        side: what the layers attend to, if their names do not say it: "self", "encoder", "decoder" or "cross".
        start: the view that the page opens in, or a mapping with `view`, `layer`, `head`, `query`, ...
        title: of the page.
        limit: the most bytes of weights in the file.
        notebook_limit: likewise in a notebook, which stores what it shows; of long texts, only some layers fit.
        height: of the frame in a notebook, in pixels.

    Raises:
        ValueError: as in `jattn.analysis.read`; weights are negative; an option is of the wrong kind or size.

    >>> import numpy as np
    >>> from jattn.visualization import view
    >>> weights = [np.full((1, 2, 3, 3), 1 / 3, np.float32)]
    >>> page = view(weights, ["the", "cat", "sat"])
    >>> page
    Page of 2 heads in 1 layer: .save(path) writes it to a file
    >>> page.save("heads.html")  # doctest: +SKIP
    """
    tiled = tiles(plan)
    mask = as_mask(mask) if callable(mask) else mask
    if source is None:
        source = absent(query, key)
    maps = read(
        source,
        tokens=tokens,
        key_tokens=key_tokens,
        side=side,
        mask=mask,
        valid=valid,
        query=query,
        key=key,
        layers=layers,
        heads=heads,
    )
    count = maps[0].shape[0]
    if not isinstance(example, int) or isinstance(example, bool) or not 0 <= example < count:
        raise ValueError(f"`example` must be an int from 0 to {count - 1}; got {describe(example)}.")
    maps = maps.choose(examples=example)
    _check_values(maps)
    if tiled is not None and not any(fits(tiled, layer.shape[2:]) for layer in maps):
        sizes = f"{plan_of(plan).q_len} queries and {plan_of(plan).kv_len} keys"
        raise ValueError(f"`plan` must be of a call as large as some map, {maps[0].shape[2:]}; it is for {sizes}.")
    beside = Beside(
        labels=made_labels(maps, labels),
        sentences=check_sentences(sentences, maps, example),
        picture=picture(image, grid, first_patch),
        plan=tiled,
        title=str(title),
        start=_start(start),
        masked=str(mask)[:200] if isinstance(mask, Mask) else "",
    )
    for name, number in {"limit": limit, "notebook_limit": notebook_limit, "height": height}.items():
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ValueError(f"`{name}` must be a positive int; got {describe(number)}.")
    return Page(maps, beside, limit, notebook_limit, height)


def _check_values(maps: Maps) -> None:
    for layer in maps:
        if is_absent(layer):
            check_computed(layer)
        elif (layer.weights < 0).any():
            raise ValueError(
                f"`source` must be weights of at least 0; {layer.name!r} has negative ones. Of signed numbers, such as "
                "relevance or effective attention, show a part: `maximum(array, 0)` or `abs(array)`."
            )


def _start(given: Any) -> dict[str, Any]:
    if not isinstance(given, str | Mapping | None):
        raise ValueError(f"`start` must be a view, or a mapping with view, layer, head, ...; got {describe(given)}.")
    start = {"view": given} if isinstance(given, str) else dict(given or {})
    if bad := [name for name, value in start.items() if not isinstance(value, str | int)]:
        raise ValueError(f"`start[{bad[0]!r}]` must be a text, an int or a bool; got {describe(start[bad[0]])}.")
    if "view" in start:
        check_choice("start", start["view"], VIEWS)
    unknown = set(start) - set(STATE)
    if unknown:
        raise ValueError(f"`start` must be a view, or have view, layer, head, query and others; got {sorted(unknown)}.")
    return start


def _stored(maps: Maps) -> list[np.ndarray]:
    return [one for layer in maps if not is_absent(layer) for one in layer.weights[0]]


def _html(maps: Maps, beside: Beside, limit: int, *, least: bool = False) -> str:
    """The page, in the finest quantization that fits.

    Args:
        maps: of one example.
        beside: what is shown besides them.
        limit: the most bytes of weights.
        least: whether to take four bits if nothing fits.
    """
    stored = _stored(maps)
    bits = encoding.finest(stored, limit)
    if bits is None and least:
        bits = encoding.BITS[-1]
    if bits is None:
        if not all(layer.query is not None for layer in maps):
            raise ValueError(
                f"`limit` is {limit:,} bytes, and {len(stored)} maps of {stored[0].shape[0]} x {stored[0].shape[1]} "
                "take more even in four bits. Choose fewer with `layers=` or `heads=`, or raise `limit=`. Or let the "
                "browser compute them from queries and keys: `jattn.record(keep=('weights', 'query', 'key'))`, or "
                "`query=` and `key=`."
            )
        for layer in maps:
            check_computed(layer)
        maps = Maps(tuple(without_weights(layer) for layer in maps))
        bits = encoding.BITS[0]
    return written(*contents(maps, beside, bits))

"""The functions of BertViz by their names and arguments, so that changing the import is enough.

    from bertviz import head_view, model_view
    from jattn.visualization import head_view, model_view

They return a `Page`. A notebook shows it, as it shows BertViz's, with as many layers as fit; `.save(path)` writes them
all.
"""

from collections.abc import Sequence
from typing import Any

from ..foundation.arguments import check_choice
from ..foundation.arrays import describe
from .viewing import Page, view


def head_view(
    attention: Any = None,
    tokens: Any = None,
    sentence_b_start: int | None = None,
    prettify_tokens: bool = True,
    layer: int | None = None,
    heads: Sequence[int] | None = None,
    encoder_attention: Any = None,
    decoder_attention: Any = None,
    cross_attention: Any = None,
    encoder_tokens: Any = None,
    decoder_tokens: Any = None,
    include_layers: Sequence[int] | None = None,
    html_action: str = "view",
) -> Any:
    """BertViz's head view: lines between two columns of tokens.

    Args:
        attention: a list of arrays `[1, heads, queries, keys]`, one for each layer.
        tokens: the tokens.
        sentence_b_start: the number of the first token of the second sentence.
        prettify_tokens: taken and not needed: tokens are always shown as people read them.
        layer: the layer to begin with.
        heads: the heads whose lines are drawn at first; by default all.
        encoder_attention, decoder_attention, cross_attention: instead of `attention`, for encoder-decoder models.
        encoder_tokens, decoder_tokens: their tokens.
        include_layers: the numbers of the layers to show; by default all.
        html_action: "view" for a `Page`, "return" for the HTML of a frame.

    Raises:
        ValueError: as in `view`; there is no attention.
    """
    start: dict[str, Any] = {"view": "heads"}
    for name, one in {"heads": heads, "include_layers": include_layers}.items():
        _check_numbers(name, one)
    if layer is not None:
        numbers = None if include_layers is None else list(include_layers)
        if type(layer) is not int or layer < 0 or (numbers is not None and layer not in numbers):
            among = "" if numbers is None else f" among `include_layers` {numbers}"
            raise ValueError(f"`layer` must be the number of a layer{among}; got {describe(layer)}.")
        start["layer"] = layer if numbers is None else numbers.index(layer)
    if heads is not None:
        start["shown"] = ",".join(map(str, heads))
    parts = {"encoder": encoder_attention, "decoder": decoder_attention, "cross": cross_attention}
    page = _page(attention, parts, tokens, encoder_tokens, decoder_tokens, include_layers, sentence_b_start, start)
    return _acted(page, html_action)


def model_view(
    attention: Any = None,
    tokens: Any = None,
    sentence_b_start: int | None = None,
    prettify_tokens: bool = True,
    display_mode: str = "dark",
    encoder_attention: Any = None,
    decoder_attention: Any = None,
    cross_attention: Any = None,
    encoder_tokens: Any = None,
    decoder_tokens: Any = None,
    include_layers: Sequence[int] | None = None,
    include_heads: Sequence[int] | None = None,
    html_action: str = "view",
) -> Any:
    """BertViz's model view: all heads as thumbnails.

    Args:
        display_mode: "dark" or "light".
        include_heads: the numbers of the heads to show; by default all.
        attention, tokens, ...: as in `head_view`.

    Raises:
        ValueError: as in `head_view`.
    """
    check_choice("display_mode", display_mode, ("dark", "light"))
    start = {"view": "overview", "theme": display_mode}
    for name, one in {"include_heads": include_heads, "include_layers": include_layers}.items():
        _check_numbers(name, one)
    parts = {"encoder": encoder_attention, "decoder": decoder_attention, "cross": cross_attention}
    page = _page(
        attention, parts, tokens, encoder_tokens, decoder_tokens, include_layers, sentence_b_start, start, include_heads
    )
    return _acted(page, html_action)


def _page(
    attention: Any,
    parts: dict[str, Any],
    tokens: Any,
    encoder_tokens: Any,
    decoder_tokens: Any,
    include_layers: Sequence[int] | None,
    sentence_b_start: int | None,
    start: dict[str, Any],
    heads: Sequence[int] | None = None,
) -> Page:
    for side, one in parts.items():
        if not isinstance(one, list | tuple | None):
            raise ValueError(f"`{side}_attention` must be a list of arrays, one for each layer; got {describe(one)}.")
    given = {side: list(one) for side, one in parts.items() if one is not None}
    if attention is not None and given:
        raise ValueError("`attention` must be left out where `encoder_attention` and others are given.")
    if attention is None and not given:
        raise ValueError(
            "`attention` must be given, a list of arrays [1, heads, queries, keys] for the layers, or one or more of "
            "`encoder_attention`, `decoder_attention` and `cross_attention`."
        )
    if given:
        both = {"encoder": encoder_tokens, "decoder": decoder_tokens}
        tokens = {side: one for side, one in both.items() if one is not None} or None
    layers: Any = None
    if include_layers is not None:
        sides = [f"{side}." for side in given] or [""]
        layers = [f"{side}{number}" for side in sides for number in include_layers]
    source = given or attention
    return view(source, tokens, sentences=sentence_b_start, layers=layers, heads=heads, start=start)


def _check_numbers(name: str, numbers: Any) -> None:
    if numbers is not None and (
        not isinstance(numbers, Sequence) or not all(type(one) is int and one >= 0 for one in numbers)
    ):
        raise ValueError(f"`{name}` must be a list of numbers; got {describe(numbers)}.")


def _acted(page: Page, html_action: str) -> Any:
    check_choice("html_action", html_action, ("view", "return"))
    return page if html_action == "view" else page._repr_html_()

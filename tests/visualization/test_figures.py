"""Figures for papers: each is drawn into given axes or its own, as SVG and PNG, and shows what it was given."""

import builtins
import io

import numpy as np
import pytest
from matplotlib.figure import Figure

import jattn
from jattn.analysis import align, describe, time_warp
from jattn.visualization import figures

TOKENS = ["[CLS]", "$a$", "Ġcat", "\n", "", "f"]


def weights():
    draw = np.random.default_rng(0).random((2, 3, 6, 6)).astype(np.float32)
    return list(draw / draw.sum(-1, keepdims=True))


DRAWN = {
    "head_map": lambda **ax: figures.head_map(weights(), layer=1, head=2, tokens=TOKENS, **ax),
    "tile_plan": lambda **ax: figures.tile_plan(jattn.masks.Causal(), 64, tile=8, **ax),
    "offset_histograms": lambda **ax: figures.offset_histograms(weights(), **ax),
    "head_embedding": lambda **ax: figures.head_embedding(weights(), **ax),
    "alignment": lambda **ax: figures.alignment(weights()[0], tokens=TOKENS, gold=[[0, 0]], seconds=0.02, **ax),
}


@pytest.mark.parametrize("name", DRAWN)
def test_figures_are_drawn_into_given_axes_and_saved(name):
    given = Figure(layout="constrained").add_subplot()
    ax = DRAWN[name](ax=given)
    assert ax is given and (ax.images or ax.lines or ax.collections)
    for kind, start in (("svg", b"<?xml"), ("png", b"\x89PNG")):
        file = io.BytesIO()
        ax.figure.savefig(file, format=kind)
        assert file.getvalue().startswith(start)
    with pytest.raises(ValueError, match="`ax` must be axes"):
        DRAWN[name](ax=3)


def test_a_map_shows_the_weights_and_the_mask():
    given = [np.tril(one) for one in weights()]
    ax = figures.head_map(given, layer=1, head=2, tokens=TOKENS)
    image, hidden = ax.images[:2]
    np.testing.assert_array_equal(image.get_array(), given[1][2])
    np.testing.assert_array_equal(~hidden.get_array().mask, np.triu(np.ones((6, 6), bool), 1))
    assert [one.get_text() for one in ax.get_yticklabels()] == ["[CLS]", "\\$a\\$", "␣cat", "↵", "∅", "f"]


def test_a_grid_has_a_map_for_each_head_with_its_label():
    figure = figures.heads_grid(weights(), labels=describe(weights()))
    assert len(figure.axes) == 6
    np.testing.assert_array_equal(figure.axes[4].images[0].get_array(), weights()[1][1])
    parent = Figure()
    assert figures.heads_grid(weights(), figure=parent) is parent
    ax = Figure().add_subplot()
    assert figures.heads_grid(weights(), ax=ax) is ax and len(ax.child_axes) == 6
    np.testing.assert_array_equal(ax.child_axes[4].images[0].get_array(), weights()[1][1])
    with pytest.raises(ValueError, match="`figure` and `ax` exclude each other"):
        figures.heads_grid(weights(), figure=parent, ax=ax)


def test_a_plan_is_that_of_explain():
    tiled = jattn.implementations.Tiled(q_tile=16, k_tile=16)
    array = np.zeros((1, 64, 1, 4), np.float32)
    explained = jattn.explain(array, array, array, mask=jattn.masks.Causal(), implementation=tiled)
    ax = figures.tile_plan(explained)
    np.testing.assert_array_equal(ax.images[0].get_array(), explained.plan.states[0, 0])
    assert ax.get_title() == "10 of 16 tiles visited (62.5%)"


def test_an_alignment_is_a_line_only_where_it_is_a_way():
    """Best keys that jump back and forth, and sets of pairs, are dots; a time warp is a line."""
    jumps = np.eye(3)[[2, 0, 1]]
    dots = figures.alignment(jumps).lines[0]
    assert dots.get_xdata().tolist() == [2, 0, 1] and (dots.get_linestyle(), dots.get_marker()) == ("None", "o")
    found = figures.alignment(jumps, align(jumps, by="both"), gold={(0, 2)}).lines
    assert found[0].get_linestyle() == "None" and found[1].get_xydata().tolist() == [[2, 0]]
    assert figures.alignment(jumps, set()).lines[0].get_xdata().size == 0
    rows, columns = time_warp(-np.eye(3, 5))
    line = figures.alignment(np.eye(3, 5), (rows, columns)).lines[0]
    assert line.get_linestyle() == "-" and line.get_xydata().tolist() == np.stack([columns, rows], 1).tolist()


BAD = {
    "layer": (lambda: figures.head_map(weights(), layer=5), "`layers` must be"),
    "labels": (lambda: figures.heads_grid(weights(), labels=3), "`labels` must be"),
    "embedding labels": (lambda: figures.head_embedding(weights(), labels=3), "`labels` must be"),
    "length": (lambda: figures.tile_plan(jattn.masks.Causal()), "`q_len` must be given"),
    "length text": (lambda: figures.tile_plan(jattn.masks.Causal(), "8"), "`q_len` must be a positive int"),
    "two layers": (lambda: figures.head_map(weights(), layer=[0, 1]), "`layer` must be one number or name"),
    "negative": (lambda: figures.head_map([-one for one in weights()]), "`source` must be weights of at least 0"),
    "labels of fewer": (
        lambda: figures.heads_grid(weights(), labels=describe(weights()[:1])),
        "`labels` must be of all these heads, and lacks head 0 of '1'",
    ),
    "cross": (lambda: figures.offset_histograms([one[:, :2] for one in weights()]), "`layer` must attend to its own"),
    "texts": (lambda: figures.alignment(np.eye(3), tokens=["a"]), "`tokens` must be 3 texts"),
    "mask": (lambda: figures.tile_plan(3, 8), "`mask` must be"),
    "weights": (lambda: figures.alignment(np.zeros(3)), "`weights` must have shape"),
    "path": (lambda: figures.alignment(np.eye(3), [[0, 7]]), "`path` must be pairs"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_without_matplotlib_the_remedy_is_said(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    for name in DRAWN:
        with pytest.raises(ImportError, match=r"pip install 'jattn\[figures\]'"):
            DRAWN[name]()

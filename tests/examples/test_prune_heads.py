"""A model trained here grows an induction head, and pruning keeps it to the end."""

import importlib
from pathlib import Path

import pytest


@pytest.mark.exhaustive
def test_the_best_induction_head_is_closed_last(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    figures = importlib.import_module("prune_heads").main([])
    assert figures["induction"] > 0.9 and figures["previous"] > 0.75
    assert figures["loss"] < 0.1
    assert 2 <= figures["open"] <= 5
    assert figures["best heads close last"] == 1
    assert "blocks.1.attention" in capsys.readouterr().out

"""Every experiment, at reduced size, reaches its reduced thresholds."""

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "experiments"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("report", "table"))


@pytest.fixture
def experiments(monkeypatch):
    """The folder on the path, as `python examples/experiments/NAME.py` has it."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", NAMES)
def test_reduced_form(name, experiments):
    results = experiments(name).run(fast=True, seed=0)
    assert results
    missed = [str(result) for result in results if not result.met]
    assert not missed, missed


def test_a_figure_of_several_seeds_is_its_median_with_its_range(experiments):
    report = experiments("report")
    runs = [[report.Result("right", ours, 0.25, "chance", 0.5)] for ours in (0.9, 0.4, 0.8)]
    (spread,) = report.Spread.of(runs)
    assert spread.short() == "right 0.8 [0.4, 0.9] (chance 0.25) **missed 1 of 3 times**"
    (single,) = report.Spread.of(runs[:1])
    assert single.short() == "right 0.9 (chance 0.25)"


def test_names_do_not_hide_modules_of_others():
    """The folder is first on the path of a script in it."""
    assert not set(NAMES) & sys.stdlib_module_names

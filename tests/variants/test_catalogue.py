"""The table of variants is complete and correct."""

import importlib
import json
import re
from pathlib import Path

import pytest

from jattn import variants
from jattn.layers import Layer
from jattn.variants import catalogue, markdown
from jattn.variants.catalogue import FOLDERS

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "examples/experiments/figures.json"
ROWS = [one for variants in catalogue().values() for one in variants]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.where)
def test_a_row_names_what_exists(row):
    assert (ROOT / row.tests).exists()
    assert row.experiment is None or (ROOT / f"examples/experiments/{row.experiment}.py").exists()
    assert row.summary and "arXiv" not in row.summary
    if ".variants." in row.where:
        assert re.search(r"\d{4}", row.paper), "the docstring cites no paper as `Author et al. 2020 (arXiv:2001.00001)`"


@pytest.mark.parametrize("experiment", sorted(json.loads(FIGURES.read_text(encoding="utf-8"))))
def test_every_experiment_is_in_the_table(experiment):
    assert experiment in {row.experiment for row in ROWS}


def test_names_are_unique():
    names = [row.name for row in ROWS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("group", FOLDERS)
def test_every_public_layer_has_a_row(group):
    """A layer that a group's package exports is in the table; functions beside it need no row of their own."""
    package = importlib.import_module(f"jattn.variants.{group}")
    rows = {row.where for row in ROWS}
    for name in getattr(package, "__all__", ()):
        thing = getattr(package, name)
        if isinstance(thing, type) and issubclass(thing, Layer):
            assert f"jattn.variants.{group}.{name}" in rows


def test_every_row_of_the_table_has_all_its_columns():
    """A bar within a cell, as in `mask | mask`, is escaped, or it would end the cell."""
    head, _, *rows = markdown(FIGURES).splitlines()
    for row in rows:
        assert row.replace(r"\|", "").count("|") == head.count("|"), row


def test_the_table_on_the_page_is_the_catalogue():
    page = (Path(variants.__file__).parent / "README.md").read_text(encoding="utf-8")
    shown = page.split("<!-- variants -->\n")[1].split("<!-- end of variants -->")[0]
    assert shown.strip() == markdown(FIGURES).strip(), (
        "paste what `python -m jattn.variants examples/experiments/figures.json` prints into jattn/variants/README.md"
    )

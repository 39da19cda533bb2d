"""The linear-time suite runs at small sizes, and its rows are what they say."""

import dataclasses

import pytest
from tiers import rows

from jattn.benchmarks import linear, table
from jattn.benchmarks.suites import SUITES

ROWS = {row.name: row for row in linear.linear(128, 512)}


def test_every_row_has_a_name_of_its_own():
    assert len(ROWS) == len(linear.linear())
    assert SUITES["linear"] is linear.linear


@pytest.mark.parametrize(
    "name",
    rows(
        ["scan-gated-delta-rule", "time-gate-per-channel", "crossover-256", "decode"],
        ["decode"],
    ),
)
def test_a_row_runs(name):
    found = table.run(ROWS[name], rounds=1)
    assert found.figure is not None and found.figure > 0


@pytest.mark.exhaustive
def test_memory_is_linear():
    assert "not linear" not in table.run(ROWS["memory-gate-per-head-and-step"], rounds=1).shown


@pytest.mark.parametrize("name", ["torch", "torch-pairs"])
def test_beside_pytorch(name):
    pytest.importorskip("torch")
    row = ROWS[name]
    small = dataclasses.replace(row.shape, length=8)
    assert table.run(dataclasses.replace(row, shape=small), rounds=1).figure > 0

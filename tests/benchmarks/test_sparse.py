"""The suite of sparse patterns: both sides of a row compute the same, and the rows are what they say."""

import dataclasses

import numpy as np
import pytest
from tiers import rows

from jattn.benchmarks import sparse, table
from jattn.benchmarks.sides import Shape, inputs
from jattn.benchmarks.suites import SUITES

SMALL = Shape("small", 1024, 2, 2, 8)
ROWS = {row.name: row for row in sparse.sparse(1024, 1024)}


def test_every_row_has_a_name_of_its_own():
    assert SUITES["sparse"] is sparse.sparse
    assert len(ROWS) == 3 * len(sparse.PATTERNS)


@pytest.mark.parametrize("pattern", rows(sparse.PATTERNS, ["BigBird"], lambda pattern: pattern.name))
def test_both_sides_compute_the_same(pattern):
    query, key, value, _ = inputs(SMALL)
    ours = pattern.attend(SMALL)(query, key, value)
    np.testing.assert_allclose(ours, sparse.dense_side(pattern, SMALL).build(SMALL)(), atol=2e-6)
    assert 0 < pattern.ratio(SMALL) < 1


@pytest.mark.exhaustive
def test_a_row_runs():
    row = ROWS["longformer-causal-1024"]
    found = table.run(dataclasses.replace(row, shape=SMALL), rounds=1)
    assert found.figure is not None and found.figure > 0 and "% of the causal pairs" in found.what


@pytest.mark.exhaustive
def test_memory_is_linear():
    row = ROWS["longformer-memory-1024"]
    shapes = tuple(dataclasses.replace(SMALL, length=length) for length in (256, 512, 1024))
    found = table.run(dataclasses.replace(row, shapes=shapes), rounds=1)
    assert "not linear" not in found.shown

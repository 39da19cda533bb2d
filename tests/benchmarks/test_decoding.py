"""The decoding suite runs at small sizes, and its caches hold what the rows say."""

import pytest
from tiers import rows

from jattn.benchmarks import decoding, table
from jattn.benchmarks.suites import SUITES

ROWS = {row.name: row for row in decoding.decode(16, 64)}


def test_every_row_has_a_name_of_its_own():
    assert len(ROWS) == len(decoding.decode())
    assert SUITES["decode"] is decoding.decode


@pytest.mark.parametrize("name", rows(ROWS, list(ROWS)[:1]))
def test_a_row_runs(name):
    found = table.run(ROWS[name], rounds=1)
    assert found.figure is not None
    assert found.figure > 0


@pytest.mark.exhaustive
def test_caches_are_filled_as_said():
    shape = ROWS["filled"].shape
    for cache in (decoding.contiguous(shape, 64), decoding.paged(shape, 256)):
        view, _ = cache.append(*[0 * cache.view().key[:, :1]] * 2)
        assert view.query_positions.tolist() == [[15]]
        assert not view.overflowed.any()

"""The sizes of pages, and how soon they are seen: a row says that of the page that is made."""

import pytest

from jattn.benchmarks import painting
from jattn.benchmarks.pages import Page, pages
from jattn.benchmarks.painting import Paint, paints


def test_a_row_says_the_size_of_a_page():
    row = Page(4, 0.2).run()
    assert row.met and 0.05 < row.figure < 0.2
    assert not Page(4, 0.01).run().met
    assert row.ours.endswith("MB") and row.other.startswith("BertViz")
    assert [one.name for one in pages()] == ["page-32", "page-128", "page-256", "page-512"]


def test_without_a_browser_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(painting.shutil, "which", lambda name: None)
    row = Paint(4, 2).run()
    assert row.met is None and row.other.startswith("not measured: without Chromium")
    assert [one.name for one in paints()] == ["paint-256", "paint-512"]


@pytest.mark.exhaustive
@pytest.mark.skipif(bool(painting._missing()), reason="NOT TESTED: the times of a page, without Chromium or Playwright")
def test_a_row_says_when_a_page_is_seen():
    found = Paint(8, 60).run().details
    assert 0 < found["paint"] <= found["drawn"] < 1000 * found["start"] + 60_000
    assert len(found["hover"]) == len(found["frame"]) == painting.MOVES and min(found["frame"]) > 0

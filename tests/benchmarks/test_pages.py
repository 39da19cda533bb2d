"""The sizes of pages: a row says the size of the page that is made."""

from jattn.benchmarks.pages import Page, pages


def test_a_row_says_the_size_of_a_page():
    row = Page(4, 0.2).run()
    assert row.met and 0.05 < row.figure < 0.2
    assert not Page(4, 0.01).run().met
    assert row.ours.endswith("MB") and row.other.startswith("BertViz")
    assert [one.name for one in pages()] == ["page-32", "page-128", "page-256", "page-512"]

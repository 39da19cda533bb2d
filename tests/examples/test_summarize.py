"""The example of headlines: docstrings of sources, words beyond the vocabulary, and the script on made-up documents."""

import numpy as np
import pytest

SOURCE = '''
class OpenFile:
    """Represent a file that is open.

    Files are closed by the garbage collector, or when the block ends.
    """

    def read_all(self):
        """Read everything that the file has.

        The position is then at the end, so that another call returns nothing.
        """

    def close(self):
        """Close."""
'''


def test_docstrings_of_sources(example, tmp_path, monkeypatch):
    docstrings = example("texts.docstrings")
    (tmp_path / "package" / "tests").mkdir(parents=True)
    for name in ("__init__.py", "again.py", "tests/test_it.py"):
        (tmp_path / "package" / name).write_text(SOURCE)
    (tmp_path / "package" / "template.py").write_text("def {{ name }}")
    monkeypatch.syspath_prepend(tmp_path)
    found = docstrings.documents(["package"], longest=6, headline=(3, 14))
    assert found == [
        (("open", "file", ":", "files", "are", "closed"), ("represent", "a", "file", "that", "is", "open")),
        (("read", "all", ":", "the", "position", "is"), ("read", "everything", "that", "the", "file", "has")),
    ]
    with pytest.raises(ValueError, match="must be installed packages with a folder of sources; got 'nothing_at_all'"):
        docstrings.documents(["nothing_at_all"], 6, (3, 14))


def test_words_beyond_the_vocabulary_have_numbers_of_their_own(example):
    summarize = example("summarize")
    Document = example("texts.docstrings").Document
    vocabulary = ["<pad>", "<start>", "<end>", "<unknown>", "the", ":"]
    rows = summarize.as_rows([Document(("zeta", ":", "the", "phi", "zeta"), ("the", "zeta", "xi"))], vocabulary)
    own = summarize.VOCABULARY
    assert rows.source[0, :6].tolist() == [own, 5, 4, own + 1, own, -1]
    assert rows.target[0, :5].tolist() == [4, own, summarize.UNKNOWN, summarize.END, -1]
    assert rows.words == [["zeta", "phi"]]


@pytest.mark.exhaustive
def test_it_learns_to_copy_names(example, monkeypatch, tmp_path):
    summarize = example("summarize")
    Document = example("texts.docstrings").Document
    random = np.random.default_rng(0)
    names = ["".join(random.choice(list("abcdefgh"), 5)) for _ in range(400)]
    documents = [
        Document((name, ":", *["so", "it", "is"][: i % 4], "returned", name, "by", "this"), ("return", "the", name))
        for i, name in enumerate(names)
    ]
    monkeypatch.setattr(summarize.docstrings, "documents", lambda *given: documents)
    monkeypatch.setattr(summarize, "VOCABULARY", 30)
    figures = summarize.main(["--features", "32", "--epochs", "40", "--out", str(tmp_path)])
    assert figures["ROUGE-L pointer-generator"] > 0.9 > 0.5 > figures["ROUGE-L lead"]
    assert 0.2 < figures["words copied"] < 0.5
    assert (tmp_path / "copied.png").read_bytes().startswith(b"\x89PNG")

"""The example of translation: message catalogs, subwords and scores, and the script on a catalog of few words."""

import io
import struct
import zipfile

import pytest

ARTICLES = {"the": "die", "a": "eine", "no": "keine", "this": "diese", "my": "meine", "one": "jede"}
NOUNS = {"card": "Karte", "sun": "Sonne", "door": "Tür", "lamp": "Lampe", "rose": "Rose", "bag": "Tasche"}


def catalog(messages):
    """A compiled message catalog."""
    messages = sorted(messages.items())
    table, texts = 28, b""
    start = table + 16 * len(messages)
    entries = []
    for side in (0, 1):
        for both in messages:
            text = both[side].encode()
            entries.append(struct.pack("<2I", len(text), start + len(texts)))
            texts += text + b"\0"
    head = struct.pack("<7I", 0x950412DE, 0, len(messages), table, table + 8 * len(messages), 0, 0)
    return head + b"".join(entries) + texts


def wheel(messages):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as written:
        written.writestr("shop/locale/de/LC_MESSAGES/django.mo", catalog(messages))
    return zipfile.ZipFile(file)


def test_messages_of_a_catalog(example):
    catalogs = example("texts.catalogs")
    messages = {
        "": "Content-Type: text/plain",
        "Save": "Speichern",
        "save!": "speichern!",
        "menu\x04Open": "Öffnen",
        "%d file\0%d files": "%d Datei\0%d Dateien",
        "a\n  line": "eine Zeile",
        "untranslated": "",
    }
    assert ("Open", "Öffnen") in catalogs.messages(catalog(messages))
    found = catalogs.pairs(wheel(messages), "de")
    assert found == [("a line", "eine Zeile"), ("Open", "Öffnen"), ("Save", "Speichern")]
    with pytest.raises(ValueError, match=r"must be one of the package's catalogs, de; got 'xx'"):
        catalogs.pairs(wheel(messages), "xx")
    with pytest.raises(ValueError, match="must be a compiled message catalog"):
        catalogs.messages(b"msgid")


def test_subwords_spell_what_they_have_seen(example):
    Subwords, unknown = example("texts.subwords").Subwords, example("texts.subwords").UNKNOWN
    texts = ["new order, 12 items", "newer orders", "order_by new"]
    subwords = Subwords(texts, 40)
    assert len(subwords.tokens) <= 40 == len({*subwords.tokens, *range(40 - len(subwords.tokens))})
    for text in [*texts, "by order"]:
        assert subwords.decode(subwords.encode(text)) == text
    assert len(subwords.encode("order")) < 5
    assert unknown in subwords.encode("größer")


def test_scores(example):
    scores = example("texts.scores")
    assert scores.chrf(["abc d"], ["abcd"]) == 1
    # one of two letters, no pairs: mean precision and recall of n = 1 and 2 are 1/4 each
    assert scores.chrf(["ab"], ["bc"], orders=2) == pytest.approx(0.25)
    assert scores.rouge_n(["the", "cat", "sat"], ["the", "cat"]) == pytest.approx(0.8)
    assert scores.rouge_n(["the", "cat", "sat"], ["the", "sat", "cat"], 2) == 0
    assert scores.rouge_l(["the", "cat", "sat"], ["the", "sat", "cat"]) == pytest.approx(2 / 3)


def test_the_most_similar_message(example):
    Pair = example("texts.catalogs").Pair
    known = [Pair("Delete the order", "Bestellung löschen"), Pair("Save", "Speichern")]
    found = example("translate").most_similar(known, [Pair("Saved", ""), Pair("Order deleted", "")])
    assert found == ["Speichern", "Bestellung löschen"]


@pytest.mark.exhaustive
def test_it_learns_to_translate_words(example, monkeypatch, tmp_path, capsys):
    translate = example("translate")
    messages = {
        f"{a} {b} and {c} {d}": f"{x} {y} und {z} {w}"
        for a, x in ARTICLES.items() for b, y in NOUNS.items()
        for c, z in list(ARTICLES.items())[:3] for d, w in list(NOUNS.items())[:3]
    }  # fmt: skip
    monkeypatch.setattr(translate.packages, "opened", lambda package: wheel(messages))
    figures = translate.main(["--epochs", "40", "--features", "32", "--out", str(tmp_path), "this sun and the card"])
    assert figures["chrF 4 beams"] > 0.8 and figures["tokens"] > 0.8 > figures["chrF copied"]
    assert figures["tokens"] > figures["tokens, bigrams"]
    assert "diese Sonne und die Karte" in capsys.readouterr().out
    assert (tmp_path / "alignment.png").read_bytes().startswith(b"\x89PNG")

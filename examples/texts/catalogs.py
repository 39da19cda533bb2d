"""Message catalogs of gettext, in which programs keep the translations of what they say."""

import re
import struct
import zipfile
from typing import NamedTuple


class Pair(NamedTuple):
    """A message, and its translation."""

    source: str
    target: str


def pairs(wheel: zipfile.ZipFile, language: str, most_words: int = 16) -> list[Pair]:
    """The messages of a package's catalogs in a language, in order and without repeats.

    Plain text only: no markup, one line, at most `most_words` words. Messages that differ in case, digits or
    punctuation alone count as one.

    Args:
        wheel: the package.
        language: the name of its folder, such as "de".
        most_words: longer messages are left out.

    Raises:
        ValueError: the package has no catalog in this language; the message lists those that it has.
    """
    path = re.compile(r"(?:.*/)?locale/([^/]+)/LC_MESSAGES/[^/]+\.mo")
    files = sorted(name for name in wheel.namelist() if path.fullmatch(name))
    languages = {name: name.split("/LC_MESSAGES")[0].rpartition("/")[2] for name in files}
    if language not in languages.values():
        raise ValueError(
            f"`language` must be one of the package's catalogs, {', '.join(sorted(set(languages.values())))}; "
            f"got {language!r}."
        )
    found: dict[str, Pair] = {}
    for name in files:
        if languages[name] == language:
            for source, target in messages(wheel.read(name)):
                pair = Pair(" ".join(source.split()), " ".join(target.split()))
                plain = not any(set("<>{}%&") & set(text) for text in pair)
                if plain and all(len(text.split()) <= most_words for text in pair):
                    key = "".join(letter for letter in pair.source.casefold() if letter.isalpha())
                    if key:
                        found.setdefault(key, pair)
    return [found[key] for key in sorted(found)]


def messages(data: bytes) -> list[tuple[str, str]]:
    """The messages of a compiled catalog (.mo), without their contexts and plurals.

    https://www.gnu.org/software/gettext/manual/html_node/MO-Files.html

    Raises:
        ValueError: it is none.
    """
    order = {0x950412DE: "<", 0xDE120495: ">"}.get(int.from_bytes(data[:4], "little"))
    if order is None or len(data) < 28:
        raise ValueError("the data must be a compiled message catalog, as msgfmt writes it.")
    count, sources, targets = struct.unpack_from(f"{order}3I", data, 8)

    def text(table: int, index: int) -> str:
        length, start = struct.unpack_from(f"{order}2I", data, table + 8 * index)
        return data[start : start + length].split(b"\0")[0].decode()

    both = ((text(sources, i).rpartition("\x04")[2], text(targets, i)) for i in range(count))
    return [(source, target) for source, target in both if source and target]

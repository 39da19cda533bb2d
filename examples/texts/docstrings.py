"""Documents and their headlines: the docstrings of packages that are installed, as their sources have them."""

import ast
import importlib.util
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

_WORDS = re.compile(r"[^\W\d_]+|\d+")


class Document(NamedTuple):
    """A docstring.

    Attributes:
        source: the words of its body, after those of the name of what it documents.
        headline: the words of its first line.
    """

    source: tuple[str, ...]
    headline: tuple[str, ...]


def documents(packages: Iterable[str], longest: int, headline: tuple[int, int]) -> list[Document]:
    """The docstrings of functions and classes, without repeats of a headline or of a body.

    Args:
        packages: names of installed packages; "" for the standard library. Nothing is imported.
        longest: how many words of name and body are kept.
        headline: the fewest and the most words of a headline; others are left out.

    Raises:
        ValueError: a package is not installed, or has no folder of sources.
    """
    found, seen = [], set()
    for package in packages:
        for path in sorted(_folder(package).rglob("*.py")):
            parts = path.relative_to(_folder(package)).parts
            if not {"tests", "test", "site-packages", "_vendor"} & set(parts):
                for name, docstring in _docstrings(path):
                    first, _, rest = docstring.partition("\n\n")
                    body, words = _words(rest), _words(first)
                    name = re.sub(r"([a-z])([A-Z])", r"\1 \2", name).replace("_", " ")
                    source = (*_words(name), ":", *body)[:longest]
                    fits = headline[0] <= len(words) <= headline[1] and len(body) >= 8
                    if fits and not {words, body[:8]} & seen:
                        seen |= {words, body[:8]}
                        found.append(Document(source, words))
    return found


def _folder(package: str) -> Path:
    if not package:
        return Path(sysconfig.get_paths()["stdlib"])
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"`packages` must be installed packages with a folder of sources; got {package!r}.")
    return Path(next(iter(spec.submodule_search_locations)))


def _docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Names and docstrings of a file's functions and classes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of backslashes in sources of others
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # a template, or another version's
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield node.name.strip("_"), docstring


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORDS.findall(text.lower()))

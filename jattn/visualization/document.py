"""One HTML file out of the page's own scripts and style, and what is to be seen."""

import functools
import html
import json
import re
from importlib import resources
from typing import Any

MODULES = (
    "colors",
    "store",
    "state",
    "dom",
    "pictures",
    "rail",
    "readout",
    "heads",
    "overview",
    "map",
    "neuron",
    "patches",
    "text",
    "keys",
    "main",
)
"""The scripts of `page/`, in an order in which each follows those that it imports. They share one scope in the file."""

_IMPORT = re.compile(r"^import \{[^}]*\} from \"\./\w+\.js\";\n", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=const|let|function|async function|class)", re.MULTILINE)


def _read(name: str) -> str:
    return (resources.files("jattn.visualization") / "page" / name).read_text(encoding="utf-8")


@functools.cache
def script() -> str:
    """The scripts as one module: a file that is opened from a disk may not import others."""
    return "\n".join(_EXPORT.sub("", _IMPORT.sub("", _read(f"{name}.js"))) for name in MODULES)


def inert(value: Any) -> str:
    """JSON that is safe within `<script>`: no `<`, `>`, `&`, no line separators of JavaScript, no "http" of a token.

    >>> print(inert(["</script>", "http://a", "\\u2028"]))
    ["\\u003c/script\\u003e","\\u0068ttp://a","\\u2028"]
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    # A lone surrogate, half of an emoji as some tokenizers cut it, cannot be written in UTF-8.
    text = re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)
    return text.replace("http", "\\u0068ttp")


def written(contents: dict[str, Any], blobs: list[str]) -> str:
    """The page.

    Args:
        contents: what `page/store.js` describes, as JSON.
        blobs: the packed arrays, which the contents name by their index.
    """
    parts = {
        "TITLE": html.escape(contents["title"]).replace("http", "&#104;ttp"),
        "STYLE": _read("page.css"),
        "CONTENTS": inert(contents),
        # Base64 needs no escaping. One line each, so that editors can open the file.
        "BLOBS": "[\n" + ",\n".join('"' + one.replace("\n", "\\n") + '"' for one in blobs) + "\n]",
        "SCRIPT": script(),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _read("page.html"))


def framed(page: str, height: int, title: str) -> str:
    """The page within a frame of its own, for a notebook: a document apart, which meets no script or style of it."""
    inside = page.replace("&", "&amp;").replace('"', "&quot;")
    return (
        f'<iframe srcdoc="{inside}" title="{html.escape(title, quote=True)}" loading="lazy" allow="clipboard-write" '
        f'style="width:100%;height:{height}px;border:0;border-radius:8px"></iframe>'
    )

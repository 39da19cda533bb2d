"""How soon a page of attention maps is seen, and follows the pointer: in headless Chromium, from a file, offline."""

import dataclasses
import importlib.util
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from .. import visualization
from .pages import HEADS, LAYERS, random_maps
from .row import Row

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
MOVES = 40
FRAME = 1000 / 60  # ms

SEEN = """() => {
    const paint = performance.getEntriesByName("first-contentful-paint")[0];
    const cards = [...document.querySelectorAll("#view-overview .card")].filter((card) => {
        const box = card.getBoundingClientRect();
        return box.top < innerHeight && box.bottom > 0;
    });
    const drawn = cards.length > 0 && cards.every((card) => card.dataset.drawn !== undefined);
    return paint && drawn ? [paint.startTime, performance.now()] : null;
}"""

LISTEN = """() => {
    window.frames_of_moves = [];
    addEventListener("mousemove", (event) => requestAnimationFrame(() => {
        const after = new MessageChannel(); // its message comes once the frame is drawn
        after.port1.onmessage = () => window.frames_of_moves.push(performance.now() - event.timeStamp);
        after.port2.postMessage(0);
    }), true);
}"""


@dataclasses.dataclass(frozen=True)
class Paint:
    """A row: the times of one page, opened in a browser of its own.

    Attributes:
        length: the number of tokens.
        most: the target for the first paint, in seconds.
    """

    length: int
    most: float

    @property
    def name(self) -> str:
        return f"paint-{self.length}"

    def run(self) -> Row:
        """Open the page, and one that is empty, and move the pointer over a map."""
        what = f"first paint of {LAYERS} layers of {HEADS} heads, from the browser's start"
        given, bar = (self.name, what, f"{self.length} tokens"), f"at most {self.most:g} s"
        missing = _missing()
        if missing:
            return Row(*given, "-", f"not measured: without {missing}", None, "-", bar, None, {})
        page = visualization.view(random_maps(self.length), [f"t{place}" for place in range(self.length)])
        found = measured(page)
        paint, drawn, start = found["paint"] / 1000, found["drawn"] / 1000, found["start"]
        hover, frame = (statistics.median(found[name]) for name in ("hover", "frame"))
        ours = (
            f"{start:.2f} s; from navigation {paint:.2f} s, all thumbnails in sight {drawn:.2f} s; a movement of the "
            f"pointer takes {hover:.1f} ms of a frame, which is drawn {frame:.0f} ms after it"
        )
        other = f"an empty page: {found['empty']:.2f} s"
        met = start <= self.most and hover <= FRAME
        return Row(*given, ours, other, start, f"{start:.2f} s", bar, met, found)


def _missing() -> str:
    """What is needed and not here, in words."""
    names = () if _chromium() else ("Chromium",)
    return " and ".join((*names, *(() if importlib.util.find_spec("playwright") else ("Playwright",))))


def _chromium() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def measured(page: Any) -> dict[str, Any]:
    """The times of a page.

    Returns:
        In milliseconds from navigation, `paint` and `drawn` (all thumbnails in sight); `hover`, what each movement of
        the pointer takes of its frame, and `frame`, when that is drawn. In seconds from the browser's start, `start`
        and, of an empty page, `empty`.
    """
    from playwright.sync_api import sync_playwright  # pyright: ignore[reportMissingImports]

    with sync_playwright() as driver, tempfile.TemporaryDirectory() as folder:
        path = page.save(Path(folder) / "page.html")

        def opened(address: str) -> tuple[float, Any]:
            began = time.perf_counter()
            browser = driver.chromium.launch(executable_path=_chromium(), args=list(FLAGS))
            context = browser.new_context(viewport={"width": 1200, "height": 760})
            context.set_offline(True)
            tab = context.new_page()
            tab.goto(address, wait_until="commit")
            if address.startswith("file:"):
                tab.wait_for_function("performance.getEntriesByName('first-contentful-paint').length > 0")
            return time.perf_counter() - began, tab

        empty, tab = opened("about:blank")
        tab.context.browser.close()
        start, tab = opened(f"file://{path}")
        paint, drawn = tab.wait_for_function(SEEN, polling="raf", timeout=60_000).json_value()
        tab.keyboard.press("3")
        tab.wait_for_function("document.querySelector('.stack canvas')?.width > 50")
        tab.evaluate(LISTEN)
        box, hover = tab.locator(".stack canvas").first.bounding_box(), []
        for step in range(MOVES):
            share = 0.2 + 0.6 * step / MOVES
            tab.mouse.move(box["x"] + share * box["width"], box["y"] + share * box["height"])
            tab.wait_for_function(f"window.frames_of_moves.length > {step}")
            hover.append(float(tab.get_attribute("html", "data-hover") or 0))
        frame = tab.evaluate("window.frames_of_moves")
        tab.context.browser.close()
    return {"paint": paint, "drawn": drawn, "start": start, "empty": empty, "hover": hover, "frame": frame}


def paints() -> tuple[Paint, ...]:
    """The rows."""
    return Paint(256, 2), Paint(512, 2)

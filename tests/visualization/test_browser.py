"""The page in a real browser, with the network off: Chromium as it is installed, driven by Playwright.

Skipped, loudly, where either is missing.
"""

import importlib.util
import shutil
import warnings

import numpy as np
import pytest

import jattn
from jattn.visualization import view

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = [
    name
    for name, there in (("Chromium", CHROMIUM), ("playwright", importlib.util.find_spec("playwright")))
    if not there
]
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.skipif(bool(MISSING), reason=f"NOT TESTED: the page in a browser, without {' and '.join(MISSING)}"),
]
TOKENS = ["[CLS]", "</script><script>window.harmed=1</script>", "<img src=x onerror=window.harmed=1>", "שלום", "مرحبا"]
TOKENS += ["👩‍👩‍👧", "\u2028", "\"'&", "", "Ġthe", "▁cat", "##s"]
VIEWS = ("overview", "heads", "map", "neuron", "image", "text")


def softmax(scores):
    exponentials = np.exp(scores - scores.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def arrays(layers, heads, length, seed=0, keys=None):
    draw = np.random.default_rng(seed).normal(size=(layers, 1, heads, length, keys or length))
    return softmax(2 * draw).astype(np.float32)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the driver's own process
        with sync_playwright() as driver:
            opened = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            yield opened
            opened.close()


@pytest.fixture
def show(browser, tmp_path):
    """Opens a page, and checks in the end that nothing failed and nothing was asked for."""
    context = browser.new_context(viewport={"width": 1200, "height": 760}, color_scheme="light")
    context.set_offline(True)
    context.set_default_timeout(20_000)
    wrong, asked = [], []

    def opened(page, address="#"):
        path = tmp_path / "page.html"
        path.write_text(page if isinstance(page, str) else page.html, encoding="utf-8")
        tab = context.new_page()
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(f"file://{path}{address}")
        tab.wait_for_selector("html[data-ready], iframe", timeout=60_000, state="attached")
        return tab

    yield opened
    context.close()
    assert not wrong
    assert all(url.startswith(("file:", "data:", "blob:", "about:")) for url in asked), asked


def readout(tab, wait="[data-weight]"):
    tab.wait_for_selector(f"#readout{wait}", timeout=20_000)
    found = tab.evaluate("({...document.getElementById('readout').dataset})")
    return int(found["query"]), int(found["key"]), float(found["weight"])


def inked(tab, selector):
    """Whether a canvas has more than one color."""
    return tab.evaluate(
        """(selector) => { const canvas = document.querySelector(selector);
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        return new Set(new Uint32Array(data.buffer)).size; }""",
        selector,
    )


@pytest.fixture(scope="module")
def full():
    """A page in which every view has something to show, and what it was made of."""
    length = len(TOKENS)
    draw = np.random.default_rng(1).normal(size=(2, 2, 1, 3, length, 8)).astype(np.float32)
    scores = np.einsum("lbhqd,lbhkd->lbhqk", *draw)
    weights = softmax(np.where(np.tril(np.ones((length, length), bool)), scores, -np.inf)).astype(np.float32)
    page = view(
        list(weights),
        TOKENS,
        mask=jattn.masks.Causal(),
        query=list(draw[0]),
        key=list(draw[1]),
        labels={(0, 1): ("previous", 0.9), (1, 2): "<b>induction"},
        sentences=6,
        image=np.random.default_rng(0).random((30, 30, 3)),
        grid=(3, 3),
        title="<i>A title</i>",
    )
    return page, weights


def test_every_view_opens_and_draws(show, full):
    tab = show(full[0])
    canvases = {"map": ".stack canvas", "neuron": ".tall canvas", "image": ".stage canvas", "heads": ".between canvas"}
    for number, name in enumerate(VIEWS, 1):
        tab.keyboard.press(str(number))
        tab.wait_for_selector(f"#view-{name}:not([hidden])")
        assert tab.get_attribute(f"[data-view={name}]", "aria-selected") == "true"
        if name in canvases:
            tab.wait_for_function(
                "(one) => document.querySelector(one)?.width > 50", arg=f"#view-{name} {canvases[name]}"
            )
            tab.wait_for_timeout(200)
            assert inked(tab, f"#view-{name} {canvases[name]}") > 8, name
    tab.wait_for_selector("#view-overview .card[data-drawn]", state="attached")
    assert tab.locator("#view-text .token").count() >= len(TOKENS)
    assert tab.evaluate("window.harmed") is None
    assert tab.locator("script").count() == 3 and tab.locator("img").count() == 0
    assert tab.inner_text("#title") == "<i>A title</i>"
    tokens = tab.locator("#view-heads .queries .token").all_text_contents()
    assert tokens[1:3] == TOKENS[1:3] and tokens[5] == TOKENS[5] and tokens[8:] == ["∅", "␣the", "␣cat", "##s"]


def test_the_number_under_the_pointer_is_that_of_the_array(show, full):
    page, weights = full
    tab = show(page, "#view=map&layer=1&head=2")
    tab.wait_for_function("document.querySelector('.stack canvas').width > 50")
    tab.wait_for_timeout(300)
    box = tab.locator(".stack canvas").first.bounding_box()
    seen = set()
    for across in np.linspace(0.3, 0.75, 4):
        for down in np.linspace(0.4, 0.95, 4):
            tab.mouse.move(box["x"] + across * box["width"], box["y"] + down * box["height"])
            i, j, said = readout(tab)
            seen.add((i, j))
            want = weights[1, 0, 2, i, j]
            assert abs(said - want) <= (np.sqrt(want) * 255 + 0.75) / 255**2
            if j > i:
                assert "masked" in tab.inner_text("#readout")
    assert len({i for i, _ in seen}) >= 4 and len({j for _, j in seen}) >= 4
    assert float(tab.get_attribute("html", "data-hover")) >= 0


def test_a_link_restores_what_is_shown(show, full):
    page, weights = full
    tab = show(page, "#view=map&layer=1&head=1&query=7&key=3&theme=dark&tiles=8&find=l1")
    assert readout(tab) == (7, 3, pytest.approx(weights[1, 0, 1, 7, 3], abs=0.004))
    assert tab.get_attribute("html", "data-theme") == "dark"
    assert tab.locator("#rail .row").count() == 3 and "tiles of 8" in tab.inner_text(".counted")
    tab.keyboard.press("ArrowLeft")
    tab.wait_for_function("!location.hash.includes('head=')")  # head 0, where a page begins
    address = tab.evaluate("location.hash")
    again = show(page, address)
    assert readout(again) == (7, 3, pytest.approx(weights[1, 0, 0, 7, 3], abs=0.004))


def test_keys_search_and_sort(show, full):
    tab = show(full[0], "#view=heads")
    theme = tab.get_attribute("html", "data-theme")
    for key, name in (("ArrowRight", "head=1"), ("ArrowDown", "layer=1"), ("j", "query=0"), ("j", "query=1")):
        tab.keyboard.press(key)
        tab.wait_for_function("(part) => location.hash.includes(part)", arg=name)
    tab.keyboard.press("Escape")
    tab.wait_for_function("!location.hash.includes('query')")
    tab.keyboard.press("t")
    tab.wait_for_function("(before) => document.documentElement.dataset.theme !== before", arg=theme)
    tab.keyboard.press("p")
    tab.wait_for_function("location.hash.includes('tiles=16')")
    tab.keyboard.press("?")
    tab.wait_for_selector("dialog[open]")
    tab.keyboard.press("Escape")
    tab.keyboard.press("/")
    tab.keyboard.type("induction")
    tab.wait_for_function("document.querySelectorAll('#rail .row').length === 1")
    assert "<b>induction" in tab.inner_text("#rail .row")
    tab.fill("#find", "")
    tab.select_option("#sort", "score")
    tab.wait_for_function("document.querySelector('#rail .row b').textContent === 'L0 H1'")


def test_lines_of_a_token_and_pairs_of_sentences(show, full):
    page, weights = full
    tab = show(page, "#view=heads&layer=0&head=1")
    tab.wait_for_selector(".column.queries [data-place='9']")
    tab.wait_for_timeout(300)
    tab.hover(".column.queries [data-place='9']")
    i, j, said = readout(tab)
    assert (i, j) == (9, weights[0, 0, 1, 9].argmax()) and abs(said - weights[0, 0, 1, 9].max()) < 0.004
    colored = "[...document.querySelectorAll('.column.keys .token')].filter((one) => one.style.backgroundImage).length"
    every = tab.evaluate(colored)
    tab.select_option("#filter", "AB")  # token 9 is in the second sentence, and so has no line of these
    tab.wait_for_timeout(300)
    tab.hover(".column.queries [data-place='9']")
    tab.wait_for_timeout(200)
    assert every >= 5 and inked(tab, "#view-heads .between canvas") <= 2


def test_a_notebook_may_show_several(show, full):
    frames = 2 * full[0]._repr_html_().replace('loading="lazy" ', "")  # the second is below what is in sight
    tab = show(f"<!DOCTYPE html><meta charset=utf-8><body>{frames}</body>")
    for frame in tab.query_selector_all("iframe"):
        inside = frame.content_frame()
        inside.wait_for_selector("html[data-ready]", timeout=60_000, state="attached")
        inside.click("[data-view=map]")
        inside.wait_for_selector("#view-map:not([hidden])")


def test_what_an_editor_forbids_breaks_nothing(show, full):
    """In a notebook of VS Code: its content security policy, and a sandbox that even has no origin and no prompts."""
    policy = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data:; "
    policy += "font-src https:; connect-src https:; child-src https: data:"
    frame = full[0]._repr_html_().replace("<iframe ", '<iframe sandbox="allow-scripts" ')
    tab = show(f'<!DOCTYPE html><meta http-equiv="Content-Security-Policy" content="{policy}"><body>{frame}</body>')
    inside = tab.query_selector("iframe").content_frame()
    inside.wait_for_selector("html[data-ready]", timeout=60_000, state="attached")
    for name in VIEWS:
        inside.click(f"[data-view={name}]")
        inside.wait_for_selector(f"#view-{name}:not([hidden])")
    inside.wait_for_selector("#view-text .token")
    inside.click("[data-view=image]")
    inside.wait_for_function("document.querySelector('#view-image .stage canvas').width > 50")
    for storage in ("localStorage", "document.cookie", "parent.document"):
        assert (
            inside.evaluate(f"() => {{ try {{ {storage}; return 'allowed'; }} catch {{ return 'thrown'; }} }}")
            == "thrown"
        )
    inside.click("#link")
    inside.wait_for_selector("#address[open]")
    assert inside.input_value("#address input") == "#view=image" and "save" in inside.inner_text("#whose")
    tab.keyboard.press("Escape")
    inside.wait_for_selector("#address:not([open])", state="attached")


def test_a_head_is_computed_from_queries_and_keys(show):
    draw = np.random.default_rng(0).normal(size=(2, 1, 90, 2, 8)).astype(np.float32)
    with jattn.record(keep=("query", "key")) as seen:
        jattn.attention(3 * draw[0], draw[1], draw[1], mask=jattn.masks.Causal())
    weights = jattn.attention_weights(3 * draw[0], draw[1], mask=jattn.masks.Causal())
    tab = show(view(seen), "#view=map&head=1&query=80&key=33")
    assert readout(tab)[2] == pytest.approx(float(weights[0, 1, 80, 33]), abs=0.01)
    assert "int8" in tab.inner_text("footer")
    tab.click("[data-view=neuron]")
    tab.wait_for_function("document.querySelector('#view-neuron .tall canvas').width > 50")


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 1, 512)], ids=["one token", "512 tokens"])
def test_sizes(show, size):
    layers, heads, length = size
    weights = arrays(layers, heads, length)
    weights[0, 0, 0, 0, 0] = np.nan
    tab = show(view(list(weights)))
    assert tab.get_attribute("[data-view=map]", "aria-selected") == "true"  # one head is shown at full size
    assert "NaN" in tab.inner_text("#notes")
    for name in VIEWS:
        tab.click(f"[data-view={name}]")
        tab.wait_for_selector(f"#view-{name}:not([hidden])")
    tab.goto(tab.url.split("#")[0] + "#view=map&query=0&key=0")
    tab.reload()
    tab.wait_for_selector("#readout[data-weight]")
    assert tab.inner_text("#readout b") == "NaN"


def test_encoder_decoder_and_cross(show):
    source = {
        "encoder": list(arrays(1, 2, 5)),
        "decoder": list(arrays(1, 2, 4)),
        "cross": list(arrays(1, 2, 4, keys=5)),
    }
    tab = show(view(source, {"encoder": list("abcde"), "decoder": list("wxyz")}), "#view=map&group=2&query=3&key=4")
    assert readout(tab)[2] == pytest.approx(source["cross"][0][0, 0, 3, 4], abs=0.004)
    tab.select_option("#groups", "1")
    tab.click("[data-view=text]")
    tab.wait_for_function("document.querySelectorAll('#view-text .running:not([hidden]) .token').length === 4")

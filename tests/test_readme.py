"""README and the other pages are true: their Python runs and prints what they show, and their links resolve."""

import contextlib
import io
import re
import tomllib
from pathlib import Path

import pytest

import jattn

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"(?P<mark><!-- output -->\n)?^```(?P<language>\w+)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?:\[[^\]]*\]\(|(?:href|src)=\")(?P<target>[^)\s\"]+)[)\"]")
PAGES = [
    path.relative_to(ROOT).as_posix()
    for where in (".", ".github", "jattn", "tests", "examples")
    for path in sorted((ROOT / where).glob("*.md" if where in (".", ".github") else "**/*.md"))
]
CLONE = pytest.mark.skipif(not (ROOT / ".github").exists(), reason="not in a clone, which has all pages")
ABSTRACT = ("Scaling", "Score", "as_mask", "of")
LONG = (
    "examples/tasks/decoding.md",
    "jattn/layers/README.md", "jattn/models/README.md", "jattn/ops/README.md", "jattn/variants/README.md",
)  # fmt: skip
"""Pages whose examples take seconds: they have thousands of tokens, or call layers outside `jit`."""


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


def anchor(heading: str) -> str:
    """The fragment that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.exhaustive if page in LONG else ()) for page in PAGES]
)
def test_python_blocks_run_and_print_what_they_say(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    namespace: dict = {"__name__": "readme"}
    printed = None
    for block in BLOCK.finditer(text):
        line = text[: block.start()].count("\n") + 1
        if block["language"] == "python":
            assert not printed, f"{page}, before line {line}: output is printed and not shown"
            stdout = io.StringIO()
            with contextlib.redirect_stdout(stdout):
                # the newlines make a traceback's line number the page's
                exec(compile("\n" * line + block["body"], str(ROOT / page), "exec"), namespace)
            printed = stdout.getvalue()
        elif block["mark"]:
            assert printed is not None, f"{page}, line {line}: output of no Python block"
            assert lines(block["body"]) == lines(printed), f"{page}, line {line}, should read:\n{printed}"
            printed = None
    assert not printed, f"{page}: output of the last Python block is not shown"


@pytest.mark.exhaustive
def test_a_model_is_loaded_and_looked_at_in_four_lines(monkeypatch, tmp_path):
    """The README's first screen, with a tiny model in place of the one that it downloads."""
    pytest.importorskip("safetensors")
    from flax import nnx

    from jattn import models
    from jattn.models.llama import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocabulary=30, features=14, depth=19, heads=7, kv_heads=7, mlp_features=8)
    monkeypatch.setattr(models, "from_hub", lambda name: LlamaForCausalLM(config, rngs=nnx.Rngs(0)))
    monkeypatch.chdir(tmp_path)
    (block,) = (found["body"] for found in BLOCK.finditer(README) if found["language"] == "py")
    exec(block, {"jattn": jattn, "prompts": [[3, 1, 4]]})
    assert "blocks.18" in (tmp_path / "head.html").read_text(encoding="utf-8")


@CLONE
@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    """Files that a page links to exist, and so do the headings; pages of the web are not asked for."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in (found["target"] for found in LINK.finditer(text)):
        if re.match(r"https?://|mailto:", target):
            continue
        name, _, fragment = target.partition("#")
        linked = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        assert linked.exists(), f"{page} links to `{target}`, which does not exist"
        if fragment:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert fragment in map(anchor, headings), f"{page} links to `{target}`: no such heading"


@CLONE
def test_pages_name_every_piece():
    """A mask that is added is on the page of masks, a score in the README, and so on."""
    pages = {
        "jattn/masks/README.md": jattn.masks,
        "jattn/positions/README.md": jattn.positions,
        "README.md": jattn.scores,
    }
    for page, room in pages.items():
        text = (ROOT / page).read_text(encoding="utf-8")
        missing = [name for name in room.__all__ if name not in text and name not in ABSTRACT]
        assert not missing, f"{page} does not name {missing}"


def test_tables_of_files_are_those_of_the_folder():
    """A table headed `file` names every file of its page's folder, and no other."""
    found = {
        page: re.search(r"^\| file \|.*\n\|---.*\n((?:\|.*\n)+)", (ROOT / page).read_text(), re.M) for page in PAGES
    }
    tables = {page: one[1] for page, one in found.items() if one is not None}
    assert tables
    for page, table in tables.items():
        named = [name for row in table.splitlines() for name in row.split("|")[1].replace(" ", "").split(",")]
        there = {path.name for path in (ROOT / page).parent.glob("*.py")} - {"__init__.py"}
        assert len(named) == len(set(named)) and set(named) == there, f"{page}: {sorted(set(named) ^ there)}"


def test_pages_have_examples():
    """What the first test runs is not nothing."""
    counts = {page: (ROOT / page).read_text(encoding="utf-8").count("```python\n") for page in PAGES}
    assert counts["README.md"] >= 1 and sum(counts.values()) >= 10, counts


@pytest.mark.parametrize("name", ["train", "test"])
def test_commands_are_one_line_and_install_an_extra_that_exists(name):
    found = re.search(rf"<!-- command: {name} -->\n```sh\n(.+)\n```", README)
    assert found, f"README.md has no one-line block behind <!-- command: {name} -->"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = re.findall(r"\.\[(.+?)\]", found[1])
    assert extras
    for extra in extras[0].split(","):
        assert extra in project["optional-dependencies"]
    for script in re.findall(r"examples/\S+\.py", found[1]):
        assert (ROOT / script).exists()

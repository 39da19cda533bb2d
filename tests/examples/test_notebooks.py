"""The notebooks: the scripts and the `.ipynb` beside them agree, their first cell speaks in words, and they run."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import jax
import pytest
from processes import start_python

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "notebooks"
URL = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
SCRIPTS = [path for path in sorted(FOLDER.glob("*.py")) if path.name != "generate.py"]
BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"


def text(path):
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def generate():
    """The module `examples/notebooks/generate.py`."""
    spec = importlib.util.spec_from_file_location("generate_notebooks", FOLDER / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def first_cell(generate, path):
    return next(cell.source for cell in generate.cells(text(path)) if cell.kind == "code")


def test_scripts_and_notebooks_agree(generate):
    """Also that the notebooks have no outputs, and that there is none without a script."""
    assert SCRIPTS and {path.stem for path in SCRIPTS} == {path.stem for path in FOLDER.glob("*.ipynb")}
    for path in SCRIPTS:
        made = path.with_suffix(".ipynb")
        assert text(made) == generate.notebook(text(path)), f"{made.name}: run python examples/notebooks/generate.py"
        assert not re.search(r"^# ```\w* \S", text(path), re.MULTILINE), f"{path.name}: code on the line of its fence"
        cells = json.loads(text(made))["cells"]
        assert len({cell["id"] for cell in cells}) == len(cells) and not any(cell.get("outputs") for cell in cells)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_notebooks_open_on_colab(generate, path):
    """The badge leads to the notebook itself, files of the repository exist, and the first cell is that of all."""
    colab = f"{URL.replace('github.com', 'colab.research.google.com/github')}/blob/main/examples/notebooks"
    title, first, *_ = generate.cells(text(path))
    assert title.kind == "markdown" and title.source.startswith("# ")
    badge = f"{BADGE}({colab}/{path.stem}.ipynb)"
    assert badge in title.source and badge in text(ROOT / "examples" / "README.md")
    assert first.source == first_cell(generate, SCRIPTS[0])
    assert f'REPOSITORY = "{URL}"' in first.source
    if (ROOT / ".github").exists():  # a clone, which has all pages
        for linked in re.findall(rf"{URL}/(?:blob|tree)/main/([^)#\s]+)", text(path)):
            assert (ROOT / linked).exists(), linked


def run_first_cell(generate, monkeypatch, **modules):
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name.replace("_", "."), module)
    monkeypatch.setattr(sys, "path", list(sys.path))
    names = {}
    exec(first_cell(generate, SCRIPTS[0]), names)
    return names


@pytest.mark.parametrize("version", ["0.9.2", "0.4.35"])
def test_an_old_jax_is_refused_in_words(generate, monkeypatch, version):
    with pytest.raises(RuntimeError, match=rf"needs JAX 0\.10 or newer, and this kernel has JAX {version}.*restart"):
        run_first_cell(generate, monkeypatch, jax=types.SimpleNamespace(__version__=version, __spec__=jax.__spec__))


def test_without_jattn_it_says_how_to_install_it(generate, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "jattn" else find(name))
    with pytest.raises(RuntimeError, match="jattn is not installed: run `pip install"):
        run_first_cell(generate, monkeypatch)


@pytest.mark.parametrize("tpu", [False, True])
def test_on_colab_it_installs(generate, monkeypatch, tpu):
    """A clone, the package with what the notebooks need, and JAX for the accelerator."""
    for name in [name for name in os.environ if name.startswith(("COLAB_TPU", "TPU_"))]:
        monkeypatch.delenv(name)
    if tpu:
        monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v5e-1")
    commands = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command))
    names = run_first_cell(generate, monkeypatch, google_colab=types.ModuleType("google.colab"))
    clone, install = commands
    assert clone[-2:] == [URL, "/content/jattn"] and str(names["EXAMPLES"]) in sys.path
    assert "/content/jattn[examples,models]" in install
    assert [part for part in install if part.startswith("jax")] == [f"jax{'[tpu]' if tpu else ''}>=0.10"]


DOWNLOAD = {"look_inside"}
"""Notebooks that download weights; at a small size 3 MB."""


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=pytest.mark.published if path.stem in DOWNLOAD else ())
        for path in SCRIPTS
    ],
)
def test_cells_run_in_order(path, monkeypatch):
    """From top to bottom in a fresh process, at a small size, without a warning."""
    monkeypatch.setenv("JATTN_NOTEBOOK", "small")
    monkeypatch.chdir(FOLDER)
    # Pictures are shown where a notebook shows them; the backend of the tests has no screen, and may say so.
    quiet = "-W", "ignore:FigureCanvasAgg is non-interactive"
    process = start_python("-W", "error", *quiet, path.name, devices=8)
    printed, _ = process.communicate(timeout=600)
    if path.stem in DOWNLOAD and "weights cannot be downloaded" in printed:
        pytest.skip(f"NOT TESTED: {printed.strip().splitlines()[-1]}")
    assert process.returncode == 0, printed

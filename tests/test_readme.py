"""The README is true: its Python runs from top to bottom, and prints what it says it prints."""

import contextlib
import io
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"(?P<mark><!-- output -->\n)?^```(?P<language>\w+)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


@pytest.mark.exhaustive  # sequences of thousands of tokens
def test_python_blocks_run_and_print_what_they_say():
    namespace: dict = {"__name__": "readme"}
    printed = None
    count = 0
    for block in BLOCK.finditer(README):
        line = README[: block.start()].count("\n") + 1
        if block["language"] == "python":
            assert not printed, f"README.md, before line {line}: output is printed and not shown"
            stdout = io.StringIO()
            with contextlib.redirect_stdout(stdout):
                # the newlines make a traceback's line number the README's
                exec(compile("\n" * line + block["body"], str(ROOT / "README.md"), "exec"), namespace)
            printed = stdout.getvalue()
            count += 1
        elif block["mark"]:
            assert printed is not None, f"README.md, line {line}: output of no Python block"
            assert lines(block["body"]) == lines(printed), f"README.md, line {line}, should read:\n{printed}"
            printed = None
    assert not printed, "README.md: output of the last Python block is not shown"
    assert count >= 5


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

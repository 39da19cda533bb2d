"""How many files a reader opens to follow a call, from the public function to the gradient of the last tile.

A value and its gradient are computed once, with nothing traced before, and each call of a function of the package is
noted. Three numbers of files follow, each with its limit:

- *at once*: the longest chain of callers, which is what a reader holds in mind at any one time;
- *carrying*: the files that carry the call, which are operations, layers and their skins. Their vocabulary, which a
  reader knows from elsewhere, is left out: `foundation`, and the pieces of the call (masks, scores, similarities,
  normalizers). The plan of tiles, a journey of its own from a mask to a table, counts as one;
- *all*: every file in which any function was called, with vocabulary, plan and all.

A change that adds a file to a journey raises one of them; the limits may only fall.
"""

import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import jattn
import jattn.nnx

ROOT = Path(jattn.__file__).parent
VOCABULARY = ("foundation", "masks", "scores", "similarities", "normalizers", "positions")
PLAN = "ops/attention/plan"


@functools.cache
def name(path: str) -> str | None:
    """Of a file of the package."""
    return Path(path).relative_to(ROOT).as_posix() if path.startswith(str(ROOT)) else None


def journey(function, *arguments) -> tuple[set[str], int]:
    """All files on the way, and the most whose functions are being called at the same time."""
    files, at_once = set(), 0

    def called(frame, event, _):
        nonlocal at_once
        if event != "call" or (here := name(frame.f_code.co_filename)) is None:
            return
        files.add(here)
        callers = set()
        while frame is not None:
            callers.add(name(frame.f_code.co_filename))
            frame = frame.f_back
        at_once = max(at_once, len(callers - {None}))

    before = sys.getprofile()
    sys.setprofile(called)
    try:
        function(*arguments)
    finally:
        sys.setprofile(before)
    return files, at_once


def carrying(files):
    return {PLAN if file.startswith(PLAN) else file for file in files if not file.startswith(VOCABULARY)}


def attend(mask):
    def loss(query, key, value):
        return jattn.attention(query, key, value, mask=mask).sum()

    arrays = jax.random.normal(jax.random.key(0), (3, 1, 6, 2, 4))
    return journey(jax.value_and_grad(loss, (0, 1, 2)), *arrays)


def attend_in_a_layer(mask):
    layer = jattn.nnx.MultiHeadAttention(8, 2, rngs=nnx.Rngs(0))
    return journey(nnx.value_and_grad(lambda layer, x: layer(x, mask=mask).sum()), layer, jnp.ones((1, 7, 8)))


@pytest.mark.parametrize(
    "mask", [pytest.param(None, marks=pytest.mark.exhaustive), jattn.masks.Causal()], ids=["no mask", "causal"]
)
@pytest.mark.parametrize(
    ("start", "at_once", "carry", "all_"),
    [(attend, 10, 12, 28), (attend_in_a_layer, 14, 17, 34)],
    ids=["attention", "layer"],
)
def test_a_call_passes_through_few_files(start, at_once, carry, all_, mask):
    jax.clear_caches()  # what was traced already calls nothing
    files, found = start(mask)
    assert {"ops/attention/api.py", "ops/attention/implementations/tiled/backward.py"} <= files
    assert found <= at_once
    assert len(carrying(files)) <= carry, sorted(carrying(files))
    assert len(files) <= all_, sorted(files)

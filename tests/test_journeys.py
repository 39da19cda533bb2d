"""How many files a reader opens to follow a call, from the public function to the gradient of the last tile.

A journey is the set of files of the package in which a function is called, while a value and its gradient are computed
once. What is counted are the rooms that carry the call: operations, layers and their skins. Their vocabulary, which a
reader knows from elsewhere, is not: `foundation`, and the pieces of the call (masks, scores, similarities,
normalizers). The plan of tiles, a journey of its own from a mask to a table, counts as one. A second limit is for all
files, with vocabulary and plan.
"""

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


def journey(function, *arguments) -> set[str]:
    """All files on the way."""
    files = set()

    def called(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(str(ROOT)):
            files.add(Path(frame.f_code.co_filename).relative_to(ROOT).as_posix())

    before = sys.getprofile()
    sys.setprofile(called)
    try:
        function(*arguments)
    finally:
        sys.setprofile(before)
    return files


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
    ("start", "most", "most_of_all"),
    [(attend, 15, 37), pytest.param(attend_in_a_layer, 20, 42, marks=pytest.mark.exhaustive)],
    ids=["attention", "layer"],
)
def test_a_call_passes_through_few_files(start, most, most_of_all, mask):
    jax.clear_caches()  # what was traced already calls nothing
    files = start(mask)
    assert {"ops/attention/api.py", "ops/attention/implementations/tiled/backward.py"} <= files
    assert len(carrying(files)) <= most, sorted(carrying(files))
    assert len(files) <= most_of_all, sorted(files)

"""The picture of a plan."""

import jax
import numpy as np
import pytest

from jattn import masks
from jattn.ops.attention.plan import Plan, picture


def test_full_partial_and_empty_cells():
    states = np.array([[[1, 0], [2, 1]]], np.uint8)
    assert picture(Plan(states, 4, 4, 8, 8)) == "▒·\n█▒\nvisited 3 of 4 tiles (75.0%), 1 of them full"


@pytest.mark.parametrize("length", [1, 47, 48, 49, 1000, 5000])
def test_at_most_48_cells_whatever_the_length(length):
    rows = masks.Causal().picture(length, length).splitlines()[:-2]
    assert 1 <= len(rows) <= 48
    assert {len(row) for row in rows} == {len(rows)}


def test_a_finer_plan_is_drawn_coarser():
    states = np.full((1, 100, 100), 2, np.uint8)
    states[0, 0, 0] = 0
    rows = picture(Plan(states, 1, 1, 100, 100)).splitlines()[:-1]
    assert len(rows) == len(rows[0]) == 34
    assert "".join(rows).count("▒") == 1 and rows[0][0] == "▒"


def test_the_first_of_several_heads_and_sequences():
    text = masks.SlidingWindow(np.array([[0, 2], [1, 3], [2, 3]]), 0).picture(4, 4)
    assert text.startswith("█···\n·█··\n")
    assert "the first of 3 sequences, 2 heads" in text
    assert "visited 49 of 96 tiles" in text  # 4 + 9, 7 + 10 and 9 + 10 pairs


def test_arrays_on_the_device_are_read():
    ids = jax.numpy.array([0, 0, 1])
    assert masks.SameSegment(ids).picture(3, 3).startswith("██·\n██·\n··█\n")


def test_lengths_that_differ_need_positions():
    with pytest.raises(ValueError, match=r"`query_positions` is needed.*if the last"):
        masks.Causal().picture(2, 4)
    assert masks.Causal().picture(2, 4, np.arange(2, 4)).startswith("███·\n████\n")
    assert masks.Sinks(1).picture(2, 4).startswith("█···\n█···\n")


def test_inside_jit_there_is_nothing_to_draw():
    with pytest.raises(ValueError, match="not known while tracing"):
        jax.jit(lambda ids: masks.SameSegment(ids).picture(3, 3))(np.arange(3))
    plan = jax.eval_shape(lambda: jax.numpy.zeros((1, 2, 2), np.uint8))
    assert "run time" in picture(Plan(plan, 1, 1, 2, 2))

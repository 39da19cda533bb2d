"""The suite of models that generate has its rows; a tiny model runs on our side."""

from jattn.benchmarks import generating
from jattn.benchmarks.sides import Shape
from jattn.benchmarks.suites import SUITES


def test_every_row_has_a_name_of_its_own():
    rows = generating.generating()
    assert len({row.name for row in rows}) == len(rows)
    assert SUITES["models"] is generating.generating


def test_our_side_runs():
    tiny = generating.GPT2 | {"vocab_size": 11, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
    generating.ours(tiny, 2).build(Shape("tiny", 4, q_heads=2, kv_heads=2, dim=4))()

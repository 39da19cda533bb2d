"""The suite of whole models has its rows; tiny models run on our side."""

import numpy as np

from jattn.benchmarks import encoding, generating, peak
from jattn.benchmarks.sides import Shape
from jattn.benchmarks.suites import SUITES


def test_every_row_has_a_name_of_its_own():
    rows = SUITES["models"]()
    assert {row.name for row in rows} >= {"gpt2-decode", "bert", "load"}
    assert len({row.name for row in rows}) == len(rows)


def test_our_side_runs():
    tiny = generating.GPT2 | {"vocab_size": 11, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2}
    generating.ours(tiny, 2).build(Shape("tiny", 4, q_heads=2, kv_heads=2, dim=4))()


def test_packed_texts_are_those_of_the_batch():
    """Every token is there once, in order, and padding is what is left."""
    lengths = encoding.LENGTHS
    texts, positions = encoding.packed(lengths, lengths[0])
    assert texts.shape == (4, lengths[0])
    for text, length in enumerate(lengths):
        np.testing.assert_array_equal(positions[texts == text], np.arange(length))
    tiny = encoding.BERT | dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    encoding.packed_texts(tiny).build(Shape("tiny", 16, q_heads=2, kv_heads=2, dim=4, batch=3))()


def test_the_peak_of_memory_is_measured_in_a_process_of_its_own():
    """Of a process that holds JAX."""
    found = peak.measured("cpu", "alibi", "ours", {"length": 64})
    if found is not None:  # only Linux tells
        assert 2**24 < found < 2**34
    assert peak.shown(2**30) == ", 1.00 GiB"

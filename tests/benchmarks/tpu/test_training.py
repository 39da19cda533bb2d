"""A training step of a small Llama compiles for sixteen chips, with the kernel inside."""

import dataclasses

import pytest
from tpu import needs_libtpu

from jattn.benchmarks.suites import SUITES
from jattn.benchmarks.tpu import training


def test_rows():
    rows = SUITES["train"]()
    assert [row.config.depth for row in rows] == [1, 32]
    assert all(row.length == 4096 and row.config.remat and row.config.scan for row in rows)


@needs_libtpu
@pytest.mark.exhaustive
def test_a_small_model_compiles_with_the_kernel_inside():
    sizes = {
        "vocabulary": 512,
        "features": 256,
        "depth": 2,
        "heads": 2,
        "kv_heads": 2,
        "mlp_features": 512,
        "windows": None,
    }
    step = training.compiled_step(dataclasses.replace(training.LLAMA_7B, **sizes), length=512, batch=training.CHIPS)
    assert step.kernels >= 2
    # Embedding, head, projections, feed-forward layer and norms: in bfloat16 with two moments, a sixteenth on a chip.
    parameters = 2 * 512 * 256 + 2 * (4 * 256 * 256 + 3 * 256 * 512 + 2 * 256) + 256
    assert 6 * parameters / 16 <= step.arguments < 1.3 * 6 * parameters / 16

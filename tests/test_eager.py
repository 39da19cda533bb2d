"""Outside `jit` nothing is compiled twice: a second call with other values reuses the program of the first."""

import jax
import numpy as np
import pytest
from jax import monitoring
from tiers import rows

import jattn
from jattn.normalizers import Entmax15, Softmax, Sparsemax
from jattn.ops.recurrence import delta_rule, linear_recurrence
from jattn.similarities import Additive
from jattn.variants.low_rank import pseudo_inverse
from jattn.variants.structured import chain_log_partition, nonprojective_log_partition, projective_log_partition

COMPILED = []


def count(event: str, duration_secs: float, **_: str | int) -> None:
    if event.endswith("backend_compile_duration"):
        COMPILED.append(event)


monitoring.register_event_duration_secs_listener(count)


def arrays(seed):
    return [jax.random.normal(jax.random.key(seed + i), (2, 9, 2, 4)) for i in range(3)]


def attend(**pieces):
    return lambda q, k, v: jattn.attention(q, k, v, **pieces)


def gradient(**pieces):
    return jax.grad(lambda q, k, v: jattn.attention(q, k, v, **pieces).sum())


CAUSAL = jattn.masks.Causal()
CALLS = {
    "reference": attend(mask=CAUSAL, implementation="reference"),
    "reference, gradient": gradient(mask=CAUSAL, implementation="reference"),
    "reference, sink and dropout": attend(
        normalizer=Softmax.off_by_one(), dropout=jattn.Dropout(0.5, jax.random.key(0)), implementation="reference"
    ),
    "reference, additive": attend(
        similarity=Additive(*(np.ones(shape, np.float32) for shape in ((4, 3), (4, 3), (3,)))),
        implementation="reference",
    ),
    "tiled": attend(mask=CAUSAL, implementation="tiled"),
    "sparsemax": attend(normalizer=Sparsemax()),
    "sparsemax, gradient": gradient(normalizer=Sparsemax()),
    "entmax": attend(normalizer=Entmax15()),
    "weights": lambda q, k, v: jattn.attention_weights(q, k, mask=CAUSAL, queries=[3]),
    "linear recurrence, scan": lambda q, k, v: linear_recurrence(q, k, v, implementation="scan"),
    "linear recurrence, chunked": lambda q, k, v: linear_recurrence(q, k, v, chunk=4),
    "delta rule, scan": lambda q, k, v: delta_rule(q / 4, k / 4, v, v[..., 0] * 0 + 0.5, implementation="scan"),
    "delta rule, chunked": lambda q, k, v: delta_rule(q / 4, k / 4, v, v[..., 0] * 0 + 0.5, chunk=4),
    "projective trees": lambda q, k, v: projective_log_partition(q[..., 0, :3] @ q[..., 0, :3].mT),
    "trees": lambda q, k, v: nonprojective_log_partition(q[..., 0, :3] @ q[..., 0, :3].mT),
    "chain": lambda q, k, v: chain_log_partition(q[..., 0, :], k[0, :4, 0]),
    "pseudo-inverse": lambda q, k, v: pseudo_inverse(q[..., 0, :]),
    "partial": lambda q, k, v: jattn.partial_attention(q, k, v, implementation="reference").lse,
}


@pytest.mark.parametrize("name", rows(CALLS, list(CALLS)[::3]))
def test_second_call_compiles_nothing(name):
    call = CALLS[name]
    COMPILED.clear()
    call(*arrays(0))
    assert COMPILED, "nothing was counted"
    inputs = jax.block_until_ready(arrays(7))
    COMPILED.clear()
    call(*inputs)
    assert not COMPILED


@pytest.mark.parametrize("transform", ["attention", "gradient", "vmap"])
def test_new_numbers_with_the_same_plan_compile_nothing(transform):
    """NumPy masks and positions decide the plan while tracing; those that decide the same share a program."""
    random = np.random.default_rng(0)

    def call(seed):
        query, key, value = arrays(seed)
        allowed = random.random((1, 9, 9)) < 0.5
        allowed[0, 0, 0], allowed[0, 1, 1] = True, False
        mask = jattn.masks.Dense(allowed)

        def loss(query):
            return jattn.attention(query, key, value, mask=mask, implementation="tiled").sum()

        several = {"attention": loss, "gradient": jax.grad(loss)}.get(transform)
        return several(query) if several else jax.vmap(loss)(query[None])

    call(0)
    jax.block_until_ready(arrays(7))
    COMPILED.clear()
    call(7)
    assert not COMPILED

"""Top-k attention selects the best keys exactly, ties to the earlier key, and differentiates through the selected."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import close, normal
from tiers import rows

import jattn
from jattn import masks, normalizers, scores, similarities
from jattn.variants.selection import best_keys, top_k

CAUSAL = masks.Causal()


Q, K, V, SINK, *ADDITIVE = normal(1, (2, 6, 4, 3), (2, 5, 2, 3), (2, 5, 2, 2), (4,), (3, 5), (3, 5), (4, 5))
PIECES = {
    "a similarity": {"similarity": similarities.Gaussian(np.float32([0.3, 0.5, 0.1, 1.0]))},
    "a sink": {"similarity": similarities.Additive(*ADDITIVE), "normalizer": normalizers.Softmax(SINK)},
    "sparsemax": {"normalizer": normalizers.Sparsemax(), "mask": masks.Lengths(np.array([3, 5]))},
    "scores": {
        "scores": [scores.ALiBi(np.float32([0.5, 0.25, 0.1, 1.0])), scores.SoftCap(1.0)],
        "query_positions": np.arange(6),
        "mask": CAUSAL,
    },
    "segments": {"mask": masks.SameSegment(np.array([[0, 0, 0, 1, 1, 1]] * 2), np.array([[0, 0, 1, 1, 1]] * 2))},
}


@pytest.mark.parametrize("name", rows(PIECES, ["a sink", "scores"]))
def test_all_keys_are_attention_whatever_the_pieces(name):
    both = jax.jit(lambda pieces: (top_k(Q, K, V, 9, **pieces), jattn.attention(Q, K, V, **pieces)))
    close(*both(PIECES[name]), 1e-5)


def test_of_equal_scores_the_earlier_key_is_kept(monkeypatch):
    monkeypatch.setattr(best_keys, "TILE", 3)
    q, k = np.ones((1, 1, 1), np.float32), np.ones((8, 1, 1), np.float32)
    v = np.eye(8, dtype=np.float32)[:, None]
    run = jax.jit(lambda *qkv: top_k(*qkv, 3, mask=lambda q, k: k != 1))
    close(run(q, k, v)[0, 0], np.array([1, 0, 1, 1, 0, 0, 0, 0]) / 3, 1e-6)


def test_no_keys():
    q, k, v = normal(3, (5, 2, 4), (0, 1, 4), (0, 1, 3))
    assert not np.asarray(top_k(q, k, v, 2)).any()


@pytest.mark.exhaustive
def test_memory_is_not_quadratic():
    def temporaries(length):
        arrays = [jax.ShapeDtypeStruct((length, 1, 8), jnp.float32)] * 3
        gradient = jax.grad(lambda q, k, v: top_k(q, k, v, 4, mask=CAUSAL).sum(), argnums=(0, 1, 2))
        return jax.jit(gradient).lower(*arrays).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(8192) < 2.5 * temporaries(4096)


@pytest.mark.parametrize("count", [0, -1, 1.5, True])
def test_a_count_that_cannot_be(count):
    q = jnp.ones((3, 1, 2))
    with pytest.raises(ValueError, match="`count` must be a positive int"):
        top_k(q, q, q, count)

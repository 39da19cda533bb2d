"""What the kernel refuses, each by name before anything runs, and the sizes that it chooses so as not to refuse."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import jattn
from jattn import masks, normalizers, scores, similarities
from jattn.foundation.pieces import piece
from jattn.ops.attention.implementations.pallas_tpu import PallasTPU


@piece
class Largest(similarities.Similarity):
    """max_f q_f k_f: no sum over features."""

    is_dot = False
    rewrites_key = False

    def prepare(self, query, key):
        return similarities.Prepared(query, key, 1.0)

    def pair(self, query, key):
        return (query[..., :, None, :] * key[..., None, :, :]).max(-1)


def shaped(*shape, dtype="bfloat16"):
    return jax.ShapeDtypeStruct(shape, dtype)


def arrays(q_len=512, kv_len=512, heads=(4, 4), dim=128, dtype="bfloat16"):
    q_heads, kv_heads = heads
    key = shaped(1, kv_len, kv_heads, dim, dtype=dtype)
    return shaped(1, q_len, q_heads, dim, dtype=dtype), key, key


WIDE = jnp.zeros((100, 100))
V5E = "tpu v5e"
REFUSED: dict[str, tuple[Any, Any, str, str]] = {
    # arrays, pieces, target, a part of the reason
    "sparsemax": (arrays(), {"normalizer": normalizers.Sparsemax()}, V5E, "Sparsemax cannot stream"),
    "entmax": (arrays(), {"normalizer": normalizers.Entmax15()}, V5E, "Entmax15 cannot stream"),
    "no sum over features": (
        arrays(),
        {"similarity": Largest()},
        V5E,
        "`Largest` needs an operation over the features of a pair other than one sum",
    ),
    "a primitive": (arrays(), {"scores": lambda s, q, k: jnp.cbrt(s)}, V5E, "`scores`: .* needs `cbrt`"),
    "a primitive in a mask": (
        arrays(8192, 8192),
        {"mask": lambda q, k: jnp.arcsinh(q * k * 0.1) < 3},
        V5E,
        "`mask`.*`asinh`",
    ),
    "a table of pairs": (
        arrays(2**13, 2**13),
        {"scores": lambda s, q, k: s + WIDE[q % 100, (q + k) % 100]},
        V5E,
        "in a table of 100 entries .*67,108,864 numbers; at most 33,554,432",
    ),
    "float64": (arrays(dtype="float64"), {}, V5E, "it computes bfloat16 and float32 and float16, .* float64"),
    "a cache in float16": (arrays(1, dtype="float16"), {}, V5E, "keep them in bfloat16 or float32"),
    "an old generation": (arrays(), {}, "tpu v3", "it knows the TPU generations v4, .* the target is tpu v3"),
    "a GPU": (arrays(), {}, "cuda h100", "it is for TPUs, and the program is for cuda.*PallasTPU\\(interpret=True\\)"),
    "heads of a step": (arrays(), {"implementation": PallasTPU(heads=3)}, V5E, "`heads` must divide"),
    "tiles": (arrays(2**15), {"implementation": PallasTPU(q_tile=2**14)}, V5E, "choose a smaller `q_tile`"),
    "too many features": (arrays(dim=8192, dtype="float32"), {}, V5E, "MiB of vector memory.*no step is smaller"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name):
    given, pieces, target, reason = REFUSED[name]
    pieces = {"implementation": PallasTPU()} | pieces
    with jax.enable_x64(True), pytest.raises(jattn.Unsupported, match="`pallas_tpu` refuses this call") as error:
        jattn.explain(*given, target=target, **pieces)
    own = str(error.value).partition("Others:")[0]
    assert re.search(reason, own), own


def test_on_a_machine_without_a_tpu():
    query, key, value = (jnp.zeros(one.shape, one.dtype) for one in arrays())
    for kernel in ("pallas_tpu", PallasTPU()):
        with pytest.raises(jattn.Unsupported, match=r"jattn.compiled_for\('tpu v6e'\).*PallasTPU\(interpret=True\)"):
            jattn.attention(query, key, value, implementation=kernel)


@pytest.mark.parametrize("sizes", [{"q_tile": 100}, {"kv_tile": 0}, {"heads": 0}, {"heads": True}, {"interpret": 1}])
def test_sizes_are_checked(sizes):
    with pytest.raises(ValueError, match=f"`{next(iter(sizes))}` must be"):
        PallasTPU(**sizes)


@pytest.mark.parametrize(
    "target, dim, dtype, sizes",
    [
        ("tpu v4", 128, "bfloat16", "4 query heads x 256 queries x 256 keys"),
        ("tpu v4", 256, "bfloat16", "2 query heads x 256 queries x 256 keys"),
        ("tpu v4", 256, "float32", "2 query heads x 256 queries x 128 keys"),
        ("tpu v4", 512, "float32", "1 query head x 256 queries x 128 keys"),
        ("tpu v5e", 256, "float32", "2 query heads x 256 queries x 128 keys"),
        ("tpu v6e", 256, "float32", "2 query heads x 256 queries x 256 keys"),
        ("tpu v6e", 1024, "float32", "2 query heads x 128 queries x 128 keys"),
        ("tpu v5e", 2048, "bfloat16", "2 query heads x 256 queries x 256 keys"),
    ],
)
def test_a_step_is_as_large_as_its_memory(target, dim, dtype, sizes):
    """Fewer heads, then smaller tiles, before the call is refused."""
    found = jattn.explain(*arrays(1024, 1024, dim=dim, dtype=dtype), target=target, implementation=PallasTPU())
    assert f"{sizes} a step" in found.memory


@pytest.mark.parametrize("target, plain, scored", [("tpu v5e", 4, 2), ("tpu v5p", 2, 2), ("tpu v6e", 4, 4)])
def test_long_loops_of_the_backward_pass_have_half_the_heads(target, plain, scored):
    """The gradients of the keys of a step with a key head for each query head tell how many it has."""
    for pieces, heads in (({}, plain), ({"scores": scores.SoftCap(9.0), "mask": masks.Causal()}, scored)):
        said = jattn.explain(*arrays(512, 512), target=target, implementation=PallasTPU(), **pieces).memory
        assert f"the gradients of all keys ({heads}.0 MiB)" in said

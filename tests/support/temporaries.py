"""The memory of a compiled gradient."""

import jax

import jattn

MIB = 2**20


def gradient_temporaries(length, *, heads=8, dim=64, implementation="tiled", lse=False, **given):
    """Bytes that the compiled gradient takes beside its inputs and outputs."""
    array = jax.ShapeDtypeStruct((1, length, heads, dim), "float32")

    def loss(query, key, value):
        out, mass = jattn.partial_attention(query, key, value, implementation=implementation, **given)
        return out.sum() + (mass.sum() if lse else 0)

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(array, array, array).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes

"""An invalid memory, or one of another layer, is rejected by name."""

import jax
import jax.numpy as jnp
import pytest

from jattn.variants.memory import (
    Compressive,
    Memorizing,
    TransformerXL,
    TuringMemory,
    address,
    ring_buffer_attention,
    write_ring_buffer,
)

LAYERS = {
    "SegmentMemory": TransformerXL(16, 2, 8),
    "CompressiveMemory": Compressive(16, heads=2, memory_len=8, compressed_len=4, rate=2),
    "RingBuffer": Memorizing(16, heads=2, memory_size=9, top_k=4),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_what_is_no_memory(kind):
    layer = LAYERS[kind]
    parameters = layer.init(jax.random.key(0))
    for wrong in (jnp.zeros((3, 8, 16)), (1, 2), "memory"):
        with pytest.raises(ValueError, match=f"`memory` must be a {kind}, as an earlier call returns it; got"):
            layer(parameters, jnp.ones((3, 6, 16)), wrong)


def test_how_much_is_filled():
    layer = LAYERS["CompressiveMemory"]
    parameters, inputs = layer.init(jax.random.key(0)), jnp.ones((3, 6, 16))
    memory = jax.jit(layer)(parameters, inputs)[1]
    with pytest.raises(ValueError, match=r"`filled` must have shape \[2\]; got \(\)"):
        layer(parameters, inputs, memory._replace(filled=jnp.zeros((), int)))


def test_functions_of_memories():
    rows = jnp.ones((5, 2, 4))
    for call in (lambda: write_ring_buffer((rows, rows), rows, rows), lambda: ring_buffer_attention(rows, None)):
        with pytest.raises(ValueError, match="`buffer` must be a RingBuffer"):
            call()
    layer = TuringMemory(8, slots=16, width=4)
    with pytest.raises(ValueError, match="`state` must be a TuringState"):
        layer(layer.init(jax.random.key(0)), jnp.ones((2, 8)), None)
    with pytest.raises(ValueError, match="`addressing` must be an `Addressing`; got tuple"):
        address(jnp.zeros((4, 2)), jnp.zeros((1, 4)), (1, 2))

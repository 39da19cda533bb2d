"""The rows of the GPU benchmark: bfloat16, compared with XLA's attention and with cuDNN's kernel through JAX."""

from collections.abc import Sequence
from typing import Literal

from . import peers
from .cases import WINDOW, Bar, Memory, Speed, causal, packed, window
from .sides import Choice, Shape, jattn

PEERS: tuple[tuple[Literal["xla", "cudnn"], str, float], ...] = (("xla", "jax.nn", 1.0), ("cudnn", "cuDNN", 0.5))
"""What jattn is compared with, its name, and the target of the ratio."""


def gpu(length: int = 8192, long: int = 16384) -> Sequence[Speed | Memory]:
    """The rows for a GPU.

    Args:
        length: the sequence length of the Llama shape; the GPT shape has a quarter of it, four times.
        long: the length of the row with a window.
    """
    gpt = Shape("GPT-2 medium", length // 4, q_heads=16, kv_heads=16, dim=64, batch=4, dtype="bfloat16")
    llama = Shape("Llama 3 8B", length, q_heads=32, kv_heads=8, dim=128, batch=2, dtype="bfloat16")
    far = Shape("GPT-2 medium", long, q_heads=16, kv_heads=16, dim=64, dtype="bfloat16")
    plain, near = Choice(causal), Choice(window)
    rows: list[Speed | Memory] = []
    for label, shape in (("gpt", gpt), ("llama", llama)):
        for other, name, least in PEERS:
            for backward in (False, True):
                rows.append(
                    Speed(
                        f"{label}-{other}" + ("-grad" if backward else ""),
                        f"{shape.model}, causal, {'forward + backward' if backward else 'forward'} vs. {name}",
                        shape,
                        jattn("jattn", plain, backward=backward),
                        peers.jax_nn(backward=backward, implementation=other),
                        Bar(least),
                    )
                )
    return (
        *rows,
        Speed(
            "window-cudnn",
            f"window {WINDOW}, forward vs. cuDNN",
            far,
            jattn("jattn", near),
            peers.jax_nn(implementation="cudnn", window=WINDOW),
            Bar(0.5),
        ),
        Speed(
            "packed",
            "eight packed documents: time vs. plain causal",
            llama,
            jattn("jattn", Choice(packed(8))),
            jattn("plain causal", plain),
            Bar(0.5, at_most=True),
        ),
        Memory(
            "memory",
            "temporaries of the compiled gradient",
            tuple(
                Shape("GPT-2 medium", each, 16, 16, 64, dtype="bfloat16") for each in (length // 2, length, 2 * length)
            ),
            jattn("jattn", plain, backward=True),
            peers.jax_nn(backward=True),
            Bar(700, at_most=True),
        ),
    )

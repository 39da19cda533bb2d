"""JAX's splash attention, as a kernel to compare with."""

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

FORWARD, BACKWARD = "splash_mha_fwd_residuals", "splash_mha_dkv_no_residuals"
"""The names of its kernels."""

HEADS = 2


def run(length: int, tile: int) -> Callable[..., Any]:
    """Its causal forward and fused backward pass of query, key and value, `[HEADS, length, dim]`."""
    mask = masks.MultiHeadMask([masks.CausalMask((length, length)) for _ in range(HEADS)])
    sizes = splash.BlockSizes(
        block_q=tile,
        block_kv=tile,
        block_kv_compute=tile,
        block_q_dkv=tile,
        block_kv_dkv=tile,
        block_kv_dkv_compute=tile,
        use_fused_bwd_kernel=True,
    )
    kernel = splash.make_splash_mha_single_device(mask, block_sizes=sizes)

    def both(query, key, value):
        out, pull = jax.vjp(kernel, query, key, value)
        return pull(out)

    return both

"""Every layer that generates, at small size, and random parameters for it."""

from typing import Any

import jax
import numpy as np

from jattn.layers import CausalAttention, Generative
from jattn.variants.attention_free import AFTConv, AFTFull, AFTLocal, AFTSimple, Hyena
from jattn.variants.gated import ForgettingAttention
from jattn.variants.kernelized import Based, CosFormer, Hedgehog, LinearTransformer, Performer
from jattn.variants.recurrent import GLA, RWKV, DeltaNet, GatedDeltaNet, KimiDelta, Mamba2, RetNet

FEATURES, LENGTH = 10, 6

LAYERS: dict[str, Generative] = {
    "attention": CausalAttention(FEATURES, 2, max_len=8, head_dim=4),
    "attention, grouped, a window": CausalAttention(FEATURES, 4, max_len=8, kv_heads=2, head_dim=4, window=4),
    "FoX, grouped": ForgettingAttention(FEATURES, 4, max_len=8, kv_heads=2, head_dim=4),
    "RetNet": RetNet(FEATURES, 2, 4, 3),
    "RetNet, grouped": RetNet(FEATURES, 4, 4, 3, kv_heads=2),
    "GLA": GLA(FEATURES, 2, 4, 3),
    "GLA, grouped, convolved": GLA(FEATURES, 4, 4, 3, kv_heads=2, taps=3),
    "Mamba-2": Mamba2(FEATURES, 4, 4, 3, groups=2),
    "RWKV-6": RWKV(FEATURES, 2, 4, 3, gate_rank=5, shift_rank=4),
    "DeltaNet": DeltaNet(FEATURES, 2, 4, 3),
    "Gated DeltaNet": GatedDeltaNet(FEATURES, 2, 4, 3, taps=2, num_v_heads=4, scale=0.5),
    "Kimi Delta": KimiDelta(FEATURES, 2, 4, 3, taps=2, gate_rank=5, allow_neg_eigval=True),
    "Linear Transformer": LinearTransformer(FEATURES, 2),
    "Performer": Performer(FEATURES, 2, random_features=6),
    "cosFormer": CosFormer(FEATURES, 2, max_len=8),
    "Hedgehog": Hedgehog(FEATURES, 2),
    "Based": Based(FEATURES, 2, qk_dim=2),
    "Hyena": Hyena(FEATURES, max_len=8),
    "Hyena, longer than its filters": Hyena(FEATURES, max_len=4),
    "AFT-full": AFTFull(FEATURES, max_len=8, rank=4),
    "AFT-local": AFTLocal(FEATURES, max_len=8, window=3, rank=4),
    "AFT-conv": AFTConv(FEATURES, window=3, heads=2),
    "AFT-simple": AFTSimple(FEATURES),
}
PACKED = [name for name in LAYERS if not name.startswith(("Hyena", "AFT"))]
"""Those that take packed segments."""
FEW = {"attention, grouped, a window", "GLA, grouped, convolved", "Gated DeltaNet", "Hyena", "AFT-full"}
"""One of each kind, for tests that repeat with all layers what they show with these."""


def random_parameters(layer: Generative, seed: int = 1) -> Any:
    """Nothing stays at 0 or 1, where it would hide what it multiplies."""
    leaves, tree = jax.tree.flatten(jax.jit(layer.init)(jax.random.key(seed)))
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(tree, [leaf + 0.3 * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves])

"""The rows of this group in the table of variants."""

from ..catalogue import Variant

VARIANTS: tuple[Variant, ...] = (
    Variant(
        "context modulation",
        "an output gated, scaled or joined by a context: σ(W [c; y]) ⊙ y, σ(cᵀWy) y, tanh(W [c; y]), FiLM",
        "Perez et al. 2018, arXiv:1709.07871",
        "jattn.variants.gated.Modulation",
        "tests/variants/gated/test_modulation.py",
    ),
    Variant(
        "Forgetting Attention (FoX)",
        "softmax attention whose keys fade by a gate of every token between, as `scores.Forget` and a layer",
        "Lin et al. 2025, arXiv:2503.02130",
        "jattn.variants.gated.ForgettingAttention",
        "tests/variants/gated/test_forgetting.py",
    ),
)

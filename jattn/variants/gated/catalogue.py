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
        "pointer-generator",
        "p_gen P_vocab + (1 - p_gen) copied attention, over a vocabulary extended by the source",
        "See et al. 2017, arXiv:1704.04368",
        "jattn.variants.gated.pointer_log_probabilities",
        "tests/variants/gated/test_pointer.py",
        "copying_unknown",
    ),
    Variant(
        "generation gate",
        "the logit of p_gen from context, state and input",
        "See et al. 2017, arXiv:1704.04368",
        "jattn.variants.gated.GenerationGate",
        "tests/variants/gated/test_pointer.py",
    ),
    Variant(
        "coverage",
        "additive attention that sees the sum of earlier steps' weights, and a loss for looking twice",
        "See et al. 2017, arXiv:1704.04368",
        "jattn.variants.gated.CoverageAttention",
        "tests/variants/gated/test_coverage.py",
    ),
    Variant(
        "captioning attention",
        "gated soft attention with the doubly stochastic loss; hard by REINFORCE with a baseline and entropy",
        "Xu et al. 2015, arXiv:1502.03044",
        "jattn.variants.gated.CaptioningAttention",
        "tests/variants/gated/test_captioning.py",
    ),
    Variant(
        "Forgetting Attention (FoX)",
        "softmax attention whose keys fade by a gate of every token between, as `scores.Forget` and a layer",
        "Lin et al. 2025, arXiv:2503.02130",
        "jattn.variants.gated.ForgettingAttention",
        "tests/variants/gated/test_forgetting.py",
    ),
)

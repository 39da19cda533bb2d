"""The rows of this group in the table of variants."""

from ..catalogue import Variant

TESTED = "tests/variants/recurrent/test_layers.py"

VARIANTS: tuple[Variant, ...] = (
    Variant(
        "RetNet",
        "a state that decays at a fixed rate in each head",
        "Sun et al. 2023, arXiv:2307.08621",
        "jattn.variants.recurrent.RetNet",
        TESTED,
        "extrapolation",
    ),
    Variant(
        "GLA",
        "a state with a learned gate for each channel",
        "Yang et al. 2023, arXiv:2312.06635",
        "jattn.variants.recurrent.GLA",
        TESTED,
        "extrapolation",
    ),
    Variant(
        "Mamba-2 (SSD)",
        "a state space model with a scalar gate, as attention",
        "Dao & Gu 2024, arXiv:2405.21060",
        "jattn.variants.recurrent.Mamba2",
        TESTED,
    ),
    Variant(
        "RWKV-6",
        "gates for each channel, and a bonus for the current token",
        "Peng et al. 2024, arXiv:2404.05892",
        "jattn.variants.recurrent.RWKV",
        TESTED,
    ),
    Variant(
        "DeltaNet",
        "a token replaces what the state recalls for its key",
        "Yang et al. 2024, arXiv:2406.06484",
        "jattn.variants.recurrent.DeltaNet",
        TESTED,
        "associative_recall_delta",
    ),
    Variant(
        "Gated DeltaNet",
        "the delta rule with a gate that forgets",
        "Yang et al. 2024, arXiv:2412.06464",
        "jattn.variants.recurrent.GatedDeltaNet",
        TESTED,
        "associative_recall_delta",
    ),
    Variant(
        "Kimi Delta Attention",
        "the delta rule with a gate for each channel",
        "Kimi Team 2025, arXiv:2510.26692",
        "jattn.variants.recurrent.KimiDelta",
        TESTED,
    ),
)

"""The rows of this group in the table of variants."""

from ..catalogue import Variant

VARIANTS: tuple[Variant, ...] = (
    Variant(
        "talking heads",
        "heads mixed before and after the softmax, in one streamed call",
        "Shazeer et al. 2020, arXiv:2003.02436",
        "jattn.variants.heads.TalkingHeads",
        "tests/support/variant_cases/heads.py",
    ),
    Variant(
        "differential",
        "the difference of two softmaxes over the same values",
        "Ye et al. 2024, arXiv:2410.05258",
        "jattn.variants.heads.Differential",
        "tests/variants/heads/test_between_heads.py",
    ),
    Variant(
        "multi-token",
        "scores convolved over queries and keys, and mixed over heads",
        "Golovneva et al. 2025, arXiv:2504.00927",
        "jattn.variants.heads.MultiToken",
        "tests/support/variant_cases/heads.py",
    ),
)

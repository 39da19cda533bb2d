"""The rows of this group in the table of variants."""

from ..catalogue import Variant

VARIANTS: tuple[Variant, ...] = (
    Variant(
        "hard attention",
        "one key, drawn from the weights; straight-through or REINFORCE",
        "Xu et al. 2015, arXiv:1502.03044",
        "jattn.variants.selection.hard",
        "tests/support/variant_cases/selection.py",
    ),
    Variant(
        "top-k",
        "the k best keys of each query, exactly, without a quadratic array",
        "Zhao et al. 2019, arXiv:1912.11637",
        "jattn.variants.selection.top_k",
        "tests/support/variant_cases/selection.py",
    ),
)

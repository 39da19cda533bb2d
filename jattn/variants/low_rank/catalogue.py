"""The rows of this group in the table of variants."""

from ..catalogue import Variant

VARIANTS: tuple[Variant, ...] = (
    Variant(
        "Linformer",
        "keys and values projected to a fixed length; every way of sharing",
        "Wang et al. 2020, arXiv:2006.04768",
        "jattn.variants.low_rank.Linformer",
        "tests/variants/low_rank/test_linformer.py",
    ),
    Variant(
        "Nyströmformer",
        "softmax through landmarks and an iterated pseudo-inverse",
        "Xiong et al. 2021, arXiv:2102.03902",
        "jattn.variants.low_rank.Nystromformer",
        "tests/support/variant_cases/low_rank.py",
    ),
)

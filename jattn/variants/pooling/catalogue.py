"""The rows of this group in the table of variants."""

from ..catalogue import Variant

VARIANTS: tuple[Variant, ...] = (
    Variant(
        "attention pooling",
        "learned queries sum up a sequence: softmax(q·tanh(W x + b))",
        "Yang et al. 2016, NAACL",
        "jattn.variants.pooling.AttentionPooling",
        "tests/support/variant_cases/pooling.py",
    ),
)

"""The rows of this group in the table of variants."""

from ..catalogue import Variant

ZHAI = "Zhai et al. 2021, arXiv:2105.14103"
AFT = "tests/variants/convolutional/test_aft_layers.py"

VARIANTS: tuple[Variant, ...] = (
    Variant(
        "Hyena",
        "gates between convolutions as long as the sequence, whose filters are a small network of time",
        "Poli et al. 2023, arXiv:2302.10866",
        "jattn.variants.convolutional.Hyena",
        "tests/variants/convolutional/test_hyena.py",
        "associative_recall",
    ),
    Variant(
        "AFT-full",
        "weights of a key and a number for each pair of positions, one softmax for each feature",
        ZHAI,
        "jattn.variants.convolutional.AFTFull",
        AFT,
    ),
    Variant(
        "AFT-local",
        "AFT whose numbers are 0 outside a window: a window of attention merged with prefix sums",
        ZHAI,
        "jattn.variants.convolutional.AFTLocal",
        AFT,
    ),
    Variant(
        "AFT-conv",
        "AFT-local whose numbers depend on the distance, a row of them for each head",
        ZHAI,
        "jattn.variants.convolutional.AFTConv",
        AFT,
    ),
    Variant(
        "AFT-simple",
        "AFT without the numbers, in linear time, O(1) a token when decoding",
        ZHAI,
        "jattn.variants.convolutional.AFTSimple",
        AFT,
    ),
)

"""The rows of this group in the table of variants."""

from ..catalogue import Variant

VARIANTS: tuple[Variant, ...] = (
    Variant(
        "Hyena",
        "gates between convolutions as long as the sequence, whose filters are a small network of time",
        "Poli et al. 2023, arXiv:2302.10866",
        "jattn.variants.attention_free.Hyena",
        "tests/variants/attention_free/test_hyena.py",
        "associative_recall",
    ),
    Variant(
        "AFT-full",
        "weights of a key and a number for each pair of positions, one softmax for each feature",
        "Zhai et al. 2021, arXiv:2105.14103",
        "jattn.variants.attention_free.AFTFull",
        "tests/variants/attention_free/test_aft_layers.py",
    ),
    Variant(
        "AFT-local",
        "AFT whose numbers are 0 outside a window: a window of attention merged with prefix sums",
        "Zhai et al. 2021, arXiv:2105.14103",
        "jattn.variants.attention_free.AFTLocal",
        "tests/variants/attention_free/test_aft_layers.py",
    ),
    Variant(
        "AFT-conv",
        "AFT-local whose numbers depend on the distance, a row of them for each head",
        "Zhai et al. 2021, arXiv:2105.14103",
        "jattn.variants.attention_free.AFTConv",
        "tests/variants/attention_free/test_aft_layers.py",
    ),
    Variant(
        "AFT-simple",
        "AFT without the numbers, in linear time, O(1) a token when decoding",
        "Zhai et al. 2021, arXiv:2105.14103",
        "jattn.variants.attention_free.AFTSimple",
        "tests/variants/attention_free/test_aft_layers.py",
    ),
)

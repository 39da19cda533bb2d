"""The rows of this group in the table of variants."""

from ..catalogue import Variant

LUONG = "Luong et al. 2015, arXiv:1508.04025"
HERE = "jattn.variants.windows"
ROWS = "tests/support/variant_cases/windows.py"

VARIANTS: tuple[Variant, ...] = (
    Variant(
        "Luong global",
        "a decoder state joined with its context: tanh(W [c; h])",
        LUONG,
        f"{HERE}.LuongGlobal",
        ROWS,
    ),
    Variant(
        "Luong local-m",
        "keys at most D from the query's own position",
        LUONG,
        f"{HERE}.local_m",
        ROWS,
    ),
    Variant(
        "Luong local-p",
        "a window and a Gaussian around a position that the query predicts; other tiles are skipped",
        LUONG,
        f"{HERE}.LuongLocal",
        ROWS,
        "local_p",
    ),
    Variant(
        "location",
        "softmax(W h) over places, whatever is there",
        LUONG,
        f"{HERE}.Location",
        ROWS,
    ),
    Variant(
        "attention pooling",
        "learned queries sum up a sequence: softmax(q·tanh(W x + b))",
        "Yang et al. 2016, NAACL",
        f"{HERE}.AttentionPooling",
        ROWS,
    ),
    Variant(
        "hard attention",
        "one key, drawn from the weights; straight-through or REINFORCE",
        "Xu et al. 2015, arXiv:1502.03044",
        f"{HERE}.hard",
        ROWS,
    ),
    Variant(
        "top-k",
        "the k best keys of each query, exactly, without a quadratic array",
        "Zhao et al. 2019, arXiv:1912.11637",
        f"{HERE}.top_k",
        ROWS,
    ),
    Variant(
        "talking heads",
        "heads mixed before and after the softmax, in one streamed call",
        "Shazeer et al. 2020, arXiv:2003.02436",
        f"{HERE}.TalkingHeads",
        ROWS,
    ),
    Variant(
        "differential",
        "the difference of two softmaxes over the same values",
        "Ye et al. 2024, arXiv:2410.05258",
        f"{HERE}.Differential",
        "tests/variants/windows/test_between_heads.py",
    ),
    Variant(
        "multi-token",
        "scores convolved over queries and keys, and mixed over heads",
        "Golovneva et al. 2025, arXiv:2504.00927",
        f"{HERE}.MultiToken",
        ROWS,
    ),
)

"""The rows of this group in the table of variants."""

from ..catalogue import Variant

SIMILARITIES, SCORES, NORMALIZERS, MASKS = (
    f"jattn.{name}" for name in ("similarities", "scores", "normalizers", "masks")
)
TESTS = "tests/variants/choices/test_choices.py"

_SIMILARITIES: tuple[Variant, ...] = (
    Variant(
        "dot",
        "q·k",
        "Luong et al. 2015, arXiv:1508.04025",
        f"{SIMILARITIES}.Dot",
        "tests/similarities/test_dot.py",
    ),
    Variant(
        "scaled dot",
        "q·k / √dim, of variance about 1",
        "Vaswani et al. 2017, arXiv:1706.03762",
        f"{SIMILARITIES}.ScaledDot",
        "tests/similarities/test_dot.py",
    ),
    Variant(
        "additive",
        "vᵀ tanh(W q + U k + b), streamed a tile at a time",
        "Bahdanau et al. 2015, arXiv:1409.0473",
        f"{SIMILARITIES}.Additive",
        "tests/similarities/test_additive.py",
    ),
    Variant(
        "concat",
        "vᵀ tanh(W [q; k]): `Additive(W[:q_dim], W[q_dim:], v)`",
        "Luong et al. 2015, arXiv:1508.04025",
        f"{SIMILARITIES}.Additive",
        "tests/similarities/test_additive.py",
    ),
    Variant(
        "bilinear",
        'qᵀ W k ("general"), by a kernel that only knows dot products',
        "Luong et al. 2015, arXiv:1508.04025",
        f"{SIMILARITIES}.Bilinear",
        "tests/similarities/test_bilinear.py",
    ),
    Variant(
        "shared bilinear",
        "(q W)·(k W), positive semidefinite",
        "a bilinear form with W Wᵀ",
        f"{SIMILARITIES}.SharedBilinear",
        "tests/similarities/test_bilinear.py",
    ),
    Variant(
        "cosine",
        "the angle over a temperature, which may be learned",
        "Graves et al. 2014, arXiv:1410.5401",
        f"{SIMILARITIES}.Cosine",
        "tests/similarities/test_dot.py",
    ),
    Variant(
        "Gaussian",
        "softmax(-γ‖q - k‖²), by a kernel that only knows dot products",
        "Nadaraya 1964; Watson 1964",
        f"{SIMILARITIES}.Gaussian",
        "tests/similarities/test_gaussian.py",
        "gaussian",
    ),
)

_SCORES: tuple[Variant, ...] = (
    Variant("bias", "a number added to each pair", "any", f"{SCORES}.Bias", "tests/scores/test_bias.py"),
    Variant(
        "ALiBi",
        "minus a slope of each head times the distance",
        "Press et al. 2021, arXiv:2108.12409",
        f"{SCORES}.ALiBi",
        "tests/scores/test_alibi.py",
    ),
    Variant(
        "forget gates",
        "the sum of the log gates of all tokens between, exact in float32 however long",
        "Lin et al. 2025, arXiv:2503.02130",
        f"{SCORES}.Forget",
        "tests/scores/test_forget.py",
    ),
    Variant(
        "relative buckets",
        "a learned number for each bucket of distances",
        "Raffel et al. 2019, arXiv:1910.10683",
        f"{SCORES}.RelativeBuckets",
        "tests/scores/test_relative.py",
    ),
    Variant(
        "relative logits",
        "a number for each query and clipped distance: q·(k + a), from the query or a table",
        "Shaw et al. 2018, arXiv:1803.02155",
        f"{SCORES}.RelativeLogits",
        "tests/scores/test_distances.py",
    ),
    Variant(
        "relative grid",
        "a learned number for each offset between two places of a window",
        "Liu et al. 2021, arXiv:2103.14030",
        f"{SCORES}.RelativeGrid",
        "tests/scores/test_distances.py",
    ),
    Variant(
        "soft cap",
        "cap tanh(score / cap)",
        "Gemma 2, arXiv:2408.00118",
        f"{SCORES}.SoftCap",
        "tests/scores/test_soft_cap.py",
    ),
)

_NORMALIZERS: tuple[Variant, ...] = (
    Variant(
        "softmax with a sink",
        "a learned logit that takes weight and has no value",
        "gpt-oss, arXiv:2508.10925",
        f"{NORMALIZERS}.Softmax",
        "tests/normalizers/test_softmax.py",
    ),
    Variant(
        "off-by-one softmax",
        "a sink of 0: exp(s) / (1 + Σ exp(s))",
        "Miller 2023, Attention Is Off By One",
        f"{NORMALIZERS}.Softmax.off_by_one",
        "tests/normalizers/test_softmax.py",
    ),
    Variant(
        "sigmoid attention",
        "sigmoid(score - log n), row by row independent",
        "Ramapuram et al. 2024, arXiv:2409.04431",
        f"{NORMALIZERS}.Sigmoid",
        "tests/normalizers/test_elementwise.py",
    ),
    Variant(
        "ReLU attention",
        "max(score, 0) / n",
        "Wortsman et al. 2023, arXiv:2309.08586",
        f"{NORMALIZERS}.ReLU",
        "tests/normalizers/test_elementwise.py",
    ),
    Variant(
        "sparsemax",
        "the Euclidean projection of a row onto the simplex",
        "Martins & Astudillo 2016, arXiv:1602.02068",
        f"{NORMALIZERS}.Sparsemax",
        "tests/normalizers/test_sparse.py",
    ),
    Variant(
        "1.5-entmax",
        "between softmax and sparsemax",
        "Peters et al. 2019, arXiv:1905.05702",
        f"{NORMALIZERS}.Entmax15",
        "tests/normalizers/test_sparse.py",
    ),
)

_MASKS: tuple[Variant, ...] = (
    Variant(
        "causal",
        "no future",
        "Vaswani et al. 2017, arXiv:1706.03762",
        f"{MASKS}.Causal",
        "tests/masks/test_order.py",
    ),
    Variant(
        "sliding window",
        "keys near the query",
        "Beltagy et al. 2020, arXiv:2004.05150",
        f"{MASKS}.SlidingWindow",
        "tests/masks/test_order.py",
    ),
    Variant(
        "dilated window",
        "a window with holes",
        "Beltagy et al. 2020, arXiv:2004.05150",
        f"{MASKS}.Dilated",
        "tests/masks/test_order.py",
    ),
    Variant("chunked", "own chunk only", "Llama 4", f"{MASKS}.Chunked", "tests/masks/test_blocks.py"),
    Variant(
        "blocked local",
        "own block and its neighbors: `masks.of(lambda q, k: abs(q // b - k // b) <= 1)`",
        "Zaheer et al. 2020, arXiv:2007.14062",
        f"{MASKS}.of",
        TESTS,
    ),
    Variant(
        "prefix LM",
        "a prefix that everyone sees, causal behind it",
        "Raffel et al. 2019, arXiv:1910.10683",
        f"{MASKS}.Prefix",
        "tests/masks/test_order.py",
    ),
    Variant(
        "sinks and window",
        "the first keys and the near ones: `Causal() & (SlidingWindow(w, 0) | Sinks(s))`",
        "Xiao et al. 2023, arXiv:2309.17453",
        f"{MASKS}.Sinks",
        TESTS,
    ),
    Variant(
        "lengths",
        "rows that end before the array does",
        "padding",
        f"{MASKS}.Lengths",
        "tests/masks/test_segments.py",
    ),
    Variant(
        "segments",
        "several sequences packed in one row",
        "packing",
        f"{MASKS}.SameSegment",
        "tests/masks/test_segments.py",
    ),
    Variant(
        "selected keys",
        "keys or blocks of keys that a router chose for each query or block of queries",
        "Yuan et al. 2025, arXiv:2502.11089",
        f"{MASKS}.Selected",
        "tests/masks/test_selected.py",
    ),
    Variant(
        "neighborhood",
        "a window of a grid of 1 to 3 axes, always full",
        "Hassani et al. 2022, arXiv:2204.07143",
        f"{MASKS}.Neighborhood",
        "tests/masks/test_grids.py",
    ),
    Variant(
        "axial",
        "own row or column of a grid",
        "Ho et al. 2019, arXiv:1912.12180",
        f"{MASKS}.Axial",
        "tests/masks/test_grids.py",
    ),
    Variant(
        "pair by pair",
        "any boolean array",
        "any",
        f"{MASKS}.Dense",
        "tests/masks/test_dense.py",
    ),
)

VARIANTS: tuple[Variant, ...] = (*_SIMILARITIES, *_SCORES, *_NORMALIZERS, *_MASKS)

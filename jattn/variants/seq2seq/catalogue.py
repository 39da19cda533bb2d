"""The rows of this group in the table of variants."""

from ..catalogue import Variant

VARIANTS: tuple[Variant, ...] = (
    Variant(
        "Luong global",
        "a decoder state joined with its context: tanh(W [c; h])",
        "Luong et al. 2015, arXiv:1508.04025",
        "jattn.variants.seq2seq.LuongGlobal",
        "tests/support/variant_cases/seq2seq.py",
    ),
    Variant(
        "Luong local-m",
        "keys at most D from the query's own position",
        "Luong et al. 2015, arXiv:1508.04025",
        "jattn.variants.seq2seq.local_m",
        "tests/support/variant_cases/seq2seq.py",
    ),
    Variant(
        "Luong local-p",
        "a window and a Gaussian around a position that the query predicts; other tiles are skipped",
        "Luong et al. 2015, arXiv:1508.04025",
        "jattn.variants.seq2seq.LuongLocal",
        "tests/support/variant_cases/seq2seq.py",
        "local_p",
    ),
    Variant(
        "location",
        "softmax(W h) over places, whatever is there",
        "Luong et al. 2015, arXiv:1508.04025",
        "jattn.variants.seq2seq.Location",
        "tests/support/variant_cases/seq2seq.py",
    ),
    Variant(
        "coverage",
        "additive attention that sees the sum of earlier steps' weights, and a loss for looking twice",
        "See et al. 2017, arXiv:1704.04368",
        "jattn.variants.seq2seq.CoverageAttention",
        "tests/variants/seq2seq/test_coverage.py",
    ),
    Variant(
        "pointer-generator",
        "p_gen P_vocab + (1 - p_gen) copied attention, over a vocabulary extended by the source",
        "See et al. 2017, arXiv:1704.04368",
        "jattn.variants.seq2seq.pointer_log_probabilities",
        "tests/variants/seq2seq/test_pointer.py",
        "copying_unknown",
    ),
    Variant(
        "generation gate",
        "the logit of p_gen from context, state and input",
        "See et al. 2017, arXiv:1704.04368",
        "jattn.variants.seq2seq.GenerationGate",
        "tests/variants/seq2seq/test_pointer.py",
    ),
)

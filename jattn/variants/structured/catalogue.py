"""The rows of this group in the table of variants."""

from ..catalogue import Variant

VARIANTS: tuple[Variant, ...] = (
    Variant(
        "Segmentation attention",
        "weights are marginals of a linear-chain CRF over selected and not",
        "Kim et al. 2017, arXiv:1702.00887",
        "jattn.variants.structured.Segmentation",
        "tests/variants/structured/test_segmentation.py",
        "brackets",
    ),
    Variant(
        "Soft parents",
        "a word's expected parent under a learned distribution over dependency trees",
        "Kim et al. 2017, arXiv:1702.00887",
        "jattn.variants.structured.SoftParents",
        "tests/variants/structured/test_trees.py",
        "eisner",
    ),
    Variant(
        "Projective tree marginals",
        "Eisner's inside algorithm, one or several roots, all spans of a length at once",
        "Eisner 1996; Kim et al. 2017, arXiv:1702.00887",
        "jattn.variants.structured.projective_marginals",
        "tests/variants/structured/test_trees.py",
        "eisner",
    ),
    Variant(
        "Non-projective tree marginals",
        "the matrix-tree theorem by elimination without a subtraction, in log space",
        "Koo et al. 2007",
        "jattn.variants.structured.nonprojective_marginals",
        "tests/variants/structured/test_trees.py",
    ),
)

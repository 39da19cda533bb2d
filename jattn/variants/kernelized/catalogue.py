"""The rows of this group in the table of variants."""

from ..catalogue import Variant

LAYERS = "tests/variants/kernelized/test_layers.py"

VARIANTS: tuple[Variant, ...] = (
    Variant(
        "Kernelized attention",
        "weights φ(q)·φ(k) of any feature map, through one recurrence",
        "Katharopoulos et al. 2020, arXiv:2006.16236",
        "jattn.variants.kernelized.kernelized_attention",
        "tests/variants/kernelized/test_attention.py",
    ),
    Variant(
        "Linear Transformer",
        "φ = elu + 1",
        "Katharopoulos et al. 2020, arXiv:2006.16236",
        "jattn.variants.kernelized.LinearTransformer",
        LAYERS,
        "copying",
    ),
    Variant(
        "Performer",
        "random features of the softmax kernel (FAVOR+), positive, hyperbolic or ReLU",
        "Choromanski et al. 2021, arXiv:2009.14794",
        "jattn.variants.kernelized.Performer",
        "tests/variants/kernelized/test_performer.py",
    ),
    Variant(
        "cosFormer",
        "ReLU features, weighted by the cosine of the distance",
        "Qin et al. 2022, arXiv:2202.08791",
        "jattn.variants.kernelized.CosFormer",
        LAYERS,
    ),
    Variant(
        "Hedgehog",
        "learned feature maps, softmaxes over features",
        "Zhang et al. 2024, arXiv:2402.04347",
        "jattn.variants.kernelized.Hedgehog",
        LAYERS,
    ),
    Variant(
        "Based",
        "the second-order Taylor polynomial of exp",
        "Arora et al. 2024, arXiv:2402.18668",
        "jattn.variants.kernelized.Based",
        LAYERS,
    ),
)

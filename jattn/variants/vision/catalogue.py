"""The rows of this group in the table of variants."""

from ..catalogue import Variant

VARIANTS: tuple[Variant, ...] = (
    Variant(
        "squeeze-and-excitation",
        "channels gated by their means: σ(W₂ relu(W₁ mean(x))) ⊙ x",
        "Hu et al. 2018, arXiv:1709.01507",
        "jattn.variants.vision.SqueezeExcite",
        "tests/variants/vision/test_channels.py",
    ),
    Variant(
        "CBAM",
        "channels gated by mean and max through one network, then pixels by a 7x7 convolution",
        "Woo et al. 2018, arXiv:1807.06521",
        "jattn.variants.vision.CBAM",
        "tests/variants/vision/test_channels.py",
    ),
    Variant(
        "non-local block",
        "every pixel attends to every pixel, four similarities, added to the image through a W that starts at zero",
        "Wang et al. 2018, arXiv:1711.07971",
        "jattn.variants.vision.NonLocal",
        "tests/variants/vision/test_nonlocal.py",
        "distant_pixels",
    ),
    Variant(
        "attention-augmented convolution",
        "channels of a convolution beside those of attention with relative logits in height and width",
        "Bello et al. 2019, arXiv:1904.09925",
        "jattn.variants.vision.AugmentedConvolution",
        "tests/variants/vision/test_augmented.py",
        "distant_pixels",
    ),
    Variant(
        "co-attention",
        "two streams, each attends to the other's keys and values",
        "Lu et al. 2019 (ViLBERT), arXiv:1908.02265",
        "jattn.variants.vision.CoAttention",
        "tests/variants/vision/test_co_attention.py",
    ),
    Variant(
        "CLIP attention pooling",
        "the mean of an image attends to its pixels",
        "Radford et al. 2021, arXiv:2103.00020",
        "jattn.variants.vision.AttentionPool",
        "tests/variants/vision/test_clip.py",
    ),
    Variant(
        "CLIP contrastive loss",
        "symmetric InfoNCE with a learned, capped temperature, streamed over the batch",
        "Radford et al. 2021, arXiv:2103.00020",
        "jattn.variants.vision.contrastive_loss",
        "tests/variants/vision/test_clip.py",
    ),
    Variant(
        "captioning attention",
        "gated soft attention with the doubly stochastic loss; hard by REINFORCE with a baseline and entropy",
        "Xu et al. 2015, arXiv:1502.03044",
        "jattn.variants.vision.CaptioningAttention",
        "tests/variants/vision/test_captioning.py",
    ),
)

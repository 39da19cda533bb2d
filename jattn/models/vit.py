"""ViT, the vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from ..foundation.arguments import check_positive
from .blocks import through
from .checkpoint.rules import linear_rules, norm_rules
from .checkpoint.table import Rule, Table
from .encoder import NORMAL, Encoded, EncoderBlock, EncoderConfig, Pooler, block_rules
from .layers import check_activation, dropout, layer_norm
from .patches import PatchEmbedding, as_pair
from .registry import Family


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig(EncoderConfig):
    """The configuration of ViT; defaults are those of ViT-B/16. Sizes of blocks are as in `EncoderConfig`.

    Args:
        image_size: height and width of images, or one number for both.
        patch_size: height and width of a patch, likewise.
        channels: channels of images.
        use_bias: whether queries, keys and values have a bias.
        pooled_features: features of the pooler's result, by default `features`.
        pooler_activation: the activation of the pooler.

    Raises:
        ValueError: a number is out of its range; an activation is unknown.

    >>> ViTConfig(features=64, depth=2, heads=4, mlp_features=128).image_size
    224
    """

    NAMES: ClassVar[Mapping[str, str]] = {
        **EncoderConfig.NAMES,
        "image_size": "image_size",
        "patch_size": "patch_size",
        "num_channels": "channels",
        "qkv_bias": "use_bias",
        "pooler_output_size": "pooled_features",
        "pooler_act": "pooler_activation",
    }
    IGNORED: ClassVar[tuple[str, ...]] = ("encoder_stride",)  # of a decoder to pixels that is not here

    model_type: str = "vit"
    image_size: int | tuple[int, ...] = 224
    patch_size: int | tuple[int, ...] = 16
    channels: int = 3
    use_bias: bool = True
    pooled_features: int | None = None
    pooler_activation: str = "tanh"

    def __post_init__(self):
        super().__post_init__()
        for name in ("image_size", "patch_size"):
            as_pair(name, getattr(self, name))
        check_positive(channels=self.channels, pooled_features=self.pooled_features or self.features)
        check_activation(self.pooler_activation)


class ViTEncoder(nnx.Module):
    """ViT without a head: images `[..., height, width, channels]` -> hidden states `[..., 1 + patches, features]`.

        x = [c; W patches] + P
        x = x + attention(norm(x)),  x = x + mlp(norm(x))          for each block
        hidden = norm(x)

    Args:
        config: the configuration.
        dtype: the dtype to compute in, by default that of the parameters.
        param_dtype: the dtype of the parameters.
        rngs: random streams for parameters and dropout.
    """

    def __init__(self, config: ViTConfig, *, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs):
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.config = config
        self.embedding = PatchEmbedding(
            config.image_size, config.patch_size, config.channels, config.features, **options
        )
        self.dropout = dropout(config.dropout, rngs)
        bias = True if config.use_bias else ("out",)
        self.blocks = nnx.List(
            [EncoderBlock(config, norm_first=True, use_bias=bias, **options) for _ in range(config.depth)]
        )
        self.norm = layer_norm(config.features, config.epsilon, **options)

    def hidden(self, images: Any, *, mask: Any = None) -> jax.Array:
        """The hidden states after the last norm, the class token's first.

        Args:
            images: floating-point `[..., height, width, channels]`; channels come last.
            mask: a mask of `jattn.masks` over the class token and the patches, row by row.

        Raises:
            ValueError: images have another size or are integers.
        """
        x = self.dropout(self.embedding(images))
        x = through(self.blocks, x, config=self.config, mask=mask)
        return self.norm(x)


class ViT(ViTEncoder):
    """ViT with a pooler: images `[..., height, width, channels]` -> hidden states and a vector, `Encoded`.

        hidden: as in `ViTEncoder`,    pooled = tanh(W hidden_0 + b)

    Images have the size of the configuration; positions are not interpolated.

    Args:
        config, dtype, param_dtype, rngs: as in `ViTEncoder`.

    >>> import jax
    >>> from flax import nnx
    >>> from jattn.models.vit import ViT, ViTConfig
    >>> config = ViTConfig(features=8, depth=1, heads=2, mlp_features=16, image_size=6, patch_size=3)
    >>> model = ViT(config, rngs=nnx.Rngs(0))
    >>> jax.eval_shape(model, jax.numpy.zeros((2, 6, 6, 3))).hidden.shape
    (2, 5, 8)
    """

    def __init__(self, config: ViTConfig, *, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        pooled = config.pooled_features or config.features
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.pooler = Pooler(config.features, pooled, config.pooler_activation, **options)

    def __call__(self, images: Any, *, mask: Any = None) -> Encoded:
        """Hidden states and the pooled vector; arguments as in `hidden`."""
        hidden = self.hidden(images, mask=mask)
        return Encoded(hidden, self.pooler(hidden))


class ViTForImageClassification(ViTEncoder):
    """ViT with a classifier of the class token: images -> logits `[..., labels]`.

    Args:
        config, dtype, param_dtype, rngs: as in `ViTEncoder`.
    """

    def __init__(self, config: ViTConfig, *, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        check_positive(labels=config.labels)
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.head = nnx.Linear(config.features, config.labels, kernel_init=NORMAL, **options)

    def __call__(self, images: Any, *, mask: Any = None) -> jax.Array:
        """The logits; arguments as in `hidden`."""
        return self.head(self.hidden(images, mask=mask)[..., 0, :])


RULES = (
    Rule("embeddings.cls_token", "embedding.class_token", "a b f -> (a b f)", {"a": 1, "b": 1}),
    Rule("embeddings.position_embeddings", "embedding.positions", "a n f -> (a n) f", {"a": 1}),
    Rule("embeddings.patch_embeddings.projection.weight", "embedding.projection.kernel", "o i h w -> h w i o"),
    Rule("embeddings.patch_embeddings.projection.bias", "embedding.projection.bias"),
    *block_rules(
        "encoder.layer.{block}.",
        "blocks.{block}.",
        {
            "query": "attention.attention.query",
            "key": "attention.attention.key",
            "value": "attention.attention.value",
            "out": "attention.output.dense",
            "attention_norm": "layernorm_before",
            "up": "intermediate.dense",
            "down": "output.dense",
            "mlp_norm": "layernorm_after",
        },
    ),
    *norm_rules("layernorm", "norm"),
    *linear_rules("pooler.dense", "pooler.linear"),
)

HEADS = linear_rules("classifier", "head")

FAMILY = Family(
    config=ViTConfig,
    models={"ViTModel": ViT, "ViTForImageClassification": ViTForImageClassification},
    table=Table(RULES, HEADS, prefix="vit."),
)

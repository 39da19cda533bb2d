"""CLIP: texts and images as vectors of one space (Radford et al. 2021, arXiv:2103.00020)."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..foundation.arrays import known_values
from ..foundation.numerics import unit, widen
from ..masks import Causal
from ..variants.vision import contrastive_loss
from .blocks import through
from .checkpoint.rules import norm_rules
from .checkpoint.table import Rule, Table
from .clip_config import CLIPConfig, CLIPResNetConfig, CLIPTextConfig, CLIPVisionConfig
from .clip_resnet import RULES as RESNET
from .clip_resnet import CLIPResNet
from .embedding import Embedding
from .encoder import NORMAL, Encoded, EncoderBlock, block_rules
from .layers import checked_tokens, layer_norm, placed
from .patches import PatchEmbedding
from .registry import Family


class CLIPOutput(NamedTuple):
    """What CLIP returns for texts and images.

    Attributes:
        logits: the scaled cosine of each image and each text, `[..., images, texts]`.
        images: a vector of norm 1 for each image, `[..., images, projected_features]`.
        texts: a vector of norm 1 for each text, `[..., texts, projected_features]`.
    """

    logits: jax.Array
    images: jax.Array
    texts: jax.Array


class CLIPText(nnx.Module):
    """CLIP's text model: tokens `[..., length]` -> hidden states and the vector of each text, `Encoded`.

        x = E[tokens] + P[positions]
        x = x + attention(norm(x)),  x = x + mlp(norm(x))          for each block, causal
        hidden = norm(x),    pooled = hidden at the end of the text

    The end of a text is its first `eos_token`. If the configuration says that this is token 2, as those of the first
    published models do in error, it is the largest token instead, which in CLIP's vocabulary ends a text. Positions are
    counted from the first token of each row that is not padding, whereas Hugging Face counts padding too.

    Args:
        config: the configuration.
        dtype: the dtype to compute in, by default that of the parameters.
        param_dtype: the dtype of the parameters.
        rngs: random streams for parameters and dropout.

    >>> import jax
    >>> from flax import nnx
    >>> from jattn.models.clip import CLIPText, CLIPTextConfig
    >>> config = CLIPTextConfig(vocabulary=11, features=8, depth=1, heads=2, mlp_features=16, eos_token=10)
    >>> model = CLIPText(config, rngs=nnx.Rngs(0))
    >>> model(jax.numpy.array([[3, 4, 10, 1], [5, 10, 1, 1]])).pooled.shape
    (2, 8)
    """

    def __init__(self, config: CLIPTextConfig, *, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs):
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.config = config
        self.embedding = Embedding(config.vocabulary, config.features, embedding_init=NORMAL, **options)
        self.position_embedding = Embedding(config.max_length, config.features, embedding_init=NORMAL, **options)
        self.blocks = nnx.List(
            [EncoderBlock(config, norm_first=True, mask=Causal(), **options) for _ in range(config.depth)]
        )
        self.norm = layer_norm(config.features, config.epsilon, **options)

    def __call__(self, tokens: Any, *, attention_mask: Any = None, mask: Any = None, positions: Any = None) -> Encoded:
        """Hidden states and the state at the end of each text.

        Args:
            tokens: integers `[..., length]`.
            attention_mask: ones and zeros `[..., length]`, 0 for padding, which is not attended to.
            mask: a mask of `jattn.masks`, combined with the causal one by `&`.
            positions: integers `[length]` or `[..., length]`.

        Raises:
            ValueError: tokens are not integers, or known to be out of the vocabulary, or known to lack their end; there
                are more than positions.
        """
        tokens = checked_tokens("tokens", tokens, self.config.vocabulary, self.config.max_length)
        end = self._end(tokens)
        mask, positions = placed(tokens, attention_mask, mask, positions, self.config.max_length)
        positions = np.arange(tokens.shape[-1]) if positions is None else positions
        x = self.embedding(tokens) + self.position_embedding(jnp.asarray(positions))
        x = through(self.blocks, x, config=self.config, mask=mask)
        hidden = self.norm(x)
        return Encoded(hidden, jnp.take_along_axis(hidden, end[..., None, None], -2)[..., 0, :])

    def _end(self, tokens: jax.Array) -> jax.Array:
        """The position of the end of each text, `[...]`.

        Raises:
            ValueError: a text is known to have none.
        """
        last = self.config.eos_token
        if last == 2:
            return jnp.argmax(tokens, -1)
        known = known_values(tokens)
        if known is not None and not (known == last).any(-1).all():
            raise ValueError(f"`tokens` must have the token {last}, the end of the text, in every row; some do not.")
        return jnp.argmax(tokens == last, -1)


class CLIPTextWithProjection(CLIPText):
    """CLIP's text model with the projection: `pooled` is the vector that is compared with images', not normalized.

    Args:
        config, dtype, param_dtype, rngs: as in `CLIPText`.
    """

    def __init__(self, config: CLIPTextConfig, *, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.projection = _projection(config, config.projected_features, dtype, param_dtype, rngs)

    def __call__(self, tokens: Any, *, attention_mask: Any = None, mask: Any = None, positions: Any = None) -> Encoded:
        """Hidden states and the vector of each text; arguments as in `CLIPText`."""
        found = super().__call__(tokens, attention_mask=attention_mask, mask=mask, positions=positions)
        return Encoded(found.hidden, self.projection(found.pooled))


class CLIPVision(nnx.Module):
    """CLIP's vision transformer: images `[..., height, width, channels]` -> hidden states and a vector, `Encoded`.

        x = norm([c; W patches] + P)
        x = x + attention(norm(x)),  x = x + mlp(norm(x))          for each block
        hidden = x,    pooled = norm(x_0)

    Images have the size of the configuration; positions are not interpolated.

    Args:
        config: the configuration.
        dtype: the dtype to compute in, by default that of the parameters.
        param_dtype: the dtype of the parameters.
        rngs: random streams for parameters and dropout.

    >>> import jax
    >>> from flax import nnx
    >>> from jattn.models.clip import CLIPVision, CLIPVisionConfig
    >>> config = CLIPVisionConfig(features=8, depth=1, heads=2, mlp_features=16, image_size=6, patch_size=3)
    >>> model = CLIPVision(config, rngs=nnx.Rngs(0))
    >>> jax.eval_shape(model, jax.numpy.zeros((2, 6, 6, 3))).pooled.shape
    (2, 8)
    """

    def __init__(self, config: CLIPVisionConfig, *, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs):
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.config = config
        self.embedding = PatchEmbedding(
            config.image_size, config.patch_size, config.channels, config.features, use_bias=False, **options
        )
        self.first_norm = layer_norm(config.features, config.epsilon, **options)
        self.blocks = nnx.List([EncoderBlock(config, norm_first=True, **options) for _ in range(config.depth)])
        self.norm = layer_norm(config.features, config.epsilon, **options)

    def __call__(self, images: Any, *, mask: Any = None) -> Encoded:
        """Hidden states, the class token's first, and the vector of each image.

        Args:
            images: floating-point `[..., height, width, channels]`; channels come last.
            mask: a mask of `jattn.masks` over the class token and the patches, row by row.

        Raises:
            ValueError: images have another size or are integers.
        """
        x = self.first_norm(self.embedding(images))
        x = through(self.blocks, x, config=self.config, mask=mask)
        return Encoded(x, self.norm(x[..., 0, :]))


class CLIPVisionWithProjection(CLIPVision):
    """CLIP's vision transformer with the projection: `pooled` is compared with texts' vectors, not normalized.

    Args:
        config, dtype, param_dtype, rngs: as in `CLIPVision`.
    """

    def __init__(self, config: CLIPVisionConfig, *, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.projection = _projection(config, config.projected_features, dtype, param_dtype, rngs)

    def __call__(self, images: Any, *, mask: Any = None) -> Encoded:
        """Hidden states and the vector of each image; arguments as in `CLIPVision`."""
        found = super().__call__(images, mask=mask)
        return Encoded(found.hidden, self.projection(found.pooled))


class CLIP(nnx.Module):
    """CLIP: tokens `[..., texts, length]` and images `[..., images, height, width, channels]` -> `CLIPOutput`.

        t = unit(W_t text(tokens)),    v = unit(W_v vision(images)),    logits_ij = exp(s) v_i·t_j

    A ResNet gives v without W_v. Training minimizes `loss`.

    Args:
        config: the configuration; its `vision` decides on a transformer or a ResNet.
        dtype: the dtype to compute in, by default that of the parameters.
        param_dtype: the dtype of the parameters.
        rngs: random streams for parameters and dropout.

    >>> import jax
    >>> from flax import nnx
    >>> from jattn.models.clip import CLIP, CLIPConfig, CLIPTextConfig, CLIPVisionConfig
    >>> sizes = {"features": 8, "depth": 1, "heads": 2, "mlp_features": 16}
    >>> text = CLIPTextConfig(vocabulary=11, eos_token=10, **sizes)
    >>> vision = CLIPVisionConfig(image_size=6, patch_size=3, **sizes)
    >>> model = CLIP(CLIPConfig(text=text, vision=vision, projected_features=4), rngs=nnx.Rngs(0))
    >>> tokens = jax.numpy.array([[3, 4, 10], [5, 10, 1]])
    >>> model(tokens, jax.numpy.zeros((3, 6, 6, 3))).logits.shape
    (3, 2)
    """

    vision: Any  # a `CLIPVision` or a `CLIPResNet`

    def __init__(self, config: CLIPConfig, *, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs):
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.config = config
        self.text = CLIPText(config.text, **options)
        self.text_projection = _projection(config.text, config.projected_features, dtype, param_dtype, rngs)
        if isinstance(config.vision, CLIPResNetConfig):
            self.vision, self.image_projection = CLIPResNet(config.vision, **options), None
        else:
            self.vision = CLIPVision(config.vision, **options)
            self.image_projection = _projection(config.vision, config.projected_features, dtype, param_dtype, rngs)
        self.log_scale = nnx.Param(jnp.asarray(config.log_scale, param_dtype))

    def embed_texts(
        self, tokens: Any, *, attention_mask: Any = None, mask: Any = None, positions: Any = None
    ) -> jax.Array:
        """The vector of each text, not normalized, `[..., projected_features]`; arguments as in `CLIPText`."""
        found = self.text(tokens, attention_mask=attention_mask, mask=mask, positions=positions)
        return self.text_projection(found.pooled)

    def embed_images(self, images: Any) -> jax.Array:
        """The vector of each image, not normalized, `[..., projected_features]`."""
        found = self.vision(images)
        return found if self.image_projection is None else self.image_projection(found.pooled)

    def __call__(
        self, tokens: Any, images: Any, *, attention_mask: Any = None, mask: Any = None, positions: Any = None
    ) -> CLIPOutput:
        """Compare every image with every text.

        Args:
            tokens: integers `[..., texts, length]`.
            images: floating-point `[..., images, height, width, channels]`; channels come last.
            attention_mask, mask, positions: of texts, as in `CLIPText`.

        Raises:
            ValueError: as in `CLIPText` and `CLIPVision`.
        """
        texts = self.embed_texts(tokens, attention_mask=attention_mask, mask=mask, positions=positions)
        seen, read = unit(widen(self.embed_images(images))), unit(widen(texts))
        scale = jnp.exp(widen(self.log_scale[...]))
        return CLIPOutput(scale * jnp.einsum("...if,...tf->...it", seen, read), seen, read)

    def loss(self, output: CLIPOutput) -> jax.Array:
        """The contrastive loss of pairs, image i with text i, as `jattn.variants.vision.contrastive_loss` defines it.

        The scale is at most 100 there; Hugging Face does not limit it.
        """
        return contrastive_loss(output.images, output.texts, self.log_scale[...])


def _projection(config: Any, features: int, dtype: Any, param_dtype: Any, rngs: nnx.Rngs) -> nnx.Linear:
    init = nnx.initializers.normal(config.features**-0.5)
    return nnx.Linear(
        config.features, features, use_bias=False, kernel_init=init, dtype=dtype, param_dtype=param_dtype, rngs=rngs
    )


_BLOCKS = block_rules(
    "encoder.layers.{block}.",
    "blocks.{block}.",
    {
        "query": "self_attn.q_proj",
        "key": "self_attn.k_proj",
        "value": "self_attn.v_proj",
        "out": "self_attn.out_proj",
        "attention_norm": "layer_norm1",
        "up": "mlp.fc1",
        "down": "mlp.fc2",
        "mlp_norm": "layer_norm2",
    },
)
TEXT = (
    Rule("embeddings.token_embedding.weight", "embedding.embedding"),
    Rule("embeddings.position_embedding.weight", "position_embedding.embedding"),
    *_BLOCKS,
    *norm_rules("final_layer_norm", "norm"),
)
VISION = (
    Rule("embeddings.class_embedding", "embedding.class_token"),
    Rule("embeddings.patch_embedding.weight", "embedding.projection.kernel", "o i h w -> h w i o"),
    Rule("embeddings.position_embedding.weight", "embedding.positions"),
    *norm_rules("pre_layrnorm", "first_norm"),  # spelled so in every checkpoint
    *_BLOCKS,
    *norm_rules("post_layernorm", "norm"),
)


def _within(rules: Sequence[Rule], tensor: str, path: str) -> tuple[Rule, ...]:
    """The rules of a part of a model."""
    return tuple(
        dataclasses.replace(rule, pattern=tensor + rule.pattern, paths=f"{path}{rule.paths}") for rule in rules
    )


RULES = (
    *_within(TEXT, "text_model.", "text."),
    *_within(VISION, "vision_model.", "vision."),
    *_within(RESNET, "visual.", "vision."),
    Rule("text_projection.weight", "text_projection.kernel", "o i -> i o"),
    Rule("visual_projection.weight", "image_projection.kernel", "o i -> i o"),
    Rule("logit_scale", "log_scale"),
)
IGNORED = ("*embeddings.position_ids", "visual.*.num_batches_tracked")  # buffers


def _part(config: Any, models: dict[str, type], rules: tuple[Rule, ...], prefix: str, projection: str) -> Family:
    heads = (Rule(f"{projection}.weight", "projection.kernel", "o i -> i o"),)
    return Family(config, models, Table(rules, heads, prefix=prefix, ignored=IGNORED))


FAMILIES = {
    "clip": Family(CLIPConfig, {"CLIPModel": CLIP}, Table(RULES, ignored=IGNORED)),
    "clip_text_model": _part(
        CLIPTextConfig,
        {"CLIPTextModel": CLIPText, "CLIPTextModelWithProjection": CLIPTextWithProjection},
        TEXT,
        "text_model.",
        "text_projection",
    ),
    "clip_vision_model": _part(
        CLIPVisionConfig,
        {"CLIPVisionModel": CLIPVision, "CLIPVisionModelWithProjection": CLIPVisionWithProjection},
        VISION,
        "vision_model.",
        "visual_projection",
    ),
}

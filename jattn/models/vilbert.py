"""ViLBERT: streams of words and of image regions, joined by co-attention (Lu et al. 2019, arXiv:1908.02265)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from ..foundation.arguments import check_multiple, check_positive
from ..foundation.arrays import as_array, describe, dtype_of
from ..masks.base import restricted
from ..nnx import Layer
from ..variants.vision import CoAttention
from .bert import BLOCK, RULES, BertEncoder
from .bert_config import DROPOUT, BertConfig
from .blocks import through
from .checkpoint.rules import linear_rules, norm_rules, out_rules, projection_rules
from .checkpoint.table import Rule, Table
from .encoder import NORMAL, EncoderBlock, EncoderConfig, Pooler, block_rules
from .layers import dropout, layer_norm, padding_of
from .registry import Family

LOCATION = 5
"""Numbers that describe a region's place: left, top, right and bottom as fractions of the image, and its area."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViLBERTConfig(BertConfig):
    """The configuration of ViLBERT; defaults are those of the paper. The stream of words is as in `BertConfig`, and:

    Args:
        region_features: features of a region, as a detector gives them.
        image_features, image_depth, image_heads, image_mlp_features: sizes of the stream of regions.
        image_attention_dropout, image_dropout: its dropout rates in training.
        shared_features, shared_heads: features of all heads of co-attention together, and their number. Pooled vectors
            have as many features.
        text_connections, image_connections: for each layer of co-attention, the blocks of both streams before which it
            stands, counted from 0.

    Raises:
        ValueError: a number is out of its range; connections are not ascending pairs; the activation is not the exact
            GELU.

    >>> ViLBERTConfig().text_connections
    (6, 7, 8, 9, 10, 11)
    """

    NAMES: ClassVar[Mapping[str, str]] = {
        **BertConfig.NAMES,
        "v_feature_size": "region_features",
        "v_hidden_size": "image_features",
        "v_num_hidden_layers": "image_depth",
        "v_num_attention_heads": "image_heads",
        "v_intermediate_size": "image_mlp_features",
        "v_attention_probs_dropout_prob": "image_attention_dropout",
        "v_hidden_dropout_prob": "image_dropout",
        "bi_hidden_size": "shared_features",
        "bi_num_attention_heads": "shared_heads",
        "t_biattention_id": "text_connections",
        "v_biattention_id": "image_connections",
    }
    FIXED: ClassVar[Mapping[str, tuple]] = {
        **BertConfig.FIXED,
        "v_hidden_act": ("gelu",),
        "with_coattention": (True,),
    }
    DEFAULTS: ClassVar[Mapping[str, Any]] = {**DROPOUT, **{f"v_{name}": rate for name, rate in DROPOUT.items()}}
    IGNORED: ClassVar[tuple[str, ...]] = (
        "bi_attention_type",  # which no code reads
        "bi_intermediate_size",
        "fast_mode",
        "fixed_t_layer",  # how to train
        "fixed_v_layer",
        "in_batch_pairs",
        "intra_gate",
        "objective",
        "num_negative",
        "pooling_method",  # heads that are not here
        "fusion_method",
        "v_target_size",
        "visual_target",
        "v_initializer_range",
    )

    model_type: str = "vilbert"
    region_features: int = 2048
    image_features: int = 1024
    image_depth: int = 6
    image_heads: int = 8
    image_mlp_features: int = 1024
    image_attention_dropout: float = 0.0
    image_dropout: float = 0.0
    shared_features: int = 1024
    shared_heads: int = 8
    text_connections: tuple[int, ...] = (6, 7, 8, 9, 10, 11)
    image_connections: tuple[int, ...] = (0, 1, 2, 3, 4, 5)

    def __post_init__(self):
        super().__post_init__()
        check_positive(region_features=self.region_features, shared_features=self.shared_features)
        check_positive(shared_heads=self.shared_heads)
        check_multiple("shared_heads", shared_features=self.shared_features, shared_heads=self.shared_heads)
        _ = self.image  # checks its sizes
        if self.activation not in ("gelu", "gelu_python") or self.epsilon != 1e-12:
            raise ValueError(
                f"`activation` must be 'gelu' and `epsilon` 1e-12, those of co-attention; got {self.activation!r} and "
                f"{self.epsilon}."
            )
        pairs = {
            "text_connections": (self.text_connections, self.depth),
            "image_connections": (self.image_connections, self.image_depth),
        }
        for name, (places, depth) in pairs.items():
            ascending = list(places) == sorted(places) and all(0 <= one <= depth for one in places)
            if not ascending or len(self.text_connections) != len(self.image_connections):
                raise ValueError(
                    f"`{name}` must be ascending from 0 to {depth}, as many for both streams; got {places}."
                )

    @property
    def image(self) -> EncoderConfig:
        """The configuration of the blocks of the stream of regions."""
        return EncoderConfig(
            model_type=self.model_type,
            features=self.image_features,
            depth=self.image_depth,
            heads=self.image_heads,
            mlp_features=self.image_mlp_features,
            epsilon=self.epsilon,
            attention_dropout=self.image_attention_dropout,
            dropout=self.image_dropout,
        )


class ViLBERTOutput(NamedTuple):
    """What ViLBERT returns.

    Attributes:
        text: the hidden state of each word, `[..., words, features]`.
        image: the hidden state of each region, `[..., regions, image_features]`.
        pooled_text, pooled_image: one vector of each stream, `[..., shared_features]`.
    """

    text: jax.Array
    image: jax.Array
    pooled_text: jax.Array
    pooled_image: jax.Array


class ViLBERT(BertEncoder):
    """ViLBERT: words and the regions of an image -> hidden states of both streams, `ViLBERTOutput`.

        x = norm(E[tokens] + T[token types] + P[positions])
        y = norm(W regions + b + V locations + c)
        x = norm(x + attention(x)),  x = norm(x + mlp(x))       blocks of each stream, y likewise
        y, x = co-attention(y, x)                               before blocks named by the configuration
        pooled = relu(W x_0 + b),  relu(W y_0 + b)

    In a layer of co-attention both streams attend to each other at once, `jattn.variants.vision.CoAttention`. The first
    region stands for the whole image, as the first token for the text. Hugging Face has no such model; names of tensors
    are those of the authors' files.

    Args:
        config: the configuration.
        dtype: the dtype to compute in, by default that of the parameters.
        param_dtype: the dtype of the parameters.
        rngs: random streams for parameters and dropout.

    >>> import jax, numpy as np
    >>> from flax import nnx
    >>> from jattn.models.vilbert import ViLBERT, ViLBERTConfig
    >>> text = {"vocabulary": 11, "features": 8, "depth": 1, "heads": 2, "mlp_features": 16}
    >>> image = {"region_features": 6, "image_features": 4, "image_depth": 1, "image_heads": 2, "image_mlp_features": 8}
    >>> joined = {"shared_features": 8, "shared_heads": 2, "text_connections": (0,), "image_connections": (0,)}
    >>> model = ViLBERT(ViLBERTConfig(**text, **image, **joined), rngs=nnx.Rngs(0))
    >>> found = jax.eval_shape(model, np.zeros((2, 7), int), jax.numpy.zeros((2, 3, 6)), jax.numpy.zeros((2, 3, 5)))
    >>> found.image.shape, found.pooled_text.shape
    ((2, 3, 4), (2, 8))
    """

    config: ViLBERTConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, config: ViLBERTConfig, *, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs):
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        super().__init__(config, **options)  # pyright: ignore[reportArgumentType]
        image = config.image
        self.region_embedding = nnx.Linear(config.region_features, image.features, kernel_init=NORMAL, **options)
        self.location_embedding = nnx.Linear(LOCATION, image.features, kernel_init=NORMAL, **options)
        self.image_norm = layer_norm(image.features, image.epsilon, **options)
        self.image_dropout = dropout(image.dropout, rngs)
        self.image_blocks = nnx.List([EncoderBlock(image, norm_first=False, **options) for _ in range(image.depth)])
        layer = CoAttention(
            image.features,
            config.features,
            config.shared_heads,
            config.shared_features // config.shared_heads,
            image.mlp_features,
            config.mlp_features,
        )
        self.connections = nnx.List([Layer(layer, param_dtype=param_dtype, rngs=rngs) for _ in config.text_connections])
        self.text_pooler = Pooler(config.features, config.shared_features, "relu", **options)
        self.image_pooler = Pooler(image.features, config.shared_features, "relu", **options)

    def __call__(
        self,
        tokens: Any,
        regions: Any,
        locations: Any,
        *,
        attention_mask: Any = None,
        image_attention_mask: Any = None,
        token_types: Any = None,
        mask: Any = None,
        image_mask: Any = None,
        positions: Any = None,
    ) -> ViLBERTOutput:
        """Hidden states and a pooled vector of each stream.

        Args:
            tokens, attention_mask, token_types, positions: the words, as in `BertEncoder`.
            regions: features of regions, floating-point `[..., regions, region_features]`.
            locations: their places, `[..., regions, 5]`: left, top, right and bottom as fractions of the image's sizes,
                and the fraction of its area.
            image_attention_mask: ones and zeros `[..., regions]`, 0 for padding.
            mask, image_mask: masks of `jattn.masks` that restrict the attention of words to words, and of regions to
                regions.

        Raises:
            ValueError: as in `BertEncoder`; regions or locations have another shape.
        """
        x, mask = self.embedded(tokens, attention_mask, token_types, mask, positions)
        regions = _checked("regions", regions, (None, self.config.region_features))
        locations = _checked("locations", locations, (regions.shape[-2], LOCATION))
        across: dict[str, Any] = {"first_mask": None, "second_mask": None}
        if attention_mask is not None:
            across["first_mask"] = padding_of(attention_mask, jnp.asarray(tokens))[0]
        if image_attention_mask is not None:
            padding = padding_of(image_attention_mask, regions[..., 0], "image_attention_mask")[0]
            across["second_mask"], image_mask = padding, restricted(image_mask, padding)
        y = self.image_norm(self.region_embedding(regions) + self.location_embedding(locations))
        y = self.image_dropout(y)
        before = (0, 0)
        for count, places in enumerate(zip(self.config.text_connections, self.config.image_connections, strict=True)):
            x, y = self._blocks(x, y, before, places, mask, image_mask)
            y, x = self.connections[count](y, x, **across)
            before = places
        x, y = self._blocks(x, y, before, (self.config.depth, self.config.image_depth), mask, image_mask)
        return ViLBERTOutput(x, y, self.text_pooler(x), self.image_pooler(y))

    def _blocks(
        self, x: jax.Array, y: jax.Array, first: tuple[int, int], last: tuple[int, int], mask: Any, image_mask: Any
    ) -> tuple[jax.Array, jax.Array]:
        """The blocks of both streams between two layers of co-attention."""
        blocks, image_blocks = list(self.blocks)[first[0] : last[0]], list(self.image_blocks)[first[1] : last[1]]
        x = through(blocks, x, config=self.config, mask=mask)
        return x, through(image_blocks, y, config=self.config, mask=image_mask)


def _checked(name: str, array: Any, shape: tuple[int | None, int]) -> jax.Array:
    """A floating-point array whose last two axes have this shape.

    Raises:
        ValueError: it is something else.
    """
    array = as_array(array)
    dtype = dtype_of(array)
    fits = dtype is not None and jnp.issubdtype(dtype, jnp.floating) and array.ndim >= 2
    if not fits or array.shape[-1] != shape[1] or shape[0] not in (None, array.shape[-2]):
        rows = "regions" if shape[0] is None else shape[0]
        raise ValueError(f"`{name}` must be floating-point [..., {rows}, {shape[1]}]; got {describe(array)}.")
    return jnp.asarray(array)


def _connection(number: int, stream: str, path: str) -> tuple[Rule, ...]:
    """The rules of one stream of a layer of co-attention, whose tensors end in 1 or 2 or begin with v or t."""
    tensor, path = "encoder.c_layer.{block}.", f"connections.{{block}}.{path}."
    heads = [projection_rules(f"{tensor}biattention.{name}{number}", path + name) for name in ("query", "key", "value")]
    return (
        *(rule for rules in heads for rule in rules),
        *out_rules(f"{tensor}biOutput.dense{number}", f"{path}out"),
        *norm_rules(f"{tensor}biOutput.LayerNorm{number}", f"{path}attention_norm"),
        *linear_rules(f"{tensor}{stream}_intermediate.dense", f"{path}up"),
        *linear_rules(f"{tensor}{stream}_output.dense", f"{path}down"),
        *norm_rules(f"{tensor}{stream}_output.LayerNorm", f"{path}out_norm"),
    )


FAMILY = Family(
    config=ViLBERTConfig,
    models={"ViLBERT": ViLBERT},
    table=Table(
        (
            *RULES,
            *linear_rules("v_embeddings.image_embeddings", "region_embedding"),
            *linear_rules("v_embeddings.image_location_embeddings", "location_embedding"),
            *norm_rules("v_embeddings.LayerNorm", "image_norm"),
            *block_rules("encoder.layer.{block}.", "blocks.{block}.", BLOCK),
            *block_rules("encoder.v_layer.{block}.", "image_blocks.{block}.", BLOCK),
            *_connection(1, "v", "first"),
            *_connection(2, "t", "second"),
            *linear_rules("t_pooler.dense", "text_pooler.linear"),
            *linear_rules("v_pooler.dense", "image_pooler.linear"),
        ),
        prefix="bert.",
        ignored=("*biOutput.q_dense*", "*embeddings.position_ids", "cls.*"),  # not computed, a buffer, heads
    ),
)

"""Longformer: BERT with a sliding window and a few global tokens (Beltagy et al. 2020, arXiv:2004.05150)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..foundation.fields import zeros_and_ones
from ..nnx import Layer
from ..ops.attention.dropout import Dropout
from ..variants.sparse import Longformer as Attention
from .bert import (
    BLOCK,
    CLASSIFIER,
    IGNORED,
    LM_HEAD,
    RULES,
    Bert,
    BertEncoder,
    BertForMaskedLM,
    RobertaForSequenceClassification,
)
from .bert_config import DROPOUT, BertConfig
from .blocks import through
from .checkpoint.rules import linear_rules
from .checkpoint.table import Table
from .encoder import EncoderBlock, block_rules
from .registry import Family


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongformerConfig(BertConfig):
    """The configuration of Longformer; as in `BertConfig`, and:

    Args:
        window: how many tokens a token sees on both sides together, without itself, even; one number for all blocks, or
            one for each.

    Raises:
        ValueError: a number is out of its range or odd; there is not one for each block.

    >>> LongformerConfig(features=64, depth=2, heads=4, mlp_features=128, window=(32, 64)).reach(1)
    32
    """

    NAMES: ClassVar[Mapping[str, str]] = {**BertConfig.NAMES, "attention_window": "window"}
    IGNORED: ClassVar[tuple[str, ...]] = ("attention_mode", "ignore_attention_mask", "onnx_export")

    model_type: str = "longformer"
    window: int | tuple[int, ...] = 512

    def __post_init__(self):
        super().__post_init__()
        windows = self.window if isinstance(self.window, tuple) else (self.window,) * self.depth
        if len(windows) != self.depth or any(one < 2 or one % 2 for one in windows):
            raise ValueError(
                f"`window` must be an even number of at least 2, or one for each of the {self.depth} blocks; got "
                f"{self.window}."
            )

    def reach(self, block: int) -> int:
        """How many tokens a token sees on either side in a block, counted from 0."""
        return (self.window[block] if isinstance(self.window, tuple) else self.window) // 2

    @property
    def head_activation(self) -> str:
        """The activation of the head for masked tokens."""
        return "gelu"

    @classmethod
    def from_json(cls, settings: Mapping[str, Any], ignore: Sequence[str] = ()) -> Self:
        """The configuration that a `config.json` describes; see `Config.from_json`."""
        defaults = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, **DROPOUT}
        config = super().from_json({**defaults, **settings}, ignore)
        return dataclasses.replace(config, position_offset=(config.pad_token or 0) + 1)


class LongformerAttention(Layer):
    """`jattn.variants.sparse.Longformer` with dropout of its weights.

    Args:
        config: sizes.
        reach: how many tokens a token sees on either side.
        options: `dtype`, `param_dtype` and `rngs`.
    """

    rngs: Any

    def __init__(self, config: LongformerConfig, reach: int, *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs):
        super().__init__(Attention(config.features, config.heads, reach), param_dtype=param_dtype, rngs=rngs)
        self.dtype = dtype
        self.dropout_rate, self.deterministic = config.attention_dropout, True
        self.rngs = nnx.data(rngs.dropout.fork() if config.attention_dropout > 0 else None)

    def __call__(self, x: jax.Array, *, global_tokens: Any = None, mask: Any = None) -> jax.Array:
        """`[..., length, features]` -> `[..., length, features]`; arguments as in the layer."""
        options = {}
        if self.dropout_rate > 0 and not self.deterministic:
            options["dropout"] = Dropout(self.dropout_rate, self.rngs())
        found = super().__call__(x, global_tokens=global_tokens, mask=mask, **options)
        return found if self.dtype is None else found.astype(self.dtype)


class LongformerEncoder(BertEncoder):
    """Longformer without pooler or head: BERT whose blocks attend to a window and to global tokens.

        i ∉ G:  attention(q_i; k_j, v_j)          over |i - j| ≤ window / 2, and j ∈ G
        i ∈ G:  attention(q'_i; k'_j, v'_j)       over all j

    Tiles outside the window without global tokens are skipped, so time and memory are linear in the length. Positions
    begin after the token for padding, as in RoBERTa.

    Args:
        config: the configuration.
        dtype: the dtype to compute in, by default that of the parameters.
        param_dtype: the dtype of the parameters.
        rngs: random streams for parameters and dropout.
    """

    config: LongformerConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def make_block(self, index: int, **options: Any) -> EncoderBlock:
        """A block with a window."""
        attention = LongformerAttention(self.config, self.config.reach(index), **options)
        return EncoderBlock(self.config, attention=attention, norm_first=False, **options)

    def hidden(
        self,
        tokens: Any,
        *,
        attention_mask: Any = None,
        global_attention_mask: Any = None,
        token_types: Any = None,
        mask: Any = None,
        positions: Any = None,
    ) -> jax.Array:
        """The hidden states of the last block, `[..., length, features]`.

        Args:
            tokens, attention_mask, token_types, positions: as in `BertEncoder`.
            global_attention_mask: ones and zeros `[..., length]`, 1 for global tokens.
            mask: restricts all attention further; for example `SameSegment(ids)`.

        Raises:
            ValueError: as in `BertEncoder`; masks have other numbers than 0 and 1.
        """
        x, mask = self.embedded(tokens, attention_mask, token_types, mask, positions)
        flags = None
        if global_attention_mask is not None:
            flags = zeros_and_ones("global_attention_mask", global_attention_mask, "[batch..., length]", "")
        return through(self.blocks, x, config=self.config, mask=mask, global_tokens=flags)


class Longformer(Bert, LongformerEncoder):
    """Longformer with its pooler: tokens `[..., length]` -> hidden states and a vector, `Encoded`.

    Args:
        config, dtype, param_dtype, rngs: as in `LongformerEncoder`.

    >>> import jax, numpy as np
    >>> from flax import nnx
    >>> from jattn.models.longformer import Longformer, LongformerConfig
    >>> config = LongformerConfig(vocabulary=11, features=8, depth=1, heads=2, mlp_features=16, window=4)
    >>> model = Longformer(config, rngs=nnx.Rngs(0))
    >>> model(np.zeros((2, 9), int), global_attention_mask=np.arange(9) == 0).hidden.shape
    (2, 9, 8)
    """


class LongformerForMaskedLM(BertForMaskedLM, LongformerEncoder):
    """Longformer with its head for masked tokens: tokens `[..., length]` -> logits `[..., length, vocabulary]`.

    Args:
        config, dtype, param_dtype, rngs: as in `LongformerEncoder`.
    """


class LongformerForSequenceClassification(RobertaForSequenceClassification, LongformerEncoder):
    """Longformer with a classifier of the first token: tokens `[..., length]` -> logits `[..., labels]`.

    Args:
        config, dtype, param_dtype, rngs: as in `LongformerEncoder`.
    """

    def hidden(self, tokens: Any, *, global_attention_mask: Any = None, **options: Any) -> jax.Array:
        """As in `LongformerEncoder`; by default the first token is global."""
        if global_attention_mask is None:
            global_attention_mask = np.broadcast_to(np.arange(jnp.shape(tokens)[-1]) == 0, jnp.shape(tokens))
        return super().hidden(tokens, global_attention_mask=global_attention_mask, **options)


_PROJECTIONS = {f"global_{name}": f"attention.self.{name}_global" for name in ("query", "key", "value")}

FAMILY = Family(
    config=LongformerConfig,
    models={
        "LongformerModel": Longformer,
        "LongformerForMaskedLM": LongformerForMaskedLM,
        "LongformerForSequenceClassification": LongformerForSequenceClassification,
    },
    table=Table(
        (
            *RULES,
            *block_rules("encoder.layer.{block}.", "blocks.{block}.", {**BLOCK, **_PROJECTIONS}),
            *linear_rules("pooler.dense", "pooler.linear"),
        ),
        (
            *LM_HEAD,
            *CLASSIFIER,
        ),
        prefix="longformer.",
        ignored=IGNORED,
    ),
)

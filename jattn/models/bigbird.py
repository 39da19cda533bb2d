"""BigBird: BERT with window, random and global blocks (Zaheer et al. 2020, arXiv:2007.14062)."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.arguments import check_choice, check_positive
from ..foundation.arrays import describe
from ..masks.base import Mask, restricted
from ..scores.base import of
from ..variants.sparse import bigbird_mask, random_blocks
from .bert import (
    BLOCK,
    CLASSIFIER,
    IGNORED,
    PREDICTIONS,
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
class BigBirdConfig(BertConfig):
    """The configuration of BigBird; as in `BertConfig`, and:

    Args:
        sparsity: `"block_sparse"`, or `"original_full"` for attention to everything.
        block: tokens of a block.
        random_blocks: r, the number of random blocks of a row.
        seed: the seed of the random blocks; None for none, see `BigBirdEncoder`. `config.json` has no such setting.
        use_bias: whether queries, keys and values have a bias.
        scale_embeddings: whether embeddings of tokens are multiplied by √features.

    Raises:
        ValueError: a number is out of its range; `sparsity` is another; `scan` is set for sparse attention.

    >>> BigBirdConfig(features=64, depth=2, heads=4, mlp_features=128, block=16).is_sparse(177)
    True
    """

    NAMES: ClassVar[Mapping[str, str]] = {
        **BertConfig.NAMES,
        "attention_type": "sparsity",
        "block_size": "block",
        "num_random_blocks": "random_blocks",
        "use_bias": "use_bias",
        "rescale_embeddings": "scale_embeddings",
    }
    DEFAULTS: ClassVar[Mapping[str, Any]] = {"bos_token_id": 1, "pad_token_id": 0, "eos_token_id": 2, **DROPOUT}

    model_type: str = "big_bird"
    vocabulary: int = 50358
    max_length: int = 4096
    activation: str = "gelu_new"
    sparsity: str = "block_sparse"
    block: int = 64
    random_blocks: int = 3
    seed: int | None = None
    use_bias: bool = True
    scale_embeddings: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_choice("sparsity", self.sparsity, ("block_sparse", "original_full"))
        check_positive(block=self.block)
        if self.scan and self.sparsity == "block_sparse":
            raise ValueError("`scan` must be False for sparse attention: each block has random keys of its own.")

    def is_sparse(self, length: int) -> bool:
        """Whether sequences of this length are sparse: as in Hugging Face, if they have more than 5 + 2 r blocks."""
        return self.sparsity == "block_sparse" and length > (5 + 2 * self.random_blocks) * self.block

    @property
    def classifier_activation(self) -> str:
        """The activation in a classifier."""
        return self.activation


class BigBirdEncoder(BertEncoder):
    """BigBird without pooler or head: BERT whose blocks attend to a few blocks of tokens.

    Of n = ⌈length / block⌉ blocks, the first and the last see all; block i of the others sees
    {0, n-1} ∪ {i-1, i, i+1} ∪ R_i, as in `jattn.variants.sparse.bigbird_mask`. The random blocks R_i differ between
    heads and layers. They are, in this order:

    - the argument `random_blocks` of a call;
    - drawn with `config.seed`, if there is one: layer i, counted from 0, uses the seed plus i;
    - none. Hugging Face draws random blocks in training only. In evaluation it lists block 0 in place of each, so these
      keys count 1 + r times in the softmax. The same is done here, as log(1 + r) that is added to their scores.

    Sequences of at most 5 + 2 r blocks attend to everything, as in Hugging Face.

    Args:
        config: the configuration.
        dtype: the dtype to compute in, by default that of the parameters.
        param_dtype: the dtype of the parameters.
        rngs: random streams for parameters and dropout.
    """

    config: BigBirdConfig  # pyright: ignore[reportIncompatibleVariableOverride]

    def make_block(self, index: int, **options: Any) -> EncoderBlock:
        """A block whose queries, keys and values may lack a bias."""
        del index
        use_bias = True if self.config.use_bias else ("out",)
        return EncoderBlock(self.config, norm_first=False, use_bias=use_bias, **options)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """The embeddings of tokens."""
        x = super().embed(tokens)
        return x * self.config.features**0.5 if self.config.scale_embeddings else x

    def hidden(
        self,
        tokens: Any,
        *,
        attention_mask: Any = None,
        token_types: Any = None,
        mask: Any = None,
        positions: Any = None,
        random_blocks: Sequence[Any] | None = None,
    ) -> jax.Array:
        """The hidden states of the last block, `[..., length, features]`.

        Args:
            tokens, attention_mask, token_types, mask, positions: as in `BertEncoder`.
            random_blocks: for each layer integers `[heads or 1, n - 2, r]`, as in `jattn.variants.sparse.bigbird_mask`.

        Raises:
            ValueError: as in `BertEncoder` and `bigbird_mask`; `random_blocks` has not one table for each layer.
        """
        x, mask = self.embedded(tokens, attention_mask, token_types, mask, positions)
        length, config = x.shape[-2], self.config
        if random_blocks is not None and len(random_blocks) != config.depth:
            raise ValueError(
                f"`random_blocks` must be a table for each of the {config.depth} layers; got {describe(random_blocks)}."
            )
        if not config.is_sparse(length):
            return through(self.blocks, x, config=config, mask=mask)
        repeats = config.seed is None and random_blocks is None
        for index, block in enumerate(self.blocks):
            sparse = self.sparse_mask(index, length, None if random_blocks is None else random_blocks[index])
            attention = block.attention
            if repeats:
                attention = attention.with_pieces(
                    scores=repeated_first_block(length, config.block, config.random_blocks)
                )
            mask_of_block = restricted(sparse, mask)
            x = through([block], x, config=config, attention=attention, mask=mask_of_block)
        return x

    def sparse_mask(self, layer: int, length: int, chosen: Any = None) -> Mask | None:
        """The mask of a layer, counted from 0; None if it attends to everything.

        Args:
            layer: which layer.
            length: the length of sequences.
            chosen: the random blocks, by default those of the configuration.
        """
        config = self.config
        if not config.is_sparse(length):
            return None
        if chosen is None and config.seed is not None:
            count, seed = config.random_blocks, config.seed + layer
            chosen = random_blocks(length, config.block, heads=config.heads, count=count, seed=seed)
        elif chosen is None:
            chosen = np.zeros((1, -(-length // config.block) - 2, 0), np.int32)
        return bigbird_mask(length, config.block, chosen)


def repeated_first_block(length: int, block: int, count: int) -> Any:
    """A score: the keys of block 0 count 1 + count times for the queries of all but the first and the last block.

    exp(s + log(1 + c)) = (1 + c) exp(s).
    """
    last = (-(-length // block) - 1) * block
    extra = math.log(1 + count)

    def score(score: jax.Array, query: jax.Array, key: jax.Array) -> jax.Array:
        return score + jnp.where((key < block) & (query >= block) & (query < last), extra, 0.0)

    return of(score)


class BigBird(Bert, BigBirdEncoder):
    """BigBird with its pooler: tokens `[..., length]` -> hidden states and a vector, `Encoded`.

    Args:
        config, dtype, param_dtype, rngs: as in `BigBirdEncoder`.

    >>> import jax, numpy as np
    >>> from flax import nnx
    >>> from jattn.models.bigbird import BigBird, BigBirdConfig
    >>> sizes = {"vocabulary": 11, "features": 8, "depth": 1, "heads": 2, "mlp_features": 16}
    >>> model = BigBird(BigBirdConfig(block=2, random_blocks=1, seed=0, **sizes), rngs=nnx.Rngs(0))
    >>> jax.eval_shape(model, np.zeros((2, 17), int)).hidden.shape
    (2, 17, 8)
    """


class BigBirdForMaskedLM(BertForMaskedLM, BigBirdEncoder):
    """BigBird with its head for masked tokens: tokens `[..., length]` -> logits `[..., length, vocabulary]`.

    Args:
        config, dtype, param_dtype, rngs: as in `BigBirdEncoder`.
    """


class BigBirdForSequenceClassification(RobertaForSequenceClassification, BigBirdEncoder):
    """BigBird with a classifier of the first token: tokens `[..., length]` -> logits `[..., labels]`.

    Args:
        config, dtype, param_dtype, rngs: as in `BigBirdEncoder`.
    """


FAMILY = Family(
    config=BigBirdConfig,
    models={
        "BigBirdModel": BigBird,
        "BigBirdForMaskedLM": BigBirdForMaskedLM,
        "BigBirdForSequenceClassification": BigBirdForSequenceClassification,
    },
    table=Table(
        (
            *RULES,
            *block_rules("encoder.layer.{block}.", "blocks.{block}.", BLOCK),
            *linear_rules("pooler", "pooler.linear"),
        ),
        (
            *PREDICTIONS,
            *CLASSIFIER,
        ),
        prefix="bert.",
        ignored=IGNORED,
    ),
)

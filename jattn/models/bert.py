"""BERT and its kin: encoders of text with norms behind their layers.

| `model_type` | paper | what differs |
|---|---|---|
| bert | Devlin et al. 2018, arXiv:1810.04805 | |
| roberta | Liu et al. 2019, arXiv:1907.11692 | positions begin after the token for padding; heads of its own |
| albert | Lan et al. 2019, arXiv:1909.11942 | blocks share parameters; embeddings have fewer features |
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..foundation.arguments import check_positive
from .bert_config import BertConfig
from .blocks import through
from .checkpoint.rules import linear_rules, norm_rules
from .checkpoint.table import Rule, Table
from .embedding import Embedding
from .encoder import NORMAL, Encoded, EncoderBlock, Pooler, block_rules
from .layers import ACTIVATIONS, checked_tokens, dropout, layer_norm, placed
from .registry import Family

__all__ = [
    "FAMILIES",
    "Bert",
    "BertConfig",
    "BertEncoder",
    "BertForMaskedLM",
    "BertForSequenceClassification",
    "RobertaForSequenceClassification",
]


class BertEncoder(nnx.Module):
    """BERT without pooler or head: what its models have in common.

        x = norm(E[tokens] + T[token types] + P[positions])
        x = norm(x + attention(x)),  x = norm(x + mlp(x))          for each block, in both directions

    Args:
        config: the configuration.
        dtype: the dtype to compute in, by default that of the parameters.
        param_dtype: the dtype of the parameters.
        rngs: random streams for parameters and dropout.
    """

    def __init__(self, config: BertConfig, *, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs):
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        width = config.embedding_features or config.features
        self.config = config
        self.embedding = Embedding(config.vocabulary, width, embedding_init=NORMAL, **options)
        self.position_embedding = Embedding(config.max_length, width, embedding_init=NORMAL, **options)
        self.type_embedding = Embedding(config.token_types, width, embedding_init=NORMAL, **options)
        self.embedding_norm = layer_norm(width, config.epsilon, **options)
        self.dropout = dropout(config.dropout, rngs)
        projected = config.embedding_features is not None
        project = nnx.Linear(width, config.features, kernel_init=NORMAL, **options) if projected else None
        self.embedding_projection = project
        self.blocks = nnx.List([self.make_block(index, **options) for index in range(max(config.order) + 1)])

    def make_block(self, index: int, **options: Any) -> EncoderBlock:
        """A block, counted from 0; called once for each by the constructor."""
        del index
        return EncoderBlock(self.config, norm_first=False, **options)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """The embeddings of tokens, without types and positions."""
        return self.embedding(tokens)

    def embedded(
        self, tokens: Any, attention_mask: Any, token_types: Any, mask: Any, positions: Any
    ) -> tuple[jax.Array, Any]:
        """The input of the first block, and the mask with padding left out; arguments as in `hidden`."""
        config = self.config
        longest = config.max_length - config.position_offset
        tokens = checked_tokens("tokens", tokens, config.vocabulary, longest)
        mask, positions = placed(tokens, attention_mask, mask, positions, longest)
        positions = jnp.asarray(np.arange(tokens.shape[-1]) if positions is None else positions)
        types = jnp.zeros_like(tokens) if token_types is None else token_types
        types = checked_tokens("token_types", types, config.token_types)
        if types.shape != tokens.shape:
            raise ValueError(f"`token_types` must have the shape {tokens.shape} of `tokens`; got {types.shape}.")
        x = self.embed(tokens) + self.type_embedding(types)
        x = x + self.position_embedding(positions + config.position_offset)
        x = self.dropout(self.embedding_norm(x))
        return (x if self.embedding_projection is None else self.embedding_projection(x)), mask

    def hidden(
        self,
        tokens: Any,
        *,
        attention_mask: Any = None,
        token_types: Any = None,
        mask: Any = None,
        positions: Any = None,
    ) -> jax.Array:
        """The hidden states of the last block, `[..., length, features]`.

        Args:
            tokens: integers `[..., length]`.
            attention_mask: ones and zeros `[..., length]`, 0 for padding, which may be on either side: it is not
                attended to, and does not count in positions. Its own output is meaningless.
            token_types: integers `[..., length]`, by default 0.
            mask: a mask of `jattn.masks`; for example `SameSegment(ids)` for packed rows.
            positions: integers `[length]` or `[..., length]`; by default tokens are counted from 0 in each sequence.
                `position_offset` is added. Hugging Face's BERT counts padding on the left, unless `position_ids` are
                given.

        Raises:
            ValueError: tokens or token types are not integers, or known to be out of range; there are more tokens than
                positions.
        """
        x, mask = self.embedded(tokens, attention_mask, token_types, mask, positions)
        blocks = [self.blocks[index] for index in self.config.order]
        return through(blocks, x, config=self.config, mask=mask)


class Bert(BertEncoder):
    """BERT with its pooler: tokens `[..., length]` -> hidden states and a vector, `Encoded`.

        hidden: as in `BertEncoder`,    pooled = tanh(W hidden_0 + b)

    Args:
        config, dtype, param_dtype, rngs: as in `BertEncoder`.

    >>> import jax
    >>> from flax import nnx
    >>> from jattn.models.bert import Bert, BertConfig
    >>> config = BertConfig(vocabulary=11, features=8, depth=1, heads=2, mlp_features=16, max_length=9)
    >>> jax.eval_shape(Bert(config, rngs=nnx.Rngs(0)), jax.numpy.zeros((2, 5), int)).pooled.shape
    (2, 8)
    """

    def __init__(self, config: BertConfig, *, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.pooler = Pooler(config.features, config.features, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, tokens: Any, **options: Any) -> Encoded:
        """Hidden states and the pooled vector; arguments as in `hidden`."""
        hidden = self.hidden(tokens, **options)
        return Encoded(hidden, self.pooler(hidden))


class MaskedHead(nnx.Module):
    """norm(activation(W h + b)), which embeddings are compared with, and a bias for each token."""

    def __init__(self, config: BertConfig, *, param_dtype: Any, **options: Any):
        width = config.embedding_features or config.features
        self.dense = nnx.Linear(config.features, width, kernel_init=NORMAL, param_dtype=param_dtype, **options)
        self.norm = layer_norm(width, config.epsilon, param_dtype=param_dtype, **options)
        self.bias = nnx.Param(jnp.zeros(config.vocabulary, param_dtype))
        self.activation = config.head_activation

    def __call__(self, hidden: jax.Array, embedding: Embedding) -> jax.Array:
        """Logits `[..., vocabulary]`."""
        logits = embedding.attend(self.norm(ACTIVATIONS[self.activation](self.dense(hidden))))
        return logits + self.bias[...].astype(logits.dtype)


class BertForMaskedLM(BertEncoder):
    """BERT with its head for masked tokens: tokens `[..., length]` -> logits `[..., length, vocabulary]`.

        logits = norm(activation(W hidden + b)) Eᵀ + c

    Args:
        config, dtype, param_dtype, rngs: as in `BertEncoder`.
    """

    def __init__(self, config: BertConfig, *, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.head = MaskedHead(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, tokens: Any, **options: Any) -> jax.Array:
        """The logits; arguments as in `hidden`."""
        return self.head(self.hidden(tokens, **options), self.embedding)


class BertForSequenceClassification(Bert):
    """BERT with a classifier of the pooled vector: tokens `[..., length]` -> logits `[..., labels]`.

    Args:
        config, dtype, param_dtype, rngs: as in `BertEncoder`.
    """

    def __init__(self, config: BertConfig, *, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        check_positive(labels=config.labels)
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.classifier = nnx.Linear(config.features, config.labels, kernel_init=NORMAL, **options)

    def __call__(self, tokens: Any, **options: Any) -> jax.Array:  # type: ignore[override]
        """The logits; arguments as in `hidden`."""
        return self.classifier(self.dropout(super().__call__(tokens, **options).pooled))


class RobertaForSequenceClassification(BertEncoder):
    """RoBERTa with a classifier: BERT's, except that the layer in place of the pooler belongs to the head.

    Args:
        config, dtype, param_dtype, rngs: as in `BertEncoder`.
    """

    def __init__(self, config: BertConfig, *, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        check_positive(labels=config.labels)
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.dense = Pooler(config.features, config.features, config.classifier_activation, **options)
        self.classifier = nnx.Linear(config.features, config.labels, kernel_init=NORMAL, **options)

    def __call__(self, tokens: Any, **options: Any) -> jax.Array:
        """The logits; arguments as in `hidden`."""
        return self.classifier(self.dropout(self.dense(self.dropout(self.hidden(tokens, **options)))))


RULES = (
    Rule("embeddings.word_embeddings.weight", "embedding.embedding"),
    Rule("embeddings.position_embeddings.weight", "position_embedding.embedding"),
    Rule("embeddings.token_type_embeddings.weight", "type_embedding.embedding"),
    *norm_rules("embeddings.LayerNorm", "embedding_norm"),
)
BLOCK = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
BLOCKS = block_rules("encoder.layer.{block}.", "blocks.{block}.", BLOCK)
SHARED = block_rules(
    "encoder.albert_layer_groups.{block}.albert_layers.0.",
    "blocks.{block}.",
    {
        "query": "attention.query",
        "key": "attention.key",
        "value": "attention.value",
        "out": "attention.dense",
        "attention_norm": "attention.LayerNorm",
        "up": "ffn",
        "down": "ffn_output",
        "mlp_norm": "full_layer_layer_norm",
    },
)

IGNORED = (
    "*embeddings.position_ids",  # a buffer
    "cls.seq_relationship.*",  # a head for pairs of sentences, in the first checkpoints
    "sop_classifier.*",
    "*pooler.*",  # where the model has none
)


def masked_head(dense: str, norm: str, bias: str, decoder: str) -> tuple[Rule, ...]:
    """The rules of a `MaskedHead`, from the names of its tensors."""
    return (
        *linear_rules(dense, "head.dense"),
        *norm_rules(norm, "head.norm"),
        Rule(bias, "head.bias"),
        Rule(f"{decoder}.weight", "embedding.embedding", tied=True),
        Rule(f"{decoder}.bias", "head.bias", tied=True),
    )


PREDICTIONS = masked_head(
    "cls.predictions.transform.dense",
    "cls.predictions.transform.LayerNorm",
    "cls.predictions.bias",
    "cls.predictions.decoder",
)
LM_HEAD = masked_head("lm_head.dense", "lm_head.layer_norm", "lm_head.bias", "lm_head.decoder")
CLASSIFIER = (*linear_rules("classifier.dense", "dense.linear"), *linear_rules("classifier.out_proj", "classifier"))
"""The heads of BERT and of RoBERTa for masked tokens, and RoBERTa's classifier."""


def _family(name: str, table: Table, classifier: type = BertForSequenceClassification) -> Family:
    models = {"Model": Bert, "ForMaskedLM": BertForMaskedLM, "ForSequenceClassification": classifier}
    return Family(BertConfig, {name + head: model for head, model in models.items()}, table)


FAMILIES = {
    "bert": _family(
        "Bert",
        Table(
            (*RULES, *BLOCKS, *linear_rules("pooler.dense", "pooler.linear")),
            (
                *PREDICTIONS,
                *linear_rules("classifier", "classifier"),
            ),
            prefix="bert.",
            ignored=IGNORED,
            renamed={".gamma": ".weight", ".beta": ".bias"},
        ),
    ),
    "roberta": _family(
        "Roberta",
        Table(
            (*RULES, *BLOCKS, *linear_rules("pooler.dense", "pooler.linear")),
            (
                *LM_HEAD,
                *CLASSIFIER,
            ),
            prefix="roberta.",
            ignored=IGNORED,
        ),
        RobertaForSequenceClassification,
    ),
    "albert": _family(
        "Albert",
        Table(
            (
                *RULES,
                *SHARED,
                *linear_rules("encoder.embedding_hidden_mapping_in", "embedding_projection"),
                *linear_rules("pooler", "pooler.linear"),
            ),
            (
                *masked_head("predictions.dense", "predictions.LayerNorm", "predictions.bias", "predictions.decoder"),
                *linear_rules("classifier", "classifier"),
            ),
            prefix="albert.",
            ignored=IGNORED,
        ),
    ),
}

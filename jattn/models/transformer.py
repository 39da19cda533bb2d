"""The Transformer (Vaswani et al. 2017, "Attention Is All You Need", arXiv:1706.03762), and Marian's checkpoints of it.

A recipe to train one, that of the paper as the Annotated Transformer (Rush 2018, Huang et al. 2022) has it:

    config = TransformerConfig(vocabulary=..., dropout=0.1, pre_norm=True)
    rate = noam_rate(config.features, warmup=4000)
    optimizer = optax.adam(rate, b1=0.9, b2=0.98, eps=1e-9)
    inputs = jattn.models.shifted_right(labels, start=config.decoder_start_token)    # of the decoder
    loss = jattn.models.smoothed_loss(model(source, inputs, attention_mask=source != pad), labels, 0.1, padding=pad)
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..foundation.arguments import check_positive
from ..positions import sinusoidal
from .checkpoint.table import Rule, Table
from .embedding import Embedding, head_of, logits_of
from .encoder_decoder import EncoderDecoder
from .layers import Fixed, checked_tokens, dropout, normal
from .registry import Family
from .stacks import StackConfig, make_stack, stack_rules


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(StackConfig):
    """The configuration of the Transformer; defaults are those of the paper's base model, with dropout off.

    As in `StackConfig`, and:

    Args:
        source_vocabulary: number of tokens of the inputs, if these have an embedding of their own.
        pre_norm: whether norms come before their layer, and one after the last block, as in the Annotated Transformer;
            or after each sum, as in the paper.
        scale_embedding: whether embeddings are multiplied by √features.
        max_length: the largest number of tokens on either side; None for any.

    Raises:
        ValueError: a choice is one that `model_type="marian"` does not have.

    >>> TransformerConfig(vocabulary=100).mlp_features
    2048
    """

    NAMES: ClassVar[Mapping[str, str]] = {
        **StackConfig.NAMES,
        "source_vocab_size": "source_vocabulary",
        "normalize_before": "pre_norm",
        "scale_embedding": "scale_embedding",
        "max_position_embeddings": "max_length",
    }
    FIXED: ClassVar[Mapping[str, tuple]] = {
        "share_encoder_decoder_embeddings": (True,),
        "static_position_embeddings": (True,),
        "encoder_layerdrop": (0.0,),
        "decoder_layerdrop": (0.0,),
    }
    IGNORED: ClassVar[tuple[str, ...]] = (
        "decoder_vocab_size",  # repeats vocab_size, as embeddings are shared
        "num_hidden_layers",  # repeats encoder_layers
        "extra_pos_embeddings",  # of learned positions
        "init_std",
        "classif_dropout",  # of a head that is not here
    )

    model_type: str = "transformer"
    vocabulary: int = 37000
    source_vocabulary: int | None = None
    features: int = 512
    depth: int = 6
    decoder_depth: int = 6
    heads: int = 8
    decoder_heads: int = 8
    mlp_features: int = 2048
    decoder_mlp_features: int = 2048
    activation: str = "relu"
    pre_norm: bool = False
    scale_embedding: bool = True
    max_length: int | None = None
    decoder_start_token: int = 1
    pad_token: int | None = 0
    eos_token: int | tuple[int, ...] | None = 2

    def __post_init__(self):
        super().__post_init__()
        for name in ("source_vocabulary", "max_length"):
            if getattr(self, name) is not None:
                check_positive(**{name: getattr(self, name)})
        if self.model_type == "marian" and (self.pre_norm or self.source_vocabulary is not None):
            raise ValueError(
                "`model_type` must be 'transformer' for `pre_norm` or `source_vocabulary`, which Marian does not have; "
                f"got 'marian', pre_norm={self.pre_norm}, source_vocabulary={self.source_vocabulary}."
            )


class Transformer(EncoderDecoder):
    """The Transformer without a head: inputs `[..., inputs]`, tokens `[..., length]` -> `[..., length, features]`.

        x = √features E[inputs] + sinusoids
        x = norm(x + attention(x)),  x = norm(x + mlp(x))              for each block of the encoder; encoded = x
        y = √features E[tokens] + sinusoids
        y = norm(y + attention(y)),  y = norm(y + cross(y, encoded)),  y = norm(y + mlp(y))
        hidden = y

    or with norms before the layers, and one after each stack. Sinusoids are all sines, then all cosines, as in Marian
    and Tensor2Tensor; the paper's formula interleaves them, a permutation of features. Positions are counted from the
    first token that is not padding, whereas Hugging Face counts padding on the left.

    Args:
        config: the configuration.
        dtype: the dtype to compute in, by default that of the parameters.
        param_dtype: the dtype of the parameters.
        rngs: random streams for parameters and dropout.

    >>> import jax
    >>> from flax import nnx
    >>> from jattn.models.transformer import Transformer, TransformerConfig
    >>> sizes = {"features": 8, "heads": 2, "decoder_heads": 2, "mlp_features": 16, "decoder_mlp_features": 16}
    >>> model = Transformer(TransformerConfig(vocabulary=11, depth=1, decoder_depth=1, **sizes), rngs=nnx.Rngs(0))
    >>> jax.eval_shape(model, jax.numpy.zeros((2, 5), int), jax.numpy.zeros((2, 3), int)).shape
    (2, 3, 8)
    """

    config: TransformerConfig

    def __init__(self, config: TransformerConfig, *, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs):
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.config, self.longest = config, config.max_length
        embed = functools.partial(
            Embedding, features=config.features, embedding_init=normal(config.features**-0.5), **options
        )
        self.embedding = embed(config.vocabulary)
        self.source_embedding = None if config.source_vocabulary is None else embed(config.source_vocabulary)
        self.dropout = dropout(config.dropout, rngs)
        choices = {"pre_norm": config.pre_norm, "kernel_init": nnx.initializers.xavier_uniform(), **options}
        self.encoder, self.decoder = (make_stack(config, decoder=decoder, **choices) for decoder in (False, True))

    def embed_inputs(self, inputs: Any, positions: Any = None) -> jax.Array:
        """The sum of the scaled embeddings of inputs and sinusoids."""
        config = self.config
        inputs = checked_tokens("inputs", inputs, config.source_vocabulary or config.vocabulary, config.max_length)
        positions = np.arange(inputs.shape[-1]) if positions is None else positions
        return self._placed(self.source_embedding or self.embedding, inputs, positions)

    def embed(self, tokens: jax.Array, positions: Any) -> jax.Array:
        """The sum of the scaled embeddings of tokens and sinusoids."""
        return self._placed(self.embedding, tokens, positions)

    def _placed(self, embedding: Embedding, tokens: jax.Array, positions: Any) -> jax.Array:
        x = embedding(tokens)
        if self.config.scale_embedding:
            x = x * self.config.features**0.5
        return self.dropout(x + sinusoidal(positions, self.config.features, layout="half", dtype=x.dtype))


class TransformerForConditionalGeneration(Transformer):
    """The Transformer with its head: logits of the next token, `[..., length, vocabulary]`.

    Arguments as in `Transformer`. `encode`, `initial_state`, `prefill` and `step` generate. Marian's checkpoints add a
    number to the logits of each token, which is not trained.

    >>> import jax
    >>> from flax import nnx
    >>> from jattn.models.transformer import TransformerConfig, TransformerForConditionalGeneration
    >>> sizes = {"features": 8, "heads": 2, "decoder_heads": 2, "mlp_features": 16, "decoder_mlp_features": 16}
    >>> config = TransformerConfig(vocabulary=11, depth=1, decoder_depth=1, **sizes)
    >>> model = TransformerForConditionalGeneration(config, rngs=nnx.Rngs(0))
    >>> jax.eval_shape(model, jax.numpy.zeros((2, 5), int), jax.numpy.zeros((2, 3), int)).shape
    (2, 3, 11)
    """

    def __init__(self, config: TransformerConfig, *, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.head = head_of(config.features, config.vocabulary, tied=config.tie_embeddings, **options)
        marian = config.model_type == "marian"
        self.output_bias = Fixed(jnp.zeros((1, config.vocabulary), param_dtype)) if marian else None

    def output(self, hidden: jax.Array) -> jax.Array:
        """The logits of the next token, `[..., vocabulary]`."""
        logits = logits_of(hidden, self.embedding, self.head)
        return logits if self.output_bias is None else logits + self.output_bias[...][0].astype(logits.dtype)


def noam_rate(features: int, warmup: int = 4000, factor: float = 1.0) -> Callable[[Any], Any]:
    """The learning rate of the paper, as a schedule for optax: it rises linearly, and then falls as 1/√step.

        rate = factor * features^-0.5 * min(step^-0.5, step * warmup^-1.5)

    The largest, factor / √(features * warmup), is reached at step `warmup`. Optax counts updates from 0, the paper from
    1: the schedule adds 1.

    Args:
        features: features of a token.
        warmup: the number of steps that it rises for.
        factor: multiplies it.

    >>> rate = noam_rate(512, warmup=4000)
    >>> [round(float(rate(count)) * 1000, 3) for count in (0, 1999, 3999, 15999)]
    [0.0, 0.349, 0.699, 0.349]
    """
    check_positive(features=features, warmup=warmup)

    def rate(count: Any) -> Any:
        step = jnp.asarray(count, jnp.float32) + 1
        return factor * features**-0.5 * jnp.minimum(step**-0.5, step * warmup**-1.5)

    return rate


RULES = (
    Rule("shared.weight", "embedding.embedding"),
    Rule("encoder.embed_tokens.weight", "source_embedding.embedding"),
    Rule("encoder.embed_tokens.weight", "embedding.embedding", tied=True),
    Rule("decoder.embed_tokens.weight", "embedding.embedding", tied=True),
    *stack_rules("encoder"),
    *stack_rules("decoder"),
)

HEADS = (
    Rule("final_logits_bias", "output_bias"),
    Rule("lm_head.weight", "head.kernel", "o i -> i o"),
    Rule("lm_head.weight", "embedding.embedding", tied=True),
)

IGNORED = ("*encoder.embed_positions.weight", "*decoder.embed_positions.weight")  # sinusoids

TABLE = Table(RULES, HEADS, prefix="model.", ignored=IGNORED)

FAMILIES = {
    "marian": Family(
        config=TransformerConfig,
        models={"MarianModel": Transformer, "MarianMTModel": TransformerForConditionalGeneration},
        table=TABLE,
    ),
    "transformer": Family(
        config=TransformerConfig,
        models={
            "Transformer": Transformer,
            "TransformerForConditionalGeneration": TransformerForConditionalGeneration,
        },
        table=TABLE,
    ),
}

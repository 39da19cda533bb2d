"""GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners")."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from ..foundation.arguments import check_multiple, check_positive, check_rate
from ..masks import Causal
from ..nnx import MultiHeadAttention
from ..similarities import Dot
from .checkpoint.rules import norm_rules
from .checkpoint.table import Rule, Table
from .config import Config
from .decoder import CausalLM, Decoder, DecoderBlock
from .embedding import Embedding, head_of
from .layers import MLP, check_activation, dropout, layer_norm, normal
from .registry import Family


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPT2Config(Config):
    """The configuration of GPT-2; defaults are those of the smallest published model.

    Args:
        vocabulary: number of tokens.
        max_length: number of positions.
        features: features of a token.
        depth: number of blocks.
        heads: number of heads.
        mlp_features: features inside a feed-forward layer, by default `4 * features`.
        activation: the activation of the feed-forward layer.
        epsilon: ε of the norms.
        scale_by_dim: whether scores are divided by √head_dim.
        scale_by_depth: whether scores of block i, counted from 1, are divided by i.
        tie_embeddings: whether the head is the embedding.
        attention_dropout, embedding_dropout, residual_dropout: dropout rates in training.

    Raises:
        ValueError: a number is out of its range; heads do not divide the features; the activation is unknown.

    >>> GPT2Config(vocabulary=100, features=64, depth=2, heads=4).max_length
    1024
    """

    NAMES: ClassVar[Mapping[str, str]] = {
        "vocab_size": "vocabulary",
        "n_positions": "max_length",
        "n_embd": "features",
        "n_layer": "depth",
        "n_head": "heads",
        "n_inner": "mlp_features",
        "activation_function": "activation",
        "layer_norm_epsilon": "epsilon",
        "scale_attn_weights": "scale_by_dim",
        "scale_attn_by_inverse_layer_idx": "scale_by_depth",
        "tie_word_embeddings": "tie_embeddings",
        "attn_pdrop": "attention_dropout",
        "embd_pdrop": "embedding_dropout",
        "resid_pdrop": "residual_dropout",
    }
    DEFAULTS: ClassVar[Mapping[str, Any]] = {
        "attn_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "resid_pdrop": 0.1,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
    }
    FIXED: ClassVar[Mapping[str, tuple]] = {"add_cross_attention": (False,)}
    IGNORED: ClassVar[tuple[str, ...]] = (
        "n_ctx",  # repeats n_positions
        "reorder_and_upcast_attn",  # rounding
        "summary_type",  # heads that are not here
        "summary_use_proj",
        "summary_activation",
        "summary_proj_to_labels",
        "summary_first_dropout",
    )

    model_type: str = "gpt2"
    vocabulary: int = 50257
    max_length: int = 1024
    features: int = 768
    depth: int = 12
    heads: int = 12
    mlp_features: int | None = None
    activation: str = "gelu_new"
    epsilon: float = 1e-5
    scale_by_dim: bool = True
    scale_by_depth: bool = False
    tie_embeddings: bool = True
    attention_dropout: float = 0.0
    embedding_dropout: float = 0.0
    residual_dropout: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        check_positive(vocabulary=self.vocabulary, max_length=self.max_length, features=self.features, depth=self.depth)
        check_positive(heads=self.heads, mlp_features=self.mlp_features or 4 * self.features)
        check_multiple("heads", features=self.features, heads=self.heads)
        check_activation(self.activation)
        for name in ("attention_dropout", "embedding_dropout", "residual_dropout"):
            check_rate(name, getattr(self, name))

    def scale(self, block: int) -> float:
        """The factor on the scores of a block, counted from 0."""
        by_dim = (self.features // self.heads) ** -0.5 if self.scale_by_dim else 1.0
        return by_dim / (block + 1 if self.scale_by_depth else 1)


class GPT2Block(DecoderBlock):
    """x = x + attention(norm(x)); x = x + mlp(norm(x))."""

    def __init__(self, config: GPT2Config, index: int, **options: Any):
        inits = {"kernel_init": normal(0.02), "out_kernel_init": normal(0.02 * (2 * config.depth) ** -0.5)}
        self.attention_norm = layer_norm(config.features, config.epsilon, **options)
        self.attention = MultiHeadAttention(
            config.features,
            config.heads,
            mask=Causal(),
            similarity=Dot(config.scale(index)),
            dropout_rate=config.attention_dropout,
            deterministic=True,
            **inits,
            **options,
        )
        self.mlp_norm = layer_norm(config.features, config.epsilon, **options)
        hidden = config.mlp_features or 4 * config.features
        self.mlp = MLP(config.features, hidden, config.activation, **inits, **options)
        self.dropout = dropout(config.residual_dropout, options["rngs"])

    def around(self, x, attend):
        attended, state = attend(self.attention_norm(x))
        x = x + self.dropout(attended)
        return x + self.dropout(self.mlp(self.mlp_norm(x))), state


class GPT2(Decoder):
    """GPT-2 without a head: tokens `[..., length]` -> hidden states `[..., length, features]`.

        x = E[tokens] + P[positions]
        x = x + attention(norm(x)),  x = x + mlp(norm(x))          for each block, causal
        hidden = norm(x)

    Positions are counted from the first token of each row that is not padding, whereas Hugging Face counts padding too,
    unless `position_ids` are given.

    Args:
        config: the configuration.
        dtype: the dtype to compute in, by default that of the parameters.
        param_dtype: the dtype of the parameters.
        rngs: random streams for parameters and dropout.

    >>> import jax
    >>> from flax import nnx
    >>> from jattn.models.gpt2 import GPT2, GPT2Config
    >>> config = GPT2Config(vocabulary=11, features=8, depth=1, heads=2, max_length=9)
    >>> model = GPT2(config, rngs=nnx.Rngs(0))
    >>> jax.eval_shape(model, jax.numpy.zeros((2, 5), int)).shape
    (2, 5, 8)
    """

    config: GPT2Config

    def __init__(self, config: GPT2Config, *, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs):
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        embed = functools.partial(Embedding, features=config.features, embedding_init=normal(0.02), **options)
        self.config, self.longest = config, config.max_length
        self.embedding = embed(config.vocabulary)
        self.position_embedding = embed(config.max_length)
        self.dropout = dropout(config.embedding_dropout, rngs)
        self.blocks = nnx.List([GPT2Block(config, index, **options) for index in range(config.depth)])
        self.norm = layer_norm(config.features, config.epsilon, **options)

    def embed(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        """The sum of the embeddings of tokens and positions."""
        return self.dropout(self.embedding(tokens) + self.position_embedding(jnp.asarray(positions)))


class GPT2ForCausalLM(CausalLM, GPT2):
    """GPT-2 with its head: tokens `[..., length]` -> logits of the next token `[..., length, vocabulary]`.

    Arguments as in `GPT2`. `initial_state`, `prefill` and `step` generate.

    >>> import jax
    >>> from flax import nnx
    >>> from jattn.models.gpt2 import GPT2Config, GPT2ForCausalLM
    >>> config = GPT2Config(vocabulary=11, features=8, depth=1, heads=2, max_length=9)
    >>> model = GPT2ForCausalLM(config, rngs=nnx.Rngs(0))
    >>> state = model.initial_state(2, capacity=9)
    >>> logits, state = nnx.jit(lambda model, tokens, state: model.prefill(tokens, state))(
    ...     model, jax.numpy.zeros((2, 5), int), state
    ... )
    >>> logits.shape
    (2, 11)
    """

    def __init__(self, config: GPT2Config, *, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.head = head_of(config.features, config.vocabulary, tied=config.tie_embeddings, **options)


_ATTENTION = tuple(f"blocks.{{block}}.attention.{name}" for name in ("query", "key", "value"))

RULES = (
    Rule("wte.weight", "embedding.embedding"),
    Rule("wpe.weight", "position_embedding.embedding"),
    *norm_rules("h.{block}.ln_1", "blocks.{block}.attention_norm"),
    Rule("h.{block}.attn.c_attn.weight", tuple(f"{path}.kernel" for path in _ATTENTION), "f (part h d) -> part f h d"),
    Rule("h.{block}.attn.c_attn.bias", tuple(f"{path}.bias" for path in _ATTENTION), "(part h d) -> part h d"),
    Rule("h.{block}.attn.c_proj.weight", "blocks.{block}.attention.out.kernel", "(h d) f -> h d f"),
    Rule("h.{block}.attn.c_proj.bias", "blocks.{block}.attention.out.bias"),
    *norm_rules("h.{block}.ln_2", "blocks.{block}.mlp_norm"),
    Rule("h.{block}.mlp.c_fc.weight", "blocks.{block}.mlp.up.kernel"),  # GPT-2 stores kernels as (inputs, outputs)
    Rule("h.{block}.mlp.c_fc.bias", "blocks.{block}.mlp.up.bias"),
    Rule("h.{block}.mlp.c_proj.weight", "blocks.{block}.mlp.down.kernel"),
    Rule("h.{block}.mlp.c_proj.bias", "blocks.{block}.mlp.down.bias"),
    *norm_rules("ln_f", "norm"),
)

HEADS = (
    Rule("lm_head.weight", "head.kernel", "o i -> i o"),
    Rule("lm_head.weight", "embedding.embedding", tied=True),
)

IGNORED = ("*h.*.attn.bias", "*h.*.attn.masked_bias")  # buffers: the causal mask, and what it fills in

FAMILY = Family(
    config=GPT2Config,
    models={"GPT2Model": GPT2, "GPT2LMHeadModel": GPT2ForCausalLM},
    table=Table(RULES, HEADS, prefix="transformer.", ignored=IGNORED),
)

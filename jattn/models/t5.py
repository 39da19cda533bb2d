"""T5 (Raffel et al. 2020, arXiv:1910.10683), version 1.1 of it, and FLAN-T5 (Chung et al. 2022, arXiv:2210.11416)."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from ..foundation.arguments import check_positive, check_rate
from ..masks import Causal
from ..nnx import MultiHeadAttention
from ..scores import RelativeBuckets
from ..similarities import Dot
from .checkpoint.table import Rule, Table
from .config import Config
from .embedding import Embedding, head_of, logits_of
from .encoder_decoder import CrossBlock, EncoderDecoder, ResidualBlock, Stack
from .layers import MLP, RMSNorm, check_activation, checked_tokens, dropout, normal
from .registry import Family


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config(Config):
    """The configuration of T5; defaults are those of the small published model.

    Args:
        vocabulary: number of tokens.
        features: features of a token.
        head_dim: features of a head; `heads * head_dim` need not be `features`.
        mlp_features: features inside a feed-forward layer.
        depth: number of blocks of the encoder.
        decoder_depth: number of blocks of the decoder, by default `depth`.
        heads: number of heads.
        buckets, max_distance: as in `jattn.scores.RelativeBuckets`, per stack.
        feed_forward: `"relu"`, or another activation; `"gated-gelu"` in version 1.1 and FLAN-T5, `"gated-silu"`.
        epsilon: ε of the norms.
        tie_embeddings: whether the head is the embedding; not so in version 1.1 and FLAN-T5.
        scale_output: whether hidden states are divided by √features before the head; by default if it is tied.
        dropout: the dropout rate in training.
        decoder_start_token: the token that the decoder begins with.

    Raises:
        ValueError: a number is out of its range; the activation is unknown.

    >>> T5Config(feed_forward="gated-gelu").activation
    'gelu_new'
    """

    NAMES: ClassVar[Mapping[str, str]] = {
        "vocab_size": "vocabulary",
        "d_model": "features",
        "d_kv": "head_dim",
        "d_ff": "mlp_features",
        "num_layers": "depth",
        "num_decoder_layers": "decoder_depth",
        "num_heads": "heads",
        "relative_attention_num_buckets": "buckets",
        "relative_attention_max_distance": "max_distance",
        "feed_forward_proj": "feed_forward",
        "layer_norm_epsilon": "epsilon",
        "tie_word_embeddings": "tie_embeddings",
        "scale_decoder_outputs": "scale_output",
        "dropout_rate": "dropout",
        "decoder_start_token_id": "decoder_start_token",
    }
    IGNORED: ClassVar[tuple[str, ...]] = (
        "n_positions",  # of the training data: positions are not limited
        "dense_act_fn",  # repeat feed_forward_proj
        "is_gated_act",
    )

    model_type: str = "t5"
    vocabulary: int = 32128
    features: int = 512
    head_dim: int = 64
    mlp_features: int = 2048
    depth: int = 6
    decoder_depth: int | None = None
    heads: int = 8
    buckets: int = 32
    max_distance: int = 128
    feed_forward: str = "relu"
    epsilon: float = 1e-6
    tie_embeddings: bool = True
    scale_output: bool | None = None
    dropout: float = 0.0
    decoder_start_token: int = 0
    pad_token: int | None = 0
    eos_token: int | tuple[int, ...] | None = 1

    def __post_init__(self):
        super().__post_init__()
        if self.decoder_depth is None:
            object.__setattr__(self, "decoder_depth", self.depth)
        if self.scale_output is None:
            object.__setattr__(self, "scale_output", self.tie_embeddings)
        names = ("vocabulary", "features", "head_dim", "mlp_features", "depth", "decoder_depth", "heads", "buckets")
        check_positive(**{name: getattr(self, name) for name in names})
        check_activation(self.activation)
        check_rate("dropout", self.dropout)

    @property
    def gated(self) -> bool:
        """Whether feed-forward layers have a gate."""
        return self.feed_forward.startswith("gated-")

    @property
    def activation(self) -> str:
        """The activation of feed-forward layers. T5's "gated-gelu" is the approximation by tanh."""
        name = self.feed_forward.removeprefix("gated-")
        return "gelu_new" if self.gated and name == "gelu" else name


class T5(EncoderDecoder):
    """T5 without a head: inputs `[..., inputs]`, tokens `[..., length]` -> hidden states `[..., length, features]`.

        x = E[inputs];  x = x + attention(norm(x)),  x = x + mlp(norm(x))      for each block of the encoder
        encoded = norm(x)
        y = E[tokens];  y = y + attention(norm(y)),  y = y + cross(norm(y), encoded),  y = y + mlp(norm(y))
        hidden = norm(y)

    Norms divide by the root mean square and have no bias. Scores of attention are q·k without a scale. Those of
    self-attention are increased by a learned number for each bucket of distances and each head, the table of which all
    blocks of a stack share. There are no positions otherwise, so sequences may be of any length.

    Args:
        config: the configuration.
        dtype: the dtype to compute in, by default that of the parameters. T5 was trained in bfloat16; in float16 its
            hidden states overflow.
        param_dtype: the dtype of the parameters.
        rngs: random streams for parameters and dropout.

    >>> import jax
    >>> from flax import nnx
    >>> from jattn.models.t5 import T5, T5Config
    >>> config = T5Config(vocabulary=11, features=8, heads=2, head_dim=4, mlp_features=16, depth=1)
    >>> model = T5(config, rngs=nnx.Rngs(0))
    >>> jax.eval_shape(model, jax.numpy.zeros((2, 5), int), jax.numpy.zeros((2, 3), int)).shape
    (2, 3, 8)
    """

    config: T5Config

    def __init__(self, config: T5Config, *, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs):
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.config = config
        self.embedding = Embedding(config.vocabulary, config.features, embedding_init=normal(1.0), **options)
        self.dropout = dropout(config.dropout, rngs)
        self.encoder = self._stack(config.depth, False, options)
        self.decoder = self._stack(config.decoder_depth or 0, True, options)

    def _stack(self, depth: int, decoder: bool, options: dict[str, Any]) -> Stack:
        """An encoder or decoder, whose blocks share the table of their first."""
        config, rngs = self.config, options["rngs"]
        norm = functools.partial(RMSNorm, config.features, config.epsilon, **options)
        drop = functools.partial(dropout, config.dropout, rngs)
        table = jnp.zeros((config.buckets, config.heads), options["param_dtype"])
        biases = RelativeBuckets(table, bidirectional=not decoder, max_distance=config.max_distance)
        biased = {"scores": biases, "learned": ("scores",), "mask": Causal() if decoder else None}
        blocks = []
        for _ in range(depth):
            attention = _attention(config, options, **biased)
            if blocks:
                attention.scores = blocks[0].attention.scores
            mlp = _mlp(config, options)
            if decoder:
                blocks.append(CrossBlock(attention, _attention(config, options), mlp, norm, drop()))
            else:
                blocks.append(ResidualBlock(attention, mlp, norm, drop()))
        return Stack(blocks, norm(), drop())

    def embed_inputs(self, inputs: Any, positions: Any = None) -> jax.Array:
        """The embeddings of inputs, which do not depend on positions."""
        del positions
        return self.dropout(self.embedding(checked_tokens("inputs", inputs, self.config.vocabulary)))

    def embed(self, tokens: jax.Array, positions: Any) -> jax.Array:
        """The embeddings of tokens, which do not depend on positions."""
        del positions
        return self.dropout(self.embedding(tokens))


class T5ForConditionalGeneration(T5):
    """T5 with its head: inputs `[..., inputs]`, tokens `[..., length]` -> logits `[..., length, vocabulary]`.

    Arguments as in `T5`. `encode`, `initial_state`, `prefill` and `step` generate.

    >>> import jax
    >>> from flax import nnx
    >>> from jattn.models.t5 import T5Config, T5ForConditionalGeneration
    >>> config = T5Config(vocabulary=11, features=8, heads=2, head_dim=4, mlp_features=16, depth=1)
    >>> model = T5ForConditionalGeneration(config, rngs=nnx.Rngs(0))
    >>> def first(model, inputs):
    ...     state = model.initial_state(len(inputs), capacity=9, encoded=model.encode(inputs))
    ...     return model.step(jax.numpy.full(len(inputs), config.decoder_start_token), state)
    >>> logits, state = nnx.jit(first)(model, jax.numpy.zeros((2, 5), int))
    >>> logits.shape
    (2, 11)
    """

    def __init__(self, config: T5Config, *, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.head = head_of(config.features, config.vocabulary, tied=config.tie_embeddings, **options)

    def output(self, hidden: jax.Array) -> jax.Array:
        """The logits of the next token, `[..., vocabulary]`."""
        if self.config.scale_output:
            hidden = hidden * self.config.features**-0.5
        return logits_of(hidden, self.embedding, self.head)


def _attention(config: T5Config, options: dict[str, Any], **pieces: Any) -> MultiHeadAttention:
    attention = MultiHeadAttention(
        config.features,
        config.heads,
        head_dim=config.head_dim,
        use_bias=False,
        similarity=Dot(),
        dropout_rate=config.dropout,
        deterministic=True,
        kernel_init=normal(config.features**-0.5),
        out_kernel_init=normal((config.heads * config.head_dim) ** -0.5),
        **pieces,
        **options,
    )
    kernel = attention.query.kernel  # scores are not scaled, so queries begin smaller
    kernel.set_value(kernel.get_value() * config.head_dim**-0.5)
    return attention


def _mlp(config: T5Config, options: dict[str, Any]) -> MLP:
    return MLP(
        config.features,
        config.mlp_features,
        config.activation,
        gated=config.gated,
        use_bias=False,
        dropout_rate=config.dropout,
        kernel_init=normal(config.features**-0.5),
        out_kernel_init=normal(config.mlp_features**-0.5),
        **options,
    )


def _attends(stack: str, layer: int, theirs: str, ours: str) -> tuple[Rule, ...]:
    prefix, path = f"{stack}.block.{{block}}.layer.{layer}", f"{stack}.blocks.{{block}}"
    names = {"q": "query", "k": "key", "v": "value"}
    return (
        *(
            Rule(f"{prefix}.{theirs}.{short}.weight", f"{path}.{ours}.{name}.kernel", "(h d) f -> f h d")
            for short, name in names.items()
        ),
        Rule(f"{prefix}.{theirs}.o.weight", f"{path}.{ours}.out.kernel", "f (h d) -> h d f"),
        Rule(f"{prefix}.layer_norm.weight", f"{path}.{ours}_norm.scale"),
    )


def _feeds(stack: str, layer: int) -> tuple[Rule, ...]:
    prefix, path = f"{stack}.block.{{block}}.layer.{layer}", f"{stack}.blocks.{{block}}"
    gate, up = f"{path}.mlp.gate.kernel", f"{path}.mlp.up.kernel"
    return (
        Rule(f"{prefix}.DenseReluDense.wi.weight", up, "o i -> i o", unless=gate),
        Rule(f"{prefix}.DenseReluDense.wi_0.weight", gate, "o i -> i o"),
        Rule(f"{prefix}.DenseReluDense.wi_1.weight", up, "o i -> i o", given=gate),
        Rule(f"{prefix}.DenseReluDense.wo.weight", f"{path}.mlp.down.kernel", "o i -> i o"),
        Rule(f"{prefix}.layer_norm.weight", f"{path}.mlp_norm.scale"),
    )


def _rest(stack: str) -> tuple[Rule, ...]:
    table = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return (
        Rule(f"{stack}.embed_tokens.weight", "embedding.embedding", tied=True),
        Rule(table, f"{stack}.blocks.0.attention.scores.0.table"),
        Rule(f"{stack}.final_layer_norm.weight", f"{stack}.norm.scale"),
    )


RULES = (
    Rule("shared.weight", "embedding.embedding"),
    *_rest("encoder"),
    *_attends("encoder", 0, "SelfAttention", "attention"),
    *_feeds("encoder", 1),
    *_rest("decoder"),
    *_attends("decoder", 0, "SelfAttention", "attention"),
    *_attends("decoder", 1, "EncDecAttention", "cross"),
    *_feeds("decoder", 2),
)

HEADS = (
    Rule("lm_head.weight", "head.kernel", "o i -> i o"),
    Rule("lm_head.weight", "embedding.embedding", tied=True),
)

IGNORED = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)  # in old files; has no effect

FAMILY = Family(
    config=T5Config,
    models={
        "T5Model": T5,
        "T5ForConditionalGeneration": T5ForConditionalGeneration,
        "T5WithLMHeadModel": T5ForConditionalGeneration,  # its name in old files
    },
    table=Table(RULES, HEADS, ignored=IGNORED),
)

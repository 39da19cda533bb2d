"""What encoders share: their configuration, blocks with norms before or after, poolers and heads over one token.

norms first:  x = x + attention(norm(x)),    x = x + mlp(norm(x))
norms last:   x = norm(x + attention(x)),    x = norm(x + mlp(x))
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
from flax import nnx

from ..foundation.arguments import check_multiple, check_positive, check_rate
from ..nnx import MultiHeadAttention
from .checkpoint.rules import linear_rules, norm_rules, out_rules, projection_rules
from .checkpoint.table import Rule
from .config import Config
from .encoder_decoder import ResidualBlock
from .layers import ACTIVATIONS, MLP, check_activation, dropout, layer_norm, normal

NORMAL: Any = normal(0.02)
"""The initializer of kernels and embeddings."""


class Encoded(NamedTuple):
    """What an encoder returns.

    Attributes:
        hidden: the hidden state of each token, `[..., length, features]`.
        pooled: one vector for the whole, `[..., features]`.
    """

    hidden: jax.Array
    pooled: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig(Config):
    """What the configurations of encoders have in common.

    Args:
        features: features of a token.
        depth: number of blocks.
        heads: number of heads; must divide `features`.
        mlp_features: features inside a feed-forward layer.
        activation: the activation of the feed-forward layer.
        epsilon: ε of the norms.
        attention_dropout, dropout: dropout rates in training, of attention weights and of everything else.

    Raises:
        ValueError: a number is out of its range; heads do not divide.
    """

    NAMES: ClassVar[Mapping[str, str]] = {
        "hidden_size": "features",
        "num_hidden_layers": "depth",
        "num_attention_heads": "heads",
        "intermediate_size": "mlp_features",
        "hidden_act": "activation",
        "layer_norm_eps": "epsilon",
        "attention_probs_dropout_prob": "attention_dropout",
        "hidden_dropout_prob": "dropout",
    }

    features: int = 768
    depth: int = 12
    heads: int = 12
    mlp_features: int = 3072
    activation: str = "gelu"
    epsilon: float = 1e-12
    attention_dropout: float = 0.0
    dropout: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        check_positive(features=self.features, depth=self.depth, heads=self.heads, mlp_features=self.mlp_features)
        check_multiple("heads", features=self.features, heads=self.heads)
        check_activation(self.activation)
        check_rate("attention_dropout", self.attention_dropout)
        check_rate("dropout", self.dropout)


class EncoderBlock(ResidualBlock):
    """A block of an encoder, with norms before its layers or after its sums, as in the equations above.

    Args:
        config: sizes.
        attention: the module that attends; by default multi-head attention without a mask.
        norm_first: whether norms come first.
        use_bias: the projections of the default attention that have a bias, as in `MultiHeadAttention`.
        mask: the mask of the default attention.
        options: `dtype`, `param_dtype` and `rngs`.
    """

    def __init__(
        self,
        config: EncoderConfig,
        *,
        attention: Any = None,
        norm_first: bool,
        use_bias: Any = True,
        mask: Any = None,
        **options: Any,
    ):
        if attention is None:
            attention = MultiHeadAttention(
                config.features,
                config.heads,
                use_bias=use_bias,
                mask=mask,
                dropout_rate=config.attention_dropout,
                deterministic=True,
                kernel_init=NORMAL,
                **options,
            )
        self.attention = attention
        self.attention_norm = layer_norm(config.features, config.epsilon, **options)
        self.mlp = MLP(config.features, config.mlp_features, config.activation, kernel_init=NORMAL, **options)
        self.mlp_norm = layer_norm(config.features, config.epsilon, **options)
        self.dropout = dropout(config.dropout, options["rngs"])
        self.pre_norm = norm_first

    def __call__(self, x: jax.Array, *, attention: Any = None, **options: Any) -> jax.Array:
        """`[..., length, features]` -> `[..., length, features]`.

        Args:
            x: the input.
            attention: used in place of the block's own, such as `block.attention.with_pieces(...)`.
            options: passed to the attention, such as `mask`.
        """
        attend = self.attention if attention is None else attention
        return self.around(x, lambda y: (attend(y, **options), None))[0]


class Pooler(nnx.Module):
    """activation(W h + b) of the first token's hidden state h.

    Args:
        features: features of h.
        out_features: features of the result.
        activation: a name in `jattn.models.layers.ACTIVATIONS`.
        options: `dtype`, `param_dtype` and `rngs`.
    """

    def __init__(self, features: int, out_features: int, activation: str = "tanh", **options: Any):
        check_activation(activation)
        self.linear = nnx.Linear(features, out_features, kernel_init=NORMAL, **options)
        self.activation = activation

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """`[..., length, features]` -> `[..., out_features]`."""
        return ACTIVATIONS[self.activation](self.linear(hidden[..., 0, :]))


def block_rules(tensor: str, path: str, names: Mapping[str, str]) -> tuple[Rule, ...]:
    """The rules of an `EncoderBlock`.

    Args:
        tensor: what the names of the block's tensors begin with, such as `"encoder.layer.{block}."`.
        path: what the paths of its parameters begin with, such as `"blocks.{block}."`.
        names: the rest of these names, without `.weight`, for each of `query`, `key`, `value`, `out`, `attention_norm`,
            `up`, `down` and `mlp_norm`. Further names are projections to heads.

    >>> names = dict.fromkeys(("out", "attention_norm", "up", "down", "mlp_norm"), "-") | {"query": "q_proj"}
    >>> block_rules("h.{block}.", "blocks.{block}.", names)[-2].pattern
    'h.{block}.q_proj.weight'
    """
    made = {
        "out": (out_rules, "attention.out"),
        "attention_norm": (norm_rules, "attention_norm"),
        "up": (linear_rules, "mlp.up"),
        "down": (linear_rules, "mlp.down"),
        "mlp_norm": (norm_rules, "mlp_norm"),
    }
    rules: list[Rule] = []
    for part, name in names.items():
        make, where = made.get(part, (projection_rules, f"attention.{part}"))
        rules.extend(make(tensor + name, path + where))
    return tuple(rules)

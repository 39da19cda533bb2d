"""Stacks of blocks with layer norms and biases, and the names that BART's descendants give their tensors.

The Transformer, Marian and Whisper share these stacks, and differ in what comes before and after them.
"""

import dataclasses
import functools
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from ..foundation.arguments import check_multiple, check_positive, check_rate
from ..masks import Causal
from ..nnx import MultiHeadAttention
from .checkpoint.rules import linear_rules, norm_rules, out_rules, projection_rules
from .checkpoint.table import Rule
from .config import Config
from .encoder_decoder import CrossBlock, ResidualBlock, Stack
from .layers import MLP, check_activation, dropout, layer_norm

EPSILON = 1e-5
"""ε of the norms."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StackConfig(Config):
    """What the configurations of models with a stack of encoder blocks and one of decoder blocks have in common.

    Args:
        vocabulary: number of tokens.
        features: features of a token.
        depth, decoder_depth: number of blocks of the encoder and of the decoder.
        heads, decoder_heads: number of heads of each; must divide `features`.
        mlp_features, decoder_mlp_features: features inside a feed-forward layer of each.
        activation: the activation of the feed-forward layers.
        tie_embeddings: whether the head is the embedding of the decoder.
        dropout, attention_dropout, mlp_dropout: dropout rates in training, of embeddings and what is added, of
            attention weights, and inside feed-forward layers.
        decoder_start_token: the token that the decoder begins with.

    Raises:
        ValueError: a number is out of its range; heads do not divide.
    """

    NAMES: ClassVar[Mapping[str, str]] = {
        "vocab_size": "vocabulary",
        "d_model": "features",
        "encoder_layers": "depth",
        "decoder_layers": "decoder_depth",
        "encoder_attention_heads": "heads",
        "decoder_attention_heads": "decoder_heads",
        "encoder_ffn_dim": "mlp_features",
        "decoder_ffn_dim": "decoder_mlp_features",
        "activation_function": "activation",
        "tie_word_embeddings": "tie_embeddings",
        "dropout": "dropout",
        "attention_dropout": "attention_dropout",
        "activation_dropout": "mlp_dropout",
        "decoder_start_token_id": "decoder_start_token",
    }

    vocabulary: int
    features: int
    depth: int
    decoder_depth: int
    heads: int
    decoder_heads: int
    mlp_features: int
    decoder_mlp_features: int
    activation: str
    tie_embeddings: bool = True
    dropout: float = 0.0
    attention_dropout: float = 0.0
    mlp_dropout: float = 0.0
    decoder_start_token: int

    def __post_init__(self):
        super().__post_init__()
        counts = ("vocabulary", "features", "depth", "decoder_depth", "heads", "decoder_heads", "mlp_features")
        check_positive(**{name: getattr(self, name) for name in (*counts, "decoder_mlp_features")})
        check_multiple("heads", features=self.features, heads=self.heads)
        check_multiple("decoder_heads", features=self.features, decoder_heads=self.decoder_heads)
        check_activation(self.activation)
        for name in ("dropout", "attention_dropout", "mlp_dropout"):
            check_rate(name, getattr(self, name))


def make_stack(
    config: StackConfig,
    *,
    decoder: bool,
    pre_norm: bool = True,
    use_bias: bool | Collection[str] = True,
    kernel_init: Any,
    **options: Any,
) -> Stack:
    """An encoder, or a decoder whose blocks attend to what is encoded.

    Args:
        config: the sizes.
        decoder: whether it is a decoder.
        pre_norm: whether norms come before their layer, and one after the last block; or after each sum.
        use_bias: which projections of attention have a bias, as in `jattn.nnx.MultiHeadAttention`.
        kernel_init: the initializer of kernels.
        options: `dtype`, `param_dtype` and `rngs`.
    """
    own = (config.decoder_depth, config.decoder_heads, config.decoder_mlp_features)
    depth, heads, mlp_features = own if decoder else (config.depth, config.heads, config.mlp_features)
    norm = functools.partial(layer_norm, config.features, EPSILON, **options)
    options["kernel_init"] = kernel_init
    attend = functools.partial(
        MultiHeadAttention,
        config.features,
        heads,
        use_bias=use_bias,
        dropout_rate=config.attention_dropout,
        deterministic=True,
        **options,
    )
    blocks = []
    for _ in range(depth):
        mlp = MLP(config.features, mlp_features, config.activation, dropout_rate=config.mlp_dropout, **options)
        rest = (mlp, norm, dropout(config.dropout, options["rngs"]))
        if decoder:
            blocks.append(CrossBlock(attend(mask=Causal()), attend(), *rest, pre_norm=pre_norm))
        else:
            blocks.append(ResidualBlock(attend(), *rest, pre_norm=pre_norm))
    return Stack(blocks, norm() if pre_norm else None)


def stack_rules(stack: str) -> tuple[Rule, ...]:
    """The table of a stack: `"encoder"` or `"decoder"`."""
    theirs, ours = f"{stack}.layers.{{block}}", f"{stack}.blocks.{{block}}"
    rules: list[Rule] = []
    for attention, name in {"self_attn": "attention", "encoder_attn": "cross"}.items():
        for short, projection in {"q_proj": "query", "k_proj": "key", "v_proj": "value"}.items():
            rules.extend(projection_rules(f"{theirs}.{attention}.{short}", f"{ours}.{name}.{projection}"))
        rules.extend(out_rules(f"{theirs}.{attention}.out_proj", f"{ours}.{name}.out"))
        rules.extend(norm_rules(f"{theirs}.{attention}_layer_norm", f"{ours}.{name}_norm"))
    for short, name in {"fc1": "up", "fc2": "down"}.items():
        rules.extend(linear_rules(f"{theirs}.{short}", f"{ours}.mlp.{name}"))
    rules.extend(norm_rules(f"{theirs}.final_layer_norm", f"{ours}.mlp_norm"))
    rules.extend(norm_rules(f"{stack}.layer_norm", f"{stack}.norm"))
    return tuple(rules)

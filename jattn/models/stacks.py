"""Stacks of blocks with layer norms and biases, and the names that BART's descendants give their tensors.

Marian and Whisper differ in what comes before and after: these stacks are the Transformer's in both.
"""

import dataclasses
import functools
from collections.abc import Collection
from typing import Any

from ..masks import Causal
from ..nnx import MultiHeadAttention
from .checkpoint.table import Rule
from .encoder_decoder import CrossBlock, EncoderBlock, Stack
from .layers import MLP, dropout, layer_norm


@dataclasses.dataclass(frozen=True)
class StackSizes:
    """The sizes and choices of a stack.

    Args:
        depth: number of blocks.
        features: features of a token.
        heads: number of heads.
        mlp_features: features inside a feed-forward layer.
        activation: the activation of the feed-forward layer.
        use_bias: which projections of attention have a bias, as in `jattn.nnx.MultiHeadAttention`.
        pre_norm: whether norms come before their layer, and one after the last block; or after each sum.
        epsilon: ε of the norms.
        dropout, attention_dropout, mlp_dropout: dropout rates: of what is added, of attention weights, and inside
            feed-forward layers.
        inits: initializers of kernels.
    """

    depth: int
    features: int
    heads: int
    mlp_features: int
    activation: str
    use_bias: bool | Collection[str] = True
    pre_norm: bool = True
    epsilon: float = 1e-5
    dropout: float = 0.0
    attention_dropout: float = 0.0
    mlp_dropout: float = 0.0
    inits: dict[str, Any] = dataclasses.field(default_factory=dict)

    def stack(self, *, decoder: bool, **options: Any) -> Stack:
        """An encoder, or a decoder whose blocks attend to what is encoded.

        Args:
            decoder: whether it is one.
            options: `dtype`, `param_dtype` and `rngs`.
        """
        norm = functools.partial(layer_norm, self.features, self.epsilon, **options)
        attend = functools.partial(
            MultiHeadAttention,
            self.features,
            self.heads,
            use_bias=self.use_bias,
            dropout_rate=self.attention_dropout,
            deterministic=True,
            **self.inits,
            **options,
        )
        blocks = []
        for _ in range(self.depth):
            rate = {"dropout_rate": self.mlp_dropout}
            mlp = MLP(self.features, self.mlp_features, self.activation, **rate, **self.inits, **options)
            rest = (mlp, norm, dropout(self.dropout, options["rngs"]))
            if decoder:
                blocks.append(CrossBlock(attend(mask=Causal()), attend(), *rest, pre_norm=self.pre_norm))
            else:
                blocks.append(EncoderBlock(attend(), *rest, pre_norm=self.pre_norm))
        return Stack(blocks, norm() if self.pre_norm else None)


def stack_rules(stack: str) -> tuple[Rule, ...]:
    """The table of a stack: `"encoder"` or `"decoder"`."""
    theirs, ours = f"{stack}.layers.{{block}}", f"{stack}.blocks.{{block}}"
    rules = []
    for attention, name in {"self_attn": "attention", "encoder_attn": "cross"}.items():
        for short, projection in {"q_proj": "query", "k_proj": "key", "v_proj": "value"}.items():
            tensor, path = f"{theirs}.{attention}.{short}", f"{ours}.{name}.{projection}"
            rules.append(Rule(f"{tensor}.weight", f"{path}.kernel", "(h d) f -> f h d"))
            rules.append(Rule(f"{tensor}.bias", f"{path}.bias", "(h d) -> h d"))
        rules.append(Rule(f"{theirs}.{attention}.out_proj.weight", f"{ours}.{name}.out.kernel", "f (h d) -> h d f"))
        rules.append(Rule(f"{theirs}.{attention}.out_proj.bias", f"{ours}.{name}.out.bias"))
        rules.extend(_norm(f"{theirs}.{attention}_layer_norm", f"{ours}.{name}_norm"))
    for short, name in {"fc1": "up", "fc2": "down"}.items():
        rules.append(Rule(f"{theirs}.{short}.weight", f"{ours}.mlp.{name}.kernel", "o i -> i o"))
        rules.append(Rule(f"{theirs}.{short}.bias", f"{ours}.mlp.{name}.bias"))
    rules.extend(_norm(f"{theirs}.final_layer_norm", f"{ours}.mlp_norm"))
    rules.extend(_norm(f"{stack}.layer_norm", f"{stack}.norm"))
    return tuple(rules)


def _norm(theirs: str, ours: str) -> tuple[Rule, Rule]:
    return Rule(f"{theirs}.weight", f"{ours}.scale"), Rule(f"{theirs}.bias", f"{ours}.bias")

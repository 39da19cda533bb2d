"""The Llama family (Touvron et al. 2023, arXiv:2302.13971): Llama, Mistral, Qwen, Gemma, gpt-oss in one block.

| `model_type` | published as | beside rotary positions, RMS norms and gates |
|---|---|---|
| llama | Llama 2 and 3 (arXiv:2407.21783), SmolLM2 (arXiv:2502.02737) | scaled frequencies |
| mistral | Mistral 7B (arXiv:2310.06825) | a window |
| qwen2 | Qwen 2, 2.5 (arXiv:2407.10671) | biases of query, key and value |
| qwen3 | Qwen 3 (arXiv:2505.09388) | normalized queries and keys |
| gemma | Gemma (arXiv:2403.08295) | scaled embeddings, norms by 1 + w |
| gemma2 | Gemma 2 (arXiv:2408.00118) | as gemma; norms behind layers, soft caps, a window in every other block |
| gemma3_text | Gemma 3 (arXiv:2503.19786) | as gemma2 without caps; QK norms, 5 of 6 blocks with a window, two bases |
| gpt_oss | gpt-oss (arXiv:2508.10925) | sinks, experts, biases, a window in every other block |

What a `model_type` implies is data, in `jattn.models.llama_config.KINDS`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ..layers.norms import QKNorm
from ..masks import Causal, SlidingWindow
from ..nnx import MultiHeadAttention
from ..normalizers import Softmax
from ..scores import SoftCap
from ..similarities import Dot
from .checkpoint.rules import linear_rules, out_rules, projection_rules
from .checkpoint.table import Rule, Table
from .decoder import CausalLM, Decoder, DecoderBlock
from .embedding import Embedding, head_of
from .experts import Experts
from .layers import MLP, RMSNorm, normal
from .llama_config import KINDS, LlamaConfig
from .registry import Family

__all__ = ["FAMILIES", "Llama", "LlamaBlock", "LlamaConfig", "LlamaForCausalLM"]


class LlamaBlock(DecoderBlock):
    """x = x + attention(norm(x)); x = x + mlp(norm(x)); with norms of what is added if `post_norms`."""

    def __init__(self, config: LlamaConfig, index: int, **options: Any):
        norm = functools.partial(
            RMSNorm, config.features, config.epsilon, zero_centered=config.zero_centered_norms, **options
        )
        self.window = config.windows[index]  # pyright: ignore
        local = self.window is not None and config.local_rope is not None
        self.attention_norm = norm()
        self.attention = MultiHeadAttention(
            config.features,
            config.heads,
            kv_heads=config.kv_heads,
            head_dim=config.head_dim,
            use_bias=config.use_bias,
            qk_norm=QKNorm(zero_centered=config.zero_centered_norms, epsilon=config.epsilon)
            if config.qk_norm
            else False,
            mask=Causal() if self.window is None else SlidingWindow(self.window - 1, 0),
            similarity=None if config.scale_dim is None else Dot(config.scale_dim**-0.5),
            scores=() if config.soft_cap is None else (SoftCap(config.soft_cap),),
            normalizer=Softmax(jnp.zeros(config.heads)) if config.sinks else None,
            learned=("normalizer",) if config.sinks else (),
            rotary=config.local_rope if local else config.rope,
            dropout_rate=config.attention_dropout,
            deterministic=True,
            kernel_init=normal(0.02),
            **options,
        )
        self.attention_post_norm = norm() if config.post_norms else None
        self.mlp_norm = norm()
        self.mlp = _mlp(config, **options)
        self.mlp_post_norm = norm() if config.post_norms else None

    def around(self, x, attend):
        attended, state = attend(self.attention_norm(x))
        x = x + (attended if self.attention_post_norm is None else self.attention_post_norm(attended))
        fed = self.mlp(self.mlp_norm(x))
        return x + (fed if self.mlp_post_norm is None else self.mlp_post_norm(fed)), state


def _mlp(config: LlamaConfig, **options: Any) -> nnx.Module:
    if config.experts is None:
        return MLP(
            config.features,
            config.mlp_features,
            config.activation,
            gated=True,
            use_bias=config.mlp_bias,
            kernel_init=normal(0.02),
            **options,
        )
    return Experts(
        config.features,
        config.mlp_features,
        config.experts,
        config.experts_per_token,
        alpha=config.expert_alpha,
        limit=config.expert_limit,
        **options,
    )


class Llama(Decoder):
    """A decoder of the Llama family without a head: tokens `[..., length]` -> hidden states `[..., length, features]`.

        x = E[tokens]
        x = x + attention(norm(x)),  x = x + mlp(norm(x))          for each block, causal, with rotary positions
        hidden = norm(x)

    Args:
        config: the configuration; the module's docstring lists the choices.
        dtype: the dtype to compute in, by default that of the parameters.
        param_dtype: the dtype of the parameters.
        rngs: random streams for parameters and dropout.

    >>> import jax
    >>> from flax import nnx
    >>> from jattn.models.llama import Llama, LlamaConfig
    >>> config = LlamaConfig(vocabulary=11, features=8, depth=1, heads=2, kv_heads=1, mlp_features=12)
    >>> jax.eval_shape(Llama(config, rngs=nnx.Rngs(0)), jax.numpy.zeros((2, 5), int)).shape
    (2, 5, 8)
    """

    config: LlamaConfig
    rotates = True

    def __init__(self, config: LlamaConfig, *, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs):
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.config = config
        self.embedding = Embedding(config.vocabulary, config.features, embedding_init=normal(0.02), **options)
        self.blocks = nnx.List([LlamaBlock(config, index, **options) for index in range(config.depth)])
        self.norm = RMSNorm(config.features, config.epsilon, zero_centered=config.zero_centered_norms, **options)

    def embed(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        """The embedding of tokens; positions enter by rotation."""
        del positions
        x = self.embedding(tokens)
        return x * jnp.asarray(self.config.features**0.5, x.dtype) if self.config.scale_embeddings else x


class LlamaForCausalLM(CausalLM, Llama):
    """A decoder of the Llama family with its head: tokens `[..., length]` -> logits `[..., length, vocabulary]`.

    Arguments as in `Llama`. `initial_state`, `prefill` and `step` generate; with `cache="rolling"`, blocks with a
    window keep only the tokens that it sees.

    >>> import jax
    >>> from flax import nnx
    >>> from jattn.models.llama import LlamaConfig, LlamaForCausalLM
    >>> config = LlamaConfig(vocabulary=11, features=8, depth=2, heads=2, mlp_features=12, windows=(4, None))
    >>> model = LlamaForCausalLM(config, rngs=nnx.Rngs(0))
    >>> [state.keys.shape for state in model.initial_state(2, capacity=100, cache="rolling")]
    [(2, 4, 2, 4), (2, 100, 2, 4)]
    """

    def __init__(self, config: LlamaConfig, *, dtype: Any = None, param_dtype: Any = jnp.float32, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        options = {"kernel_init": normal(0.02), "dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.head = head_of(config.features, config.vocabulary, tied=config.tie_embeddings, **options)

    def output(self, hidden: jax.Array) -> jax.Array:
        """The logits of the next token, `[..., vocabulary]`."""
        logits, cap = super().output(hidden), self.config.logit_soft_cap
        return logits if cap is None else cap * jnp.tanh(logits / cap)


_EXPERTS = ("blocks.{block}.mlp.gate", "blocks.{block}.mlp.up")  # gpt-oss stores them interleaved

RULES = (
    Rule("embed_tokens.weight", "embedding.embedding"),
    Rule("norm.weight", "norm.scale"),
    Rule("layers.{block}.input_layernorm.weight", "blocks.{block}.attention_norm.scale"),
    *projection_rules("layers.{block}.self_attn.q_proj", "blocks.{block}.attention.query"),
    *projection_rules("layers.{block}.self_attn.k_proj", "blocks.{block}.attention.key"),
    *projection_rules("layers.{block}.self_attn.v_proj", "blocks.{block}.attention.value"),
    *out_rules("layers.{block}.self_attn.o_proj", "blocks.{block}.attention.out"),
    Rule("layers.{block}.self_attn.q_norm.weight", "blocks.{block}.attention.query_norm.scale"),
    Rule("layers.{block}.self_attn.k_norm.weight", "blocks.{block}.attention.key_norm.scale"),
    Rule("layers.{block}.self_attn.sinks", "blocks.{block}.attention.normalizer.sink"),
)
DENSE = (
    *linear_rules("layers.{block}.mlp.gate_proj", "blocks.{block}.mlp.gate"),
    *linear_rules("layers.{block}.mlp.up_proj", "blocks.{block}.mlp.up"),
    *linear_rules("layers.{block}.mlp.down_proj", "blocks.{block}.mlp.down"),
)
EXPERTS = (
    *linear_rules("layers.{block}.mlp.router", "blocks.{block}.mlp.router"),
    Rule(
        "layers.{block}.mlp.experts.gate_up_proj",
        tuple(f"{path}.kernel" for path in _EXPERTS),
        "e f (i part) -> part e f i",
    ),
    Rule(
        "layers.{block}.mlp.experts.gate_up_proj_bias",
        tuple(f"{path}.bias" for path in _EXPERTS),
        "e (i part) -> part e i",
    ),
    Rule("layers.{block}.mlp.experts.down_proj", "blocks.{block}.mlp.down.kernel"),
    Rule("layers.{block}.mlp.experts.down_proj_bias", "blocks.{block}.mlp.down.bias"),
)
PRE = (Rule("layers.{block}.post_attention_layernorm.weight", "blocks.{block}.mlp_norm.scale"),)
POST = (
    Rule("layers.{block}.post_attention_layernorm.weight", "blocks.{block}.attention_post_norm.scale"),
    Rule("layers.{block}.pre_feedforward_layernorm.weight", "blocks.{block}.mlp_norm.scale"),
    Rule("layers.{block}.post_feedforward_layernorm.weight", "blocks.{block}.mlp_post_norm.scale"),
)
HEADS = (
    Rule("lm_head.weight", "head.kernel", "o i -> i o"),
    Rule("lm_head.weight", "embedding.embedding", tied=True),
)
IGNORED = ("*rotary_emb.inv_freq",)  # a buffer of old checkpoints

ARCHITECTURES = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma": "Gemma",
    "gemma2": "Gemma2",
    "gemma3_text": "Gemma3",
    "gpt_oss": "GptOss",
}


def _family(model_type: str) -> Family:
    name = ARCHITECTURES[model_type]
    base = "Gemma3TextModel" if name == "Gemma3" else f"{name}Model"
    norms = POST if KINDS[model_type].implied.get("post_norms") else PRE
    mlp = EXPERTS if model_type == "gpt_oss" else DENSE
    return Family(
        config=LlamaConfig,
        models={base: Llama, f"{name}ForCausalLM": LlamaForCausalLM},
        table=Table((*RULES, *norms, *mlp), HEADS, prefix="model.", ignored=IGNORED),
    )


FAMILIES = {model_type: _family(model_type) for model_type in ARCHITECTURES}

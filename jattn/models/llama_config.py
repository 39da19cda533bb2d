"""The configuration of the Llama family, and what each `model_type` implies."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from ..foundation.arguments import check_counts, check_multiple, check_positive, check_rate
from ..foundation.arrays import describe
from ..layers.parameters import PROJECTIONS
from .config import Config
from .layers import check_activation
from .rope import Rope

TANH = "gelu_pytorch_tanh"


@dataclasses.dataclass(frozen=True)
class Kind:
    """A `model_type` of the family.

    Args:
        implied: fields that it implies, whatever `config.json` says.
        defaults: values of keys that a `config.json` may lack.
        every: if there is a window, one block in `every` sees all tokens: 2 for alternating blocks, 0 if none does.
        biases: projections with a bias; None if `attention_bias` of `config.json` decides for all four.
    """

    implied: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    every: int = 0
    biases: tuple[str, ...] | None = None


def _sizes(vocabulary: int, features: int, depth: int, heads: int, kv_heads: int, hidden: int, longest: int) -> dict:
    return {
        "vocab_size": vocabulary,
        "hidden_size": features,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": hidden,
        "max_position_embeddings": longest,
    }


LLAMA_TOKENS = {"bos_token_id": 1, "eos_token_id": 2}
GEMMA = {"zero_centered_norms": True, "scale_embeddings": True}
GEMMA_TOKENS = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "tie_word_embeddings": True, "head_dim": 256}
QWEN = _sizes(151936, 4096, 32, 32, 32, 22016, 32768) | {"use_sliding_window": False, "max_window_layers": 28}
KINDS: Mapping[str, Kind] = {
    "llama": Kind(defaults=LLAMA_TOKENS),
    "mistral": Kind(
        defaults=_sizes(32000, 4096, 32, 32, 8, 14336, 131072) | LLAMA_TOKENS | {"sliding_window": 4096}, biases=()
    ),
    "qwen2": Kind(defaults=QWEN, biases=("query", "key", "value")),
    "qwen3": Kind({"qk_norm": True}, QWEN | {"head_dim": 128}),
    "gemma": Kind(GEMMA, _sizes(256000, 3072, 28, 16, 16, 24576, 8192) | GEMMA_TOKENS),
    "gemma2": Kind(
        GEMMA | {"post_norms": True},
        _sizes(256000, 2304, 26, 8, 4, 9216, 8192)
        | GEMMA_TOKENS
        | {
            "sliding_window": 4096,
            "query_pre_attn_scalar": 256,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        every=2,
    ),
    "gemma3_text": Kind(
        GEMMA | {"post_norms": True, "qk_norm": True},
        _sizes(262208, 2304, 26, 8, 4, 9216, 131072)
        | GEMMA_TOKENS
        | {"sliding_window": 4096, "query_pre_attn_scalar": 256, "rope_theta": 1000000.0},
        every=6,
    ),
    "gpt_oss": Kind(
        {"sinks": True},
        _sizes(201088, 2880, 36, 64, 8, 2880, 131072)
        | {
            "head_dim": 64,
            "rms_norm_eps": 1e-5,
            "sliding_window": 128,
            "attention_bias": True,
            "num_local_experts": 128,
            "num_experts_per_tok": 4,
        },
        every=2,
    ),
}
"""The members of the family by `model_type`."""

ROPE_KEYS = ("rope_parameters", "rope_scaling", "rope_theta", "rope_local_base_freq", "partial_rotary_factor")
WINDOW_KEYS = (
    "layer_types",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "sliding_window_pattern",
    "_sliding_window_pattern",
)
OTHER_KEYS = ("attention_bias", "hidden_act", "hidden_activation")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig(Config):
    """The configuration of a decoder with rotary positions, RMS norms and gated feed-forward layers.

    Args:
        model_type: a member of the family in `KINDS`. Its defaults apply to `config.json`, not here.
        vocabulary: number of tokens.
        features: features of a token.
        depth: number of blocks.
        heads, kv_heads, head_dim: of attention; by default as many key heads as heads, of `features / heads`.
        mlp_features: features inside a feed-forward layer.
        activation: of its gate.
        max_length: the context that the model is meant for. Positions are not limited by it.
        epsilon: ε of the norms.
        tie_embeddings: whether the head is the embedding.
        rope: how queries and keys rotate.
        local_rope: how they rotate in blocks with a window, by default the same.
        windows: how many tokens a token sees, itself included, or None for all; one value for every block, or one for
            each.
        use_bias: the projections of attention that add a bias, among query, key, value, out.
        mlp_bias: whether feed-forward layers add biases.
        qk_norm: whether queries and keys are normalized, each head by its RMS.
        zero_centered_norms: whether parameters of norms are scales minus 1.
        post_norms: whether outputs of attention and feed-forward layers are normalized too.
        scale_dim: scores are divided by its square root, by default that of `head_dim`.
        soft_cap, logit_soft_cap: scores, and logits, become cap · tanh(x / cap).
        scale_embeddings: whether embeddings are multiplied by √features.
        sinks: whether each head has a learned logit without a value.
        experts, experts_per_token: a mixture of experts instead of the feed-forward layer.
        expert_alpha, expert_limit: see `jattn.models.experts`.
        attention_dropout: dropout rate of the weights in training.

    Raises:
        ValueError: a value is invalid, or sizes do not match.

    >>> LlamaConfig(vocabulary=100, features=64, depth=2, heads=4, kv_heads=2, mlp_features=96, windows=(None, 8))
    LlamaConfig(model_type='llama', ...)
    """

    NAMES: ClassVar[Mapping[str, str]] = {
        "vocab_size": "vocabulary",
        "hidden_size": "features",
        "num_hidden_layers": "depth",
        "num_attention_heads": "heads",
        "num_key_value_heads": "kv_heads",
        "head_dim": "head_dim",
        "intermediate_size": "mlp_features",
        "max_position_embeddings": "max_length",
        "rms_norm_eps": "epsilon",
        "tie_word_embeddings": "tie_embeddings",
        "attention_dropout": "attention_dropout",
        "mlp_bias": "mlp_bias",
        "query_pre_attn_scalar": "scale_dim",
        "attn_logit_softcapping": "soft_cap",
        "final_logit_softcapping": "logit_soft_cap",
        "num_local_experts": "experts",
        "num_experts_per_tok": "experts_per_token",
        "swiglu_alpha": "expert_alpha",
        "swiglu_limit": "expert_limit",
    }
    FIXED: ClassVar[Mapping[str, tuple]] = {"use_bidirectional_attention": (False, None)}
    IGNORED: ClassVar[tuple[str, ...]] = (
        "pretraining_tp",  # rounding
        "experts_per_token",  # repeats num_experts_per_tok
        "initial_context_length",  # repeats rope_parameters
        "router_aux_loss_coef",  # a loss in training
        "output_router_logits",
        "is_llama_config",  # marks of SmolLM2
        "rope_interleaved",
    )

    POSITIVE: ClassVar[tuple[str, ...]] = (*Config.POSITIVE, "scale_dim", "soft_cap", "logit_soft_cap", "expert_limit")

    model_type: str = "llama"
    vocabulary: int = 32000
    features: int = 4096
    depth: int = 32
    heads: int = 32
    kv_heads: int | None = None
    head_dim: int | None = None
    mlp_features: int = 11008
    activation: str = "silu"
    max_length: int = 2048
    epsilon: float = 1e-6
    tie_embeddings: bool = False
    rope: Rope = dataclasses.field(default_factory=Rope)
    local_rope: Rope | None = None
    windows: int | tuple[int | None, ...] | None = None
    use_bias: tuple[str, ...] = ()
    mlp_bias: bool = False
    qk_norm: bool = False
    zero_centered_norms: bool = False
    post_norms: bool = False
    scale_dim: float | None = None
    soft_cap: float | None = None
    logit_soft_cap: float | None = None
    scale_embeddings: bool = False
    sinks: bool = False
    experts: int | None = None
    experts_per_token: int = 4
    expert_alpha: float = 1.702
    expert_limit: float = 7.0
    attention_dropout: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.model_type not in KINDS:
            raise ValueError(f"`model_type` must be one of {', '.join(KINDS)}; got {self.model_type!r}.")
        kv_heads = self.heads if self.kv_heads is None else self.kv_heads
        object.__setattr__(self, "kv_heads", kv_heads)
        if self.head_dim is None:
            check_positive(heads=self.heads)
            check_multiple("heads", unless="head_dim", features=self.features, heads=self.heads)
            object.__setattr__(self, "head_dim", self.features // self.heads)
        for name in ("vocabulary", "features", "depth", "heads", "kv_heads", "head_dim", "mlp_features", "max_length"):
            check_positive(**{name: getattr(self, name)})
        check_multiple("kv_heads", heads=self.heads, kv_heads=kv_heads)
        check_activation(self.activation)
        check_rate("attention_dropout", self.attention_dropout)
        windows = self.windows if isinstance(self.windows, tuple) else (self.windows,) * self.depth
        if len(windows) != self.depth:
            raise ValueError(f"`windows` must be one for each of the {self.depth} blocks; got {len(windows)}.")
        for window in windows:
            if window is not None:
                check_positive(windows=window)
        object.__setattr__(self, "windows", windows)
        if self.experts is not None:
            check_positive(experts=self.experts, experts_per_token=self.experts_per_token)
            if self.experts_per_token > self.experts:
                raise ValueError(
                    f"`experts_per_token` must be at most the {self.experts} `experts`; got {self.experts_per_token}."
                )
        unknown = set(self.use_bias) - set(PROJECTIONS)
        if unknown:
            raise ValueError(f"`use_bias` must name projections, {', '.join(PROJECTIONS)}; got {sorted(unknown)}.")

    @classmethod
    def from_json(cls, settings: Mapping[str, Any], ignore: Sequence[str] = ()) -> Self:
        """The configuration that a `config.json` describes, of any member of the family; see `Config.from_json`."""
        model_type = settings.get("model_type", "llama") if isinstance(settings, Mapping) else "llama"
        if not isinstance(model_type, str) or model_type not in KINDS:
            raise ValueError(f"`model_type` must be one of {', '.join(KINDS)}; got {model_type!r}.")
        kind = KINDS[model_type]
        if not isinstance(settings, Mapping):
            return super().from_json(settings, ignore)  # refuses it
        merged = {**kind.defaults, **settings}
        if model_type == "gemma3_text" and merged.get("attn_logit_softcapping") is not None:
            raise ValueError(
                "`attn_logit_softcapping` in config.json must be null for gemma3_text, which never applied it."
            )
        if model_type == "gpt_oss":
            merged.setdefault("rope_parameters", None)
        elif merged.get("num_local_experts") is not None:
            raise ValueError(f"`num_local_experts` in config.json is for gpt_oss; got it for {model_type!r}.")
        own = {key: value for key, value in merged.items() if key not in (*ROPE_KEYS, *WINDOW_KEYS, *OTHER_KEYS)}
        plain = super().from_json({key: value for key, value in own.items() if value is not None}, ignore)
        rope, local_rope = _ropes(merged, plain.max_length)
        biases = kind.biases
        if biases is None:
            biases = PROJECTIONS if _flag(merged, "attention_bias") else ()
        return dataclasses.replace(
            plain,
            activation=_activation(merged),
            windows=_windows(merged, kind, plain.depth),
            rope=rope,
            local_rope=local_rope,
            use_bias=biases,
            **kind.implied,
        )

    def to_json(self) -> dict[str, Any]:
        """The settings as `config.json` has them.

        Raises:
            ValueError: the `model_type` implies other choices than these, so reading would not give them back.
        """
        windows = {one for one in self.windows if one is not None}  # pyright: ignore[reportGeneralTypeIssues, reportOptionalIterable]
        if len(windows) > 1:
            raise ValueError(f"`windows` must have one size for config.json; got {sorted(windows)}.")
        rope = self.rope.to_json()
        local = {"sliding_attention": (self.local_rope or self.rope).to_json(), "full_attention": rope}
        kinds = ["full_attention" if one is None else "sliding_attention" for one in self.windows]  # pyright: ignore
        settings = {
            **super().to_json(),
            "rope_parameters": local if self.model_type == "gemma3_text" else rope,
            "layer_types": kinds,
            "sliding_window": max(windows, default=None),
            "use_sliding_window": bool(windows),
            "attention_bias": "out" in self.use_bias,
            "hidden_activation" if self.model_type in ("gemma2", "gemma3_text") else "hidden_act": self.activation,
        }
        kept = ("sliding_window", *KINDS[self.model_type].defaults)  # of which null is not the default
        settings = {key: value for key, value in settings.items() if value is not None or key in kept}
        again = type(self).from_json(settings)
        if again != self:
            fields = [one.name for one in dataclasses.fields(self)]
            wrong = [name for name in fields if getattr(again, name) != getattr(self, name)]
            raise ValueError(
                f"`model_type` {self.model_type!r} implies other values of {', '.join(wrong)}, so config.json cannot "
                "hold this configuration."
            )
        return settings


def _activation(settings: Mapping[str, Any]) -> str:
    """The activation. Early configurations of Gemma say "gelu" and mean the approximation by tanh."""
    given = settings.get("hidden_activation") or settings.get("hidden_act")
    if str(settings.get("model_type")).startswith("gemma") and given in (None, "gelu"):
        return TANH
    return given or "silu"


def _windows(settings: Mapping[str, Any], kind: Kind, depth: int) -> tuple[int | None, ...]:
    """The window of each block."""
    size, types = settings.get("sliding_window"), settings.get("layer_types")
    if types is not None:
        known = ("sliding_attention", "full_attention")
        if not isinstance(types, list | tuple) or len(types) != depth or any(one not in known for one in types):
            raise ValueError(
                f"`layer_types` in config.json must be sliding_attention or full_attention for each of {depth} blocks; "
                f"got {describe(types)}."
            )
        return tuple(size if one == "sliding_attention" else None for one in types)
    if size is None or not _flag(settings, "use_sliding_window", True):
        return (None,) * depth
    if settings.get("max_window_layers") is not None:
        check_counts(max_window_layers=settings["max_window_layers"])
        return tuple(size if block >= settings["max_window_layers"] else None for block in range(depth))
    if kind.every == 0 and settings.get("model_type") != "mistral":
        return (None,) * depth
    every = settings.get("sliding_window_pattern", settings.get("_sliding_window_pattern"))
    every = kind.every if every is None else every
    check_counts(sliding_window_pattern=every)
    return tuple(size if not every or (block + 1) % every else None for block in range(depth))


def _flag(settings: Mapping[str, Any], key: str, default: bool = False) -> bool:
    """A setting that is true or false; null is the default.

    Raises:
        ValueError: it is something else.
    """
    value = default if settings.get(key) is None else settings[key]
    if not isinstance(value, bool):
        raise ValueError(f"`{key}` in config.json must be true or false; got {describe(value)}.")
    return value


def _ropes(settings: Mapping[str, Any], longest: int) -> tuple[Rope, Rope | None]:
    """How queries and keys rotate in blocks without and with a window."""
    given = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    for name, one in {"rope_parameters": given, **(given if isinstance(given, Mapping) else {})}.items():
        if not isinstance(one, Mapping) and name in ("rope_parameters", "full_attention", "sliding_attention"):
            raise ValueError(f"`{name}` in config.json must be an object; got {describe(one)}.")
    shared = {key: settings[key] for key in ("rope_theta", "partial_rotary_factor") if settings.get(key) is not None}
    if settings.get("model_type") == "gemma3_text":
        full = given.get("full_attention", {} if "sliding_attention" in given else given)
        local = {"rope_theta": settings.get("rope_local_base_freq", 10000.0), **given.get("sliding_attention", {})}
        return Rope.from_json({**shared, **full}, longest), Rope.from_json(local, longest)
    if settings.get("model_type") == "gpt_oss" and not given:
        given = {
            "rope_type": "yarn",
            "factor": 32.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
            "rope_theta": 150000.0,
        }
    return Rope.from_json({**shared, **given}, longest), None

"""The configuration of BERT, RoBERTa and ALBERT."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from ..foundation.arguments import check_positive
from .encoder import EncoderConfig

DROPOUT = {"attention_probs_dropout_prob": 0.1, "hidden_dropout_prob": 0.1}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "bert": DROPOUT | {"pad_token_id": 0},
    "roberta": DROPOUT | {"vocab_size": 50265, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2},
    "albert": {
        "vocab_size": 30000,
        "embedding_size": 128,
        "hidden_size": 4096,
        "num_attention_heads": 64,
        "intermediate_size": 16384,
        "num_hidden_groups": 1,
        "hidden_act": "gelu_new",
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
    },
}
"""What a `config.json` of each `model_type` may lack."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertConfig(EncoderConfig):
    """The configuration of BERT, RoBERTa or ALBERT; defaults are those of BERT-base. Others as in `EncoderConfig`.

    Args:
        vocabulary: number of tokens.
        max_length: number of position embeddings, `position_offset` included.
        position_offset: the index of the first position embedding that is used.
        token_types: number of token types, such as 2 for pairs of sentences.
        embedding_features: features of embeddings, which are then projected to `features`; None if they have as many.
        groups: number of blocks with parameters of their own, which `depth / groups` consecutive blocks share; by
            default `depth`.

    Raises:
        ValueError: a number is out of its range; there are more groups than blocks; `position_offset` is not below
            `max_length`.

    >>> BertConfig(vocabulary=100, features=64, depth=2, heads=4, mlp_features=128).head_activation
    'gelu'
    """

    NAMES: ClassVar[Mapping[str, str]] = {
        **EncoderConfig.NAMES,
        "vocab_size": "vocabulary",
        "max_position_embeddings": "max_length",
        "type_vocab_size": "token_types",
        "embedding_size": "embedding_features",
        "num_hidden_groups": "groups",
    }
    FIXED: ClassVar[Mapping[str, tuple]] = {
        "is_decoder": (False,),
        "add_cross_attention": (False,),
        "tie_word_embeddings": (True,),
        "position_embedding_type": ("absolute",),
        "inner_group_num": (1,),
    }
    IGNORED: ClassVar[tuple[str, ...]] = (
        "classifier_dropout_prob",
        "down_scale_factor",  # of early versions of ALBERT, without effect
        "gap_size",
        "layers_to_keep",
        "net_structure_type",
        "num_memory_blocks",
    )

    model_type: str = "bert"
    vocabulary: int = 30522
    max_length: int = 512
    position_offset: int = 0
    token_types: int = 2
    embedding_features: int | None = None
    groups: int | None = None

    def __post_init__(self):
        super().__post_init__()
        sizes = {"vocabulary": self.vocabulary, "max_length": self.max_length, "token_types": self.token_types}
        check_positive(**sizes, embedding_features=self.embedding_features or self.features)
        groups = self.depth if self.groups is None else self.groups
        check_positive(groups=groups)
        if groups > self.depth or self.position_offset >= self.max_length:
            raise ValueError(
                f"`groups` must be at most `depth` {self.depth}, and `position_offset` below `max_length` "
                f"{self.max_length}; got {groups} and {self.position_offset}."
            )

    @property
    def head_activation(self) -> str:
        """The activation of the head for masked tokens."""
        return "gelu" if self.model_type == "roberta" else self.activation

    @property
    def classifier_activation(self) -> str:
        """The activation of a classifier that has a layer in place of the pooler."""
        return "tanh"

    @property
    def order(self) -> tuple[int, ...]:
        """The index of each block among those with parameters of their own."""
        groups = self.depth if self.groups is None else self.groups
        return tuple(int(index / (self.depth / groups)) for index in range(self.depth))

    @classmethod
    def from_json(cls, settings: Mapping[str, Any], ignore: Sequence[str] = ()) -> Self:
        """The configuration that a `config.json` describes; see `Config.from_json`."""
        model_type = settings.get("model_type", "bert")
        config = super().from_json({**DEFAULTS.get(model_type, {}), **settings}, ignore)
        if model_type != "roberta":
            return config
        if config.pad_token is None:
            raise ValueError("`pad_token_id` in config.json must be given for roberta: positions begin after it.")
        return dataclasses.replace(config, position_offset=config.pad_token + 1)

    def to_json(self) -> dict[str, Any]:
        """The settings as `config.json` has them."""
        settings = super().to_json()
        left_out = () if self.model_type == "albert" else ("embedding_size", "num_hidden_groups", "inner_group_num")
        return {key: value for key, value in settings.items() if key not in left_out}

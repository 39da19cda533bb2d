"""Configurations: frozen dataclasses that one writes by hand, or reads from a checkpoint's `config.json`.

What a key of the JSON means is data of the class: `NAMES` maps keys to fields, `FIXED` lists keys of which a family
computes only some values, and `IGNORED` names those that change nothing that is computed. Any other key is refused, so
that no setting of a checkpoint is dropped silently.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from ..foundation.arrays import describe

WITHOUT_EFFECT = frozenset(
    (
        "_attn_implementation",
        "_name_or_path",
        "_num_labels",
        "architectures",
        "attn_implementation",
        "auto_map",
        "bad_words_ids",
        "begin_suppress_tokens",
        "chunk_size_feed_forward",
        "classifier_dropout",
        "decoder_start_token_id",
        "diversity_penalty",
        "do_sample",
        "dtype",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "eos_token_ids",
        "exponential_decay_length_penalty",
        "finetuning_task",
        "forced_bos_token_id",
        "forced_decoder_ids",
        "forced_eos_token_id",
        "gradient_checkpointing",
        "initializer_factor",
        "initializer_range",
        "is_encoder_decoder",
        "keys_to_ignore_at_inference",
        "language",
        "length_penalty",
        "max_length",
        "min_length",
        "model_type",
        "name_or_path",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "output_attentions",
        "output_hidden_states",
        "output_past",
        "output_scores",
        "prefix",
        "problem_type",
        "pruned_heads",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict",
        "return_dict_in_generate",
        "sep_token_id",
        "suppress_tokens",
        "task_specific_params",
        "temperature",
        "tf_legacy_loss",
        "tokenizer_class",
        "top_k",
        "top_p",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "typical_p",
        "use_bfloat16",
        "use_cache",
        "use_return_dict",
        "vocab_file",
    )
)
"""Keys of `config.json` that change nothing that any family computes: how to initialize, generate, store or report."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What all configurations have in common.

    Args:
        model_type: the name of the architecture in `config.json`.
        bos_token, eos_token, pad_token: the tokens that begin and end a text and that pad it; `eos_token` may be
            several.
        labels: the number of classes of a classification head.
        remat: whether the gradient computes what is inside of each block again, from the block's input, instead of
            keeping it (Chen et al. 2016, arXiv:1604.06174): less memory, about a third more time. It is a choice of the
            run, and not written to `config.json`: `dataclasses.replace(config, remat=True)`.
        scan: whether a program compiles blocks that are alike once, and runs them in a loop over their parameters: a
            deep model compiles as fast as one of a few blocks. What alternates, such as windows, is compiled once each.
            Each call copies the parameters of the blocks, and its gradient takes as much memory once more. Generation
            still goes block by block, since a step would cost as much as its copy. A choice of the run, as `remat`.

    Raises:
        ValueError: a value is of another type than the field, a negative count, or a number that is not finite.
    """

    NAMES: ClassVar[Mapping[str, str]] = {}
    FIXED: ClassVar[Mapping[str, tuple]] = {}
    IGNORED: ClassVar[tuple[str, ...]] = ()
    DEFAULTS: ClassVar[Mapping[str, Any]] = {}  # of keys that config.json may lack, where the field's is another
    POSITIVE: ClassVar[tuple[str, ...]] = ("epsilon",)  # fields that are divided by, or whose root is taken
    COMMON: ClassVar[Mapping[str, str]] = {
        "bos_token_id": "bos_token",
        "eos_token_id": "eos_token",
        "pad_token_id": "pad_token",
    }

    model_type: str
    bos_token: int | None = None
    eos_token: int | tuple[int, ...] | None = None
    pad_token: int | None = None
    labels: int = 2
    remat: bool = False
    scan: bool = False

    def __post_init__(self):
        for name, hint in typing.get_type_hints(type(self)).items():
            if typing.get_origin(hint) is ClassVar:
                continue
            value = getattr(self, name)
            if isinstance(value, list):
                value = tuple(value)
            elif isinstance(value, int) and not isinstance(value, bool) and _fits(float(value), hint):
                value = value if _fits(value, hint) else float(value)
            if not _fits(value, hint):
                expected = hint.__name__ if isinstance(hint, type) else str(hint)
                raise ValueError(f"`{name}` must be {expected}; got {describe(value)}.")
            if isinstance(value, int) and not isinstance(value, bool) and value < 0 and "token" not in name:
                raise ValueError(f"`{name}` must not be negative; got {value}.")
            if isinstance(value, float) and not (math.isfinite(value) and (value > 0 or name not in self.POSITIVE)):
                least = " above 0" if name in self.POSITIVE else ""
                raise ValueError(f"`{name}` must be a finite number{least}; got {value}.")
            object.__setattr__(self, name, value)

    @classmethod
    def from_json(cls, settings: Mapping[str, Any], ignore: Sequence[str] = ()) -> Self:
        """The configuration that a `config.json` describes.

        Args:
            settings: the parsed JSON.
            ignore: keys that may be dropped although they are unknown.

        Raises:
            ValueError: a key is unknown and its value is neither null nor false; a value is not computed here, or is of
                the wrong type.

        >>> from jattn.models.gpt2 import GPT2Config
        >>> GPT2Config.from_json({"model_type": "gpt2", "n_embd": 64, "n_head": 4, "use_cache": True}).features
        64
        """
        if not isinstance(settings, Mapping):
            raise ValueError(f"`settings` must be the contents of a config.json, a mapping; got {describe(settings)}.")
        names = {**cls.COMMON, **cls.NAMES}
        settings = {**cls.DEFAULTS, **settings}
        unknown = [
            f"{key!r}: {value!r}"
            for key, value in settings.items()
            if key not in names
            and key not in cls.FIXED
            and key not in WITHOUT_EFFECT
            and key not in (*cls.IGNORED, *ignore, "id2label", "label2id", "num_labels")
            and value is not None
            and value is not False
        ]
        if unknown:
            raise ValueError(
                f"config.json must have only settings that {cls.__name__} knows; got {', '.join(unknown)}. Those that "
                "change nothing that is computed are named by `ignore_settings=[...]`."
            )
        for key, values in cls.FIXED.items():
            if settings.get(key, values[0]) not in values:
                raise ValueError(
                    f"`{key}` in config.json must be {' or '.join(map(repr, values))} for {cls.__name__}; got "
                    f"{settings[key]!r}."
                )
        given = {names[key]: value for key, value in settings.items() if key in names}
        labels = settings.get("id2label") or settings.get("num_labels")
        labels = len(labels) if isinstance(labels, Mapping) else labels
        if labels is not None:
            given["labels"] = labels
        if "model_type" in settings:
            given["model_type"] = settings["model_type"]
        return cls(**given)

    def to_json(self) -> dict[str, Any]:
        """The settings as `config.json` has them."""
        names = {**self.COMMON, **self.NAMES}
        settings = {key: getattr(self, name) for key, name in names.items()}
        settings = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
        settings |= {key: values[0] for key, values in self.FIXED.items()}
        labels = {str(index): f"LABEL_{index}" for index in range(self.labels)}
        settings |= {"id2label": labels, "label2id": {label: int(index) for index, label in labels.items()}}
        return {"model_type": self.model_type, **settings}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type: a class, a union, or a tuple of one type."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return any(_fits(value, one) for one in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_fits(one, typing.get_args(hint)[0]) for one in value)
    if hint is Any:
        return True
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, hint)

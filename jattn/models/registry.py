"""Families by the `model_type` of `config.json`. A family's module is imported when one of its models is asked for."""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

from .checkpoint.table import Table
from .config import Config

MODULES: Mapping[str, str] = {
    "albert": "bert",
    "bert": "bert",
    "big_bird": "bigbird",
    "clip": "clip",
    "clip_resnet": "clip_resnet",
    "clip_text_model": "clip",
    "clip_vision_model": "clip",
    "gemma": "llama",
    "gemma2": "llama",
    "gemma3_text": "llama",
    "gpt2": "gpt2",
    "gpt_oss": "llama",
    "llama": "llama",
    "longformer": "longformer",
    "marian": "transformer",
    "mistral": "llama",
    "qwen2": "llama",
    "qwen3": "llama",
    "roberta": "bert",
    "t5": "t5",
    "transformer": "transformer",
    "vilbert": "vilbert",
    "vit": "vit",
    "whisper": "whisper",
}
"""The module of each `model_type`. It has a `FAMILY`, or `FAMILIES` by `model_type`."""


@dataclasses.dataclass(frozen=True)
class Family:
    """What a family's module offers to the loader.

    Args:
        config: the class of its configurations.
        models: its models by the name of their architecture in `config.json`. The first is the one without a head.
        table: which tensor is which parameter.
    """

    config: type[Config]
    models: Mapping[str, type]
    table: Table

    def architecture(self, model: Any) -> str:
        """The name of a model's class in `config.json`."""
        names = [name for name, one in self.models.items() if one is type(model)]
        return names[0]

    def has_head(self, model: Any) -> bool:
        """Whether the model is more than the first of the family."""
        return type(model) is not next(iter(self.models.values()))


def family_of(model_type: Any) -> Family:
    """The family of a `model_type`.

    Raises:
        ValueError: there is none; the message lists those that there are.

    >>> family_of("gpt2").config.__name__
    'GPT2Config'
    >>> family_of("gpt5")
    Traceback (most recent call last):
    ...
    ValueError: `model_type` must be one of ...gpt2...; got 'gpt5'.
    """
    if not isinstance(model_type, str) or model_type not in MODULES:
        raise ValueError(f"`model_type` must be one of {', '.join(sorted(MODULES))}; got {model_type!r}.")
    module = importlib.import_module(f".{MODULES[model_type]}", __package__)
    return module.FAMILIES[model_type] if hasattr(module, "FAMILIES") else module.FAMILY

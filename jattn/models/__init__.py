"""Whole models, built from the layers of `jattn.nnx`, with the weights of published checkpoints.

A model is read from a directory of `config.json` and safetensors, as Hugging Face writes them, by `from_directory`, and
written by `to_directory`. Each family is a module, imported when it is first asked for.
"""

from ..foundation.lazy import submodules as _submodules
from .checkpoint.table import Rule, Table
from .config import Config
from .directory import from_directory, from_tensors, to_directory, to_tensors
from .generation import Generated, GenerationConfig, generate
from .hub import from_hub
from .losses import next_token_loss, shifted_right, smoothed_loss, token_loss
from .registry import MODULES as _MODULES
from .registry import Family
from .sharding import OnMesh, shard

__all__ = [
    "Config",
    "Family",
    "Generated",
    "GenerationConfig",
    "OnMesh",
    "Rule",
    "Table",
    "from_directory",
    "from_hub",
    "from_tensors",
    "generate",
    "next_token_loss",
    "shard",
    "shifted_right",
    "smoothed_loss",
    "to_directory",
    "to_tensors",
    "token_loss",
]


__getattr__ = _submodules(__name__, tuple(_MODULES.values()))

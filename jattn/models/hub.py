"""Models from the Hugging Face hub."""

import importlib
import re
from typing import Any

from ..foundation.arrays import describe
from .directory import from_directory

FILES = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json")
"""What is downloaded: never pickles, and no code."""


def from_hub(name: str, model: type | None = None, *, revision: str | None = None, **options: Any) -> Any:
    """Download a model of the Hugging Face hub and load it; needs the extra `jattn[hf]`.

    The package `huggingface_hub` caches files. Its environment variables say where, and hold a token for models that
    ask for one.

    Args:
        name: the repository, such as `"openai-community/gpt2"`.
        model: as in `from_directory`.
        revision: a branch, tag or commit; by default the newest. A commit makes sure that weights never change.
        **options: as in `from_directory`.

    Raises:
        ValueError: `name` cannot be a repository; as in `from_directory`.
        ImportError: the package `huggingface_hub` is not installed.
    """
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise ValueError(
            f"`name` must be that of a repository, such as 'openai-community/gpt2'; got {describe(name)}. "
            "A directory is loaded by `from_directory`."
        )
    try:
        hub: Any = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ImportError("`from_hub` needs the package huggingface_hub: `pip install 'jattn[hf]'`.") from error
    path = hub.snapshot_download(name, revision=revision, allow_patterns=list(FILES))
    return from_directory(path, model, **options)

"""Models from directories of `config.json` and safetensors, as Hugging Face writes them, and back."""

import json
import os
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from ..foundation.arguments import check_dtype, check_positive
from ..foundation.arrays import describe
from .checkpoint.loading import Placing, Shardings, load, parameters_of, save
from .checkpoint.safetensors import Arrays, Files, Tensors, check_no_pickles, write
from .config import Config
from .generation.config import GenerationConfig
from .generation.protocol import GenerativeModel
from .registry import Family, family_of


def from_directory(
    path: str | Path,
    model: type | None = None,
    *,
    dtype: Any = None,
    param_dtype: Any = None,
    shardings: Shardings = None,
    ignore: Sequence[str] = (),
    ignore_settings: Sequence[str] = (),
) -> Any:
    """The model in a directory with a `config.json` and safetensors files, such as a snapshot of a Hugging Face model.

    `generation_config.json`, or what `config.json` says of generating if there is none, becomes `model.generation` of a
    model that generates; `generate` follows it.

    Loading is strict: every tensor is used or named as ignored, every parameter is filled, and all of them have the
    shapes that the configuration implies. Files are read in their order, in the background, at most
    512 MiB ahead of what is placed.

    Dropout is off; `model.train()` turns it on.

    Args:
        path: the directory.
        model: the class of the model, such as `jattn.models.gpt2.GPT2`; by default the architecture that `config.json`
            names.
        dtype: the dtype to compute in; by default that of the parameters.
        param_dtype: the dtype of the parameters; by default each keeps the one that it is stored in.
        shardings: where parameters go: `jattn.models.OnMesh(mesh, batch=..., heads=..., parameters=...)` does what
            `shard` does, while they are read. Or a `jax.sharding.Sharding` for all, or a function of the path of a
            parameter, such as `"blocks.0.mlp.up.kernel"`, and its `jax.ShapeDtypeStruct`.
        ignore: patterns of tensors that the model does not need, such as `["cls.*"]`.
        ignore_settings: keys of `config.json` that may be dropped although they are unknown.

    Raises:
        ValueError: there is no `config.json`, or it describes no model that is known here; weights are pickles, or
            truncated; tensors are missing, unexpected, or of another shape or dtype (one message lists all).

    >>> import jax, tempfile
    >>> from flax import nnx
    >>> from jattn import models
    >>> from jattn.models.gpt2 import GPT2Config, GPT2ForCausalLM
    >>> config = GPT2Config(vocabulary=11, features=8, depth=1, heads=2, max_length=9)
    >>> with tempfile.TemporaryDirectory() as path:
    ...     models.to_directory(GPT2ForCausalLM(config, rngs=nnx.Rngs(0)), path)
    ...     model = models.from_directory(path)
    >>> model.config == config
    True
    """
    directory = _path(path)
    if not directory.is_dir():
        raise ValueError(f"`path` must be a directory with a config.json; got {str(path)!r}.")
    settings = _settings(directory)
    own = directory / "generation_config.json"
    generation = GenerationConfig.of_checkpoint(settings, _json(own) if own.exists() else None)
    with Files(directory) as tensors:
        model = _load(
            tensors,
            settings,
            model,
            str(directory),
            ignore_settings,
            dtype,
            param_dtype,
            shardings=shardings,
            ignore=ignore,
        )
    return _generating(model, generation)


def from_tensors(
    tensors: Mapping[str, Any],
    config: Config | Mapping[str, Any],
    model: type | None = None,
    *,
    dtype: Any = None,
    param_dtype: Any = None,
    shardings: Shardings = None,
    ignore: Sequence[str] = (),
    ignore_settings: Sequence[str] = (),
) -> Any:
    """A model from tensors in memory, read from another format: names and shapes as in a safetensors file.

    Args:
        tensors: arrays by name.
        config: a configuration, or the contents of a `config.json`.
        model, dtype, param_dtype, shardings, ignore, ignore_settings: as in `from_directory`.

    Raises:
        ValueError: as in `from_directory`.

    >>> from flax import nnx
    >>> from jattn import models
    >>> from jattn.models.gpt2 import GPT2, GPT2Config
    >>> model = GPT2(GPT2Config(vocabulary=11, features=8, depth=1, heads=2, max_length=9), rngs=nnx.Rngs(0))
    >>> again = models.from_tensors(models.to_tensors(model), model.config, GPT2)
    """
    if not isinstance(tensors, Mapping) or not all(isinstance(name, str) for name in tensors):
        raise ValueError(f"`tensors` must be a mapping of arrays by name; got {describe(tensors)}.")
    settings = {"model_type": config.model_type, "config": config} if isinstance(config, Config) else config
    model = _load(
        Arrays(tensors),
        settings,
        model,
        "the tensors",
        ignore_settings,
        dtype,
        param_dtype,
        shardings=shardings,
        ignore=ignore,
    )
    return model if isinstance(config, Config) else _generating(model, GenerationConfig.of_checkpoint(config))


def to_directory(model: nnx.Module, path: str | Path, *, shard_bytes: int = 5 * 10**9) -> None:
    """Write a model as `config.json` and safetensors files, which `from_directory` and Hugging Face read.

    If `model.generation` says anything, it is written as `generation_config.json`.

    Each parameter is written in its own dtype, so tensors are bit for bit those that were loaded. Tied weights are
    written once.

    Args:
        model: a model of `jattn.models`.
        path: the directory; it is created if it does not exist.
        shard_bytes: the size of a file. A larger model is split into several, with an index.

    Raises:
        ValueError: the model is not one of `jattn.models`, or has parameters that its configuration does not imply;
            config.json cannot hold the configuration; `path` is a file, or a directory that already has weights.
            Nothing has been written then.
    """
    family = _family(model)
    check_positive(shard_bytes=shard_bytes)
    directory = _path(path)
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"`path` must be a directory, or new; {directory} is a file.")
    if any(directory.glob("*.safetensors")):
        raise ValueError(f"`path` must be a directory without safetensors files; {directory} has some.")
    settings = {"architectures": [family.architecture(model)], **_config(model).to_json()}
    tensors = to_tensors(model)
    _check_shapes(model)
    directory.mkdir(parents=True, exist_ok=True)
    write(tensors, directory, shard_bytes)
    files = {"config.json": settings}
    generation = getattr(model, "generation", None)
    if generation is not None and generation != GenerationConfig():
        files["generation_config.json"] = generation.to_json()
    for name, one in files.items():
        (directory / name).write_text(json.dumps(one, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def to_tensors(model: nnx.Module) -> dict[str, np.ndarray]:
    """The parameters of a model under the names, and with the axes, that Hugging Face gives them.

    The way back is `from_tensors`. Since rearranging is linear, the same works for gradients.

    Raises:
        ValueError: the model is not one of `jattn.models`.
    """
    family = _family(model)
    return save(model, family.table, prefixed=family.has_head(model))


def _load(
    tensors: Tensors,
    settings: Any,
    model: type | None,
    source: str,
    ignore_settings: Sequence[str],
    dtype: Any,
    param_dtype: Any,
    **options: Any,
) -> Any:
    for name, one in {"dtype": dtype, "param_dtype": param_dtype}.items():
        if one is not None:
            check_dtype(name, one)
    _check_names("ignore", options["ignore"], '["cls.*"]')
    _check_names("ignore_settings", ignore_settings, '["mixture"]')
    _check_shardings(options["shardings"])
    if not isinstance(settings, Mapping):
        raise ValueError(
            f"`config` must be a configuration, or the contents of a config.json; got {describe(settings)}."
        )
    family = family_of(settings.get("model_type"))
    config = settings["config"] if "config" in settings else family.config.from_json(settings, ignore_settings)
    kind = _kind(family, settings, model)

    def build(param_dtype: Any, rngs: nnx.Rngs) -> Any:
        return kind(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    return load(build, tensors, family.table, param_dtype=param_dtype, source=source, **options)


def _generating(model: Any, generation: GenerationConfig) -> Any:
    """The model with what its checkpoint says of generating, if it generates."""
    if isinstance(model, GenerativeModel):
        model.generation = generation  # pyright: ignore[reportAttributeAccessIssue]  (some models have it)
    return model


def _kind(family: Family, settings: Mapping[str, Any], model: type | None) -> type:
    """The class of the model to build.

    Raises:
        ValueError: it is none of the family, or not told.
    """
    known = ", ".join(dict.fromkeys(one.__name__ for one in family.models.values()))
    if model is not None:
        if model not in family.models.values():
            raise ValueError(f"`model` must be one of {known} for this config.json; got {describe(model)}.")
        return model
    listed = settings.get("architectures")
    named: Any = listed[0] if isinstance(listed, Sequence) and not isinstance(listed, str) and listed else listed
    if not isinstance(named, str) or named not in family.models:
        raise ValueError(
            f"`model` must be given, one of {known}: config.json names the architecture {named!r}, which is none of "
            f"{', '.join(family.models)}."
        )
    return family.models[named]


def _settings(directory: Path) -> dict[str, Any]:
    """The parsed `config.json`.

    Raises:
        ValueError: there is none, or it is no JSON object.
    """
    path = directory / "config.json"
    if not path.is_file():
        check_no_pickles(directory)
        raise ValueError(f"`path` must be a directory with a config.json; {directory} has none.")
    return _json(path)


def _json(path: Path) -> dict[str, Any]:
    """A file of one JSON object.

    Raises:
        ValueError: it is not.
    """
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except IsADirectoryError:
        raise ValueError(f"{path} must be a file of JSON; it is a directory.") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} must be JSON: {error}.") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must be a JSON object; got {describe(settings)}.")
    return settings


def _path(path: Any) -> Path:
    """A path as the caller gives it.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"`path` must be the path of a directory, a str or a `pathlib.Path`; got {describe(path)}.")
    return Path(path)


def _check_names(name: str, names: Any, example: str) -> None:
    """Check a list of names. A string is a sequence too, of names with one letter each, among them perhaps `*`.

    Raises:
        ValueError: it is none.
    """
    if isinstance(names, str) or not (isinstance(names, Sequence | Set) and all(isinstance(one, str) for one in names)):
        raise ValueError(f"`{name}` must be a list of strings, such as {example}; got {describe(names)}.")


def _check_shardings(shardings: Any) -> None:
    """Check what says where parameters go.

    Raises:
        ValueError: it does not.
    """
    if isinstance(shardings, jax.sharding.Mesh | jax.sharding.PartitionSpec) or not (
        shardings is None or callable(shardings) or isinstance(shardings, jax.sharding.Sharding | jax.Device | Placing)
    ):
        raise ValueError(
            "`shardings` must be a `jax.sharding.Sharding`, a function of a parameter's path and shape, or "
            f"`jattn.models.OnMesh(mesh, ...)`; got {describe(shardings)}."
        )


def _check_shapes(model: nnx.Module) -> None:
    """Check that parameters have the shapes that the configuration implies, as they must to be read again.

    Raises:
        ValueError: one has another.
    """
    kind: Any = type(model)
    implied: Any = nnx.eval_shape(lambda: kind(_config(model), rngs=nnx.Rngs(0)))
    shapes = {path: one.get_value().shape for path, one in parameters_of(implied).items()}
    for path, one in parameters_of(model).items():
        if one.get_value().shape != shapes.get(path):
            raise ValueError(
                f"`model` must have parameters of the shapes that its `config` implies, {shapes.get(path)} for "
                f"`{path}`; got {one.get_value().shape}. Change both: `dataclasses.replace(model.config, ...)`."
            )


def _config(model: Any) -> Config:
    config = getattr(model, "config", None)
    if not isinstance(config, Config):
        raise ValueError(f"`model` must be a model of `jattn.models`; got {describe(model)}.")
    return config


def _family(model: Any) -> Family:
    family = family_of(_config(model).model_type)
    if type(model) not in family.models.values():
        raise ValueError(f"`model` must be a model of `jattn.models`; got a {type(model).__name__}.")
    return family

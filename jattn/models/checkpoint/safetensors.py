"""Directories of safetensors files: names, shapes and dtypes from the headers, data by tensor."""

import contextlib
import importlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ...foundation.arrays import describe
from .reading import Piece, ReadAhead, aligned

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


class Stored(NamedTuple):
    """A tensor as a checkpoint describes it: its shape, and its dtype in the words of safetensors, such as `"BF16"`."""

    shape: tuple[int, ...]
    dtype: str


class Tensors(Protocol):
    """Named tensors."""

    @property
    def stored(self) -> Mapping[str, Stored]:
        """Of each, the shape and dtype."""
        ...

    def read(self, name: str) -> np.ndarray:
        """The tensor of this name, which belongs to the caller."""
        ...

    def begin(self, kept: Callable[[str], bool]) -> None:
        """Begin to read all of them. Those whose names are `kept` become parameters as they lie."""
        ...

    def read_all(self, names: Collection[str]) -> Iterator[list[tuple[str, np.ndarray]]]:
        """The tensors of these names, several at a time, in the order of their storage; once, after `begin`.

        They belong to the caller.
        """
        ...


DTYPES = {
    "bool": "BOOL",
    "int8": "I8",
    "uint8": "U8",
    "int16": "I16",
    "uint16": "U16",
    "int32": "I32",
    "uint32": "U32",
    "int64": "I64",
    "uint64": "U64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
}
"""NumPy's dtypes, and how safetensors calls them."""

NUMPY = {stored: jnp.dtype(name) for name, stored in DTYPES.items()}


class Arrays:
    """Tensors in memory, as a mapping of arrays by name.

    Raises:
        ValueError: one of them is not an array that NumPy understands.
    """

    def __init__(self, arrays: Mapping[str, Any]):
        self.arrays = arrays
        self.stored: dict[str, Stored] = {}
        for name, array in arrays.items():
            dtype = getattr(getattr(array, "dtype", None), "name", None)
            if dtype not in DTYPES or isinstance(array, Tracer):
                raise ValueError(
                    f"`tensors` must hold arrays of JAX or NumPy with known values; got {describe(array)} as {name!r}."
                )
            self.stored[name] = Stored(tuple(array.shape), DTYPES[dtype])

    def read(self, name: str) -> np.ndarray:
        """A copy of the tensor of this name, which the caller may keep."""
        array = np.asarray(self.arrays[name])
        copy = aligned(array.shape, array.dtype)
        copy[...] = array
        return copy

    def begin(self, kept: Callable[[str], bool]) -> None:
        """Nothing to do."""

    def read_all(self, names: Collection[str]) -> Iterator[list[tuple[str, np.ndarray]]]:
        """Copies of the tensors of these names, one at a time."""
        return ([(name, self.read(name))] for name in self.stored if name in names)


class Renamed:
    """Tensors under other names.

    Args:
        tensors: tensors.
        rename: a function from their names to the new ones.

    Raises:
        ValueError: two of them would have the same name.
    """

    def __init__(self, tensors: Tensors, rename: Callable[[str], str]):
        self.tensors = tensors
        self.names: dict[str, str] = {}
        for name in tensors.stored:
            if rename(name) in self.names:
                raise ValueError(f"the tensors {name!r} and {self.names[rename(name)]!r} are the same parameter.")
            self.names[rename(name)] = name
        self.stored: dict[str, Stored] = {new: tensors.stored[name] for new, name in self.names.items()}

    def read(self, name: str) -> np.ndarray:
        """The tensor of this name."""
        return self.tensors.read(self.names[name])

    def begin(self, kept: Callable[[str], bool]) -> None:
        """Begin to read all of them."""
        new = {name: one for one, name in self.names.items()}
        self.tensors.begin(lambda name: kept(new[name]))

    def read_all(self, names: Collection[str]) -> Iterator[list[tuple[str, np.ndarray]]]:
        """The tensors of these names, in the order of their storage."""
        new = {self.names[name]: name for name in names}
        return ([(new[name], array) for name, array in some] for some in self.tensors.read_all(new))


class Files:
    """The tensors of a directory, in `model.safetensors`, or in the shards that `model.safetensors.index.json` lists.

    The package `safetensors` checks headers against the size of the file. Use as a context: its end stops what reads in
    the background.

    Args:
        directory: the directory.

    Raises:
        ValueError: there are no such files, or they are truncated, or a header contradicts its file or the index.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self.stored: dict[str, Stored] = {}
        self._pieces: dict[str, Piece] = {}
        self._ahead: ReadAhead | None = None

    def __enter__(self) -> "Files":
        index = self._index()
        for file in sorted(set(index.values())) if index else [self._single()]:
            path = self.directory / file
            for name, (stored, begin) in sorted(_header(path).items(), key=lambda one: one[1][1]):
                if name in self.stored:
                    raise ValueError(f"the tensor {name!r} is in two files of {self.directory}.")
                if index and index.get(name) != file:
                    raise ValueError(f"{path} has the tensor {name!r}, which {INDEX} says is in {index.get(name)}.")
                self.stored[name] = stored
                if stored.dtype in NUMPY:
                    self._pieces[name] = Piece(name, path, begin, stored.shape, np.dtype(NUMPY[stored.dtype]))
        lost = sorted(index.keys() - self.stored.keys())
        if lost:
            raise ValueError(f"{INDEX} lists tensors that its files lack: {', '.join(lost[:8])}.")
        return self

    def __exit__(self, *raised: Any) -> None:
        if self._ahead is not None:
            self._ahead.close()

    def read(self, name: str) -> np.ndarray:
        """The tensor of this name."""
        return self._pieces[name].read()

    def begin(self, kept: Callable[[str], bool]) -> None:
        """Begin to read all of them, in the order of the files."""
        self._ahead = ReadAhead(self._pieces.values(), kept)

    def read_all(self, names: Collection[str]) -> Iterator[list[tuple[str, np.ndarray]]]:
        """The tensors of these names, once, in the order of the files."""
        assert self._ahead is not None
        return self._ahead.arrays(names)

    def _index(self) -> dict[str, str]:
        """The file of each tensor; empty if there is no index."""
        path = self.directory / INDEX
        if not path.is_file():
            return {}
        try:
            index = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
            names = {str(name): str(file) for name, file in index.items()}
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{path} must be a JSON object with a `weight_map` of files by tensor.") from None
        for file in set(names.values()):
            if Path(file).name != file or not (self.directory / file).is_file():
                raise ValueError(f"{path} lists {file!r}, which must be a file in the same directory.")
        return names

    def _single(self) -> str:
        """The name of the only file of tensors."""
        found = sorted(path.name for path in self.directory.glob("*.safetensors") if path.is_file())
        if WHOLE in found:
            return WHOLE
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(f"{self.directory} has several safetensors files and no {INDEX}: {', '.join(found)}.")
        check_no_pickles(self.directory)
        raise ValueError(f"{self.directory} must have a {WHOLE}, or shards and {INDEX}; it has neither.")


def _header(path: Path) -> dict[str, tuple[Stored, int]]:
    """Of each tensor of a file, how it is stored, and where its data begin.

    Raises:
        ValueError: the header does not describe its file, by the package `safetensors`.
    """
    with _named_errors(path), _package().safe_open(path, framework="np"):
        pass
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    return {
        name: (Stored(tuple(one["shape"]), one["dtype"]), 8 + size + one["data_offsets"][0])
        for name, one in header.items()
        if name != "__metadata__"
    }


def check_no_pickles(directory: Path) -> None:
    """Weights saved as a pickle are refused: reading one runs code that it brings along.

    Raises:
        ValueError: there are such files; the message has the command that converts them.
    """
    pickles = sorted(path.name for path in directory.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise ValueError(
            f"{directory} has weights as a pickle, {', '.join(pickles)}. Reading a pickle can run any code, so "
            "none is read here. "
            "Convert them once, where you trust their source, with torch and safetensors installed:\n"
            f'    python -c "import torch; from safetensors.torch import save_file; '
            f"tensors = torch.load('{directory / pickles[0]}', map_location='cpu', weights_only=True); "
            "save_file({name: one.clone().contiguous() for name, one in tensors.items()}, "
            f"'{directory / WHOLE}')\""
        )


def write(tensors: Mapping[str, np.ndarray], directory: Path, shard_bytes: int) -> None:
    """Write tensors to a directory as `model.safetensors`, or as shards of at most `shard_bytes` with their index.

    Args:
        tensors: C-contiguous arrays by name.
        directory: an existing directory.
        shard_bytes: the size of a file, unless a single tensor is larger.
    """
    shards: list[dict[str, np.ndarray]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        if shards[-1] and filled + tensor.nbytes > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor
        filled += tensor.nbytes
    save = _package("numpy").save_file
    if len(shards) == 1:
        save(shards[0], directory / WHOLE, metadata={"format": "pt"})
        return
    files = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save(shard, directory / file, metadata={"format": "pt"})
        files |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (directory / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _package(module: str = "") -> Any:
    """The package `safetensors`, or a module of it.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return importlib.import_module(f"safetensors.{module}" if module else "safetensors")
    except ImportError as error:
        raise ImportError("checkpoints need the package safetensors: `pip install 'jattn[models]'`.") from error


@contextlib.contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Errors of the package as a `ValueError` that names the file."""
    error = _package().SafetensorError
    try:
        yield
    except error as raised:
        raise ValueError(
            f"{path} must be a whole safetensors file: it is truncated, or its header does not describe its data "
            f"({raised}). Download it again."
        ) from None

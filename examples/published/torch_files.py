"""Tensors in a file of `torch.save`, without torch and without running what a pickle can run.

A pickle is a program that may call anything it names. `Unpickler` knows an ordered dictionary, the function that makes
a tensor from its storage, and the types of storages; any other name is refused. Both layouts are read: the zip archive
of today, and the sequence of pickles before torch 1.6.
"""

import collections
import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the old layout
STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class _View(NamedTuple):
    """A tensor whose storage is known by key."""

    key: str
    dtype: Any
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def of(self, storage: np.ndarray) -> np.ndarray:
        """The tensor, from its storage."""
        last = self.offset + sum((size - 1) * step for size, step in zip(self.shape, self.strides, strict=True))
        if 0 in self.shape:
            return np.zeros(self.shape, self.dtype)
        if min((self.offset, *self.strides)) < 0 or last >= storage.size:
            raise ValueError(f"a tensor {self.shape} reaches outside of its storage {self.key!r}.")
        steps = [step * storage.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(storage[self.offset :], self.shape, steps).copy()


class Unpickler(pickle.Unpickler):
    """An unpickler that knows tensors and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _view
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise pickle.UnpicklingError(f"refused: the pickle names {module}.{name}, which is no tensor.")

    def persistent_load(self, pid: Any) -> tuple[str, Any]:
        kind, dtype, key, *_ = pid
        if kind != "storage":
            raise pickle.UnpicklingError(f"refused: a reference to a {kind!r}.")
        return key, dtype


def _view(storage: tuple[str, Any], offset: int, shape: Any, strides: Any, *_: Any) -> _View:
    return _View(*storage, offset, tuple(shape), tuple(strides))


def read(data: bytes) -> dict[str, np.ndarray]:
    """The tensors of a state dictionary by name.

    Raises:
        pickle.UnpicklingError: the pickle names anything but tensors.
        ValueError: the file is of neither layout, or a tensor reaches outside of its storage.
    """
    file = io.BytesIO(data)
    views, storage = _zipped(file) if zipfile.is_zipfile(file) else _sequence(file)
    if not isinstance(views, Mapping) or not all(isinstance(view, _View) for view in views.values()):
        raise ValueError("the file must hold a dictionary of tensors by name.")
    return {name: view.of(storage(view)) for name, view in views.items()}


def _zipped(file: io.BytesIO) -> tuple[Any, Callable[[_View], np.ndarray]]:
    archive = zipfile.ZipFile(file)
    (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
    folder = pickled.removesuffix("data.pkl")
    views = Unpickler(io.BytesIO(archive.read(pickled))).load()
    return views, lambda view: np.frombuffer(archive.read(f"{folder}data/{view.key}"), view.dtype)


def _sequence(file: io.BytesIO) -> tuple[Any, Callable[[_View], np.ndarray]]:
    file.seek(0)
    if Unpickler(file).load() != MAGIC:
        raise ValueError("the file must be one of `torch.save`.")
    _version, _machine, views, keys = (Unpickler(file).load() for _ in range(4))
    dtypes = {view.key: np.dtype(view.dtype) for view in views.values()}
    storages = {}
    for key in keys:
        (size,) = struct.unpack("<q", file.read(8))
        storages[key] = np.frombuffer(file.read(size * dtypes[key].itemsize), dtypes[key])
    return views, lambda view: storages[view.key]

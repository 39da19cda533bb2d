"""Tensors in a `model.bin` of CTranslate2, format 6.

    u32 version, string spec, u32 revision, u32 count,
    count times: string name, u8 rank, u32 sizes, u8 type, u32 bytes, data;
    u32 aliases, each: string name, string of the tensor that it repeats

A string is its length with the closing 0, as u16, and its bytes.
"""

import struct

import numpy as np

TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


class _Reader:
    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        if self.at + size > len(self.data):
            raise ValueError("the file is truncated.")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, code: str) -> int:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(code)))[0]

    def string(self) -> str:
        return self.take(self.number("H")).rstrip(b"\0").decode()


def read(data: bytes) -> dict[str, np.ndarray]:
    """The tensors by name, aliases included.

    Raises:
        ValueError: the file is of another version, or truncated, or a tensor's bytes do not fit its shape.
    """
    reader = _Reader(data)
    version = reader.number("I")
    if version != 6:
        raise ValueError(f"the file must be a CTranslate2 model of format 6; got {version}.")
    reader.string()
    reader.number("I")
    tensors: dict[str, np.ndarray] = {}
    for _ in range(reader.number("I")):
        name = reader.string()
        shape = [reader.number("I") for _ in range(reader.number("B"))]
        dtype = np.dtype(TYPES[reader.number("B")])
        array = np.frombuffer(reader.take(reader.number("I")), dtype)
        if array.size != np.prod(shape, dtype=int):
            raise ValueError(f"the tensor {name!r} must have {shape} numbers; got {array.size}.")
        tensors[name] = array.reshape(shape)
    for _ in range(reader.number("I")):
        alias, name = reader.string(), reader.string()
        tensors[alias] = tensors[name]
    return tensors

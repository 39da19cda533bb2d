"""Tensors of files, read ahead in the order in which they lie, into memory that JAX takes as it is.

Reading 500 MB and tracing a model of that size take about as long, so both are done at once.

    calls     Python's threads take turns in running Python, up to 5 ms each, and a thread that has read something waits
              for its turn: one call of the system reads up to 128 MiB of tensors that follow one another
    memory    the system gives large blocks of memory faster than small ones: tensors that become parameters as they lie
              share a block. Those whose axes are rearranged, and which are dropped then, have blocks of their own
"""

import math
import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

ALIGNMENT = 64
"""JAX copies arrays to the CPU unless they begin at a multiple of this many bytes."""
AHEAD = 2**29
"""How many bytes are read before they are asked for."""
TOGETHER = 2**27
"""How many bytes are read by one call, and handed over together. A larger tensor is read by several calls."""
THREADS = 2
BUFFERS = 512
"""How many tensors are handed over at a time; systems read into 1,024 blocks of memory by one call."""


class Piece(NamedTuple):
    """A tensor of a file.

    Attributes:
        name: its name.
        path: the file.
        begin: where its data begin.
        shape, dtype: what they are.
    """

    name: str
    path: Path
    begin: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def size(self) -> int:
        """How many bytes it has."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """The tensor."""
        (array,), (block,) = allocated([self], [False])
        fill(self.path, self.begin, [block])
        return array


class ReadAhead:
    """Reads tensors in the background, before it is known which of them are asked for.

    Args:
        pieces: the tensors, in the order of the files.
        kept: which of them, by name, become parameters as they lie.
    """

    def __init__(self, pieces: Iterable[Piece], kept: Callable[[str], bool]):
        self._kept = kept
        self._waiting = deque(pieces)
        self._reading: deque[_Group] = deque()
        self._ahead = 0
        self._pool = ThreadPoolExecutor(THREADS)
        self._begin()

    def arrays(self, names: Collection[str]) -> Iterator[list[tuple[str, np.ndarray]]]:
        """The tensors of these names that have not been taken, several at a time; the others are dropped."""
        names = set(names)
        self._waiting = deque(piece for piece in self._waiting if piece.name in names)
        self._begin()
        while self._reading:
            group = self._reading.popleft()
            for call in group.calls:
                call.result()
            self._ahead -= group.size
            self._begin()
            yield [one for one in zip(group.names, group.arrays, strict=True) if one[0] in names]
            del group  # what is not kept of it is dropped before the next one is waited for

    def close(self) -> None:
        """Stop reading."""
        self._pool.shutdown(cancel_futures=True)

    def _begin(self) -> None:
        """Start to read what may be read ahead."""
        while self._waiting and (self._ahead + self._waiting[0].size <= AHEAD or not self._reading):
            pieces = [self._waiting.popleft()]
            size, end = pieces[0].size, pieces[0].begin + pieces[0].size
            while self._waiting and len(pieces) < BUFFERS:
                piece = self._waiting[0]
                if piece.path != pieces[0].path or piece.begin != end or size + piece.size > TOGETHER:
                    break
                pieces.append(self._waiting.popleft())
                size, end = size + piece.size, end + piece.size
            self._ahead += size
            self._reading.append(self._begun(pieces, size))

    def _begun(self, pieces: list[Piece], size: int) -> "_Group":
        """Tensors that follow one another, and the calls that read them."""
        arrays, blocks = allocated(pieces, [self._kept(piece.name) for piece in pieces])
        path, begin = pieces[0].path, pieces[0].begin
        calls = []
        for views in _portions(blocks, TOGETHER):
            calls.append(self._pool.submit(fill, path, begin, views))
            begin += sum(map(len, views))
        return _Group([piece.name for piece in pieces], arrays, calls, size)


class _Group(NamedTuple):
    """Tensors that follow one another in a file, while they are read.

    Attributes:
        names, arrays: the tensors.
        calls: what fills the arrays.
        size: how many bytes there are.
    """

    names: list[str]
    arrays: list[np.ndarray]
    calls: list[Future[None]]
    size: int


def allocated(pieces: Sequence[Piece], kept: Sequence[bool]) -> tuple[list[np.ndarray], list[memoryview]]:
    """Arrays without values for tensors that follow one another in a file, and the blocks of memory that hold them.

    Args:
        pieces: the tensors.
        kept: which may share memory with their neighbors.
    """
    arrays, blocks = [], []
    for run in _runs(pieces, kept):
        block = aligned((sum(piece.size for piece in run),), np.dtype(np.uint8))
        for piece in run:
            begin = piece.begin - run[0].begin
            arrays.append(block[begin : begin + piece.size].view(piece.dtype).reshape(piece.shape))
        blocks.append(block.data)
    return arrays, blocks


def fill(path: Path, begin: int, blocks: Sequence[memoryview]) -> None:
    """Read bytes of a file into memory.

    Raises:
        ValueError: the file ends before they do.
    """
    rest = deque(block for block in blocks if len(block))
    with path.open("rb", buffering=0) as file:
        file.seek(begin)
        while rest:
            alone = len(rest) == 1 or not hasattr(os, "readv")
            count = file.readinto(rest[0]) if alone else os.readv(file.fileno(), rest)
            if not count:
                raise ValueError(f"{path} ends within a tensor: it has been truncated.")
            while count:
                taken = min(count, len(rest[0]))
                count -= taken
                first = rest.popleft()[taken:]
                if len(first):
                    rest.appendleft(first)


def _portions(blocks: Iterable[memoryview], size: int) -> Iterator[list[memoryview]]:
    """Blocks of memory, divided into portions of at most this many bytes."""
    portion: list[memoryview] = []
    free = size
    for block in blocks:
        while len(block):
            portion.append(block[:free])
            block, free = block[free:], free - len(portion[-1])
            if not free:
                yield portion
                portion, free = [], size
    if portion:
        yield portion


def _runs(pieces: Sequence[Piece], kept: Sequence[bool]) -> list[list[Piece]]:
    """Tensors that share a block of memory: kept ones of one dtype, each at a multiple of `ALIGNMENT`."""
    runs: list[list[Piece]] = []
    for index, piece in enumerate(pieces):
        if (
            index
            and kept[index - 1]
            and kept[index]
            and piece.dtype == runs[-1][0].dtype
            and (piece.begin - runs[-1][0].begin) % ALIGNMENT == 0
        ):
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return runs


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array without values that begins at a multiple of `ALIGNMENT`."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    first = -raw.ctypes.data % ALIGNMENT
    return raw[first : first + size].view(dtype).reshape(shape)

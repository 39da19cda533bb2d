"""Which sequence has which pages of a pool: bookkeeping on the host, in plain Python."""

from collections.abc import Sequence

import numpy as np

from ...foundation.arguments import check_counts, check_positive


class PageAllocator:
    """Allocates the pages of a pool to sequences, and makes the tables of `PagedCache`.

    It runs on the host, between steps, and holds no keys, only lists of page numbers. A page shared by sequences, as
    after `fork`, becomes free when the last of them is freed.

    Args:
        pages: number of pages in the pool, as in `Paged`.
        page_size: tokens per page, as in `Paged`.

    Raises:
        ValueError: a size is below 1.

    >>> pool = PageAllocator(pages=8, page_size=4)
    >>> first, second = pool.allocate(6), pool.allocate(3)
    >>> print(pool.table([first, second], slots=3))
    [[ 0  1 -1]
     [ 2 -1 -1]]
    >>> pool.reserve(second, 5)
    >>> pool.free(first)
    >>> print(pool.table([second], slots=3), pool.free_pages)
    [[ 2  3 -1]] 6
    """

    def __init__(self, pages: int, page_size: int):
        check_positive(pages=pages, page_size=page_size)
        self.page_size = page_size
        self._unused = list(range(pages))  # in ascending order; the first is handed out next
        self._users = [0] * pages
        self._held: dict[int, list[int]] = {}
        self._next = 0

    @property
    def free_pages(self) -> int:
        """The number of free pages."""
        return len(self._unused)

    def allocate(self, tokens: int = 0) -> int:
        """Allocate a new sequence with room for this many tokens. Returns its number, for the other methods.

        Raises:
            ValueError: there are not enough free pages; then nothing is allocated.
        """
        check_counts(tokens=tokens)
        taken = self._take(-(-tokens // self.page_size))
        return self._register(taken)

    def reserve(self, sequence: int, tokens: int) -> None:
        """Make room for this many tokens in total in a sequence. It keeps the pages it has.

        Raises:
            ValueError: there are not enough free pages, or there is no such sequence; then nothing is allocated.
        """
        check_counts(tokens=tokens)
        held = self._pages_of(sequence)
        held += self._take(max(0, -(-tokens // self.page_size) - len(held)))

    def free(self, sequence: int) -> None:
        """Free the pages of a sequence, which is then no longer valid.

        Raises:
            ValueError: there is no such sequence.
        """
        pages = self._pages_of(sequence)
        del self._held[sequence]
        for page in pages:
            self._users[page] -= 1
        self._unused = sorted(self._unused + [page for page in pages if self._users[page] == 0])

    def fork(self, sequence: int, length: int) -> tuple[int, list[tuple[int, int]]]:
        """A new sequence that starts with the first `length` tokens of another one and shares its full pages.

        Tokens are only ever appended, so full pages are never written again and can be shared. A page that is not full
        must be copied.

        Returns:
            The new sequence, and the copies `(from page, to page)` to make with `PagedCache.with_copies`, at most one.

        Raises:
            ValueError: there is no free page for the copy; there is no such sequence, or it does not have `length`
                tokens.
        """
        check_counts(length=length)
        held = self._pages_of(sequence)
        full, rest = divmod(length, self.page_size)
        if full + (rest > 0) > len(held):
            raise ValueError(
                f"`length` must be at most {len(held) * self.page_size}, which sequence {sequence} has pages for; got "
                f"{length}."
            )
        own = self._take(1 if rest else 0)
        for page in held[:full]:
            self._users[page] += 1
        return self._register(held[:full] + own), [(held[full], page) for page in own]

    def table(self, sequences: Sequence[int], slots: int) -> np.ndarray:
        """The pages of sequences in order, int32 `[len(sequences), slots]`, padded with -1.

        Raises:
            ValueError: a sequence has more pages than `slots`, or there is no such sequence.
        """
        check_positive(slots=slots)
        if not isinstance(sequences, Sequence | np.ndarray):
            raise ValueError(f"`sequences` must be a list of numbers that `allocate` returned; got {sequences!r}.")
        table = np.full((len(sequences), slots), -1, np.int32)
        for row, sequence in zip(table, sequences, strict=True):
            pages = self._pages_of(sequence)
            if len(pages) > slots:
                raise ValueError(
                    f"`slots` must be at least {len(pages)}, the pages of sequence {sequence}; got {slots}."
                )
            row[: len(pages)] = pages
        return table

    def _take(self, count: int) -> list[int]:
        if count > len(self._unused):
            raise ValueError(
                f"the pool has {len(self._unused)} of {len(self._users)} pages left, and {count} are needed: `free` a "
                "sequence, or make the pool larger."
            )
        taken, self._unused = self._unused[:count], self._unused[count:]
        for page in taken:
            self._users[page] += 1
        return taken

    def _register(self, pages: list[int]) -> int:
        self._held[self._next] = pages
        self._next += 1
        return self._next - 1

    def _pages_of(self, sequence: int) -> list[int]:
        if not isinstance(sequence, int | np.integer) or sequence not in self._held:
            raise ValueError(
                f"`sequence` must be one of {sorted(self._held)}, allocated and not freed; got {sequence!r}."
            )
        return self._held[sequence]

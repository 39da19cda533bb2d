"""Which sequence has which pages of a pool: decided on the host, in plain Python."""

from collections.abc import Sequence

import numpy as np

from ...foundation.arguments import check_counts, check_positive


class PageAllocator:
    """Hands the pages of a pool out to sequences, and takes them back; the tables of `PagedCache` are made here.

    It runs on the host, between steps, and holds no keys: only lists of page numbers. A page that sequences share, as
    after `fork`, is free again when the last of them is freed.

    Args:
        pages: of the pool, as of `Paged`.
        page_size: tokens of a page, likewise.

    Raises:
        ValueError: a size below 1.

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
        """How many pages no sequence has."""
        return len(self._unused)

    def allocate(self, tokens: int = 0) -> int:
        """A new sequence with room for so many tokens: its number, for the other methods.

        Raises:
            ValueError: there are not enough free pages; nothing is taken then.
        """
        check_counts(tokens=tokens)
        taken = self._take(-(-tokens // self.page_size))
        return self._register(taken)

    def reserve(self, sequence: int, tokens: int) -> None:
        """Give a sequence room for so many tokens in all. It keeps what it has.

        Raises:
            ValueError: there are not enough free pages, or no such sequence; nothing is taken then.
        """
        check_counts(tokens=tokens)
        held = self._pages_of(sequence)
        held += self._take(max(0, -(-tokens // self.page_size) - len(held)))

    def free(self, sequence: int) -> None:
        """Take the pages of a sequence back, which is no more from then on.

        Raises:
            ValueError: there is no such sequence.
        """
        pages = self._pages_of(sequence)
        del self._held[sequence]
        for page in pages:
            self._users[page] -= 1
        self._unused = sorted(self._unused + [page for page in pages if self._users[page] == 0])

    def fork(self, sequence: int, length: int) -> tuple[int, list[tuple[int, int]]]:
        """A new sequence that begins with the first `length` tokens of another one, whose full pages it shares.

        Tokens are only ever put behind the others, so pages that are full are never written again. A page that is
        not full gets a copy.

        Returns:
            The new sequence, and the copies `(from page, to page)` to make with `PagedCache.with_copies`: at most one.

        Raises:
            ValueError: there is no free page for the copy, no such sequence, or it has no room for `length` tokens.
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
        """The pages of sequences in their order, int32 `[len(sequences), slots]`; -1 behind the last one of each.

        Raises:
            ValueError: a sequence has more pages than `slots`, or there is no such sequence.
        """
        check_positive(slots=slots)
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
        if sequence not in self._held:
            raise ValueError(
                f"`sequence` must be one of {sorted(self._held)}, allocated and not freed; got {sequence!r}."
            )
        return self._held[sequence]

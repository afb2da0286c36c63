"""Pages of layers that see a window: a sequence holds those that its next token can see, and gives back the others.

They are numbered apart from the pages of all other layers, and are found again by the same hashes. A prefix can be
used where its last pages are still there, as far back as its next token sees. Touches no tensor.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from flashdraft.cache.page_pool import PagePool


@dataclass
class WindowPages:
    """One sequence's pages: ``held``, behind ``num_behind`` that it has given back."""

    num_behind: int = 0
    held: list[int] = field(default_factory=list)

    def aligned(self, filler: int) -> list[int]:
        """One page for each of the sequence's, ``filler`` where it was given back."""
        return [filler] * self.num_behind + self.held


@dataclass(frozen=True)
class WindowRoom:
    """How many pages there are, for layers whose widest window is of ``window`` tokens."""

    window: int  # how many tokens a token sees, itself included
    num_pages: int
    is_drafters: bool = False  # whether they are a drafter's alone, which sees nothing before it drafts

    @classmethod
    def of(
        cls,
        windows: Iterable[int | None],
        num_rows: int,
        step_tokens: int,
        page_size: int,
        is_drafters: bool = False,
    ) -> "WindowRoom | None":
        """Room for ``num_rows`` sequences with ``step_tokens`` tokens together in a step; None without a window."""
        widest = max((window for window in windows if window is not None), default=None)
        if widest is None:
            return None
        # Of window and step the first and the last page may be held for one token.
        each = -(-(widest - 1) // page_size) + 2
        return cls(widest, num_rows * each + -(-step_tokens // page_size), is_drafters)


class WindowPool:
    """Hands out the pages 0 .. num_pages - 1, of which there are enough for whatever may run."""

    def __init__(self, room: WindowRoom, page_size: int) -> None:
        self.room = room
        self._pool = PagePool(room.num_pages, page_size)

    def longest(self, hashes: Sequence[bytes], prompt_len: int) -> int:
        """How many pages the longest prefix of a hash chain has behind which a sequence can go on.

        ``prompt_len``: tokens that it computes before it drafts.
        """
        longest = num_there = 0
        for count, link in enumerate(hashes, 1):
            num_there = num_there + 1 if self._pool.find_prefix([link]) else 0
            if num_there >= count - self._first_needed(count, prompt_len):
                longest = count
        return longest

    def join(self, hashes: Sequence[bytes], prompt_len: int) -> WindowPages:
        """Pages of a sequence that begins behind a prefix of :meth:`longest` pages; it holds them too from now on."""
        first = self._first_needed(len(hashes), prompt_len)
        held = [page for link in hashes[first:] for page in self._pool.find_prefix([link])]
        self._pool.share(held)
        return WindowPages(first, held)

    def trim(self, own: WindowPages, num_tokens: int, end: int) -> None:
        """``own`` holds what the token behind ``num_tokens`` sees, and no page behind that of token ``end`` - 1."""
        last = self._pool.num_pages_for(end) - own.num_behind
        self._pool.free(own.held[last:])
        del own.held[last:]
        count = min(self._first_seen(num_tokens) - own.num_behind, len(own.held))
        if count > 0:
            self._pool.free(own.held[:count])
            del own.held[:count]
            own.num_behind += count

    def reach(self, own: WindowPages, num_pages: int) -> None:
        """``own`` goes on to the sequence's first ``num_pages`` pages."""
        missing = num_pages - own.num_behind - len(own.held)
        if missing > 0:
            pages = self._pool.allocate(missing)
            assert pages is not None, "there are pages for every window and every step"
            own.held += pages

    def register(self, own: WindowPages, idx: int, link: bytes) -> None:
        """Page ``idx`` of the sequence is full and final: it can be found, unless it was given back."""
        if idx >= own.num_behind:
            self._pool.register(own.held[idx - own.num_behind], link)

    def free(self, own: WindowPages) -> None:
        """The sequence holds nothing any more."""
        self._pool.free(own.held)
        own.num_behind, own.held = 0, []

    def check_integrity(self, holders: Iterable[WindowPages]) -> None:
        """Assert that every page is in exactly one state and that ``holders`` hold what is held."""
        self._pool.check_integrity([own.held for own in holders])

    def _first_needed(self, num_pages: int, prompt_len: int) -> int:
        """The first of a prefix' pages that is needed behind it: by its next token, or by a drafter's first one."""
        seen = max(num_pages * self._pool.page_size, prompt_len if self.room.is_drafters else 0)
        return min(self._first_seen(seen), num_pages)

    def _first_seen(self, num_tokens: int) -> int:
        """The first page that the token behind ``num_tokens`` sees."""
        return max(num_tokens - self.room.window + 1, 0) // self._pool.page_size

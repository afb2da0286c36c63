"""Which pages of the cache belong to whom, and which hold a prefix that can be used again. Touches no tensor.

A page holds ``page_size`` tokens. A full page is known by the hash of its tokens and of the page before it, so a
prefix is found page by page. A freed page keeps its content, and its hash, until it is needed for something else:
the least recently freed first.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b


def page_hashes(token_ids: Sequence[int], page_size: int, known: Sequence[bytes] = ()) -> list[bytes]:
    """The hash chain of the full pages of ``token_ids``; ``known``: its first links, if they are at hand."""
    hashes = list(known)
    for start in range(len(hashes) * page_size, len(token_ids) - page_size + 1, page_size):
        link = blake2b(hashes[-1] if hashes else b"", digest_size=16)
        link.update(b",".join(b"%d" % token for token in token_ids[start : start + page_size]))
        hashes.append(link.digest())
    return hashes


class PagePool:
    """Hands out the pages 0 .. num_pages - 1."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages, self.page_size = num_pages, page_size
        self._blank = list(range(num_pages - 1, -1, -1))
        self._reusable: OrderedDict[int, None] = (
            OrderedDict()
        )  # free, with content; least recently freed first
        self._num_refs: dict[int, int] = {}
        self._page_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        """Pages that can be allocated, those with reusable content included."""
        return len(self._blank) + len(self._reusable)

    def num_pages_for(self, num_tokens: int) -> int:
        """Pages that ``num_tokens`` tokens need."""
        return -(-num_tokens // self.page_size)

    def allocate(self, count: int) -> list[int] | None:
        """``count`` pages with one reference each, or None, and nothing taken, when there are too few."""
        if count > self.num_free:
            return None
        pages = [self._blank.pop() if self._blank else self._evict() for _ in range(count)]
        self._num_refs.update(dict.fromkeys(pages, 1))
        return pages

    def find_prefix(self, hashes: Iterable[bytes]) -> list[int]:
        """The pages that hold the longest known prefix of a hash chain. Takes no reference."""
        pages = []
        for link in hashes:
            page = self._page_of.get(link)
            if page is None:
                break
            pages.append(page)
        return pages

    def num_idle(self, pages: Iterable[int]) -> int:
        """How many of ``pages`` are free now: :meth:`share` would take that many off ``num_free``."""
        return sum(page in self._reusable for page in pages)

    def share(self, pages: Iterable[int]) -> None:
        """Take one more reference on each of ``pages``, which :meth:`find_prefix` gave."""
        for page in pages:
            self._reusable.pop(page, None)
            self._num_refs[page] = self._num_refs.get(page, 0) + 1

    def free(self, pages: Sequence[int]) -> None:
        """Give back one reference on each of a sequence's ``pages``; its end is evicted before its start."""
        for page in reversed(pages):
            self._num_refs[page] -= 1
            if self._num_refs[page]:
                continue
            del self._num_refs[page]
            if page in self._hash_of:
                self._reusable[page] = None
            else:
                self._blank.append(page)

    def register(self, page: int, link: bytes) -> None:
        """``page`` is now full and final: it can be found. Another page with the same tokens keeps its place."""
        if link not in self._page_of and page not in self._hash_of:
            self._page_of[link] = page
            self._hash_of[page] = link

    def forget(self) -> None:
        """Free pages lose their reusable content; pages that are held keep theirs."""
        while self._reusable:
            self._blank.append(self._evict())

    def check_integrity(self, holders: Iterable[Sequence[int]] | None = None) -> None:
        """Assert that every page is in exactly one state and, given all ``holders``, that references add up."""
        states = [*self._blank, *self._reusable, *self._num_refs]
        assert sorted(states) == list(range(self.num_pages)), "a page is lost or in two states"
        assert all(count > 0 for count in self._num_refs.values()), "a held page has no reference"
        assert {page: link for link, page in self._page_of.items()} == self._hash_of, (
            "hashes and pages differ"
        )
        assert all(page in self._hash_of for page in self._reusable), "a reusable page has no hash"
        assert not any(page in self._hash_of for page in self._blank), "a blank page has a hash"
        if holders is not None:
            counts: dict[int, int] = {}
            for page in (page for pages in holders for page in pages):
                counts[page] = counts.get(page, 0) + 1
            assert counts == self._num_refs, "references and holders differ"

    def _evict(self) -> int:
        page, _ = self._reusable.popitem(last=False)
        del self._page_of[self._hash_of.pop(page)]
        return page

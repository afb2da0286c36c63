"""Which slot of the states belongs to whom, and which keep the state behind a prefix. Touches no tensor.

Keys and values of any prefix lie in its pages. A state is what a sequence has come to and nothing before that, so the
state at some page borders is kept in a slot of its own, known by the page's link in the hash chain (page_pool.py). It
stays until its slot is needed: the least recently used first. (SGLang's extra_buffer strategy for hybrid models.)
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class StateSlots:
    """Hands out the slots 0 .. num_slots - 1."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._blank = list(range(num_slots - 1, -1, -1))
        self._held: set[int] = set()
        self._kept: OrderedDict[bytes, int] = OrderedDict()  # checkpoints, least recently used first

    @property
    def num_free(self) -> int:
        """Slots that can be taken, those of checkpoints included."""
        return len(self._blank) + len(self._kept)

    def take(self) -> int:
        """A slot, at the cost of a checkpoint where there is no other. There has to be a free one."""
        slot = self._blank.pop() if self._blank else self._kept.popitem(last=False)[1]
        self._held.add(slot)
        return slot

    def free(self, slot: int) -> None:
        """Give back a slot that was taken."""
        self._held.remove(slot)
        self._blank.append(slot)

    def keep(self, slot: int, link: bytes) -> None:
        """The slot that was taken is from now on the state behind ``link``, unless another one is that already."""
        self.free(slot)
        if link in self._kept:
            self._kept.move_to_end(link)
        else:
            self._kept[link] = self._blank.pop()

    def longest(self, hashes: Sequence[bytes]) -> int:
        """The length of the longest prefix of a hash chain whose state is kept; 0: none is."""
        return next((count for count in range(len(hashes), 0, -1) if hashes[count - 1] in self._kept), 0)

    def find(self, link: bytes) -> int:
        """The slot of a kept state; it was used now. To be read before anything else is written to any slot."""
        self._kept.move_to_end(link)
        return self._kept[link]

    def check_integrity(self, holders: Iterable[int]) -> None:
        """Assert that every slot is in exactly one state and that ``holders`` hold what is held."""
        assert sorted((*self._blank, *self._held, *self._kept.values())) == list(range(self.num_slots)), (
            "a slot is lost or in two states"
        )
        assert sorted(holders) == sorted(self._held), "slots and holders differ"

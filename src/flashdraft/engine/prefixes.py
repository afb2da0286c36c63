"""What of a prompt that waits lies in pages already, and what it takes to start it. Touches no tensor."""

from collections.abc import Sequence

from flashdraft.cache.page_pool import PagePool, page_hashes
from flashdraft.cache.state_slots import StateSlots
from flashdraft.cache.window_pages import WindowPool
from flashdraft.engine.request import Request

_LOOK_EVERY = 16  # steps in which who waits is looked up again: 8k tokens take 60 us


class Prefixes:
    """Finds prefixes in ``pool``, and in ``slots`` and ``windows`` where the models have states and windows.

    ``is_on``: prefixes are used at all.
    """

    def __init__(
        self, pool: PagePool, slots: StateSlots | None, windows: WindowPool | None, is_on: bool
    ) -> None:
        self.pool, self.slots, self.windows, self.is_on = pool, slots, windows, is_on
        self._num_looks = 0

    def startable(self, waiting: Sequence[Request]) -> dict[Request, int]:
        """Who of ``waiting`` finds pages, first come, first served; and how many tokens each has to compute.

        By what was found when it came, or in one of the last steps: whoever starts is looked up again.
        """
        num_free, lefts = self.pool.num_free, {}
        self._num_looks += 1
        for request in waiting:
            if request.to_start is None or (self._num_looks + request.arrival) % _LOOK_EVERY == 0:
                found, num_needed = self.pages_to_start(request)
                request.to_start = num_needed, request.prefill_len - len(found) * self.pool.page_size
            num_needed, num_left = request.to_start
            num_free -= num_needed
            if num_free < 0:
                break
            lefts[request] = num_left
        return lefts

    def pages_to_start(self, request: Request) -> tuple[list[int], int]:
        """The pages of its prefix that can be found, and how many free ones it takes: of these and beside them."""
        found = self._find(request)
        missing = self.pool.num_pages_for(request.prefill_len + 1) - len(found)
        return found, missing + self.pool.num_idle(found)

    def _find(self, request: Request) -> list[int]:
        if not self.is_on or request.answer.scores_prompt:  # scores need every token's logits
            return []
        size = self.pool.page_size
        if len(request.hashes) < request.num_tokens // size:
            request.hashes = page_hashes(request.token_ids, size, request.hashes)
        # Without an answer yet, the last prompt token has to run: its logits give the first token.
        usable = request.prefill_len - (not request.answer.output.token_ids)
        pages = self.pool.find_prefix(request.hashes[: usable // size])
        request.branch = len(pages) * size
        # Where states or windows are missing as well, a shorter prefix is sought that has both.
        count = None
        while count != len(pages):
            count = len(pages)
            if self.slots:
                pages = pages[: self.slots.longest(request.hashes[: len(pages)])]
            if self.windows:
                pages = pages[: self.windows.longest(request.hashes[: len(pages)], request.prefill_len)]
        return pages

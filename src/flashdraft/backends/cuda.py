"""Fused layers over pages and states on a GPU, recorded as CUDA graphs: see cuda/."""

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor

from flashdraft.backends.base import Backend, Room, TargetStep, recorded_tokens
from flashdraft.cache.paged_kv_cache import CacheRow, PagedKVCache, power_of_two
from flashdraft.cache.paged_rows import PagedRows
from flashdraft.cache.rounds import Rounds
from flashdraft.cuda.build import RoundDrafter
from flashdraft.cuda.chunk_lengths import CHUNK_LENGTHS
from flashdraft.cuda.rounds import DeviceRounds
from flashdraft.cuda.rows import DeviceRows
from flashdraft.cuda.target import CudaTarget, why_not
from flashdraft.models.base import TargetModel
from flashdraft.ops.greedy import greedy_tokens
from flashdraft.ops.triton import runs_on


class CudaBackend(Backend):
    """Reads pages where they lie; a prompt's chunk is as long as it is."""

    is_recorded = True
    chunk_lengths = CHUNK_LENGTHS

    def __init__(self, target: TargetModel, room: Room, feature_layers: Sequence[int]) -> None:
        self._layers = CudaTarget(target)
        super().__init__(target, room, feature_layers)

    @classmethod
    def why_not(cls, target: TargetModel) -> str | None:
        """See :class:`Backend`."""
        if not runs_on(target.device):
            return f"no kernels run on {target.device}"
        return why_not(target)

    def new_storage(self, room: Room) -> tuple[PagedKVCache, Any]:
        """See :class:`Backend`."""
        num_spare = room.num_rows * (room.most_staged + room.page_size)
        num_tokens = recorded_tokens(room.num_rows, room.block_size, room.step_tokens, room.has_trees)
        num_kept = num_tokens if room.block_size > 1 else 0
        return (
            self._layers.new_cache(room.num_pages, room.page_size, num_spare),
            self._layers.new_states(room.num_slots, num_tokens, num_kept),
        )

    def most_tree(self, num_rows: int) -> int:
        """See :class:`Backend`. Rows and width of a step are powers of two; of all tokens inputs of states are kept."""
        if self.states is None:
            return self.room.most_staged
        each = int(self.states.most_kept) // power_of_two(num_rows)
        return min(1 << each.bit_length() >> 1, self.room.most_staged)

    def new_rows(self) -> PagedRows:
        """See :class:`Backend`."""
        return self._layers.new_rows(self.cache, self.states)

    def begin(self, rows: PagedRows, slot: int, source: int | None) -> None:  # noqa: ARG002
        """See :class:`Backend`."""
        if self.states:
            self.states.begin(slot, source)

    def logits(self, hidden: Tensor) -> Tensor:
        """See :class:`Backend`; a token's bits are those it has in a round."""
        return self._layers.logits(hidden).float()

    def argmax(self, hidden: Tensor) -> Tensor:
        """See :class:`Backend`."""
        return greedy_tokens(self._layers.logits(hidden))

    def new_rounds(self, drafter: RoundDrafter | None) -> Rounds | None:
        """See :class:`Backend`."""
        rows = self._layers.new_rows(self.cache, self.states)
        return DeviceRounds(self._layers, rows, drafter, self.feature_layers, self.room.num_rows)

    def prompt_step(
        self, rows: PagedRows, placed: Sequence[CacheRow], token_ids: Sequence[list[int]]
    ) -> TargetStep:
        """See :class:`Backend`."""
        if self._layers.steps_prompts(placed, token_ids):
            return self.block_step(rows, placed, token_ids, None, with_head=False)
        output = self._layers.prefill(cast("DeviceRows", rows), placed, token_ids, self.feature_layers)
        return TargetStep(output, counts=[len(ids) for ids in token_ids])

    def record_prompts(self, rows: PagedRows) -> None:
        """See :class:`Backend`."""
        self._layers.record_prompts(cast("DeviceRows", rows), self.feature_layers)

    def block_step(
        self,
        rows: PagedRows,
        placed: Sequence[CacheRow],
        token_ids: Sequence[list[int]],
        parents: Sequence[Sequence[int]] | None,
        with_head: bool,
    ) -> TargetStep:
        """See :class:`Backend`."""
        step = self._layers.step
        output, argmax = step(
            cast("DeviceRows", rows), placed, token_ids, parents, self.feature_layers, with_head
        )
        return TargetStep(output, output.hidden.shape[1], argmax)

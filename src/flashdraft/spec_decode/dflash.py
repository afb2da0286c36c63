"""DFlash as a drafter: a whole block from one forward of the network (arXiv 2602.06036, algorithm 1)."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flashdraft.cache.paged_kv_cache import (
    CacheRow,
    GatheredRows,
    PagedKVCache,
    power_of_two,
    row_positions,
    slots_of,
)
from flashdraft.cache.paged_rows import PagedRows, new_rows
from flashdraft.cuda.build import RoundDrafter, cuda_drafter
from flashdraft.models.base import TargetModel
from flashdraft.models.dflash import DFlashModel
from flashdraft.spec_decode.candidates import NUM_SAMPLED, Candidates, candidates_of
from flashdraft.spec_decode.drafter import Drafter, Drafts, DraftShape
from flashdraft.spec_decode.tree import DraftTree, num_ranks


class DFlashDrafter(Drafter):
    """Drafts with a DFlash network and the target's embedding and head."""

    can_branch = True

    def __init__(self, model: DFlashModel, target: TargetModel) -> None:
        self.model = model
        self.target = target
        self.feature_layers = model.config.target_layer_ids
        self.max_block_size = model.config.block_size

    def open(self, num_rows: int, num_pages: int, page_size: int) -> "DFlashBatch":
        """See :class:`flashdraft.spec_decode.drafter.Drafter`."""
        return DFlashBatch(self, num_pages, page_size, num_rows)

    def in_rounds(self, drafts: Drafts) -> RoundDrafter | None:
        """See :class:`flashdraft.spec_decode.drafter.Drafter`."""
        assert isinstance(drafts, DFlashBatch)
        return RoundDrafter(drafts.on_device, self._best) if drafts.on_device else None

    def hidden(
        self,
        blocks: Tensor,
        positions: Tensor,
        kv_len: int,
        layers: Sequence[Any],
        ends: Tensor | None = None,
        is_recorded: bool = False,
    ) -> Tensor:
        """Final hidden states [rows, num_tokens - 1, hidden_size] behind the anchors of ``blocks`` [rows, num_tokens].

        ``positions`` [rows, num_tokens] are the blocks'; a row sees its first ``ends`` [rows] slots, left out of
        all ``kv_len``.
        """
        hidden = self.model.served(self.target.embed(blocks), positions, kv_len, layers, ends, is_recorded)
        return hidden[:, 1:]

    def blocks(self, anchors: Sequence[int], num_tokens: int) -> Tensor:
        """[anchor, MASK, ...] behind each of ``anchors``, token ids [rows, num_tokens]."""
        unknown = [self.model.config.mask_token_id] * (num_tokens - 1)
        return torch.tensor([[anchor, *unknown] for anchor in anchors], device=self.target.device)

    def candidates(
        self,
        blocks: Tensor,
        positions: Tensor,
        kv_len: int,
        layers: Sequence[Any],
        ends: Tensor | None = None,
        count: int = 1,
    ) -> Candidates:
        """:func:`candidates_of` every slot of :meth:`hidden`, ``count`` of each where there is no selector."""
        found = self.model.draft(self.target.embed(blocks), positions, kv_len, layers, ends, count)
        if found is not None:
            return Candidates(*found)
        hidden = self.hidden(blocks, positions, kv_len, layers, ends)
        return candidates_of(self.model, self.target, hidden, blocks[:, 0], count)

    def _best(self, hidden: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
        found = candidates_of(self.model, self.target, hidden, anchors, 1).walk()
        return found.token_ids.squeeze(-1), found.log_probs.squeeze(-1)


class DFlashBatch:
    """The draft caches of many requests: pages of their own storage under the target's page tables."""

    def __init__(self, drafter: DFlashDrafter, num_pages: int, page_size: int, num_rows: int) -> None:
        self.drafter = drafter
        config, weight, reads_pages = drafter.model.config, drafter.model.fc.weight, drafter.model.reads_pages
        self.rows: GatheredRows
        self.on_device = cuda_drafter(drafter.model, num_pages, page_size, num_rows)
        if self.on_device:
            self.cache, self.rows = self.on_device.cache, self.on_device.rows
            return
        self.cache = PagedKVCache(
            config.num_hidden_layers,
            num_pages,
            page_size,
            config.num_key_value_heads,
            config.head_dim,
            weight.dtype,
            weight.device,
            num_rows * (drafter.max_block_size + page_size) if reads_pages else 0,
        )
        self.rows = new_rows(self.cache, reads_pages)

    def join(self, row: CacheRow, token_ids: list[int], max_len: int) -> None:
        """A found prefix lies in the pages already."""

    def leave(self, row: CacheRow) -> None:
        """Nothing is kept of a request but its pages."""

    def observe(
        self, rows: Sequence[CacheRow], token_ids: Sequence[list[int]], features: Sequence[Tensor | None]
    ) -> None:
        """Project the features of all rows' newly verified tokens in one pass, end to end without padding."""
        counts = [len(ids) for ids in token_ids]
        parts = [one for one in features if one is not None]
        given = (torch.cat(parts) if len(parts) > 1 else parts[0]).unsqueeze(0)
        if self.on_device:
            self.on_device.observe(rows, counts, given[0])
            return
        positions = row_positions(rows, counts).to(given.device)
        network, total = self.drafter.model, sum(counts)
        if isinstance(self.rows, PagedRows):
            assert network.native, "pages are read in place by the C++ part alone"
            slots = torch.tensor([slots_of(self.cache, rows, counts)])
            kv_len = max(row.start + count for row, count in zip(rows, counts, strict=True))
            network.native.store_context(given, positions, slots, self.rows.layers, kv_len)
            return
        if self.rows.records:
            more = power_of_two(total) - total
            inputs = F.pad(given, (0, 0, 0, more)), F.pad(positions, (0, more))
            padded = self.rows.recorded(("context", total + more), network.context, inputs)
            pairs = [(k[:, :, :total], v[:, :, :total]) for k, v in padded]
        else:
            pairs = network.context(given, positions)
        self.rows.append(rows, counts, pairs)

    def propose(
        self, rows: Sequence[CacheRow], anchors: Sequence[int], shapes: Sequence[DraftShape]
    ) -> list[DraftTree]:
        """See :class:`flashdraft.spec_decode.drafter.Drafts`: each row's chain or best tree, all from one forward."""
        depths, sizes = [shape.depth for shape in shapes], [shape.size or 0 for shape in shapes]
        blocks = [1 + depth for depth in depths]
        samplings = [shape.sampling for shape in shapes]
        if not any(sizes) and not any(samplings):
            return self._candidates(rows, anchors, blocks, 1).chains(depths)
        count = num_ranks(max(sizes))
        shape = self.drafter.model.config
        most = min(NUM_SAMPLED, shape.draft_vocab_size or shape.vocab_size)
        found = self._candidates(rows, anchors, blocks, most if any(samplings) else count)
        if any(samplings):
            found = found.as_sampled(samplings, self.drafter.target.config.vocab_size)
        return found.trees(depths, sizes, count)

    def _candidates(
        self, rows: Sequence[CacheRow], anchors: Sequence[int], block_sizes: Sequence[int], count: int
    ) -> Candidates:
        """The candidates of every slot of all blocks, padded to the longest, in the order of ``rows``.

        A row sees its own context and block alone, so a wider neighbour does not change its draft.
        """
        if self.on_device:
            embed, finish = self.drafter.target.embed, partial(self._found, count)
            drafted = self.on_device.draft(embed, rows, anchors, block_sizes, count, finish)
            return drafted.at(slice(0, len(rows)))
        order = self.rows.seat([row.key for row in rows])
        placed, width = [rows[i] for i in order], max(block_sizes)
        records = self.rows.records
        positions, kv_len = (
            self.rows.arrange_padded(placed, power_of_two(width))
            if records
            else self.rows.arrange(placed, [block_sizes[i] for i in order])
        )
        device, num_padding = positions.device, len(positions) - len(rows)
        blocks = self.drafter.blocks([anchors[i] for i in order] + [0] * num_padding, positions.shape[1])
        ends: Tensor | None = None
        if len(rows) > 1 or records:
            seen = [rows[i].start + block_sizes[i] for i in order] + [1] * num_padding
            ends = torch.tensor(seen, device=device)
        if records and ends is not None:
            hidden, found = self._replay(blocks, positions, ends, kv_len)
            if count > 1:
                found = candidates_of(self.drafter.model, self.drafter.target, hidden, blocks[:, 0], count)
        else:
            found = self.drafter.candidates(blocks, positions, kv_len, self.rows.layers, ends, count)
        if order == list(range(len(positions))):
            return found
        places = torch.tensor(order, device=device).argsort()
        return found.at(places)

    def _found(self, count: int, hidden: Tensor, anchors: Tensor) -> Candidates:
        """The candidates behind ``anchors`` [rows]; the walk over them alone where there is no tree to come."""
        found = candidates_of(self.drafter.model, self.drafter.target, hidden, anchors, count)
        return found.walk() if count == 1 else found

    def _replay(
        self, blocks: Tensor, positions: Tensor, ends: Tensor, kv_len: int
    ) -> tuple[Tensor, Candidates]:
        """Hidden states, and the drafts of all blocks, as one recording for all steps of these shapes."""
        drafter, layers = self.drafter, self.rows.layers

        def work(blocks: Tensor, positions: Tensor, ends: Tensor) -> tuple[Tensor, Candidates]:
            hidden = drafter.hidden(blocks, positions, kv_len, layers, ends, is_recorded=True)
            return hidden, candidates_of(drafter.model, drafter.target, hidden, blocks[:, 0], 1).walk()

        return self.rows.recorded((*positions.shape, kv_len), work, (blocks, positions, ends))

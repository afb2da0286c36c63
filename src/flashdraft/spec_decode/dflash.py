"""DFlash as a drafter: a whole block from one forward of the network (arXiv 2602.06036, algorithm 1)."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from flashdraft.cache.dense_source import BlockContext
from flashdraft.cache.paged_kv_cache import CacheRow, PagedKVCache, power_of_two, row_positions, slots_of
from flashdraft.cache.paged_rows import PagedRows, RecordedRows
from flashdraft.cuda.build import RoundDrafter, RowRules, cuda_drafter
from flashdraft.models.base import TargetModel
from flashdraft.models.dflash import DFlashModel
from flashdraft.native.drafter import NativeDrafter
from flashdraft.spec_decode.candidates import NUM_SAMPLED, Candidates, candidates_of, noise_of
from flashdraft.spec_decode.drafter import Drafter, Drafts, DraftShape
from flashdraft.spec_decode.tree import DraftTree, num_ranks

if TYPE_CHECKING:
    from flashdraft.cuda.drafter import CudaDrafter


class DFlashDrafter(Drafter):
    """Drafts with a DFlash network and the target's embedding and head. ``native``: the network's fast form."""

    can_branch = True

    def __init__(self, model: DFlashModel, target: TargetModel, native: NativeDrafter | None = None) -> None:
        self.model, self.native = model, native
        self.target = target
        self.feature_layers = model.config.target_layer_ids
        self.max_block_size = model.config.block_size

    @property
    def windows(self) -> Sequence[int]:
        """See :class:`flashdraft.spec_decode.drafter.Drafter`; none on CUDA, whose kernels read one table of pages.

        The C++ layers read one table too: all of them have windows there, or none has pages of its own.
        """
        every = [shape.window for shape in self.model.kv_shapes()]
        if self.model.fc.weight.is_cuda or (self.native and None in every):
            return ()
        return [window for window in every if window is not None]

    def open(
        self, num_rows: int, num_pages: int, page_size: int, num_window_pages: int | None = None
    ) -> "DFlashBatch":
        """See :class:`flashdraft.spec_decode.drafter.Drafter`."""
        return DFlashBatch(self, num_pages, page_size, num_rows, num_window_pages)

    def in_rounds(self, drafts: Drafts) -> RoundDrafter | None:
        """See :class:`flashdraft.spec_decode.drafter.Drafter`."""
        assert isinstance(drafts, DFlashBatch)
        network = drafts.on_device
        if network is None:
            return None
        return RoundDrafter(network, partial(self.best, network), partial(self._branches, network))

    def hidden(
        self,
        blocks: Tensor,
        positions: Tensor,
        kv_len: int,
        context: BlockContext,
        ends: Tensor | None = None,
        is_recorded: bool = False,
    ) -> Tensor:
        """Final hidden states [rows, num_tokens - 1, hidden_size] behind the anchors of ``blocks`` [rows, num_tokens].

        ``positions`` [rows, num_tokens] are the blocks'; a row sees its first ``ends`` [rows] slots, left out of
        all ``kv_len``.
        """
        embedded = self.target.embed(blocks)
        if self.native:
            return self.native.served(embedded, positions, kv_len, context, ends)[:, 1:]
        return self.model.served(embedded, positions, kv_len, context, ends, is_recorded)[:, 1:]

    def blocks(self, anchors: Sequence[int], num_tokens: int) -> Tensor:
        """[anchor, MASK, ...] behind each of ``anchors``, token ids [rows, num_tokens]."""
        unknown = [self.model.config.mask_token_id] * (num_tokens - 1)
        return torch.tensor([[anchor, *unknown] for anchor in anchors], device=self.target.device)

    def candidates(
        self,
        blocks: Tensor,
        positions: Tensor,
        kv_len: int,
        context: BlockContext,
        ends: Tensor | None = None,
        count: int = 1,
        with_pairs: bool = False,
    ) -> Candidates:
        """:func:`candidates_of` every slot of :meth:`hidden`, ``count`` of each where there is no selector.

        Where there is one, the scores of all pairs alone if ``with_pairs``, else at least the ``count`` best ones.
        """
        if self.native and not (with_pairs and self.model.candidate_selector):
            given = self.target.embed(blocks), positions, kv_len, context, ends, count, blocks[:, 0]
            if found := self.native.draft(*given):
                token_ids, log_probs, behind = found
                return Candidates(token_ids, log_probs, behind=behind)
        hidden = self.hidden(blocks, positions, kv_len, context, ends)
        return candidates_of(self.model, self.target, hidden, blocks[:, 0], count, self.native)

    @property
    def most_sampled(self) -> int:
        """Candidates of a slot that is to be sampled, where there is no selector."""
        config = self.model.config
        return int(min(NUM_SAMPLED, config.draft_vocab_size or config.vocab_size))

    def best(
        self, network: "CudaDrafter", hidden: Tensor, anchors: Tensor, rules: RowRules | None
    ) -> tuple[Tensor, Tensor]:
        """The draft behind ``anchors``, as :class:`flashdraft.cuda.build.RoundDrafter` has it."""
        if self._selects_on_device:
            from flashdraft.ops.triton.chosen_drafts import walked

            return walked(network.branches(hidden, anchors, self.target.head_weight(), 1, _told(rules)))
        if rules is None and self.model.candidate_selector is None:
            return network.likeliest(hidden, self.target.head_weight())
        found = self._drawn(hidden, anchors, rules, 1).walk()
        return found.token_ids.squeeze(-1), found.log_probs.squeeze(-1)

    def _branches(
        self, network: "CudaDrafter", hidden: Tensor, anchors: Tensor, rules: RowRules | None, num_tokens: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        ranks = num_ranks(num_tokens)
        if self._selects_on_device:
            grown_of = network.branches(hidden, anchors, self.target.head_weight(), ranks, _told(rules))
            return grown_of.token_ids, grown_of.log_probs, grown_of.places
        found = self._drawn(hidden, anchors, rules, ranks)
        return found.token_ids, *found.ranked(ranks)

    @property
    def _selects_on_device(self) -> bool:
        """Whether kernels choose among candidates: while a selector trains, its codebooks are not there."""
        selector = self.model.candidate_selector
        return selector is not None and selector.frozen is not None

    def _drawn(self, hidden: Tensor, anchors: Tensor, rules: RowRules | None, count: int) -> Candidates:
        """Candidates of a round, best first as its ``rules`` sample them."""
        found = candidates_of(self.model, self.target, hidden, anchors, self.most_sampled if rules else count)
        return self.as_sampled(found, rules.noise_of(found.token_ids), rules.temperatures) if rules else found

    def as_sampled(self, found: Candidates, noise: Tensor, temperatures: Tensor) -> Candidates:
        """:meth:`Candidates.as_sampled`, the first slot as the network wants it."""
        return found.as_sampled(noise, temperatures, self.model.config.selector_anchor_sampled)


def _told(rules: RowRules | None) -> tuple[Tensor, Tensor] | None:
    return (rules.told, rules.first_positions) if rules else None


class DFlashBatch:
    """The draft caches of many requests: pages of their own storage under the target's page tables."""

    def __init__(
        self,
        drafter: DFlashDrafter,
        num_pages: int,
        page_size: int,
        num_rows: int,
        num_window_pages: int | None = None,
    ) -> None:
        self.drafter = drafter
        model, weight = drafter.model, drafter.model.fc.weight
        self.rows: PagedRows
        self.on_device = cuda_drafter(model, num_pages, page_size, num_rows)
        if self.on_device:
            self.cache, self.rows = self.on_device.cache, self.on_device.rows
            return
        num_spare, by_layer = num_rows * (drafter.max_block_size + page_size), drafter.native is None
        self.cache = PagedKVCache(
            model.kv_shapes(), num_pages, page_size, weight.dtype, weight.device, num_spare, by_layer,
            num_window_pages,
        )  # fmt: skip
        self.rows = RecordedRows(self.cache) if weight.is_cuda else PagedRows(self.cache)

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
        slots = slots_of(self.cache, rows, counts)
        if native := self.drafter.native:
            kv_len = max(row.start + count for row, count in zip(rows, counts, strict=True))
            own = torch.tensor([slots[self.cache.storage_of[0]]])  # of all layers
            native.store_context(given, positions, own, self.rows.layers, kv_len)
            return
        if self.rows.records:
            more = power_of_two(total) - total
            inputs = F.pad(given, (0, 0, 0, more)), F.pad(positions, (0, more))
            padded = self.rows.recorded(("context", total + more), network.context, inputs)
            pairs = [(k[:, :, :total], v[:, :, :total]) for k, v in padded]
        else:
            pairs = network.context(given, positions)
        self.cache.write(slots, pairs)

    def propose(
        self, rows: Sequence[CacheRow], anchors: Sequence[int], shapes: Sequence[DraftShape]
    ) -> list[DraftTree]:
        """See :class:`flashdraft.spec_decode.drafter.Drafts`: each row's chain or best tree, all from one forward."""
        depths, sizes = [shape.depth for shape in shapes], [shape.size or 0 for shape in shapes]
        blocks = [1 + depth for depth in depths]
        samplings = [shape.sampling for shape in shapes]
        if not any(sizes) and not any(samplings):
            return self._candidates(rows, anchors, blocks, 1).chains(depths)
        count, is_sampled = num_ranks(max(sizes)), any(samplings)
        found = self._candidates(
            rows, anchors, blocks, self.drafter.most_sampled if is_sampled else count, is_sampled
        )
        if is_sampled:
            vocab_size = self.drafter.target.config.vocab_size
            found = self.drafter.as_sampled(found, *noise_of(found.token_ids, samplings, vocab_size))
        return found.trees(depths, sizes, count)

    def _candidates(
        self,
        rows: Sequence[CacheRow],
        anchors: Sequence[int],
        block_sizes: Sequence[int],
        count: int,
        with_pairs: bool = False,
    ) -> Candidates:
        """The candidates of every slot of all blocks, padded to the longest, in the order of ``rows``.

        A row sees its own context and block alone, so a wider neighbour does not change its draft.
        """
        if self.on_device:
            embed, finish = self.drafter.target.embed, partial(self._found, self.on_device, count)
            drafted = self.on_device.draft(embed, rows, anchors, block_sizes, count, finish)
            return drafted.at(slice(0, len(rows)))
        if self.rows.records:
            return self._replay(rows, anchors, block_sizes, count).at(slice(0, len(rows)))
        positions, kv_len = self.rows.arrange(rows, block_sizes)
        blocks = self.drafter.blocks(anchors, positions.shape[1])
        ends: Tensor | None = None
        if len(rows) > 1:
            seen = [row.start + size for row, size in zip(rows, block_sizes, strict=True)]
            ends = torch.tensor(seen, device=positions.device)
        return self.drafter.candidates(blocks, positions, kv_len, self.rows, ends, count, with_pairs)

    def _found(self, network: "CudaDrafter", count: int, hidden: Tensor, anchors: Tensor) -> Candidates:
        """The candidates behind ``anchors`` [rows]; the walk over them alone where there is no tree to come."""
        if count == 1:
            token_ids, log_probs = self.drafter.best(network, hidden, anchors, None)
            return Candidates(token_ids.unsqueeze(-1), log_probs.unsqueeze(-1))
        return candidates_of(self.drafter.model, self.drafter.target, hidden, anchors, count)

    def _replay(
        self, rows: Sequence[CacheRow], anchors: Sequence[int], block_sizes: Sequence[int], count: int
    ) -> Candidates:
        """The candidates of all blocks and of padding: one recording for all steps of these shapes.

        It has the walk over them; more than one a slot are found behind it.
        """
        drafter = self.drafter
        positions, kv_len, pages = self.rows.arrange_padded(rows, block_sizes, power_of_two(max(block_sizes)))
        num_padding = len(positions) - len(rows)
        blocks = drafter.blocks([*anchors, *[0] * num_padding], positions.shape[1])
        seen = [row.start + size for row, size in zip(rows, block_sizes, strict=True)]
        ends = torch.tensor(seen + [1] * num_padding, device=positions.device)

        def work(blocks: Tensor, positions: Tensor, ends: Tensor, pages: Tensor) -> tuple[Tensor, Candidates]:
            context = self.rows.recorded_step(pages, kv_len)
            hidden = drafter.hidden(blocks, positions, kv_len, context, ends, is_recorded=True)
            return hidden, candidates_of(drafter.model, drafter.target, hidden, blocks[:, 0], 1).walk()

        inputs = (blocks, positions, ends, pages)
        hidden, found = self.rows.recorded((*positions.shape, kv_len), work, inputs)
        if count > 1:
            found = candidates_of(drafter.model, drafter.target, hidden, blocks[:, 0], count)
        return found

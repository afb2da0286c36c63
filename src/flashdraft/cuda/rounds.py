"""Rounds of many requests on the device from end to end: draft, verify, accept, commit, observe, in one recording.

Where a row stands and which token is its anchor stays on the device, so that the host starts a round before it knows
how the one before ended: it plans, detokenizes and ends answers one step behind, and the device never waits for it.
Rows are told apart by their place in the round before. Greedy chains alone: whatever a host has to decide on between
draft and verification (grammars, penalties, trees) runs in separate steps (engine/model_runner.py).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from flashdraft.cache.paged_kv_cache import power_of_two
from flashdraft.cache.rounds import Round, RoundEnd, RoundRow
from flashdraft.cuda.build import RoundDrafter, RowRules
from flashdraft.cuda.rows import DeviceRows, RowTables, keys_bound
from flashdraft.cuda.target import CudaTarget
from flashdraft.ops import sampling_rule
from flashdraft.ops.host_copy import HostCopy, pinned
from flashdraft.ops.recorded import Recorded

# What the host tells of a row, in this order; its pages follow.
SOURCE, _START, _ANCHOR, _BLOCK, _LENGTH, _MAX_LEN, _SLOT, _ACCEPTED, _RULE = range(9)
_NUM_COLUMNS = _RULE + sampling_rule.NUM_COLUMNS


class DeviceRounds:
    """Runs rounds of at most ``num_rows`` requests. ``drafter``: None: plain ones alone."""

    def __init__(
        self,
        target: CudaTarget,
        rows: DeviceRows,
        drafter: RoundDrafter | None,
        feature_layers: Sequence[int],
        num_rows: int,
    ) -> None:
        self.target, self.rows, self.drafter, self.feature_layers = target, rows, drafter, feature_layers
        device, most = target.model.device, power_of_two(num_rows)
        self._recorded = Recorded(device)
        # Of the rows of the last round, how it left them.
        self._starts = torch.zeros(most, dtype=torch.int64, device=device)
        self._anchors = torch.zeros(most, dtype=torch.int64, device=device)

    @property
    def can_draft(self) -> bool:
        """Whether blocks longer than one token run so."""
        return self.drafter is not None

    def launch(self, rows: Sequence[RoundRow]) -> Round:
        """See :class:`flashdraft.cache.rounds.Rounds`."""
        width = power_of_two(max(row.block for row in rows))
        upper = [row.cache_row.start + row.num_in_flight for row in rows]
        num_keys = keys_bound(max(upper) + width)
        placed = [row.cache_row for row in rows]
        pages = self.rows.page_table(placed, [row.num_in_flight + width for row in rows], num_keys)
        told = np.zeros((len(pages), _NUM_COLUMNS), np.int32)
        told[:, SOURCE], told[:, _BLOCK], told[:, _SLOT] = -1, 1, self.rows.spare_slot
        told[: len(rows)] = [self._told(row) for row in rows]
        samples = any(row.sampling for row in rows)
        numbers = pinned(torch.from_numpy(np.hstack((told, pages))), self._starts.device)
        if self.rows.states:
            self.rows.states.stage(len(pages), width)
        observes = width > 1

        def work(numbers: Tensor) -> tuple[Tensor, Tensor | None]:
            return self._round(numbers, width, num_keys, samples)

        ends, features = self._recorded((*numbers.shape, width, num_keys, samples), work, [numbers])
        self.rows.settled()
        if features is not None:  # they wait for a draft, and the next replay overwrites them
            features = None if observes else features.clone()
        return DeviceRound(HostCopy(ends), features, [row.block for row in rows])

    def _told(self, row: RoundRow) -> list[int]:
        slot = self.rows.states.slot_of(row.cache_row) if self.rows.states else 0
        accepted = -1 if row.accepted is None else row.accepted
        where = [row.source, row.cache_row.start, row.anchor]
        rule = row.sampling.told if row.sampling else sampling_rule.GREEDY
        return [*where, row.block, row.length, row.max_len, slot, accepted, *rule]

    def _round(
        self, numbers: Tensor, width: int, num_keys: int, samples: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Int32 [rows, 2 * width]: tokens committed, the next anchor, drafts, bits of their log-probabilities."""
        told = numbers[:, :_NUM_COLUMNS].t().long().contiguous()  # kernels want each in one piece
        source, pages, slots = told[SOURCE], numbers[:, _NUM_COLUMNS:], told[_SLOT]
        before, is_new = source.clamp(min=0), source < 0
        starts = torch.where(is_new, told[_START], self._starts[before])
        anchors = torch.where(is_new, told[_ANCHOR], self._anchors[before])
        lengths = torch.minimum(told[_LENGTH], told[_MAX_LEN] - starts - 1)
        rules = RowRules(numbers[:, _RULE:_NUM_COLUMNS], starts + 1) if samples else None
        own = pages  # the drafter's: it has spare ones, of which padding takes the last, of its own number
        if self.drafter is not None and width > 1:
            own = pages.clamp(max=self.drafter.network.rows.scratch_page)
        ends = (starts + told[_BLOCK]).int()
        blocks = RowTables(starts.int(), ends, slots, anchors.unsqueeze(1), own)
        tokens, log_probs = self._draft(blocks, width, num_keys, rules)
        tables = replace(blocks, token_ids=tokens, pages=pages)
        hidden, features, _ = self.target.forward(self.rows, tables, num_keys, self.feature_layers, False)
        logits = self.target.logits(hidden.flatten(0, 1))
        chosen = (
            rules.choose(logits, torch.arange(width, device=starts.device)) if rules else logits.argmax(-1)
        )
        wanted = chosen.view(-1, width)
        same = (tokens[:, 1:] == wanted[:, :-1]).long().cumprod(1).sum(1)
        given = told[_ACCEPTED]
        accepted = torch.minimum(torch.where(given < 0, same, given), (lengths - 1).clamp(min=0))
        counts = torch.where(told[_MAX_LEN] > 0, accepted + 1, 0)  # nothing of padding
        following = wanted.gather(1, accepted.unsqueeze(1)).squeeze(1)
        if self.rows.states and width > 1:
            self.rows.states.commit_counts(slots, counts, width)
        if width > 1 and features is not None:
            self._observe(replace(blocks, token_ids=tokens), counts, features)
        self._starts[: len(starts)] = starts + counts
        self._anchors[: len(anchors)] = following.clamp(min=0)  # a row whose logits are no numbers ends
        ended = [counts.int().unsqueeze(1), following.int().unsqueeze(1), tokens[:, 1:].int()]
        return torch.cat([*ended, log_probs.view(torch.int32)], 1), features

    def _draft(
        self, blocks: RowTables, width: int, num_keys: int, rules: RowRules | None
    ) -> tuple[Tensor, Tensor]:
        """Blocks [rows, width] behind the anchors in ``blocks``; of their drafts the log-probabilities, in float32."""
        anchors = blocks.token_ids
        if width == 1:
            return anchors, anchors.new_empty(len(anchors), 0, dtype=torch.float32)
        assert self.drafter is not None
        network = self.drafter.network
        unknown = anchors.new_full((len(anchors), width - 1), network.model.config.mask_token_id)
        asked = replace(blocks, token_ids=torch.cat((anchors, unknown), 1))
        hidden = network.hidden(asked, num_keys, self.target.model.embed)
        token_ids, log_probs = self.drafter.best(hidden[:, 1:], anchors.squeeze(1), rules)
        return torch.cat((anchors, token_ids), 1), log_probs

    def _observe(self, tables: RowTables, counts: Tensor, features: Tensor) -> None:
        """The drafter takes the first ``counts`` tokens of each row; ``tables``: with its own pages."""
        assert self.drafter is not None
        network = self.drafter.network
        is_true = torch.arange(tables.width, device=counts.device) < counts.unsqueeze(1)
        size = network.cache.page_size
        slots = torch.where(is_true.flatten(), tables.slots(size), network.rows.scratch_page * size)
        network.store(features.flatten(0, 1), torch.stack((tables.places.flatten(), slots)))


class DeviceRound:
    """A round that was launched."""

    def __init__(self, ends: HostCopy, features: Tensor | None, blocks: Sequence[int]) -> None:
        self._ends, self.features, self._blocks = ends, features, blocks

    def ends(self) -> list[RoundEnd]:
        """See :class:`flashdraft.cache.rounds.Round`."""
        ends = self._ends.wait()
        numbers, num_drafted = ends.tolist(), ends.shape[1] // 2 - 1
        log_probs = ends[:, 2 + num_drafted :].view(torch.float32).tolist()
        found = zip(numbers, log_probs, self._blocks, strict=False)
        return [
            RoundEnd(count - 1, following, drafts[: min(block - 1, num_drafted)], values[: block - 1])
            for (count, following, *drafts), values, block in found
        ]

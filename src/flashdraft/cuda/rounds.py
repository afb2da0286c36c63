"""Rounds of many requests on the device from end to end: draft, verify, accept, commit, observe, in one recording.

Where a row stands and which token is its anchor stays on the device, so that the host starts a round before it knows
how the one before ended: it plans, detokenizes and ends answers one step behind, and the device never waits for it.
Rows are told apart by their place in the round before. Chains and trees, greedy and sampled: whatever a host has to
decide on between draft and verification (grammars, penalties) runs in separate steps (engine/model_runner.py).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from flashdraft.cache.paged_kv_cache import power_of_two
from flashdraft.cache.rounds import Round, RoundEnd, RoundRow
from flashdraft.cuda.build import RoundDrafter, RowRules
from flashdraft.cuda.round_drafts import ChainDraft, Draft, TreeDraft, plain_ends
from flashdraft.cuda.rows import DeviceRows, RowTables, keys_bound
from flashdraft.cuda.target import CudaTarget
from flashdraft.ops import sampling_rule
from flashdraft.ops.host_copy import Awaited, HostCopy, pinned
from flashdraft.ops.launch_thread import LaunchThread
from flashdraft.ops.recorded import Recorded
from flashdraft.ops.triton.rounds import (
    BLOCK,
    MAX_LEN,
    NUM_COLUMNS,
    RULE,
    SLOT,
    SOURCE,
    TREE,
    begun,
)
from flashdraft.ops.triton.trees import Branches, grown, move_path


@dataclass(frozen=True)
class _Shape:
    """What rounds of one recording have in common, beside their rows and pages."""

    block: int  # tokens that the drafter has of each row
    width: int  # and the target
    num_keys: int
    samples: bool  # whether a row is not greedy
    has_trees: bool  # whether a row is no chain


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
        self._recorded, self._thread = Recorded(device), LaunchThread(device)
        # Of the rows of the last round, how it left them.
        self._starts = torch.zeros(most, dtype=torch.int64, device=device)
        self._anchors = torch.zeros(most, dtype=torch.int64, device=device)
        # Of the rows of a round of several plain steps, tokens behind the next that each may take.
        self._left = torch.zeros(most, dtype=torch.int64, device=device)

    @property
    def can_draft(self) -> bool:
        """Whether blocks longer than one token run so."""
        return self.drafter is not None

    def launch(self, rows: Sequence[RoundRow]) -> Round:
        """See :class:`flashdraft.cache.rounds.Rounds`."""
        block = power_of_two(max(row.block for row in rows))
        width = max(block, power_of_two(max(1, *(row.tree_size for row in rows))))
        is_plain, num_steps = rows[0].num_steps > 1, max(row.length for row in rows)
        samples, has_trees = any(row.sampling for row in rows), any(row.tree_size for row in rows)
        reach, placed = num_steps if is_plain else width, [row.cache_row for row in rows]
        reached = [row.cache_row.start + row.num_in_flight + reach for row in rows]
        if is_plain:  # which stop where an answer ends, as blocks do not
            reached = [min(end, row.max_len) for end, row in zip(reached, rows, strict=True)]
        counts = [end - row.start for end, row in zip(reached, placed, strict=True)]
        # One plain step is soon recorded, and of thousands of rows a bound twice as large takes 1.3 times as long.
        bound = keys_bound(max(reached), 2) if is_plain else keys_bound(max(reached))
        shape = _Shape(block, width, bound, samples, has_trees)
        pages = self.rows.page_table(placed, counts, shape.num_keys)
        told = np.zeros((len(pages), NUM_COLUMNS), np.int32)
        told[:, SOURCE], told[:, BLOCK], told[:, SLOT] = -1, 1, self.rows.spare_slot
        told[: len(rows)] = [self._told(row) for row in rows]
        numbers = torch.from_numpy(np.hstack((told, pages)))
        if self.rows.states:
            self.rows.states.stage(len(pages), width)
        self.rows.settled()
        blocks = [row.block for row in rows]
        if is_plain:
            steps = self.behind(lambda: self._plain_steps(numbers, shape, num_steps))
            return DeviceRound(steps, None, blocks, plain_ends)
        ends, features = self._recorded(
            (*numbers.shape, shape),
            lambda numbers: self._round(numbers, shape),
            [pinned(numbers, self._starts.device)],
        )
        if features is not None:  # they wait for a draft, and the next replay overwrites them
            features = features.clone()
        kind = TreeDraft if has_trees else ChainDraft
        return DeviceRound(HostCopy(ends), features, blocks, kind.ends, self._recorded.was_new)

    def behind(self, work: Callable[[], Tensor]) -> Awaited:
        """See :class:`flashdraft.cache.rounds.Rounds`."""
        return self._thread.start(work)

    def settle(self) -> None:
        """See :class:`flashdraft.cache.rounds.Rounds`."""
        self._thread.wait()

    def _told(self, row: RoundRow) -> list[int]:
        slot = self.rows.states.slot_of(row.cache_row) if self.rows.states else 0
        accepted = -1 if row.accepted is None else row.accepted
        where = [row.source, row.cache_row.start, row.anchor]
        rule = row.sampling.told if row.sampling else sampling_rule.GREEDY
        return [*where, row.block, row.length, row.max_len, slot, accepted, row.tree_size, *rule]

    def _plain_steps(self, numbers: Tensor, shape: _Shape, num_steps: int) -> Tensor:
        """Of each row how many steps it took, and their tokens: int32 [rows, 1 + num_steps].

        One step is recorded, whatever their number: a recording of 32 took a second on an H200, for each shape.
        """
        device = self._starts.device
        numbers = pinned(numbers, device).to(device, non_blocking=True)
        rows, num_rows = begun(numbers, self._starts, self._anchors), len(numbers)
        lengths = torch.where(rows.columns[MAX_LEN] > 0, rows.most + 1, 0)  # nothing of padding
        self._starts[:num_rows], self._anchors[:num_rows] = rows.starts, rows.anchors
        self._left[:num_rows] = lengths - 1

        def step(numbers: Tensor) -> Tensor:
            return self._plain_step(numbers, shape)

        key = "step", *numbers.shape, shape
        every = torch.stack([self._recorded(key, step, [numbers]).clone() for _ in range(num_steps)], 1)
        self._starts[:num_rows] += lengths > 0
        last = every.gather(1, (lengths - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
        self._anchors[:num_rows] = last.clamp(min=0)
        return torch.cat((lengths.unsqueeze(1), every), 1).int()

    def _plain_step(self, numbers: Tensor, shape: _Shape) -> Tensor:
        """The token of each row behind its anchor, int64 [rows]; those that may take more go on behind it.

        A row that may take no more stays where it is, and does its last step again.
        """
        starts, anchors, left = (one[: len(numbers)] for one in (self._starts, self._anchors, self._left))
        one = (starts.int(), (starts + 1).int(), numbers[:, SLOT].long(), anchors.unsqueeze(1))
        tables = RowTables(*one, numbers[:, NUM_COLUMNS:], self.rows.cache.page_size)
        hidden, _, _ = self.target.forward(self.rows, tables, shape.num_keys, (), False)
        rules = RowRules(numbers[:, RULE:NUM_COLUMNS], starts + 1) if shape.samples else None
        depths = torch.zeros(1, dtype=torch.int64, device=starts.device)
        wanted = self._wanted(hidden.flatten(0, 1), rules, depths)
        goes_on = left > 0
        starts += goes_on
        # A row whose logits are no numbers ends.
        anchors.copy_(torch.where(goes_on, wanted.clamp(min=0), anchors))
        left -= 1
        return wanted

    def _wanted(self, hidden: Tensor, rules: RowRules | None, depths: Tensor) -> Tensor:
        """The target's tokens behind those with final hidden states ``hidden`` [num_tokens, hidden_size]."""
        return rules.choose(self.target.logits(hidden), depths) if rules else self.target.choices(hidden)

    def _round(self, numbers: Tensor, shape: _Shape) -> tuple[Tensor, Tensor | None]:
        """What is told of each row, int32 [rows, ...]: see round_drafts.py."""
        rows = begun(numbers, self._starts, self._anchors)
        told, starts = rows.columns, rows.starts
        pages, slots = numbers[:, NUM_COLUMNS:], told[SLOT]
        rules = RowRules(numbers[:, RULE:NUM_COLUMNS], starts + 1) if shape.samples else None
        own = pages  # the drafter's: it has spare ones, of which padding takes the last, of its own number
        if self.drafter is not None and shape.width > 1:
            own = pages.clamp(max=self.drafter.network.rows.scratch_page)
        bounds, anchors = (rows.begins, rows.ends), rows.anchors.unsqueeze(1)
        size = self.rows.cache.page_size
        blocks = self._asked(RowTables(*bounds, slots, anchors, own, size), shape)
        draft = self._draft(blocks, told, shape, rules)
        tables = replace(blocks, token_ids=draft.token_ids, pages=pages)
        hidden, features, _ = self.target.forward(
            self.rows, tables, shape.num_keys, self.feature_layers, False, *draft.tree
        )
        wanted = self._wanted(hidden.flatten(0, 1), rules, draft.depths)
        kept = self._starts, self._anchors
        counts, told_there, path = draft.ended(wanted.view(-1, shape.width), rows, *kept)
        if path is not None:
            move_path(self.rows.cache.slots, pages, starts, path, counts, size)
            if features is not None:
                features = features.take_along_dim(path.unsqueeze(-1), 1)
        if self.rows.states and shape.width > 1:
            self.rows.states.commit_counts(slots, counts, shape.width, path)
        if shape.width > 1 and features is not None:
            self._observe(blocks, counts, features)
        # What a recording returns it keeps: features of blocks are observed by now, only a plain step's wait.
        return told_there, features if shape.width == 1 else None

    def _asked(self, blocks: RowTables, shape: _Shape) -> RowTables:
        """Masks behind the anchors in ``blocks``."""
        if shape.block == 1:
            return blocks
        assert self.drafter is not None
        anchors, mask = blocks.token_ids, self.drafter.network.model.config.mask_token_id
        unknown = anchors.new_full((len(anchors), shape.block - 1), mask)
        return replace(blocks, token_ids=torch.cat((anchors, unknown), 1))

    def _draft(self, blocks: RowTables, told: Tensor, shape: _Shape, rules: RowRules | None) -> Draft:
        """What follows the anchors of ``blocks``; ``told``: the rows' columns, [columns, rows]."""
        anchors = blocks.token_ids[:, 0]
        if shape.block == 1:
            return ChainDraft(blocks.token_ids, torch.empty(len(anchors), 0, device=anchors.device))
        assert self.drafter is not None
        hidden = self.drafter.network.hidden(blocks, shape.num_keys, self.target.model.embed)[:, 1:]
        if not shape.has_trees:
            token_ids, log_probs = self.drafter.best(hidden, anchors, rules)
            return ChainDraft(torch.cat((anchors.unsqueeze(1), token_ids), 1), log_probs)
        branches = Branches(*self.drafter.branches(hidden, anchors, rules, shape.width - 1))
        is_tree, ranks = told[TREE] > 0, branches.log_probs.shape[-1]
        sizes = torch.where(is_tree, told[TREE], told[BLOCK])
        most_ranks = torch.where(is_tree, ranks, 1)  # of one rank a tree is a chain
        trees = grown(branches, anchors.contiguous(), sizes, most_ranks, told[BLOCK] - 1, shape.width)
        return TreeDraft(trees, shape.block)

    def _observe(self, tables: RowTables, counts: Tensor, features: Tensor) -> None:
        """The drafter takes the first ``counts`` tokens of each row; ``tables``: with its own pages."""
        assert self.drafter is not None
        network = self.drafter.network
        is_true = torch.arange(tables.width, device=counts.device) < counts.unsqueeze(1)
        size = network.cache.page_size
        slots = torch.where(is_true.flatten(), tables.slots, network.rows.scratch_page * size)
        network.store(features.flatten(0, 1), torch.stack((tables.places.flatten(), slots)))


class DeviceRound:
    """A round that was launched."""

    def __init__(
        self,
        told: Awaited,
        features: Tensor | None,
        blocks: Sequence[int],
        ends: Callable[[Tensor, Sequence[int]], list[RoundEnd]],
        is_new: bool = False,
    ) -> None:
        self._told, self.features, self._blocks, self._ends = told, features, blocks, ends
        self.is_new = is_new

    def ends(self) -> list[RoundEnd]:
        """See :class:`flashdraft.cache.rounds.Round`."""
        return self._ends(self._told.wait(), self._blocks)

"""What steps cost on this machine: target and drafter timed at a few shapes. Nothing is committed to any page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from time import perf_counter

import numpy as np
import torch

from flashdraft.cache.paged_kv_cache import CacheRow, power_of_two
from flashdraft.cache.paged_rows import PagedRows
from flashdraft.cache.rounds import RoundRow
from flashdraft.control.controller import drafted_blocks
from flashdraft.control.step_costs import Array, Curve, ShapeTable, StepCosts, not_falling
from flashdraft.engine.model_runner import ModelRunner
from flashdraft.spec_decode.drafter import DraftShape

CONTEXT = 128  # tokens behind a measured step
_LONG_CONTEXT = 1024  # and behind the two that tell what context costs
_LONG_OF_ALL = 896  # or behind recorded ones of every shape: all of them within 1,024
_ROUNDS = 4  # that are timed together, for the host does not wait for one before it starts the next
_MOST_TOKENS = 1024  # of a step that teaches by itself what it costs
_TURNS, _RECORDED_TURNS = 2, 4  # the first pays for memory, and where steps are recorded, so does the second


@dataclass(frozen=True)
class FewTrees:
    """Which automatic requests verify trees in recorded steps, and how large ones."""

    most: int  # requests beside each other; of more the drafts are chains
    num_blocks: int = 1  # blocks that a tree has the tokens of

    def size(self, num_rows: int, block: int) -> int:
        """Tokens of a tree, anchor included, of each of ``num_rows`` requests that draft ``block``; 0: a chain."""
        return self.num_blocks * block if num_rows <= self.most and block > 1 else 0

    def fitting(self, max_block: int, most_tree: Callable[[int], int]) -> "FewTrees":
        """Of as many requests as may have such trees: ``most_tree`` gives their size for a number of requests."""
        size = self.num_blocks * max_block
        fits = [num_rows for num_rows in range(1, self.most + 1) if most_tree(num_rows) >= size]
        return replace(self, most=max(fits, default=0))


NO_TREES, STEP_TREES = FewTrees(0), FewTrees(4)
# In rounds, on an H200 with the embedded pair: 1.23, 1.16 and 1.08 times the tokens/s of chains at 1, 2 and 4 requests,
# where trees of one block's tokens bring 1.13, 1.08 and 1.08 (benchmarks/results/h200/beside-vllm).
ROUND_TREES = FewTrees(4, 2)


@torch.inference_mode()
def measure_costs(
    runner: ModelRunner, max_block: int, num_rows: int, is_thorough: bool = False, trees: FewTrees = NO_TREES
) -> StepCosts:
    """Time steps of up to ``num_rows`` requests and blocks of up to ``max_block`` (2 or more).

    An engine starts with few shapes, and its steps teach it the rest; ``is_thorough``: whole blocks of many rows too.
    ``trees``: which verify trees where steps are recorded.
    """
    with runner.target.threads():
        if runner.backend.is_recorded or runner.drafts_in_rounds:
            return _measure_recorded(runner, max_block, num_rows, trees)
        return _measure(runner, max_block, num_rows, is_thorough)


def _measure_recorded(runner: ModelRunner, max_block: int, num_rows: int, trees: FewTrees) -> StepCosts:
    """Every shape that blocks are recorded in, behind two contexts; the engine's steps find their recordings made."""
    blocks = sorted(drafted_blocks(max_block))
    short = _Steps(runner, max_block, num_rows, runner.block_rows, CONTEXT, trees)
    long = _Steps(runner, max_block, num_rows, runner.block_rows, _LONG_OF_ALL, trees)
    if runner.drafts_in_rounds:  # one table tells all of them, drafting included
        rounds = _table(short, long, "rounds", sorted({1, *map(power_of_two, blocks)}))
        rounds.seconds, rounds.context_s = rounds.seconds / _ROUNDS, rounds.context_s / _ROUNDS
        costs = StepCosts(rounds, ShapeTable([1], [1], [[0.0]]))
    else:
        costs = StepCosts(_table(short, long, "verify", [1, *blocks]), _table(short, long, "draft", blocks))
    for steps in (short, long):
        steps.leave()
    return costs


def _table(short: "_Steps", long: "_Steps", work: str, widths: Sequence[int]) -> ShapeTable:
    """Seconds of ``work``. The largest shapes come first: rows that grow lose recordings."""
    counts = doubling(len(short.rows))
    shapes = [(count, width) for count in reversed(counts) for width in reversed(widths)]

    def found(steps: _Steps) -> Array:
        return np.flip(_fastest(getattr(steps, work), shapes, _RECORDED_TURNS)).reshape(len(counts), -1)

    if long.context <= short.context:
        return ShapeTable(counts, widths, found(short))
    of_long, of_short = found(long), found(short)
    more_s = np.maximum(of_long - of_short, 0.0) / (long.context - short.context)
    return ShapeTable(counts, widths, of_short, more_s)


def _measure(runner: ModelRunner, max_block: int, num_rows: int, is_thorough: bool) -> StepCosts:
    steps = _Steps(runner, max_block, num_rows, runner.new_rows())
    shapes = [(1, width) for width in (1, *sorted(drafted_blocks(max_block)))]
    if is_thorough:
        shapes += [(count, max_block) for count in doubling(num_rows)[1:]]
    verify, draft = _curve(steps.verify, shapes), _curve(steps.draft, shapes[1:])
    less_s, more_s = _fastest(steps.head, [(1,), (max_block,)])
    if num_rows > 1:
        # The same number of tokens in fewer rows is on the curves.
        for curve, work, width in ((verify, steps.verify, 1), (draft, steps.draft, min(4, max_block))):
            [seconds] = _fastest(work, [(num_rows, width)])
            curve.row_s = max(seconds - float(curve(1, num_rows * width)), 0.0) / (num_rows - 1)
    if steps.more_context > 0:
        ends = 1, max_block
        found = _fastest(steps.verify_long, [(end,) for end in ends])
        one, whole = (
            max(seconds - float(verify(1, end)), 0.0) / steps.more_context
            for end, seconds in zip(ends, found, strict=True)
        )
        verify.context_token_s = max(whole - one, 0.0) / (max_block - 1)
        verify.context_row_s = max(one - verify.context_token_s, 0.0)
    steps.leave()
    logits_s = max(more_s - less_s, 0.0) / (max_block - 1)
    return StepCosts(verify, draft, logits_s, is_ragged=runner.backend.is_ragged)


class _Steps:
    """Forwards as the engine runs them, of requests that do not exist, over whatever the first pages hold."""

    def __init__(
        self, runner: ModelRunner, max_block: int, num_rows: int, gathered: PagedRows,
        context: int = CONTEXT, trees: FewTrees = NO_TREES,
    ) -> None:  # fmt: skip
        assert runner.drafter is not None
        self.runner, self.drafter, self.gathered, self.trees = runner, runner.drafter, gathered, trees
        room = min(runner.cache.num_slots, runner.target.config.max_position_embeddings) - max_block
        # Whole pages: what is timed is staged behind them and not in them, for they may be others'.
        size = runner.cache.page_size
        self.context, longest = (max(min(one, room), 0) // size * size for one in (context, _LONG_CONTEXT))
        self.more_context = longest - self.context
        pages = range(longest // size)
        own = pages[: self.context // size]
        self.rows = [CacheRow(("timed", context, idx), own, self.context) for idx in range(num_rows)]
        self.long_row = CacheRow("timed", pages, longest)
        for row in self.rows:
            self.drafter.join(row, [], self.context + max_block)

    def leave(self) -> None:
        """The drafter may forget them."""
        for row in self.rows:
            self.drafter.leave(row)

    def verify(self, num_rows: int, width: int) -> None:
        """The target over ``num_rows`` blocks of ``width``, logits of all tokens."""
        self._verify(self.rows[:num_rows], width)

    def verify_long(self, width: int) -> None:
        """One row behind the long context."""
        self._verify([self.long_row], width)

    def draft(self, num_rows: int, block: int) -> None:
        """The drafter's blocks of ``num_rows`` requests."""
        tree_size = self.trees.size(num_rows, block)
        shape = DraftShape(block - 1, tree_size - 1 if tree_size else None)
        self.drafter.propose(self.rows[:num_rows], [0] * num_rows, [shape] * num_rows)

    def rounds(self, num_rows: int, width: int) -> None:
        """Some rounds of ``num_rows`` requests, each started before the one before has ended."""
        assert self.runner.rounds is not None
        end, tree_size = self.context + width + 1, self.trees.size(num_rows, width)
        rows = [RoundRow(row, -1, 0, 0, width, width, end, tree_size) for row in self.rows[:num_rows]]
        launched = [self.runner.rounds.launch(rows) for _ in range(_ROUNDS)]
        launched[-1].ends()

    def head(self, num_tokens: int) -> None:
        """The target's logits alone."""
        target = self.runner.target
        shape = (num_tokens, target.config.hidden_size)
        target.argmax(torch.zeros(shape, dtype=target.dtype, device=target.device)).tolist()

    def _verify(self, rows: Sequence[CacheRow], width: int) -> None:
        # A tree of which all tokens follow the anchor; a chain is told by none.
        is_tree = width > 2 and self.trees.size(len(rows), width)
        parents = [[0] * (width - 1) for _ in rows] if is_tree else None
        step = self.runner.forward(self.gathered, rows, [[0] * width for _ in rows], parents)
        best = step.argmax
        if best is None:
            best = self.runner.target.argmax(step.output.hidden.flatten(0, 1))
        best.tolist()


def doubling(last: int) -> list[int]:
    """1, 2, 4, ..., last."""
    return [*(1 << k for k in range((last - 1).bit_length())), last]


def _curve(work: Callable[..., None], shapes: Sequence[tuple[int, int]]) -> Curve:
    num_tokens = [num_rows * width for num_rows, width in shapes]
    return Curve(np.array(num_tokens), not_falling(_fastest(work, shapes))).reaching(_MOST_TOKENS)


def _fastest(
    work: Callable[..., None], shapes: Sequence[tuple[int, ...]], turns: int = _TURNS
) -> list[float]:
    """The shapes in turns, so that a machine that slows down meanwhile does so for all of them."""
    seconds = [inf] * len(shapes)
    for _ in range(turns):
        for idx, shape in enumerate(shapes):
            started = perf_counter()
            work(*shape)
            seconds[idx] = min(seconds[idx], perf_counter() - started)
    return seconds

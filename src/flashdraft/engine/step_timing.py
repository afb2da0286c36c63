"""What steps cost on this machine: target and drafter timed at a few shapes. Nothing is committed to any page."""

from collections.abc import Sequence
from time import perf_counter

import numpy as np
import torch

from flashdraft.cache.paged_kv_cache import CacheRow, doubling, power_of_two
from flashdraft.cache.rounds import RoundRow
from flashdraft.control.controller import drafted_blocks
from flashdraft.control.step_costs import Array, Curve, ShapeTable, StepCosts, not_falling
from flashdraft.engine.model_runner import ModelRunner
from flashdraft.engine.recorded_trees import NO_TREES, FewTrees
from flashdraft.spec_decode.drafter import DraftShape

_CONTEXTS = 896, 128  # tokens behind recorded steps, of which the mean is taken; else the last alone
_ROUNDS = 4  # that are timed together, each launched before the one before it is read, as the engine does
_MOST_TOKENS = 1024  # of a step that teaches by itself what it costs
_TURNS, _RECORDED_TURNS = 2, 4  # the first pays for memory, and where steps are recorded, so does the second
_Shape = tuple[int, int]  # requests, tokens of each


@torch.inference_mode()
def measure_costs(
    runner: ModelRunner, max_block: int, num_rows: int, is_thorough: bool = False, trees: FewTrees = NO_TREES
) -> StepCosts:
    """Time steps of up to ``num_rows`` requests and blocks of up to ``max_block`` (2 or more).

    An engine starts with few shapes, and its steps teach it the rest; ``is_thorough``: whole blocks of many rows too.
    ``trees``: which verify trees where steps are recorded.
    """
    blocks = sorted(drafted_blocks(max_block))
    is_recorded = runner.backend.is_recorded or runner.drafts_in_rounds
    with runner.target.threads():
        every = [
            _Steps(runner, max_block, num_rows, context, trees) for context in _CONTEXTS[not is_recorded :]
        ]
        if runner.drafts_in_rounds:  # one table tells all of them, drafting included
            rounds = _table(every, "rounds", sorted({1, *map(power_of_two, blocks)}))
            costs = StepCosts(rounds, ShapeTable([1], [1], [[0.0]]))
        elif is_recorded:
            costs = StepCosts(_table(every, "verify", [1, *blocks]), _table(every, "draft", blocks))
        else:
            shapes = [(1, width) for width in (1, *blocks)]
            shapes += [(count, max_block) for count in doubling(num_rows)[1:] if is_thorough]
            verify = _curve(every, "verify", shapes, (num_rows, 1))
            draft = _curve(every, "draft", shapes[1:], (num_rows, blocks[0]))
            costs = StepCosts(verify, draft, is_ragged=runner.backend.is_ragged)
        for row in [row for steps in every for row in steps.rows]:
            every[0].drafter.leave(row)
    return costs


class _Steps:
    """Forwards as the engine runs them, of requests that do not exist, over whatever the first pages hold."""

    def __init__(
        self, runner: ModelRunner, max_block: int, num_rows: int, context: int, trees: FewTrees
    ) -> None:
        assert runner.drafter is not None
        self.runner, self.drafter, self.trees = runner, runner.drafter, trees
        self.gathered = runner.block_rows if runner.backend.is_recorded else runner.new_rows()
        cache, most = runner.cache, runner.target.config.max_position_embeddings - max_block
        # Whole pages of the pool: what is timed is staged behind them and not in them, for they may be others'.
        pages = range(min(max(min(context, most), 0) // cache.page_size, cache.num_pages))
        self.context = len(pages) * cache.page_size
        self.rows = [CacheRow(("timed", context, idx), pages, self.context) for idx in range(num_rows)]
        for row in self.rows:
            self.drafter.join(row, [], self.context + max_block)

    def verify(self, num_rows: int, width: int) -> None:
        """The target over ``num_rows`` blocks of ``width``, logits of all tokens."""
        # A tree of which all tokens follow the anchor; a chain is told by none.
        is_tree = width > 2 and self.trees.size(num_rows, width)
        parents = [[0] * (width - 1)] * num_rows if is_tree else None
        step = self.runner.forward(self.gathered, self.rows[:num_rows], [[0] * width] * num_rows, parents)
        best = step.argmax
        if best is None:
            best = self.runner.target.argmax(step.output.hidden.flatten(0, 1))
        best.tolist()

    def draft(self, num_rows: int, block: int) -> None:
        """The drafter's blocks of ``num_rows`` requests."""
        tree_size = self.trees.size(num_rows, block)
        shape = DraftShape(block - 1, tree_size - 1 if tree_size else None)
        self.drafter.propose(self.rows[:num_rows], [0] * num_rows, [shape] * num_rows)

    def rounds(self, num_rows: int, width: int) -> float:
        """Rounds of ``num_rows`` requests; when the first had ended, for whose launch the device waited."""
        assert self.runner.rounds is not None
        end, tree_size = self.context + width + 1, self.trees.size(num_rows, width)
        rows = [RoundRow(row, -1, 0, 0, width, width, end, tree_size) for row in self.rows[:num_rows]]
        launched, ended = [self.runner.rounds.launch(rows)], []
        for _ in range(_ROUNDS):
            launched.append(self.runner.rounds.launch(rows))
            launched[-2].ends()
            ended.append(perf_counter())
        launched[-1].ends()
        return ended[0]


def _table(every: Sequence[_Steps], work: str, widths: Sequence[int]) -> ShapeTable:
    """Seconds of ``work``. The largest shapes come first: rows that grow lose recordings."""
    counts = doubling(len(every[0].rows))
    shapes = [(count, width) for count in reversed(counts) for width in reversed(widths)]
    seconds = _fastest(every, work, shapes, _RECORDED_TURNS) / (_ROUNDS if work == "rounds" else 1)
    return ShapeTable(counts, widths, np.flip(seconds).reshape(len(counts), -1))


def _curve(every: Sequence[_Steps], work: str, shapes: Sequence[_Shape], of_rows: _Shape) -> Curve:
    """Seconds by tokens, with points at doublings for steps to teach what was not measured.

    ``of_rows``: the shape that tells what rows cost. The same number of tokens in fewer rows is on the curve.
    """
    *seconds, rows_s = _fastest(every, work, [*shapes, of_rows], _TURNS).tolist()
    tokens = [num_rows * width for num_rows, width in shapes]
    curve = Curve(np.array(tokens), not_falling(seconds))
    more_s = max(rows_s - float(curve(1, of_rows[0] * of_rows[1])), 0.0)
    while tokens[-1] < _MOST_TOKENS:
        tokens.append(2 * tokens[-1])
    return Curve(np.array(tokens), curve(1, tokens), more_s / max(of_rows[0] - 1, 1))


def _fastest(every: Sequence[_Steps], work: str, shapes: Sequence[_Shape], num_turns: int) -> Array:
    """Of each shape. They come in turns, so that a machine that slows down meanwhile does so for all of them."""
    seconds = np.zeros((len(every), num_turns, len(shapes)))
    for context, turn, idx in np.ndindex(seconds.shape):
        started = perf_counter()
        began = getattr(every[context], work)(*shapes[idx]) or started
        seconds[context, turn, idx] = perf_counter() - began
    return np.asarray(seconds.min(axis=1).mean(axis=0))

"""The controller within the engine: measures the machine once, plans each step, and learns from it."""

from collections.abc import Callable, Sequence
from time import perf_counter

import torch

from flashdraft.batch import ForwardBatch
from flashdraft.cache.paged_kv_cache import CacheRow, GatheredRows
from flashdraft.engine.model_runner import ModelRunner
from flashdraft.engine.request import Request
from flashdraft.errors import UsageError
from flashdraft.generate import check_request
from flashdraft.models.base import TargetModel
from flashdraft.spec_decode.acceptance import SHORT_BLOCK_LOG_ODDS
from flashdraft.spec_decode.controller import AUTO, BlockSize, Candidate, Controller, Others
from flashdraft.spec_decode.dflash import DFlashDrafter
from flashdraft.spec_decode.drafter import Drafter
from flashdraft.spec_decode.step_costs import Curve, StepCosts

_CONTEXT = 128  # tokens behind a measured step; longer contexts show in the steps themselves
_MOST_ROWS = 8  # measured; from there on seconds grow by tokens
_REPEATS = 2
_CHOOSE_RATE = 0.1


def check_block_size(target: TargetModel, drafter: Drafter | None, block_size: BlockSize) -> BlockSize:
    """The block size to use: with nothing to draft with, "auto" is plain decoding. Raises UsageError."""
    if isinstance(block_size, int):
        return check_request(target, drafter, [0], block_size)
    if block_size != AUTO:
        raise UsageError(f"block_size is {block_size!r}; expected {AUTO} or a number of tokens")
    return AUTO if drafter and drafter.max_block_size > 1 else 1


class BlockControl:
    """Chooses the blocks of requests that leave it to the engine. ``costs``: measured when first needed if None."""

    def __init__(
        self, runner: ModelRunner, drafter: Drafter | None = None, costs: StepCosts | None = None
    ) -> None:
        self.runner = runner
        self.max_block = drafter.max_block_size if drafter else 1
        # Only a drafter of whole blocks drafts a token differently when fewer follow it.
        self.short_log_odds = SHORT_BLOCK_LOG_ODDS if isinstance(drafter, DFlashDrafter) else 0.0
        self.controller = self._controller(costs) if costs else None
        self._num_measured_rows = _MOST_ROWS if costs else 0
        self._choose_s = 0.0

    def calibrate(self, num_rows: int = _MOST_ROWS) -> Controller:
        """Measure steps of up to ``num_rows`` requests, unless that is done: a second or a few."""
        num_rows = min(num_rows, _MOST_ROWS)
        if self.controller is None or num_rows > self._num_measured_rows:
            self._num_measured_rows = 1 << (num_rows - 1).bit_length()
            costs = measure_costs(self.runner, self.max_block, self._num_measured_rows)
            if self.controller:
                self.controller.costs = costs
            else:
                self.controller = self._controller(costs)
        return self.controller

    def _controller(self, costs: StepCosts) -> Controller:
        return Controller(self.max_block, costs, self.short_log_odds)

    def plan(self, decoding: Sequence[Request]) -> None:
        """Set the next block of each automatic request."""
        automatic = [request for request in decoding if request.is_automatic]
        if not automatic:
            return
        controller = self.calibrate(len(decoding))
        candidates = []
        for request in automatic:
            if request.acceptance is None:
                request.acceptance = controller.acceptance.new_request()
            request.acceptance.choose_s = 0.0 if request.answer.chooser.is_argmax else self._choose_s
            candidates.append(Candidate(request.acceptance, request.most_tokens))
        others = tuple(min(r.block_size, r.most_tokens) for r in decoding if not r.is_automatic)
        plan = controller.plan(candidates, Others(others))
        for request, length in zip(automatic, plan.lengths, strict=True):
            request.block_size, request.num_verified = plan.block, length

    def learn(
        self,
        blocks: Sequence[tuple[Request, int]],
        drafts: Sequence[list[int]],
        accepted: Sequence[int],
        seconds: tuple[float, float, float, float],
    ) -> None:
        """Take what a step brought, and its seconds of drafting, of the target's forward, of choosing, of the rest."""
        if self.controller is None:
            return
        draft_s, verify_s, choose_s, host_s = seconds
        drafted = [request.block_size for request, size in blocks if size > 1]
        width = 1 + max(len(draft) for draft in drafts)
        shape = len(blocks), width, sum(len(draft) for draft in drafts)
        costs = self.controller.costs
        costs.learn(shape, verify_s, (len(drafted), max(drafted, default=0)), draft_s)
        costs.learn_host(host_s)
        sampled = [request.answer.chooser.is_argmax for request, _ in blocks].count(False)
        if sampled:
            each_s = choose_s / sum(
                1 + len(draft)
                for (request, _), draft in zip(blocks, drafts, strict=True)
                if not request.answer.chooser.is_argmax
            )
            self._choose_s += (_CHOOSE_RATE if self._choose_s else 1.0) * (each_s - self._choose_s)
        for (request, size), num_accepted in zip(blocks, accepted, strict=True):
            if request.acceptance is not None and size > 1:
                self.controller.observe(request.acceptance, request.block_size, size - 1, num_accepted)


@torch.inference_mode()
def measure_costs(runner: ModelRunner, max_block: int, num_rows: int) -> StepCosts:
    """Time target and drafter at a few shapes, up to ``num_rows`` blocks of ``max_block``. Commits nothing."""
    drafter = runner.drafter
    assert drafter is not None
    page_size, num_slots = runner.cache.page_size, len(runner.cache.slots)
    context = max(
        min(_CONTEXT, num_slots - max_block, runner.target.config.max_position_embeddings - max_block), 0
    )
    pages = range(-(-context // page_size))
    rows = [CacheRow(("measured", idx), pages, context) for idx in range(num_rows)]
    gathered = GatheredRows(runner.cache)

    def verify(count: int, width: int) -> None:
        positions, kv_len = gathered.arrange(rows[:count], width)
        tokens = torch.zeros((count, width), dtype=torch.long, device=runner.target.device)
        output = runner.target.forward(
            ForwardBatch(tokens, positions, kv_len), gathered, runner.feature_layers
        )
        runner.target.logits(output.hidden.flatten(0, 1)).argmax(-1).tolist()

    def draft(count: int, block: int) -> None:
        drafter.propose(rows[:count], [0] * count, [block] * count)

    def head(count: int) -> None:
        hidden = torch.zeros((count, runner.target.config.hidden_size), device=runner.target.device)
        runner.target.logits(hidden.to(runner.target.dtype)).argmax(-1).tolist()

    for row in rows:
        drafter.join(row, [], context + max_block)
    shapes = [(1, width) for width in _doubling(max_block)] + [
        (count, max_block) for count in _doubling(num_rows)[1:]
    ]
    verify_curve = _curve(verify, shapes)
    draft_curve = _curve(draft, [shape for shape in shapes if shape[1] > 1])
    costs = StepCosts(verify_curve, draft_curve)
    few, many = max_block, 4 * max_block
    costs.logits_s = max(_seconds(head, many) - _seconds(head, few), 0.0) / (many - few)
    if num_rows > 1:
        thin = min(4, max_block)
        costs.verify_row_s = max(_seconds(verify, num_rows, 1) - float(verify_curve(num_rows)), 0.0) / (
            num_rows - 1
        )
        thick = float(draft_curve(num_rows * thin))
        costs.draft_row_s = max(_seconds(draft, num_rows, thin) - thick, 0.0) / (num_rows - 1)
    for row in rows:
        drafter.leave(row)
    return costs


def _doubling(last: int) -> list[int]:
    """1, 2, 4, ..., last."""
    return [*(1 << k for k in range((last - 1).bit_length())), last]


def _curve(work: Callable[[int, int], None], shapes: Sequence[tuple[int, int]]) -> Curve:
    seconds = [_seconds(work, *shape) for shape in shapes]
    # More tokens never take less: where it looks so, something else ran.
    rising = [min(seconds[idx:]) for idx in range(len(seconds))]
    return Curve([count * width for count, width in shapes], rising)


def _seconds(work: Callable[..., None], *shape: int) -> float:
    """The fastest of a few, after one that pays for memory."""
    work(*shape)
    found = []
    for _ in range(_REPEATS):
        started = perf_counter()
        work(*shape)
        found.append(perf_counter() - started)
    return min(found)

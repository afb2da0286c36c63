"""Answering many prompts with a fixed number of them under way: the next is asked when one is finished."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter

from flashdraft.admission import BlockSize
from flashdraft.engine.engine import Engine
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.metrics import RequestMetrics


@dataclass
class TimedAnswer:
    """One answer and when its tokens came; times on one clock, in seconds."""

    asked_at: float
    delivered_at: list[float] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str = ""
    metrics: RequestMetrics = field(default_factory=RequestMetrics)
    wall_s: float = 0.0  # its part of the wall time of all answers


def answer_all(
    engine: Engine,
    prompts: Sequence[list[int]],
    params: SamplingParams,
    block_size: BlockSize,
    concurrency: int,
    on_answer: Callable[[], None] = lambda: None,
    draft_tree: int | None = None,
) -> list[TimedAnswer]:
    """Answer ``prompts``, token ids each, ``concurrency`` at a time, on an idle engine; in their order."""
    answers: list[TimedAnswer] = []
    num_open = 0
    started = perf_counter()
    while num_open or len(answers) < len(prompts):
        while num_open < concurrency and len(answers) < len(prompts):
            answers.append(TimedAnswer(perf_counter()))
            name = str(len(answers) - 1)
            engine.add_request(name, prompts[len(answers) - 1], params, block_size, draft_tree=draft_tree)
            num_open += 1
        news = engine.step()
        now = perf_counter()
        for output in news:
            answer = answers[int(output.request_id)]
            answer.token_ids += output.token_ids
            if output.token_ids:
                answer.delivered_at.append(now)
            if output.finished:
                answer.finish_reason, answer.metrics = output.finish_reason or "", output.metrics
                num_open -= 1
                on_answer()
    _share_out(perf_counter() - started, answers)
    return answers


def _share_out(wall_s: float, answers: Sequence[TimedAnswer]) -> None:
    """Divide the wall time in proportion to each answer's share of the steps that it was in."""
    busy = [answer.metrics.prefill_s + answer.metrics.decode_s for answer in answers]
    for answer, own in zip(answers, busy, strict=True):
        answer.wall_s = wall_s * own / sum(busy)

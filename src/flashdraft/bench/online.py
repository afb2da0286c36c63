"""The online benchmark: a workload against a server, closed-loop or with requests that arrive at random."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

from flashdraft.bench.accuracy import is_correct
from flashdraft.bench.client import Client, StreamedAnswer
from flashdraft.bench.latency import Percentiles, gap_histogram, gap_percentiles, percentiles
from flashdraft.bench.results import CUT
from flashdraft.bench.scraped import DraftCounts, draft_counts
from flashdraft.bench.tasks import BenchPrompt
from flashdraft.errors import EngineError
from flashdraft.sampling_params import SamplingParams

_WARM_UP = "Count to ten."  # no prompt of a task: a server's prefix cache must not know one beforehand
_WARM_UP_TOKENS = 8
Ask = Callable[[BenchPrompt], Awaitable[StreamedAnswer]]
Answered = list[tuple[BenchPrompt, StreamedAnswer]]


@dataclass(frozen=True)
class Load:
    """How requests come: so many under way at a time, or at random so many a second (a Poisson process).

    ``template``: values for the server's chat template.
    """

    concurrency: int | None = None
    rate: float | None = None  # requests a second
    seed: int = 0  # of the arrivals
    template: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """The latency that an answer must keep to count as good; None: any."""

    ttft_s: float | None = None
    tpot_s: float | None = None

    def is_met(self, answer: StreamedAnswer) -> bool:
        """Whether the answer kept to both."""
        fast = self.ttft_s is None or answer.ttft_s <= self.ttft_s
        return fast and (self.tpot_s is None or (answer.tpot_s or 0.0) <= self.tpot_s)


@dataclass(frozen=True)
class OnlineRow:
    """All answers of one server to one task under one load. Rates are over the whole wall time."""

    task: str
    method: str  # what the server was called
    concurrency: int | None
    rate: float | None
    num_requests: int
    num_failed: int
    first_error: str | None
    wall_s: float
    num_prompt_tokens: int
    num_output_tokens: int
    output_tokens_per_s: float
    requests_per_s: float
    goodput_per_s: float  # requests a second that kept to the latency target
    ttft_s: Percentiles | None
    tpot_s: Percentiles | None
    itl_s: Percentiles | None  # between pieces of text, which may hold several tokens
    total_s: Percentiles | None
    acceptance_length: float | None  # tokens a round, the target's own included
    acceptance_source: str | None  # "usage" (these answers' own) or "metrics" (the server's counters)
    accepted_by_position: list[float]
    num_graded: int
    num_correct: int


async def measure(
    client: Client,
    task: str,
    prompts: Sequence[BenchPrompt],
    params: SamplingParams,
    load: Load,
    target: Target,
    label: str = "server",
    on_answer: Callable[[], None] = lambda: None,
) -> OnlineRow:
    """Ask all prompts (their first turn) under ``load``, after one short question that is not measured."""
    short = replace(params, max_tokens=min(params.max_tokens, _WARM_UP_TOKENS))
    await client.ask(_WARM_UP, short, load.template)
    before = await _counts(client)

    async def ask(prompt: BenchPrompt) -> StreamedAnswer:
        answer = await client.ask(prompt.turns[0], params, load.template)
        on_answer()
        return answer

    started = perf_counter()
    if load.rate is not None:
        answers = await _at_random(ask, prompts, load.rate, random.Random(load.seed))
    else:
        answers = await _closed_loop(ask, prompts, load.concurrency or 1)
    wall_s = perf_counter() - started
    drafts = (await _counts(client)).since(before)
    return _row(task, label, load, target, wall_s, list(zip(prompts, answers, strict=True)), drafts)


async def _counts(client: Client) -> DraftCounts:
    try:
        return draft_counts(await client.get("/metrics"))
    except (EngineError, ValueError):
        return DraftCounts()  # a server without metrics; its usage may tell


async def _closed_loop(ask: Ask, prompts: Sequence[BenchPrompt], concurrency: int) -> list[StreamedAnswer]:
    answers: dict[int, StreamedAnswer] = {}
    waiting = iter(enumerate(prompts))

    async def client() -> None:
        for number, prompt in waiting:
            answers[number] = await ask(prompt)

    await asyncio.gather(*(client() for _ in range(concurrency)))
    return [answers[number] for number in range(len(prompts))]


async def _at_random(
    ask: Ask, prompts: Sequence[BenchPrompt], rate: float, source: random.Random
) -> list[StreamedAnswer]:
    """Gaps between requests are exponential; nobody waits for an answer."""
    under_way = []
    due = perf_counter()
    for prompt in prompts:
        await asyncio.sleep(max(due - perf_counter(), 0.0))
        under_way.append(asyncio.ensure_future(ask(prompt)))
        due += source.expovariate(rate)
    return list(await asyncio.gather(*under_way))


def _row(
    task: str, label: str, load: Load, target: Target, wall_s: float, answered: Answered, drafts: DraftCounts
) -> OnlineRow:
    good = [(prompt, answer) for prompt, answer in answered if not answer.error]
    answers = [answer for _, answer in good]
    whole = [one for one in good if one[1].finish_reason != CUT]
    graded = [mark for prompt, answer in whole if (mark := is_correct(prompt, answer.text)) is not None]
    num_tokens = sum(answer.num_output_tokens for answer in answers)
    length, source = _acceptance(answers, drafts)
    return OnlineRow(
        task=task,
        method=label,
        concurrency=load.concurrency if load.rate is None else None,
        rate=load.rate,
        num_requests=len(answered),
        num_failed=len(answered) - len(good),
        first_error=next((answer.error for _, answer in answered if answer.error), None),
        wall_s=wall_s,
        num_prompt_tokens=sum(answer.num_prompt_tokens for answer in answers),
        num_output_tokens=num_tokens,
        output_tokens_per_s=num_tokens / wall_s,
        requests_per_s=len(good) / wall_s,
        goodput_per_s=sum(map(target.is_met, answers)) / wall_s,
        ttft_s=percentiles([answer.ttft_s for answer in answers]),
        tpot_s=percentiles([answer.tpot_s for answer in answers if answer.tpot_s is not None]),
        itl_s=gap_percentiles(gap_histogram(answer.delivered_at) for answer in answers),
        total_s=percentiles([answer.total_s for answer in answers]),
        acceptance_length=length,
        acceptance_source=source,
        accepted_by_position=drafts.accepted_by_position,
        num_graded=len(graded),
        num_correct=sum(graded),
    )


def _acceptance(answers: Sequence[StreamedAnswer], drafts: DraftCounts) -> tuple[float | None, str | None]:
    """From the answers' usage where all tell: every round gives one token that was not drafted; else by counters."""
    told = [(a.num_output_tokens - 1, a.num_accepted) for a in answers if a.num_accepted is not None]
    num_later = sum(later for later, _ in told)
    num_rounds = num_later - sum(accepted for _, accepted in told)
    if len(told) == len(answers) and num_rounds > 0:
        return num_later / num_rounds, "usage"
    length = drafts.acceptance_length
    return length, "metrics" if length else None

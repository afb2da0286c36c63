"""An engine of one request at a time: ``generate()`` on a worker thread, requests in the order they came."""

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from uuid import uuid4

from flashdraft.errors import EngineError
from flashdraft.generate import RoundEvent, check_request, generate
from flashdraft.llm import LLM
from flashdraft.sampling_params import SamplingParams
from flashdraft.server.engine_door import EngineStats, StepOutput
from flashdraft.spec_decode.metrics import RequestMetrics


class _LeftError(Exception):
    """Ends ``generate()`` between two rounds: nobody waits for its answer."""


@dataclass(eq=False)
class _Job:
    request_id: str
    prompt: list[int]
    params: SamplingParams
    block_size: int
    loop: asyncio.AbstractEventLoop
    news: "asyncio.Queue[StepOutput | EngineError]" = field(default_factory=asyncio.Queue)
    is_left: bool = False  # written by the loop's thread, read by the worker's
    metrics: RequestMetrics = field(default_factory=RequestMetrics)

    def tell(self, news: StepOutput | EngineError) -> None:
        self.loop.call_soon_threadsafe(self.news.put_nowait, news)


class OneStreamEngine:
    """Serves an ``LLM`` one request after the other. See :class:`flashdraft.server.engine_door.EngineDoor`."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._jobs: queue.Queue[_Job | None] = queue.Queue()
        self._unfinished: set[_Job] = set()
        self._running: _Job | None = None
        self._thread = threading.Thread(target=self._work, name="flashdraft-engine", daemon=True)
        self._failure: str | None = "it was not started"

    @property
    def healthy(self) -> bool:
        """Whether it can answer."""
        return self._failure is None

    def stats(self) -> EngineStats:
        """How busy it is."""
        num_running = int(self._running is not None)
        return EngineStats(max(len(self._unfinished) - num_running, 0), num_running)

    def check(self, prompt_token_ids: Sequence[int], params: SamplingParams, block_size: int | None) -> None:  # noqa: ARG002
        """Raise UsageError for a prompt or block size that cannot be served."""
        check_request(self._llm.target, self._llm.drafter, prompt_token_ids, block_size)

    def flush_cache(self) -> bool:
        """Nothing is kept between requests."""
        return True

    async def start(self) -> None:
        """Start the worker."""
        self._failure = None
        self._thread.start()

    async def stop(self) -> None:
        """End after the round that is running; what is unfinished gets an EngineError."""
        self._failure = self._failure or "it was stopped"
        self._jobs.put(None)
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    async def generate(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        request_id: str | None = None,
        block_size: int | None = None,
    ) -> AsyncGenerator[StepOutput, None]:
        """Answer one prompt; see the door."""
        size = self._llm.block_size if block_size is None else block_size
        self.check(prompt_token_ids, params, size)
        if self._failure is not None:
            raise EngineError(f"the engine cannot answer: {self._failure}")
        job = _Job(
            request_id or uuid4().hex, list(prompt_token_ids), params, size, asyncio.get_running_loop()
        )
        self._unfinished.add(job)
        self._jobs.put(job)
        try:
            finished = False
            while not finished:
                news = await job.news.get()
                if isinstance(news, EngineError):
                    raise news
                finished = news.finished
                yield news
        finally:
            job.is_left = True
            self._unfinished.discard(job)

    def _work(self) -> None:
        """The worker thread: one job after the other until it is stopped or one of them fails."""
        while self._failure is None and (job := self._jobs.get()) is not None:
            self._running = job
            try:
                self._answer(job)
            except _LeftError:
                pass
            except Exception as error:
                self._failure = f"{type(error).__name__}: {error}"
            self._running = None
        for job in list(self._unfinished):
            job.tell(EngineError(f"the engine ended before the answer did: {self._failure}"))

    def _answer(self, job: _Job) -> None:
        def on_round(event: RoundEvent) -> None:
            if job.is_left or self._failure is not None:
                raise _LeftError
            if job.metrics.num_output_tokens:  # the first token is the prefill's
                job.metrics.record_round(event.num_drafted, event.num_accepted)
            job.metrics.record_tokens(len(event.token_ids), event.num_accepted)
            step = (event.token_ids, event.num_drafted, event.num_accepted)
            job.tell(StepOutput(job.request_id, *step, metrics=deepcopy(job.metrics)))

        if job.is_left:
            return
        llm = self._llm
        output = generate(
            llm.target, llm.drafter, job.prompt, job.params, job.block_size, llm.eos_token_ids, on_round
        )
        reason = output.finish_reason
        job.tell(StepOutput(job.request_id, [], finished=True, finish_reason=reason, metrics=output.metrics))

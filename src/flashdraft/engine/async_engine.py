"""asyncio's door to the engine: an iterator for each request, one background thread for the steps."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from itertools import count
from threading import Condition, Thread

from flashdraft.admission import BlockSize
from flashdraft.engine.bounded_threads import BoundedThreads
from flashdraft.engine.engine import Engine
from flashdraft.engine.grammar_trials import GrammarTrials
from flashdraft.engine.types import EngineStats, StepOutput
from flashdraft.errors import EngineError, UsageError
from flashdraft.grammar import Grammar, GrammarState
from flashdraft.sampling_params import SamplingParams

logger = logging.getLogger(__name__)
_News = StepOutput | Exception
_MOST_UNREAD = 64  # news of a request that wait: of more its client does not read
_LATE_S = 0.5  # seconds that they have waited then: the event loop itself may be late


class _Unread(asyncio.Queue[_News]):
    """News of one request that nobody has taken."""

    is_watched = is_paused = False


class AsyncEngine:
    """Runs an engine in a thread that sleeps when there is nothing to do.

    Only that thread touches the engine's state: requests and aborts wait in a list until it has finished a step.
    A request whose news nobody takes stands still until somebody does.
    When a step fails, every request ends with EngineError and :attr:`healthy` is False for good.
    ``grammar_limit_s``: how long a grammar may take to be made ready. That happens in threads of its own, and for
    what may take long before that in a process that is ended then.
    """

    def __init__(self, engine: Engine, grammar_limit_s: float = 10.0) -> None:
        self.engine = engine
        # JSON schemas and tools take little; they do not wait for what may take long, and is tried beforehand.
        self._quick_threads = BoundedThreads(num_threads=2, limit_s=grammar_limit_s)
        self._slow_threads = BoundedThreads(num_threads=2, limit_s=grammar_limit_s)
        compiler = engine.tokenizer, int(engine.target.config.vocab_size), tuple(engine.eos_token_ids)
        self._trials = GrammarTrials(compiler, grammar_limit_s)
        self._commands: list[Callable[[], None]] = []
        self._wake = Condition()  # guards _commands, _stopping, _failure
        self._queues: dict[str, _Unread] = {}  # belongs to the event loop
        self._ids = count()
        self._stopping = False
        self._failure: str | None = None
        self._thread: Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def healthy(self) -> bool:
        """Whether the engine runs and no step has failed."""
        return self._failure is None and self._thread is not None and self._thread.is_alive()

    async def start(self) -> None:
        """Start the thread. Needs to be called once, in the event loop that will use the engine."""
        assert self._thread is None, "started already"
        self._loop = asyncio.get_running_loop()
        self._thread = Thread(target=self._run, name="flashdraft-engine", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """End the thread after its current step; unfinished requests end with EngineError."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        await self._trials.close()
        self._end_all("the engine was stopped")

    def stats(self) -> EngineStats:
        """How the engine is doing; counts of one moment, read without waiting for the step."""
        stats = self.engine.stats()
        # A request that the engine has not taken yet, because a step runs, waits as well.
        return replace(stats, num_waiting=max(len(self._queues) - stats.num_running, 0))

    def check(
        self, prompt_token_ids: Sequence[int], params: SamplingParams, block_size: BlockSize | None
    ) -> None:
        """Raise UsageError for what cannot be served; no work, no state."""
        self.engine.check(prompt_token_ids, params, block_size)

    async def begin_grammar(self, grammar: Grammar | None) -> GrammarState | None:
        """A new answer's state in ``grammar``.

        Raises UsageError for one that cannot be used or takes too long, OverloadedError while too many are made ready.
        """
        if grammar is None:
            return None
        if not grammar.is_lark and self.engine.tokenizer is not None:
            await self._trials.check(grammar)
        threads = self._quick_threads if grammar.is_lark else self._slow_threads
        try:
            return await threads.run(lambda: self.engine.begin_grammar(grammar))
        except TimeoutError:
            limit_s = threads.limit_s
            raise UsageError(
                f"the {grammar.kind} was not ready within {limit_s:g} seconds: simplify it, or try again"
            ) from None

    def flush_cache(self) -> bool:
        """Forget all prefixes; False, and nothing done, while a request is unfinished.

        Asserts first that nobody holds a page: what is idle must be empty.
        """
        with self._wake:  # the engine's thread sleeps in here whenever it has nothing to do
            if self._commands or self.engine.has_unfinished:
                return False
            self.engine.check_integrity()
            self.engine.scheduler.pool.forget()
            return True

    async def generate(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        request_id: str | None = None,
        block_size: BlockSize | None = None,
        priority: int = 0,
        client: str | None = None,
    ) -> AsyncGenerator[StepOutput, None]:
        """The news of one request until it is finished. Leaving the iterator aborts the request.

        A lower ``priority`` runs first; clients share each step.

        Raises UsageError for a request that cannot be served, EngineError when the engine fails or stops.
        """
        request_id = f"request-{next(self._ids)}" if request_id is None else request_id
        self.engine.check(prompt_token_ids, params, block_size)
        if request_id in self._queues:
            raise UsageError(f"request id {request_id!r} is taken by an unfinished request; choose another")
        queue = _Unread()
        self._queues[request_id] = queue
        finished = False
        prompt = list(prompt_token_ids)
        try:
            grammar = await self.begin_grammar(params.grammar)
            self._tell(lambda: self._add(request_id, prompt, params, block_size, priority, client, grammar))
            while not finished:
                news = await queue.get()
                if queue.is_paused and queue.empty():
                    self._set_paused(request_id, queue, False)
                finished = isinstance(news, Exception) or news.finished
                if isinstance(news, Exception):
                    raise news
                if news.error is not None:
                    raise UsageError(news.error)
                yield news
        finally:
            del self._queues[request_id]
            if not finished and self.healthy and not self._stopping:
                self._tell(lambda: self._abort(request_id))

    def _tell(self, command: Callable[[], None]) -> None:
        with self._wake:
            if not self.healthy or self._stopping:
                raise EngineError(self._failure or "the engine does not run; await start() first")
            self._commands.append(command)
            self._wake.notify()

    # In the engine's thread.

    def _run(self) -> None:
        try:
            while self._take_commands():
                self._send([(output.request_id, output) for output in self.engine.step()])
        except BaseException:  # whatever ends this thread ends all answers, and none may wait for ever
            logger.exception("the engine failed")
            failure = "the engine failed; the server's log says why"
            with self._wake:
                self._failure = failure
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._end_all, failure)

    def _take_commands(self) -> bool:
        """Carry out what was asked; sleep while there is nothing to do. False: stop."""
        with self._wake:
            while not (self._commands or self._stopping or self.engine.has_unfinished):
                self._wake.wait()
            commands, self._commands = self._commands, []
            stopping = self._stopping
        for command in commands:
            command()
        return not stopping

    def _add(
        self,
        request_id: str,
        prompt: list[int],
        params: SamplingParams,
        block_size: BlockSize | None,
        priority: int,
        client: str | None,
        grammar: GrammarState | None,
    ) -> None:
        try:
            self.engine.add_request(request_id, prompt, params, block_size, priority, grammar, client=client)
        except Exception as error:  # told to the one who asked
            self._send([(request_id, error)])

    def _abort(self, request_id: str) -> None:
        self.engine.abort(request_id)

    def _send(self, news: Sequence[tuple[str, _News]]) -> None:
        """Everything at once: every call wakes the event loop, which then takes turns with this thread."""
        assert self._loop is not None
        if news:
            self._loop.call_soon_threadsafe(self._put, news)

    # In the event loop.

    def _put(self, news: Sequence[tuple[str, _News]]) -> None:
        for request_id, one in news:
            if queue := self._queues.get(request_id):
                queue.put_nowait(one)
                if queue.qsize() > _MOST_UNREAD and not queue.is_watched:
                    queue.is_watched = True
                    asyncio.get_running_loop().call_later(_LATE_S, self._pause_unread, request_id, queue)

    def _pause_unread(self, request_id: str, queue: _Unread) -> None:
        if queue.qsize() > _MOST_UNREAD and self._queues.get(request_id) is queue:
            self._set_paused(request_id, queue, True)
        else:
            queue.is_watched = False

    def _set_paused(self, request_id: str, queue: _Unread, is_paused: bool) -> None:
        if self.healthy and not self._stopping:
            queue.is_paused = queue.is_watched = is_paused
            self._tell(lambda: self.engine.set_paused(request_id, is_paused))

    def _end_all(self, reason: str) -> None:
        for queue in self._queues.values():
            queue.put_nowait(EngineError(reason))

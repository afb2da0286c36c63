"""The server without HTTP: a model with its tokenizer and engine, and the answers that are under way."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any
from uuid import uuid4

from flashdraft.admission import BlockSize
from flashdraft.data.request_log import RequestLog
from flashdraft.engine.types import StepOutput
from flashdraft.sampler import TokenLogprobs
from flashdraft.sampling_params import SamplingParams
from flashdraft.server.answer_text import AnswerPieces, TokenPiece
from flashdraft.server.api_errors import ApiError
from flashdraft.server.config import ServerConfig
from flashdraft.server.engine_client import EngineClient
from flashdraft.server.logs import log_event
from flashdraft.server.metrics import ServerMetrics
from flashdraft.server.places import Places
from flashdraft.server.text_work import TextWork
from flashdraft.spec_decode.metrics import RequestMetrics

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wish:
    """One answer that is wanted."""

    prompt_token_ids: list[int]
    params: SamplingParams
    block_size: BlockSize | None = None
    scores_only: bool = False  # the prompt is wanted, and no answer
    in_pieces: bool = (
        True  # whether tokens are told one by one, or counted as thoughts: their text as they come
    )
    messages: tuple[dict[str, Any], ...] = ()  # of a chat, for the request log


@dataclass
class Answer:
    """One answer as far as it came."""

    wish: Wish
    told: AnswerPieces
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    stop_reason: int | str | None = None  # the stop token or stop text
    prompt_logprobs: list[TokenLogprobs] = field(
        default_factory=list
    )  # of all but the first, where asked for
    num_cached_tokens: int = 0  # prompt tokens found in the prefix cache
    metrics: RequestMetrics = field(default_factory=RequestMetrics)
    total_s: float = 0.0

    @property
    def pieces(self) -> list[TokenPiece]:
        """Its tokens with the text that each completed."""
        return self.told.all()


@dataclass(frozen=True)
class Delta:
    """News of the answer number ``index``; the last has a ``finish_reason``."""

    index: int
    text: str  # the new text
    told: AnswerPieces
    step: int  # its number in ``told``
    num_drafted: int = 0
    num_accepted: int = 0
    finish_reason: str | None = None

    @property
    def pieces(self) -> list[TokenPiece]:
        """Its tokens with the text that each completed."""
        return self.told.of_step(self.step)


class Service:
    """What the handlers share.

    ``context_len``: tokens of prompt and answer together; ``block_size``: the largest that a request may name;
    ``defaults``: the sampling settings that the model's makers ship.
    """

    def __init__(
        self,
        engine: EngineClient,
        tokenizer: Any,
        context_len: int,
        block_size: int,
        config: ServerConfig,
        defaults: dict[str, Any] | None = None,
    ) -> None:
        self.engine, self.tokenizer = engine, tokenizer
        self.context_len, self.block_size = context_len, block_size
        self.config, self.defaults = config, defaults or {}
        self.metrics = ServerMetrics(config.model_names[0])
        self.request_log = RequestLog(config.log_requests) if config.log_requests else None
        limits = config.capacity, config.client_share, config.retry_after_s
        self.places = Places("answers", *limits)
        self.text_work = TextWork(Places("texts that wait for their tokens", *limits), config.retry_after_s)
        # No token stands for more characters than its own text has, but where a normalizer joins some.
        longest = max(map(len, tokenizer.get_vocab()))
        is_normalized = (
            getattr(tokenizer, "backend_tokenizer", None) and tokenizer.backend_tokenizer.normalizer
        )
        # JSON values of a request: prompts of token ids, twice over. To look at so many takes some 0.1 s.
        self.max_values = min(max(1 << 16, 2 * config.max_n * context_len), 1 << 19)
        self.max_chars = context_len * longest * (4 if is_normalized else 1)

    def keep(self, answer: Answer) -> None:
        """Append a whole answer to the request log, where there is one. A log that fails is given up, once."""
        if self.request_log is None or answer.finish_reason not in ("stop", "length"):
            return
        wish = answer.wish
        try:
            self.request_log.write(
                wish.messages,
                wish.prompt_token_ids,
                answer.token_ids,
                answer.finish_reason,
                wish.params.temperature,
            )
        except OSError as error:
            _LOGGER.warning("the request log cannot be written (%s); requests are logged no more", error)
            self.request_log = None

    @property
    def num_unfinished(self) -> int:
        """Answers that wait or run."""
        return self.places.num_held

    def admit(self, num_answers: int) -> None:
        """Raise ApiError for more answers than may be asked for or are there places for; before any work on them."""
        config = self.config
        if num_answers > config.max_n:
            raise ApiError(
                400, f"the request asks for {num_answers} answers; expected at most {config.max_n}", "n"
            )
        if not self.engine.healthy:
            raise ApiError(503, "the engine cannot answer; /ready says when it can", code="engine_failed")
        self.places.check(num_answers)

    async def submit(self, wishes: Sequence[Wish]) -> "Submission":
        """Accept all the answers that a request wants, or none.

        Raises ApiError (too many, queue full, engine dead) and UsageError, of a bad grammar too, before any work.
        """
        for wish in wishes:
            self.engine.check(wish.prompt_token_ids, wish.params, wish.block_size)
        self.admit(len(wishes))
        submission = Submission(self, wishes)
        try:
            for grammar in {wish.params.grammar for wish in wishes}:
                await self.engine.begin_grammar(grammar)  # kept: the answers find it ready
        except BaseException:
            submission.release()
            raise
        return submission


class Submission:
    """The answers of one request. It takes its place in the queue at once and keeps it until ``release``."""

    def __init__(self, service: Service, wishes: Sequence[Wish]) -> None:
        self.id = uuid4().hex
        self.answers = [Answer(wish, AnswerPieces(service.tokenizer)) for wish in wishes]
        self._service = service
        self._started = perf_counter()
        self._places = service.places.take(len(wishes))

    def release(self) -> None:
        """Give the place in the queue back; more than once is once."""
        self._places.give_back()

    def _priority(self, index: int) -> int:
        """1, a later turn, for an answer beyond its client's share of the running places (see places.py)."""
        config = self._service.config
        if config.client_share == config.capacity:
            return 0
        running = config.max_running_requests * config.client_share // config.capacity
        return int(self._places.first + index >= max(running, 1))

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """The news of all answers as they come. Closing it aborts them; one that fails ends them all."""
        answers = self._answer(0) if len(self.answers) == 1 else self._merged()
        try:
            async with aclosing(answers) as deltas:
                async for delta in deltas:
                    yield delta
        finally:
            self.release()

    async def _merged(self) -> AsyncGenerator[Delta, None]:
        news: asyncio.Queue[Delta | Exception | None] = asyncio.Queue(1)  # who is not read is not decoded
        tasks = [asyncio.create_task(self._pump(index, news)) for index in range(len(self.answers))]
        try:
            num_open = len(tasks)
            while num_open:
                item = await news.get()
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    num_open -= 1
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _pump(self, index: int, news: "asyncio.Queue[Delta | Exception | None]") -> None:
        try:
            async with aclosing(self._answer(index)) as deltas:
                async for delta in deltas:
                    await news.put(delta)
            await news.put(None)
        except Exception as error:
            await news.put(error)

    async def _answer(self, index: int) -> AsyncGenerator[Delta, None]:
        answer, metrics, ttft_s = self.answers[index], self._service.metrics, 0.0
        wish = answer.wish
        request_id = f"{self.id}-{index}"
        engine = self._service.engine
        turn = self._priority(index)
        client = self._places.client
        steps = engine.generate(wish.prompt_token_ids, wish.params, request_id, wish.block_size, turn, client)
        try:
            async with aclosing(steps):
                async for step in steps:
                    if not answer.token_ids and step.token_ids:
                        ttft_s = perf_counter() - self._started
                        metrics.record_first_token(len(wish.prompt_token_ids), step.num_cached_tokens, ttft_s)
                    if not wish.scores_only:
                        metrics.record_step(step, is_round=bool(answer.token_ids))
                    yield _take(index, answer, step)
                    if answer.finish_reason:
                        break
        finally:
            answer.total_s = perf_counter() - self._started
            if ttft_s:
                num_tokens = len(answer.token_ids)
                metrics.record_end(answer.finish_reason or "abort", answer.total_s, ttft_s, num_tokens)
            _log(request_id, answer, ttft_s)
            self._service.keep(answer)


def _log(answer_id: str, answer: Answer, ttft_s: float) -> None:
    metrics = answer.metrics
    log_event(
        "answer",
        answer_id=answer_id,
        prompt_tokens=len(answer.wish.prompt_token_ids),
        cached_tokens=answer.num_cached_tokens,
        output_tokens=len(answer.token_ids),
        finish_reason=answer.finish_reason or "abort",
        ttft_s=round(ttft_s, 4),
        total_s=round(answer.total_s, 4),
        rounds=metrics.num_rounds,
        acceptance_length=round(metrics.acceptance_length, 3),
    )


def _take(index: int, answer: Answer, step: StepOutput) -> Delta:
    """Add one step to ``answer``; what may be shown of it."""
    if answer.wish.scores_only:
        step = replace(step, token_ids=[], text="", logprobs=None, num_drafted=0, num_accepted=0)
    answer.token_ids += step.token_ids
    number, text = answer.told.take(step), step.text
    if answer.wish.in_pieces or answer.wish.params.stop_texts:
        # A token that a stop text may cut waits for all of its text; without one this is the step's.
        text = "".join(piece.text for piece in answer.told.of_step(number))
    answer.metrics, answer.num_cached_tokens = step.metrics, step.num_cached_tokens
    answer.prompt_logprobs = step.prompt_logprobs or answer.prompt_logprobs
    if step.finished:
        answer.finish_reason, answer.stop_reason = step.finish_reason, step.stop_reason
    answer.text += text
    return Delta(index, text, answer.told, number, step.num_drafted, step.num_accepted, answer.finish_reason)

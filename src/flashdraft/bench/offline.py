"""The offline benchmark: methods take turns at answering the same prompts, in this process.

A chunk of prompts is answered by every method before the next chunk begins, and the order of methods rotates, so a
machine that warms up or slows down does so for all of them. Plain decoding (AR) always runs: speed and tokens are
measured against it. Prefix caching is off: a method must not find what another one has computed.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from flashdraft.admission import AUTO
from flashdraft.bench.accuracy import is_correct
from flashdraft.bench.closed_loop import TimedAnswer, answer_all
from flashdraft.bench.latency import gap_histogram
from flashdraft.bench.lossless import find_difference
from flashdraft.bench.methods import Method
from flashdraft.bench.results import Measurement, repeated_share
from flashdraft.bench.tasks import BenchPrompt
from flashdraft.cache.paged_kv_cache import doubling
from flashdraft.control.explain import explain
from flashdraft.engine.engine import Engine
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.llm import LLM
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.metrics import RequestMetrics
from flashdraft.spec_decode.replay import ReplayDrafter
from flashdraft.spec_decode.simulated import SimulatedAcceptance

T = TypeVar("T")

_WARM_UP_TOKENS = 8
_RECORDED_ROUNDS = 3  # on CUDA: a shape's first step chooses kernels, its second is recorded
_PROMPT_ROOM = 512  # tokens of cache beside the longest answer; longer prompts may have to wait


@dataclass(frozen=True)
class Chunk:
    """Prompts of one task that every method answers before the next chunk begins."""

    task: str
    concurrency: int
    repeat: int
    index: int
    prompts: tuple[BenchPrompt, ...]

    def own(self, measurements: Sequence[Measurement]) -> list[Measurement]:
        """Those that are of this chunk."""
        ids = {prompt.id for prompt in self.prompts}
        key = self.task, self.concurrency, self.repeat
        return [m for m in measurements if (m.task, m.concurrency, m.repeat) == key and m.prompt_id in ids]


def split(prompts: Sequence[T], concurrency: int) -> list[tuple[T, ...]]:
    """Even chunks, each long enough that its end, where fewer are under way, is a small part of it."""
    count = max(len(prompts) // max(2 * concurrency, 4), 1)
    edges = [len(prompts) * i // count for i in range(count + 1)]
    return [tuple(prompts[start:end]) for start, end in itertools.pairwise(edges)]


@dataclass
class OfflineBench:
    """The measuring itself: which methods (the first is plain decoding) answer how.

    ``multi_turn``: the second question is asked too, after plain decoding's first answer, which is every
    method's up to near-ties. ``simulated`` decides what is accepted, for studies of cost; answers then mean
    nothing. ``on_answer`` hears of each answer as it is finished.
    """

    llm: LLM
    methods: Sequence[Method]
    params: SamplingParams
    concurrencies: Sequence[int] = (1,)
    repeats: int = 1
    multi_turn: bool = False
    simulated: SimulatedAcceptance | None = None
    template: Mapping[str, Any] = field(default_factory=dict)  # of the chat, such as enable_thinking
    on_answer: Callable[[Chunk, Method], None] = lambda _chunk, _method: None
    _engines: dict[int, Engine] = field(default_factory=dict)
    _warm: set[int] = field(default_factory=set)

    def chunks(self, tasks: Mapping[str, Sequence[BenchPrompt]], limit: int) -> list[Chunk]:
        """What there is to measure: of each task ``limit`` prompts, but at least as many as are under way."""
        return [
            Chunk(task, concurrency, repeat, index, prompts)
            for repeat in range(self.repeats)
            for concurrency in self.concurrencies
            for task, every in tasks.items()
            for index, prompts in enumerate(split(every[: max(limit, concurrency)], concurrency))
        ]

    def num_answers(self, chunk: Chunk) -> int:
        """How many answers :meth:`measure` will give."""
        return len(self.methods) * sum(len(self._questions(prompt)) for prompt in chunk.prompts)

    def measure(self, chunk: Chunk) -> list[Measurement]:
        """Answer the chunk with all methods, turn by turn."""
        self._warm_up(chunk.concurrency)
        measured: list[Measurement] = []
        conversations: list[list[dict[str, str]]] = [[] for _ in chunk.prompts]
        for turn in range(max(len(self._questions(prompt)) for prompt in chunk.prompts)):
            places = [i for i, prompt in enumerate(chunk.prompts) if turn < len(self._questions(prompt))]
            for i in places:
                conversations[i].append({"role": "user", "content": chunk.prompts[i].turns[turn]})
            token_ids = [self.llm.chat_token_ids(conversations[i], **self.template) for i in places]
            first = (chunk.index + chunk.repeat + turn) % len(self.methods)
            order = [*self.methods[first:], *self.methods[:first]]
            if any(isinstance(method.drafter, ReplayDrafter) for method in order):
                order = sorted(
                    order, key=lambda method: method is not self.methods[0]
                )  # it drafts plain's answers
            answers: dict[Method, list[TimedAnswer]] = {}
            for method in order:
                if isinstance(method.drafter, ReplayDrafter):
                    plain_ids = [one.token_ids for one in answers[self.methods[0]]]
                    method.drafter.known = [[*a, *b] for a, b in zip(token_ids, plain_ids, strict=True)]
                heard = partial(self.on_answer, chunk, method)
                answers[method] = self._answer(method, token_ids, self.params, chunk.concurrency, heard)
            for row, i in enumerate(places):
                plain = answers[self.methods[0]][row].token_ids
                asked = _Asked(chunk, chunk.prompts[i], turn, token_ids[row], plain)
                measured += [
                    self._measurement(asked, method, order.index(method), answers[method][row])
                    for method in self.methods
                ]
                text = self.llm.tokenizer.decode(plain, skip_special_tokens=True)
                conversations[i].append({"role": "assistant", "content": text})
        return measured

    def explain(self, measurements: Sequence[Measurement]) -> str:
        """Why the controller chose what it chose, over all of its answers."""
        total = RequestMetrics(num_requests=0)
        for measurement in measurements:
            if measurement.method == AUTO:
                total.add(measurement.metrics)
        [method] = [method for method in self.methods if method.name == AUTO]
        return explain(self._engine(method).control.controller, total)

    def _questions(self, prompt: BenchPrompt) -> tuple[str, ...]:
        return prompt.turns if self.multi_turn else prompt.turns[:1]

    def _answer(
        self,
        method: Method,
        token_ids: list[list[int]],
        params: SamplingParams,
        concurrency: int,
        on_answer: Callable[[], None] = lambda: None,
    ) -> list[TimedAnswer]:
        engine = self._engine(method)
        return answer_all(
            engine, token_ids, params, method.block_size, concurrency, on_answer, method.draft_tree
        )

    def _measurement(
        self, asked: "_Asked", method: Method, order_idx: int, answer: TimedAnswer
    ) -> Measurement:
        text = self.llm.tokenizer.decode(answer.token_ids, skip_special_tokens=True)
        return Measurement(
            task=asked.chunk.task,
            prompt_id=asked.prompt.id,
            turn=asked.turn,
            repeat=asked.chunk.repeat,
            method=method.name,
            block_size=method.block_size,
            concurrency=asked.chunk.concurrency,
            order_idx=order_idx,
            num_prompt_tokens=len(asked.token_ids),
            finish_reason=answer.finish_reason,
            wall_s=answer.wall_s,
            ttft_s=answer.delivered_at[0] - answer.asked_at,
            total_s=answer.delivered_at[-1] - answer.asked_at,
            gaps=gap_histogram(answer.delivered_at),
            metrics=answer.metrics,
            repeated_share=repeated_share(answer.token_ids),
            difference=None
            if self.simulated
            else find_difference(
                self.llm.target, asked.token_ids, asked.plain, answer.token_ids, self.params
            ),
            is_correct=None if self.simulated else is_correct(asked.prompt, text),
        )

    def _engine(self, method: Method) -> Engine:
        """One engine a drafter, kept; its cache holds all that is under way at once."""
        key = id(method.drafter)
        if key not in self._engines:
            config = EngineConfig(max_running=max(self.concurrencies), prefix_caching=False)
            # Every request's whole tree, as is measured, whatever a server would leave of it.
            tree = max(method.draft_tree or 1 for method in self.methods)
            largest = max(tree, method.drafter.max_block_size if method.drafter else 1)
            config = config.on(self.llm.target.device.type, largest)
            context = self.llm.target.config.max_position_embeddings
            longest = min(self.params.max_tokens + _PROMPT_ROOM, context)
            num_pages = max(config.max_running * longest // config.page_size, config.pages_for(context))
            config = replace(config, num_pages=num_pages)
            self._engines[key] = Engine(
                self.llm.target,
                method.drafter,
                config,
                self.llm.eos_token_ids,
                simulated=self.simulated,
            )
        return self._engines[key]

    def _warm_up(self, concurrency: int) -> None:
        """First calls pay for memory, threads and recordings: answer something short that nobody measures."""
        if concurrency in self._warm:
            return
        self._warm.add(concurrency)
        token_ids = self.llm.chat_token_ids([{"role": "user", "content": "Count to ten."}])
        records = self.llm.target.device.type == "cuda"
        for method in self.methods:
            if method.block_size == AUTO:
                self._engine(method).control.calibrate(concurrency)
            if records:
                self._record(method, token_ids, concurrency)
            else:
                short = replace(
                    self.params, max_tokens=min(self.params.max_tokens, _WARM_UP_TOKENS), ignore_eos=True
                )
                self._answer(method, [token_ids] * concurrency, short, concurrency)

    def _record(self, method: Method, token_ids: list[int], concurrency: int) -> None:
        """Let the steps of every context and of every number of requests be recorded, ends of chunks included.

        Recordings are of powers of two (PagedKVCache); the longest context first, since rows that grow lose theirs.
        """
        if method.block_size == AUTO:  # a step may then be as wide as any of these
            most = self.llm.max_block_size
            for width in reversed(doubling(most)):
                self._record(replace(method, block_size=width), token_ids, concurrency)
            return
        few = replace(self.params, max_tokens=_RECORDED_ROUNDS * method.block_size, ignore_eos=True)
        context = self.llm.target.config.max_position_embeddings
        for length in record_lengths(min(self.params.max_tokens + _PROMPT_ROOM, context), few.max_tokens):
            prompt = (token_ids * (length // len(token_ids) + 1))[:length]
            for num_rows in reversed(doubling(concurrency)):
                self._answer(method, [prompt] * num_rows, few, concurrency)


def record_lengths(longest: int, num_tokens: int) -> list[int]:
    """Prompts behind which ``num_tokens`` lie in every power of two of contexts to ``longest``, the longest first."""
    lengths = [(1 << k) + 1 for k in range(7, longest.bit_length()) if (1 << k) + num_tokens < longest]
    return [*reversed(lengths), 32]


@dataclass(frozen=True)
class _Asked:
    """One question with plain decoding's answer."""

    chunk: Chunk
    prompt: BenchPrompt
    turn: int
    token_ids: list[int]
    plain: list[int]

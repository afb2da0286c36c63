"""Answers of the target itself to many prompts at once: rows of one cache, refilled as answers end.

Knows token ids alone. Plain decoding: with hundreds of rows in flight a step is bound by arithmetic and cache
reads, and drafting has nothing to win. On CUDA the step is compiled and replayed as one graph: some thousand small
kernels, launched one by one, would take longer than they run.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from flashdraft.batch import ForwardBatch
from flashdraft.cache.prefill_rows import PrefillRows
from flashdraft.models.base import TargetModel, compile_layers

STEPS_BETWEEN_SYNCS = 16  # finished rows are noticed this often; the device runs ahead in between
KV_LEN_STEP = 128  # attention runs over a multiple of this
PREFILL_TOKENS = 65_536  # padded prompt tokens of one prefill forward


@dataclass(frozen=True)
class AnswerRequest:
    """A prompt to answer; ``key`` is handed back with the answer."""

    key: int
    token_ids: Sequence[int]
    temperature: float


@dataclass(frozen=True)
class PromptAnswer:
    """``finish_reason`` is "stop" when the last of ``token_ids`` is an end token, else "length"."""

    key: int
    token_ids: list[int]
    finish_reason: str


class Answerer(Protocol):
    """Whatever answers many prompts: rows of one forward, the engine, a server."""

    @property
    def facts(self) -> dict[str, Any]:
        """What the data's manifest shall tell of where its answers came from."""
        ...

    def run(self, requests: Iterable[AnswerRequest]) -> Iterator[list[PromptAnswer]]:
        """Answer every request, in any order; yields what has ended since the last time."""
        ...


class AnswerGenerator:
    """Decodes up to ``num_rows`` requests at a time, each to at most ``max_new_tokens`` tokens."""

    def __init__(
        self,
        target: TargetModel,
        num_rows: int,
        max_prompt_len: int,
        max_new_tokens: int,
        eos_token_ids: Sequence[int],
        seed: int = 0,
    ) -> None:
        self.target = target
        self.max_new_tokens = max_new_tokens
        self.max_len = -(-(max_prompt_len + max_new_tokens) // KV_LEN_STEP) * KV_LEN_STEP
        device = target.device
        self.cache = target.new_cache(num_rows, self.max_len)
        self.token_ids = torch.zeros(num_rows, self.max_len, dtype=torch.long, device=device)
        self.lengths = torch.ones(
            num_rows, dtype=torch.long, device=device
        )  # tokens decided: prompt and answer
        self.limits = torch.ones(num_rows, dtype=torch.long, device=device)
        self.done = torch.ones(num_rows, dtype=torch.bool, device=device)
        self.temperatures = torch.zeros(num_rows, 1, device=device)
        self.eos = torch.tensor(list(eos_token_ids), device=device)
        self.noise = torch.Generator(device=device).manual_seed(seed)
        self.requests: list[AnswerRequest | None] = [None] * num_rows
        self._graph = self._capture() if device.type == "cuda" else None

    @property
    def facts(self) -> dict[str, Any]:
        """See :class:`Answerer`."""
        return {"answered_by": "flashdraft, without drafts", "dtype": str(self.target.dtype)}

    @torch.inference_mode()
    def run(self, requests: Iterable[AnswerRequest]) -> Iterator[list[PromptAnswer]]:
        """Answer every request; yields what has ended since the last time. Long prompts first is fastest."""
        waiting = iter(requests)
        while True:
            self._refill(waiting)
            if all(request is None for request in self.requests):
                return
            if self._graph is None:
                longest = int(torch.where(self.done, 0, self.lengths).max())
                kv_len = min(-(-(longest + STEPS_BETWEEN_SYNCS) // KV_LEN_STEP) * KV_LEN_STEP, self.max_len)
            for _ in range(STEPS_BETWEEN_SYNCS):
                if self._graph is None:
                    self._step(kv_len)
                else:
                    self._graph.replay()
            yield self._harvest()

    @torch.inference_mode()
    def _capture(self) -> torch.cuda.CUDAGraph:
        """One step as a CUDA graph. No row holds a request yet, so the steps that warm it up change nothing."""
        compile_layers(self.target)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._step(self.max_len)  # its attention reads what a row has filled and no more
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.noise)
        with torch.cuda.graph(graph):
            self._step(self.max_len)
        return graph

    def _step(self, kv_len: int) -> None:
        last = (self.lengths - 1).unsqueeze(1)
        # A finished row repeats its last token, within the part that attention runs over.
        last = last.clamp(max=kv_len - 1)
        batch = ForwardBatch(self.token_ids.gather(1, last), last, kv_len)
        hidden = self.target.forward(batch, self.cache).hidden[:, 0]
        self.cache.commit_step()
        self._append(self._choose(hidden, self.temperatures), torch.arange(len(last), device=last.device))

    def _choose(self, hidden: Tensor, temperatures: Tensor) -> Tensor:
        logits = self.target.logits(hidden)
        noise = torch.empty_like(logits).exponential_(generator=self.noise).log_()
        # argmax(logits - T * log E), E ~ Exp(1): the Gumbel-max trick, and greedy where T is 0.
        return logits.addcmul_(noise, temperatures, value=-1).argmax(-1)

    def _append(self, tokens: Tensor, rows: Tensor) -> None:
        """Write the next token of each row that is not done."""
        places = self.lengths[rows].clamp(max=self.max_len - 1)
        done = self.done[rows]
        self.token_ids[rows, places] = torch.where(done, self.token_ids[rows, places], tokens)
        self.lengths[rows] += ~done
        is_end = (tokens.unsqueeze(1) == self.eos).any(1)
        self.done[rows] = done | is_end | (self.lengths[rows] >= self.limits[rows])

    def _refill(self, waiting: Iterator[AnswerRequest]) -> None:
        free = [row for row, request in enumerate(self.requests) if request is None]
        chunk: list[tuple[int, AnswerRequest]] = []
        for row, request in zip(free, waiting, strict=False):
            self.requests[row] = request
            longest = max(len(r.token_ids) for _, r in [*chunk, (row, request)])
            if chunk and longest * (len(chunk) + 1) > PREFILL_TOKENS:
                self._prefill(chunk)
                chunk = []
            chunk.append((row, request))
        if chunk:
            self._prefill(chunk)

    def _prefill(self, chunk: list[tuple[int, AnswerRequest]]) -> None:
        device = self.target.device
        lengths = torch.tensor([len(r.token_ids) for _, r in chunk])
        padded_len = int(lengths.max())
        ids = torch.zeros(len(chunk), padded_len, dtype=torch.long)
        for i, (_, request) in enumerate(chunk):
            ids[i, : len(request.token_ids)] = torch.tensor(request.token_ids)
        ids, lengths = ids.to(device), lengths.to(device)
        rows = torch.tensor([row for row, _ in chunk], device=device)
        temperatures = torch.tensor([[r.temperature] for _, r in chunk], device=device)
        self.token_ids[rows, :padded_len] = ids
        self.lengths[rows] = lengths
        self.limits[rows] = lengths + self.max_new_tokens
        self.done[rows] = False
        self.temperatures[rows] = temperatures
        positions = torch.arange(padded_len, device=device).expand(len(chunk), -1)
        with torch.compiler.set_stance("force_eager"):  # of ever new shapes
            source = PrefillRows(self.cache, rows, [len(r.token_ids) for _, r in chunk])
            output = self.target.forward(ForwardBatch(ids, positions, padded_len), source)
            source.commit()
        last = output.hidden[torch.arange(len(chunk), device=device), lengths - 1]
        self._append(self._choose(last, temperatures), rows)

    def _harvest(self) -> list[PromptAnswer]:
        done, lengths = self.done.tolist(), self.lengths.tolist()
        ended = [row for row, request in enumerate(self.requests) if request is not None and done[row]]
        if not ended:
            return []
        texts = self.token_ids[ended].tolist()
        eos = set(self.eos.tolist())
        answers = []
        for row, text in zip(ended, texts, strict=True):
            request = self.requests[row]
            assert request is not None
            self.requests[row] = None
            token_ids = text[len(request.token_ids) : lengths[row]]
            reason = "stop" if token_ids[-1] in eos else "length"
            answers.append(PromptAnswer(request.key, token_ids, reason))
        return answers

"""Many requests at once. ``step`` is the loop of generate.py for a whole batch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import count, groupby
from time import perf_counter

import torch

from flashdraft.admission import AUTO, BlockSize, check_block_size, check_request, check_tree
from flashdraft.answer import Answer
from flashdraft.cache.paged_kv_cache import CacheRow
from flashdraft.control.step_costs import StepCosts
from flashdraft.detokenizer import Decodes
from flashdraft.engine.block_control import BlockControl
from flashdraft.engine.model_runner import ModelRunner, Verified, no_memory
from flashdraft.engine.overlap import InFlight, Overlap, PromptRun
from flashdraft.engine.request import Request
from flashdraft.engine.scheduler import EngineConfig, Scheduler
from flashdraft.engine.types import EngineStats, StepOutput, output_of
from flashdraft.errors import UsageError
from flashdraft.grammar import Grammar, GrammarState, begin_grammar
from flashdraft.models.base import TargetModel
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.drafter import Drafter
from flashdraft.spec_decode.metrics import RequestMetrics
from flashdraft.spec_decode.simulated import SimulatedAcceptance
from flashdraft.spec_decode.tree import DraftTree
from flashdraft.spec_decode.verify import verify

_NOT_READ = Verified(torch.empty(0), [], None)  # of choices whose logits nobody asked for
_PENDING_BYTES = 128 * 2**20  # of features that wait for a draft, of all requests together


class Engine:
    """Answers requests in steps; every step serves all that run. Not for several threads (see AsyncEngine).

    ``block_size``: of requests that name none; "auto": the controller's choice at every step; None: "auto" where
    there is a drafter. ``costs``: of steps on this machine; None: measured before the first automatic block.
    ``simulated``: for studies of cost, decides what is accepted; the answers then mean nothing.
    ``draft_tree``: tokens of the trees that requests verify in place of their blocks; None: chains.
    """

    def __init__(
        self,
        target: TargetModel,
        drafter: Drafter | None = None,
        config: EngineConfig | None = None,
        eos_token_ids: Sequence[int] = (),
        tokenizer: Decodes | None = None,
        block_size: BlockSize | None = None,
        costs: StepCosts | None = None,
        simulated: SimulatedAcceptance | None = None,
        draft_tree: int | None = None,
    ) -> None:
        largest = drafter.max_block_size if drafter else 1
        self.config = (config or EngineConfig()).on(target.device.type, largest)
        if drafter and not drafter.shares_prefix:  # what it has not observed it cannot draft from
            self.config = replace(self.config, prefix_caching=False)
        self.target, self.drafter, self.tokenizer = target, drafter, tokenizer
        self.eos_token_ids, self.simulated = eos_token_ids, simulated
        self._context = int(target.config.max_position_embeddings)  # tokens
        self.block_size = check_block_size(drafter, AUTO if block_size is None else block_size)
        self.tree_size = self._check_tree(draft_tree)
        num_pages = self.config.pages_for(self._context)
        self.runner = ModelRunner(target, drafter, self.config, num_pages)
        self.control = BlockControl(self.runner, drafter, costs, trusts_drafter=simulated is None)
        token_bytes = len(self.runner.feature_layers) * target.config.hidden_size * target.dtype.itemsize
        # Tokens of a request whose features wait for a draft.
        self.most_pending = _PENDING_BYTES // (max(token_bytes, 1) * self.config.max_running)
        self.config = replace(self.config, num_scheduler_steps=self.runner.num_plain_steps)
        backend, windows, has_states = self.runner.backend, self.runner.window_room, bool(self.runner.states)
        given = num_pages, backend.most_tree, has_states, windows, backend.chunk_lengths
        self.scheduler = Scheduler(self.config, *given)
        self.overlap = Overlap(self.runner, simulated)
        self.requests: dict[str, Request] = {}
        self.metrics = RequestMetrics(num_requests=0)  # over finished requests
        self._arrivals = count()
        self._news: list[StepOutput] = []
        self._prompts: list[PromptRun] = []  # that run, and were not read

    @property
    def has_unfinished(self) -> bool:
        """Whether :meth:`step` has something to do or to tell."""
        return bool(len(self.requests) > len(self.scheduler.paused) or self._news)

    def check(
        self, prompt_token_ids: Sequence[int], params: SamplingParams, block_size: BlockSize | None = None
    ) -> BlockSize:
        """The block size to use. Raises UsageError for a request that cannot be served. Touches no state."""
        size = check_block_size(self.drafter, self.block_size if block_size is None else block_size)
        check_request(self.target, self.drafter, prompt_token_ids, None, params)
        if params.n != 1:
            raise UsageError(f"n is {params.n}; the engine runs one answer a request: add params.split()")
        if params.stop_texts and self.tokenizer is None:
            raise UsageError(f"stop is {params.stop_texts!r}, but there is no tokenizer; use stop_token_ids")
        max_len = self._max_len(prompt_token_ids, params)
        room = self.scheduler.pool.num_pages * self.config.page_size
        if max_len > room:
            raise UsageError(
                f"prompt and answer may take {max_len} tokens, the cache holds {room}: lower max_tokens, shorten"
                " the prompt or raise num_pages"
            )
        return size

    def add_request(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        block_size: BlockSize | None = None,
        priority: int = 0,
        grammar: GrammarState | None = None,
        draft_tree: int | None = None,
        client: str | None = None,
    ) -> None:
        """Queue a request; lower ``priority`` runs first, clients share steps. Raises UsageError, see :meth:`check`.

        ``grammar``: from :meth:`begin_grammar`, where that was called before, in another thread perhaps.
        ``draft_tree``: tokens of its trees, in place of the engine's; automatic blocks are then whole ones.
        """
        if request_id in self.requests:
            raise UsageError(f"request id {request_id!r} is taken by an unfinished request; choose another")
        size = self.check(prompt_token_ids, params, block_size)
        tree_size = self._check_tree(draft_tree) or self.tree_size
        if tree_size and size == AUTO and self.drafter:
            size = self.drafter.max_block_size
        prompt = list(prompt_token_ids)
        max_len = self._max_len(prompt, params)
        grammar = grammar or self.begin_grammar(params.grammar)
        answer = Answer(prompt, params, max_len - len(prompt), self.eos_token_ids, self.tokenizer, grammar)
        request = Request(
            request_id,
            prompt,
            answer,
            max_len,
            size if isinstance(size, int) else 1,
            priority,
            next(self._arrivals),
            client,
            tree_size=tree_size if size != 1 else 0,
            is_automatic=size == AUTO,
        )
        self.requests[request_id] = request
        self.scheduler.add(request)

    def begin_grammar(self, grammar: Grammar | None) -> GrammarState | None:
        """A new answer's state in ``grammar``; may take seconds, touches no state, and may run in any thread.

        Raises UsageError for a grammar that cannot be used.
        """
        return begin_grammar(grammar, self.tokenizer, self.target.config.vocab_size, self.eos_token_ids)

    def abort(self, request_id: str) -> bool:
        """End a request now; the next step tells of it. False when there is no such request any more."""
        request = self.requests.get(request_id)
        if request is None:
            return False
        self._news.append(self._end(request))
        return True

    def set_paused(self, request_id: str, is_paused: bool) -> None:
        """Whether a request stands still, without a place or pages; called with each in turn. One may be over."""
        if request := self.requests.get(request_id):
            self._leave(self.scheduler.set_paused(request, is_paused))

    @torch.inference_mode()
    def step(self) -> list[StepOutput]:
        """Run one step: what it brought to each request that ran."""
        with self.target.threads():
            return self._step()

    def _step(self) -> list[StepOutput]:
        outputs, self._news = self._news, []
        decoding = self.scheduler.decoding()
        num_requests = min(len(self.requests), self.config.max_running)
        if self.control.must_measure(num_requests) and any(request.is_automatic for request in decoding):
            outputs += self._read(self.overlap.in_flight)
            decoding = [request for request in decoding if request.answer.goes_on]
        self.control.plan(decoding, num_requests)
        started = perf_counter()  # costs may have been measured
        if self.overlap.must_read(decoding):
            outputs += self._read(self.overlap.in_flight)
        step = self.scheduler.schedule_blocks(decoding)
        for row in step.left:
            self._leave(row)
        num_before, pace = len(self._prompts), self.scheduler.pace
        outputs += self._decode(step.blocks)
        pace.blocks_ran(perf_counter() if step.blocks and outputs else None)
        self.scheduler.schedule_chunks(step)
        for request in step.joined:
            self.runner.join(request)
        # Chunks of similar length share a forward: padding at most doubles it.
        chunks = sorted(step.chunks, key=lambda chunk: chunk[1].bit_length())
        for _, group in groupby(chunks, key=lambda chunk: chunk[1].bit_length()):
            outputs += self._start_or_shorten(list(group))
        num_read = num_before if self.overlap.may_wait(self._prompts) else len(self._prompts)
        ended, self._prompts = self._prompts[:num_read], self._prompts[num_read:]
        outputs += [output for run in ended for output in self._read_chunks(run)]
        seconds = perf_counter() - started
        pace.prompts_ran(bool(chunks), sum(one.num_tokens for one in ended), None if step.blocks else seconds)
        return outputs

    def stats(self) -> EngineStats:
        """How the engine is doing."""
        return EngineStats.of(self.scheduler, self.metrics)

    def check_integrity(self) -> None:
        """Assert that the engine's state is sane: requests, pages, references."""
        self.scheduler.check_integrity()
        scheduler = self.scheduler
        queued = {id(r) for r in (*scheduler.waiting, *scheduler.running, *scheduler.paused)}
        assert queued == {id(r) for r in self.requests.values()}, "a request is lost"

    def _check_tree(self, draft_tree: int | None) -> int:
        if self.simulated and draft_tree:
            raise UsageError("simulated acceptance knows chains alone; expected no draft_tree beside it")
        return check_tree(self.drafter, draft_tree)

    def _max_len(self, prompt: Sequence[int], params: SamplingParams) -> int:
        return min(len(prompt) + params.max_tokens, self._context)

    def _decode(self, blocks: Sequence[tuple[Request, int]]) -> list[StepOutput]:
        """One step of ``blocks``; where they run as a round, what the round before brought."""
        before = self.overlap.in_flight
        if blocks and self.overlap.suits([request for request, _ in blocks]):
            self.overlap.launch(blocks, bool(self._prompts))
            return self._read(before)
        outputs = self._read(before)
        if before:
            blocks = [(r, min(size, r.most_tokens)) for r, size in blocks if r.answer.goes_on and r.pages]
        return outputs + self._run_blocks(blocks) if blocks else outputs

    def _read(self, flown: InFlight | None) -> list[StepOutput]:
        """Deliver what a round brought."""
        if flown is None:
            return []
        ended, outputs = self.overlap.read(flown), []
        seen = [(r, block, draft, len(draft), path) for r, block, draft, path, *_ in ended if block > 1]
        if ended:
            self.control.learn(seen, len(flown.seats), 0.0, 0.0 if self._prompts else self.overlap.seconds)
        for request, _, draft, path, decided, token in ended:
            new = [*decided, *(draft.token_ids[place - 1] for place in path[1:]), token]
            outputs.append(self._deliver(request, new, len(draft), len(path) - 1, _NOT_READ))
        self._settle([one.request for one in ended])
        return outputs

    def _start_or_shorten(self, chunks: Sequence[tuple[Request, int]]) -> list[StepOutput]:
        """Run chunks of prompts; without the memory for them, shorter or fewer ones in later steps."""
        try:
            self._prompts.append(self._start_chunks(chunks))
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            if not self.scheduler.pace.shorten(sum(size for _, size in chunks), len(chunks)):
                return [self._end(request, no_memory(error)) for request, _ in chunks]
            for request, _ in chunks:  # what ran may have written states
                self._leave(self.scheduler.preempt(request))
        return []

    def _end(self, request: Request, error: str | None = None) -> StepOutput:
        request.error = error or request.error
        request.answer.goes_on, request.answer.output.finish_reason = False, "abort"
        self._finish(request)
        return output_of(request, [], "", 0, 0, "abort")

    def _leave(self, row: CacheRow) -> None:
        if self.runner.drafter:
            self.runner.drafter.leave(row)

    def _start_chunks(self, chunks: Sequence[tuple[Request, int]]) -> PromptRun:
        """Run chunks of prompts, whose tokens are true at once."""
        started, runner = perf_counter(), self.runner
        requests, sizes = [request for request, _ in chunks], [size for _, size in chunks]
        tokens = [r.token_ids[r.num_committed : r.num_committed + size] for r, size in chunks]
        # The last chunk of a fresh prompt gives the first token; after preemption it is known already.
        is_last = [r.num_left == size and not r.num_said for r, size in chunks]
        num_wanted = [
            size if r.answer.scores_prompt else int(last)
            for (r, size), last in zip(chunks, is_last, strict=True)
        ]
        keys, starts = [r.key for r in requests], [r.num_committed for r in requests]
        run = runner.run_prompts(requests, tokens, num_wanted)
        return PromptRun(run, requests, keys, is_last, starts, sizes, perf_counter() - started)

    def _read_chunks(self, chunks: PromptRun) -> list[StepOutput]:
        """Deliver what chunks of prompts brought."""
        asked, outputs, read = perf_counter(), [], {}
        results = chunks.results()
        share = (chunks.seconds + perf_counter() - asked) / len(chunks.keys)  # not of what ran between
        for request, result, last, start, size in results:
            if error := chunks.run.lost.get(request.key):
                outputs.append(self._end(request, error))
                continue
            read[request] = start + size
            request.answer.output.metrics.prefill_s += share
            if request.answer.scores_prompt:
                request.answer.score_prompt(result.logits, start)
            if last:
                _, token = self._follow(request, result := result.at([-1]), DraftTree())
                outputs.append(self._deliver(request, [token], 0, 0, result))
        self._settle([*read], read)
        return outputs

    def _run_blocks(self, blocks: Sequence[tuple[Request, int]]) -> list[StepOutput]:
        started = perf_counter()
        runner, requests = self.runner, [request for request, _ in blocks]
        drafting = [request for request, size in blocks if size > 1]
        num_late = sum(request.num_pending for request in drafting)
        runner.catch_up(drafting)
        proposed = runner.propose(drafting)
        blocks = self.control.select(blocks, proposed)
        drafts = [
            request.answer.trim(proposed[request].first(size - 1), request.most_tokens - 1)
            if size > 1
            else DraftTree()
            for request, size in blocks
        ]
        drafted = perf_counter()
        tokens = [[request.anchor, *draft.token_ids] for request, draft in zip(requests, drafts, strict=True)]
        parents = [draft.parents for draft in drafts]
        run = runner.run(runner.block_rows, requests, tokens, [len(block) for block in tokens], parents)
        results = run.results()
        decided = [self._follow(*one) for one in zip(requests, results, drafts, strict=True)]
        verified = perf_counter()
        paths = [path for path, _ in decided]
        runner.commit(runner.block_rows, requests, paths, run.features)
        ended, outputs = perf_counter(), []
        for request, draft, block, (path, anchor), result in zip(
            requests, drafts, tokens, decided, results, strict=True
        ):
            metrics = request.answer.output.metrics
            metrics.record_round(draft, len(path) - 1)
            metrics.record_seconds((drafted - started) / len(requests), (verified - drafted) / len(requests))
            metrics.decode_s += (ended - started) / len(requests)
            new = [*(block[place] for place in path[1:]), anchor]
            outputs.append(self._deliver(request, new, len(draft), len(path) - 1, result.at(path)))
        # What plain rounds left to the drafter is no part of a draft's price; no round, it tells nothing of rounds.
        draft_s = drafted - started if num_late <= len(drafting) * self.control.max_block else 0.0
        rest_s = 0.0 if runner.drafts_in_rounds else perf_counter() - drafted
        every = zip(requests, drafts, paths, strict=True)
        seen = [(r, r.block_size, proposed[r], len(draft), path) for r, draft, path in every if r in proposed]
        self.control.learn(seen, len(requests), draft_s, rest_s)
        self._settle(requests)
        return outputs

    def _follow(self, request: Request, result: Verified, draft: DraftTree) -> tuple[list[int], int]:
        given = result.logits, result.argmax, self.simulated or verify, result.is_sampled
        try:
            return request.answer.follow(draft, *given)
        except UsageError as error:  # a grammar without a way on: it harms nobody else
            request.error = str(error)
            return [0], result.argmax[0]  # nothing of it is delivered

    def _deliver(
        self, request: Request, token_ids: list[int], num_drafted: int, num_accepted: int, result: Verified
    ) -> StepOutput:
        answer = request.answer
        if request.error is not None:
            answer.goes_on, answer.output.finish_reason = False, "abort"
            return output_of(request, [], "", 0, 0, "abort")
        event = answer.deliver(token_ids, num_drafted, num_accepted, result.logits)
        reason = None if answer.goes_on else answer.output.finish_reason
        return output_of(request, event.token_ids, event.text, num_drafted, event.num_accepted, reason)

    def _settle(self, requests: Sequence[Request], read: Mapping[Request, int] | None = None) -> None:
        """After delivery: full pages, of ``read`` tokens where more run, can be found, and who is finished leaves."""
        size, is_found = self.config.page_size, self.config.prefix_caching
        if self.runner.drafter:
            # What was accepted behind a stop text was dropped: it is no part of the tokens, and not worth keeping.
            whole = [r for r in requests if r.num_committed <= r.num_tokens]
            late = [r for r in whole if r.num_committed // size > r.num_observed // size]
            # What a finished request leaves is for those who find its prefix.
            late = [r for r in late if (r.answer.goes_on or is_found) and not self._can_wait(r)]
            if any(r.num_pending >= self.most_pending for r in late):  # what lies together is taken together
                late = [r for r in whole if r.answer.goes_on or is_found]
            self.runner.catch_up(late)
        for request in requests:
            if is_found:
                most = min(request.num_observed, request.num_tokens)
                self.scheduler.register_pages(request, min(most, read[request]) if read else most)
            if not request.answer.goes_on:
                self._finish(request)

    def _can_wait(self, request: Request) -> bool:
        """Whether its features may go on waiting for a draft. Full pages of a prompt are wanted by others now."""
        is_wanted = self.config.prefix_caching and request.num_observed < len(request.prompt)
        return request.answer.goes_on and not is_wanted and request.num_pending < self.most_pending

    def _finish(self, request: Request) -> None:
        self._leave(request.draft_row)
        self.scheduler.finish(request)
        del self.requests[request.request_id]
        if not self.requests:
            self.overlap.drop()
        self.metrics.add(request.answer.output.metrics)

    def run(self) -> Iterable[StepOutput]:
        """Step until nothing is left, telling the news as they come."""
        while self.has_unfinished:
            yield from self.step()

"""Answers through the batched engine, drafts included: what serves is what makes the data."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

from flashdraft.data.answerer import AnswerRequest, PromptAnswer
from flashdraft.engine.engine import Engine
from flashdraft.engine.scheduler import PROMPT_TOKENS, EngineConfig
from flashdraft.errors import DataError
from flashdraft.held_settings import NO_COLLECTION, switch_interval
from flashdraft.sampling_params import SamplingParams

# Plain steps of a round on a GPU. The host takes about 55 us a row and round; of an answer's last round half is lost.
# 4,096 rows with answers of 32 to 256 tokens made 174 thousand tokens a second on an H200 with 32 steps, 158 with 16,
# when prompts were launched by the host itself.
_NUM_STEPS = 32
# Python's usual 5 ms are half of a step of 4,096 rows. These made 249 thousand tokens a second with 5e-5, 228 to 236
# with 2e-4 and 236 with 1e-3: a prompt's layers are a thousand launches, and before each the thread asks for its turn.
_OFTEN = switch_interval(5e-5)
_ROWS_A_STEP = 32  # a step takes a millisecond at least: of fewer rows the host hears sooner


def rollout_config(num_rows: int, longest: int | None) -> EngineConfig:
    """For ``num_rows`` answers at a time, with pages for ``longest`` tokens of each; None: for as many as is usual."""
    num_steps = min(_NUM_STEPS, -(-num_rows // _ROWS_A_STEP))
    config = EngineConfig(max_running=num_rows, num_scheduler_steps=num_steps)
    if longest is None:
        return config
    # As many tokens of prompts beside a round as it decodes.
    prompts, pages = max(PROMPT_TOKENS, num_steps * num_rows), -(-longest // config.page_size)
    # Every page is soon some row's: what prompts have in common would seldom be found, and hashes of all take time.
    return replace(config, num_pages=num_rows * pages, max_prompt_tokens=prompts, prefix_caching=False)


@contextmanager
def for_many_rows() -> Iterator[None]:
    """Python as steps of thousands of rows want it.

    It looks for no cycles: among all their tokens that takes longer than a step. And who launches steps beside the host
    gets the interpreter soon: by its usual interval of 5 ms the device would wait for the next launch.
    """
    with NO_COLLECTION, _OFTEN:
        yield


class EngineAnswers:
    """Answers of ``engine``, each of at most ``max_new_tokens`` tokens, as many at a time as it runs."""

    def __init__(self, engine: Engine, max_new_tokens: int, seed: int = 0) -> None:
        self.engine, self.max_new_tokens, self.seed = engine, max_new_tokens, seed

    @property
    def facts(self) -> dict[str, Any]:
        """See :class:`flashdraft.data.answerer.Answerer`."""
        drafter = type(self.engine.drafter).__name__ if self.engine.drafter else None
        dtype = str(self.engine.target.dtype)
        return {"answered_by": "flashdraft's engine", "dtype": dtype, "drafter": drafter}

    def run(self, requests: Iterable[AnswerRequest]) -> Iterator[list[PromptAnswer]]:
        """See :class:`flashdraft.data.answerer.Answerer`. Raises DataError for what cannot be answered."""
        with for_many_rows():
            yield from self._run(requests)

    def _run(self, requests: Iterable[AnswerRequest]) -> Iterator[list[PromptAnswer]]:
        engine, waiting = self.engine, iter(requests)
        going: dict[str, tuple[AnswerRequest, list[int]]] = {}
        while True:
            for request in islice(waiting, 2 * engine.config.max_running - len(going)):
                engine.add_request(str(request.key), request.token_ids, self._params(request))
                going[str(request.key)] = request, []
            if not going:
                return
            ended = []
            for output in engine.step():
                request, token_ids = going[output.request_id]
                token_ids += output.token_ids
                if output.error is not None:
                    raise DataError(f"a prompt could not be answered: {output.error}")
                if output.finished:
                    del going[output.request_id]
                    ended.append(PromptAnswer(request.key, token_ids, output.finish_reason or "abort"))
            if ended:
                yield ended

    def _params(self, request: AnswerRequest) -> SamplingParams:
        seed = self.seed * 1_000_003 + request.key
        return SamplingParams(max_tokens=self.max_new_tokens, temperature=request.temperature, seed=seed)

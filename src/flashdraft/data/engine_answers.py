"""Answers through the batched engine, drafts included: what serves is what makes the data."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from flashdraft.data.answerer import AnswerRequest, PromptAnswer
from flashdraft.engine.engine import Engine
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.errors import DataError
from flashdraft.sampling_params import SamplingParams

_NUM_STEPS = (
    8  # on a GPU: the host takes 60 us a row whatever a round brings, thousands of rows 4 us each a step
)


def rollout_config(num_rows: int, longest: int | None) -> EngineConfig:
    """For ``num_rows`` answers at a time, with pages for ``longest`` tokens of each; None: for as many as is usual."""
    config = EngineConfig(max_running=num_rows, num_scheduler_steps=_NUM_STEPS)
    if longest is None:
        return config
    return replace(config, num_pages=num_rows * -(-longest // config.page_size))


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

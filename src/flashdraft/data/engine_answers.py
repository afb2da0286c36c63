"""Answers through the batched engine, drafts included: what serves is what makes the data."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from flashdraft.data.answer_generator import AnswerRequest, PromptAnswer
from flashdraft.errors import DataError
from flashdraft.llm import LLM
from flashdraft.sampling_params import SamplingParams


class EngineAnswers:
    """Answers of ``llm``, each of at most ``max_new_tokens`` tokens, as many at a time as its engine runs."""

    def __init__(self, llm: LLM, max_new_tokens: int, seed: int = 0) -> None:
        self.llm, self.max_new_tokens, self.seed = llm, max_new_tokens, seed

    @property
    def facts(self) -> dict[str, Any]:
        """See :class:`flashdraft.data.answer_generator.Answerer`."""
        drafter = type(self.llm.drafter).__name__ if self.llm.drafter else None
        return {"answered_by": "flashdraft's engine", "dtype": str(self.llm.target.dtype), "drafter": drafter}

    def run(self, requests: Iterable[AnswerRequest]) -> Iterator[list[PromptAnswer]]:
        """See :class:`flashdraft.data.answer_generator.Answerer`. Raises DataError for what cannot be answered."""
        engine, waiting = self.llm.engine, iter(requests)
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

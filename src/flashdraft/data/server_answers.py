"""Answers from any OpenAI-compatible server: for targets that run elsewhere, on vLLM, SGLang or flashdraft.

Prompts go as token ids through ``/v1/completions``, behind the chat template that is applied here. Answers come back as
token ids where the server tells them (``return_token_ids``: vLLM, flashdraft); a text is tokenized anew, which need not
give the tokens that were sampled: the facts count how many came which way, and how many have another length.
"""

import asyncio
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import httpx2

from flashdraft.data.answerer import AnswerRequest, PromptAnswer
from flashdraft.errors import DataError

_TIMEOUT_S = 600.0
_TRIES = 6
_LONGEST_PAUSE_S = 30.0
_Going = asyncio.Task[tuple[PromptAnswer, str]]  # an answer under way, and how its tokens come
_PASSING = {408, 409, 425, 429}  # beside all from 500 on: worth another try


class ServerAnswers:
    """Answers of the server at ``url`` (with or without /v1), ``num_rows`` at a time.

    ``model``: its name there; None: the first that the server lists.
    """

    def __init__(
        self,
        url: str,
        tokenizer: Any,
        eos_token_ids: Sequence[int],
        max_new_tokens: int,
        num_rows: int,
        seed: int = 0,
        model: str | None = None,
        api_key: str | None = None,
        pause_s: float = 1.0,
    ) -> None:
        self.base = url.rstrip("/").removesuffix("/v1")
        self.tokenizer, self.eos_token_ids = tokenizer, tuple(eos_token_ids)
        self.max_new_tokens, self.num_rows, self.seed, self.pause_s = max_new_tokens, num_rows, seed, pause_s
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._asks_for_ids = True
        self._counts = {"token_ids_told": 0, "tokenized_anew": 0, "of_another_length": 0}
        self.model = model

    @property
    def facts(self) -> dict[str, Any]:
        """See :class:`flashdraft.data.answerer.Answerer`."""
        return {"answered_by": self.base, "model": self.model, **self._counts}

    def run(self, requests: Iterable[AnswerRequest]) -> Iterator[list[PromptAnswer]]:
        """See :class:`flashdraft.data.answerer.Answerer`. Raises DataError for a server that gives none.

        Whoever leaves takes the answers under way along: the server sees its connections closed. Where an event loop
        runs already, as in a notebook, all of it happens in a thread of its own.
        """
        answers = self._run(requests)
        if not _is_in_loop():
            yield from answers
            return
        with ThreadPoolExecutor(1) as thread:
            try:
                while ended := thread.submit(next, answers, None).result():
                    yield ended
            finally:
                thread.submit(answers.close).result()

    def _run(self, requests: Iterable[AnswerRequest]) -> Generator[list[PromptAnswer], None, None]:
        waiting, going = iter(requests), set[_Going]()
        limits = httpx2.Limits(max_connections=self.num_rows)
        self._http = httpx2.AsyncClient(headers=self._headers, timeout=_TIMEOUT_S, limits=limits)
        with asyncio.Runner() as loop:  # runs between the answers that it gives, and ends what is under way
            try:
                if self.model is None:
                    self.model = loop.run(self._first_model())
                while ended := loop.run(self._some(waiting, going)):
                    yield ended
            finally:
                loop.run(self._close(going))

    async def _close(self, going: set[_Going]) -> None:
        for task in going:
            task.cancel()
        await asyncio.gather(*going, return_exceptions=True)
        await self._http.aclose()

    async def _some(self, waiting: Iterator[AnswerRequest], going: set[_Going]) -> list[PromptAnswer]:
        """The next answers, none behind the last; ``going``: those under way, ``num_rows`` of ``waiting`` at most."""
        going |= {
            asyncio.create_task(self._answer(one)) for one in islice(waiting, self.num_rows - len(going))
        }
        if not going:
            return []
        ended, _ = await asyncio.wait(going, return_when=asyncio.FIRST_COMPLETED)
        going -= ended
        answers = []
        for answer, how in (task.result() for task in ended):
            self._counts[how] += 1
            answers.append(answer)
        return answers

    async def _answer(self, request: AnswerRequest) -> tuple[PromptAnswer, str]:
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": list(request.token_ids),
            "max_tokens": self.max_new_tokens,
            "temperature": request.temperature,
            "seed": self.seed * 1_000_003 + request.key,
        }
        response = await self._call("POST", "/v1/completions", body)
        try:
            told = response.json()
            choice = told["choices"][0]
        except (ValueError, LookupError, TypeError):
            raise self._no_answer(
                "/v1/completions", f"a page without choices: {response.text[:80]!r}"
            ) from None
        token_ids, reason = choice.get("token_ids"), choice.get("finish_reason") or "stop"
        is_told = token_ids is not None
        if not is_told:
            token_ids = self.tokenizer(choice["text"], add_special_tokens=False)["input_ids"]
        if reason == "stop" and self.eos_token_ids and not set(token_ids[-1:]) & set(self.eos_token_ids):
            token_ids = [*token_ids, self.eos_token_ids[0]]  # a server that keeps the end token to itself
        counted = (told.get("usage") or {}).get("completion_tokens")
        how = "tokenized_anew" if counted in (None, len(token_ids)) else "of_another_length"
        return PromptAnswer(request.key, list(token_ids), reason), "token_ids_told" if is_told else how

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx2.Response:
        """The response; what may pass is tried again, with growing pauses."""
        fault = ""
        for attempt in range(_TRIES):
            if attempt:
                await asyncio.sleep(min(self.pause_s * 2 ** (attempt - 1), _LONGEST_PAUSE_S))
            more = {"return_token_ids": True} if body and self._asks_for_ids else {}
            try:
                response = await self._http.request(
                    method, self.base + path, json=None if body is None else body | more
                )
            except httpx2.HTTPError as error:
                fault = str(error) or type(error).__name__
                continue
            if response.status_code == 200:
                return response
            fault = f"status {response.status_code}: {response.text[:300]}"
            if more and response.status_code in (400, 422) and "return_token_ids" in response.text:
                self._asks_for_ids = False  # a server that refuses what it does not know
            elif response.status_code not in _PASSING and response.status_code < 500:
                break
        raise self._no_answer(path, fault)

    async def _first_model(self) -> str:
        response = await self._call("GET", "/v1/models")
        try:
            return str(response.json()["data"][0]["id"])
        except (ValueError, LookupError, TypeError):
            raise self._no_answer("/v1/models", f"a page without models: {response.text[:80]!r}") from None

    def _no_answer(self, path: str, fault: str) -> DataError:
        return DataError(
            f"{self.base}{path} gives no answer ({fault}); expected an OpenAI-compatible server: start it, or mend"
            " --rollout-url. What was answered is kept: run again to go on"
        )


def _is_in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True

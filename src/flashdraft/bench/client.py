"""One streamed chat answer from any OpenAI-compatible server, and when its pieces came."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import httpx2

from flashdraft.errors import EngineError
from flashdraft.sampling_params import SamplingParams

_TIMEOUT_S = 600.0


@dataclass
class StreamedAnswer:
    """What came of one request; times on one clock, in seconds."""

    asked_at: float
    delivered_at: list[float] = field(default_factory=list)  # of pieces with text
    ended_at: float = 0.0
    text: str = ""
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_accepted: int | None = None  # draft tokens delivered, where the server tells
    finish_reason: str | None = None
    error: str | None = None

    @property
    def ttft_s(self) -> float:
        """From asking to the first text; to the end of an answer without any."""
        return (self.delivered_at[0] if self.delivered_at else self.ended_at) - self.asked_at

    @property
    def total_s(self) -> float:
        """From asking to the last text."""
        return (self.delivered_at[-1] if self.delivered_at else self.ended_at) - self.asked_at

    @property
    def tpot_s(self) -> float | None:
        """Mean seconds a token after the first; None for one token."""
        num_later = self.num_output_tokens - 1
        return (self.total_s - self.ttft_s) / num_later if num_later > 0 else None


class Client:
    """Asks the server at ``url`` (with or without /v1). Use it as an async context."""

    def __init__(self, url: str, api_key: str | None = None, model: str | None = None) -> None:
        self.base = url.rstrip("/").removesuffix("/v1")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
        self._http = httpx2.AsyncClient(headers=headers, timeout=_TIMEOUT_S, limits=limits)
        self.model = model or ""

    async def __aenter__(self) -> "Client":
        if not self.model:
            listed = await self.get("/v1/models")
            try:
                self.model = str(json.loads(listed)["data"][0]["id"])
            except (ValueError, LookupError, TypeError):
                raise EngineError(
                    f"{self.base}/v1/models lists no model ({listed[:80]!r}); expected an OpenAI-compatible server:"
                    " mend --url"
                ) from None
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def get(self, path: str) -> str:
        """The body at ``path``. Raises EngineError where there is none."""
        try:
            response = await self._http.get(self.base + path)
            response.raise_for_status()
        except httpx2.HTTPError as error:
            raise EngineError(
                f"{self.base}{path} gives no answer ({error or type(error).__name__}); expected an"
                " OpenAI-compatible server: start it, or mend --url and --api-key"
            ) from None
        return response.text

    async def ask(
        self, question: str, params: SamplingParams, template: Mapping[str, Any] | None = None
    ) -> StreamedAnswer:
        """Stream the answer to one question; what goes wrong is told in ``error``.

        ``template``: values for the server's chat template, an extension that all of them know.
        """
        answer = StreamedAnswer(perf_counter())
        body = self._body(question, params)
        if template:
            body["chat_template_kwargs"] = dict(template)
        try:
            async with self._http.stream("POST", self.base + "/v1/chat/completions", json=body) as response:
                if response.status_code != 200:
                    text = (await response.aread()).decode(errors="replace")
                    answer.error = f"status {response.status_code}: {text[:300]}"
                else:
                    rest = b""
                    async for piece in response.aiter_bytes():
                        *lines, rest = (rest + piece).split(b"\n")
                        for line in lines:
                            _take_line(answer, line)
                    _take_line(answer, rest)  # of a server that ends without a line's end
        except (httpx2.HTTPError, ValueError) as error:
            answer.error = f"{type(error).__name__}: {error}"
        answer.ended_at = perf_counter()
        if not answer.error and not answer.num_output_tokens:
            answer.error = "the server told no usage: it does not know stream_options.include_usage"
        return answer

    def _body(self, question: str, params: SamplingParams) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": params.max_tokens,
            "temperature": params.temperature,
            "seed": params.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        # An extension that vLLM, SGLang, llama.cpp and flashdraft know; others are not bothered with it.
        return body | ({"ignore_eos": True} if params.ignore_eos else {})


def _take_line(answer: StreamedAnswer, line: bytes) -> None:
    if line.startswith(b"data:") and (data := line[5:].strip()) != b"[DONE]":
        _take(answer, json.loads(data))


def _take(answer: StreamedAnswer, chunk: Mapping[str, Any]) -> None:
    now = perf_counter()
    if chunk.get("error"):
        answer.error = str(chunk["error"])
    for choice in chunk.get("choices") or ():
        delta = choice.get("delta") or {}
        answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
        text = (delta.get("reasoning_content") or delta.get("reasoning") or "") + (delta.get("content") or "")
        if text:
            answer.delivered_at.append(now)
            answer.text += text
    if usage := chunk.get("usage"):
        answer.num_prompt_tokens = usage.get("prompt_tokens") or 0
        answer.num_output_tokens = usage.get("completion_tokens") or 0
        details = usage.get("completion_tokens_details") or {}
        if (told := details.get("accepted_prediction_tokens")) is not None:
            answer.num_accepted = told
    # llama.cpp tells of its drafts beside the timings.
    if (told := (chunk.get("timings") or {}).get("draft_n_accepted")) is not None:
        answer.num_accepted = told

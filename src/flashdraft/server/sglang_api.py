"""SGLang's native ``/generate`` and ``/flush_cache``, so that its benchmark clients run unchanged."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from flashdraft.server.accounts import meta_info
from flashdraft.server.api_errors import ApiError, Json
from flashdraft.server.fields import (
    BlockSizeField,
    Count,
    Fields,
    ManyTokenIds,
    Texts,
    TokenIds,
    names_elsewhere,
)
from flashdraft.server.handlers import answer_len, read_request, respond, service_of
from flashdraft.server.http_io import DONE, event
from flashdraft.server.prompts import encode_text
from flashdraft.server.protocol import SamplingFields
from flashdraft.server.service import Service, Submission, Wish
from flashdraft.server.unsupported import known_fields

_DEFAULT_LEN = 128  # SGLang's


class SGLangSampling(SamplingFields):
    """SGLang's ``sampling_params``."""

    renamed = names_elsewhere("max_new_tokens", "stop")
    tolerated = known_fields()  # those that ask for something are refused before

    max_new_tokens: Count | None = None


class GenerateRequest(Fields):
    """``POST /generate``: a text, token ids, or a list of either."""

    renamed = names_elsewhere("sampling_params.max_new_tokens", "sampling_params.stop", prompt="text")

    text: str | Texts | None = None
    input_ids: TokenIds | ManyTokenIds | None = None
    sampling_params: SGLangSampling | Annotated[list[SGLangSampling], Field(min_length=1)] | None = None
    stream: bool | None = None
    block_size: BlockSizeField | None = None


async def generate(request: Request) -> Response:
    """Continue one prompt or several; a list in gives a list out."""
    asked = await read_request(request, GenerateRequest, sampling_params=SGLangSampling)
    service = service_of(request)
    prompts, is_list = await _prompts(service, asked)
    wishes = _wishes(service, asked, prompts)
    is_list = is_list or len(wishes) > 1
    if is_list and asked.stream:
        raise ApiError(400, "stream is for one answer; expected one prompt and n of 1", "stream")

    def whole(submission: Submission) -> Json | list[Json]:
        rows = [_row(submission, index) for index in range(len(wishes))]
        return rows if is_list else rows[0]

    return await respond(await service.submit(wishes), bool(asked.stream), whole, _events)


async def flush_cache(request: Request) -> Response:
    """Forget what is kept between requests; 409 when that cannot be done now."""
    done = service_of(request).engine.flush_cache()
    message = "the cache is empty" if done else "requests are under way: try again when they are done"
    return JSONResponse({"success": done, "message": message}, 200 if done else 409)


async def _prompts(service: Service, asked: GenerateRequest) -> tuple[list[list[int]], bool]:
    if (asked.text is None) == (asked.input_ids is None):
        raise ApiError(400, "expected one of text and input_ids", "text")
    if asked.text is not None:
        texts = [asked.text] if isinstance(asked.text, str) else asked.text
        _admit(service, asked, len(texts))
        return [await encode_text(service, text) for text in texts], isinstance(asked.text, list)
    ids: list[Any] = asked.input_ids or []
    is_list = bool(ids) and isinstance(ids[0], list)
    _admit(service, asked, len(ids) if is_list else 1)
    return (ids if is_list else [ids]), is_list


def _admit(service: Service, asked: GenerateRequest, num_prompts: int) -> None:
    said = asked.sampling_params or SGLangSampling()
    each = said if isinstance(said, list) else [said] * num_prompts
    if len(each) != num_prompts:
        raise ApiError(
            400, f"there are {len(each)} sampling_params for {num_prompts} prompts", "sampling_params"
        )
    service.admit(sum(one.n or 1 for one in each))


def _wishes(service: Service, asked: GenerateRequest, prompts: list[list[int]]) -> list[Wish]:
    said = asked.sampling_params or SGLangSampling()
    each = said if isinstance(said, list) else [said] * len(prompts)
    wishes = []
    for prompt, one in zip(prompts, each, strict=True):
        wanted = one.max_new_tokens or _DEFAULT_LEN
        length = answer_len(service, len(prompt), wanted, "sampling_params.max_new_tokens")
        for params in one.params(service.defaults, length):
            wishes.append(Wish(prompt, params, asked.block_size, in_pieces=False))
    return wishes


def _row(submission: Submission, index: int) -> Json:
    answer = submission.answers[index]
    return {
        "text": answer.text,
        "output_ids": answer.token_ids,
        "meta_info": meta_info(submission, index),
    }


async def _events(submission: Submission) -> AsyncGenerator[str, None]:
    """Each event carries the whole text so far, as SGLang's does."""
    async with aclosing(submission.deltas()) as deltas:
        async for delta in deltas:
            yield event(_row(submission, delta.index))
    yield DONE

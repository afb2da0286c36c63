"""The small endpoints: the page, which model, is it alive, tokens from text and back, metrics."""

from importlib.resources import files
from time import time

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from flashdraft.server.answer_parts import END_THINK
from flashdraft.server.api_errors import ApiError, Json
from flashdraft.server.call_styles import template_of
from flashdraft.server.handlers import check_model, read_request, service_of
from flashdraft.server.prompts import encode_chat, encode_text
from flashdraft.server.protocol import DetokenizeRequest, TokenizeRequest

_STARTED = int(time())

# The page has its own style and scripts, and asks for nothing elsewhere.
_PAGE_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:;"
    " frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


async def playground(request: Request) -> Response:  # noqa: ARG001 - Starlette's signature
    """``GET /``: the page."""
    page = files("flashdraft.server").joinpath("playground/index.html").read_text(encoding="utf-8")
    return HTMLResponse(page, headers={"Content-Security-Policy": _PAGE_POLICY})


async def models(request: Request) -> Response:
    """``GET /v1/models``, and ``GET /v1/models/NAME`` for one."""
    service = service_of(request)
    cards = [
        {
            "id": name,
            "object": "model",
            "created": _STARTED,
            "owned_by": "flashdraft",
            "max_model_len": service.context_len,
            "block_size": service.block_size,
            "thinking": END_THINK in template_of(service.tokenizer),
        }
        for name in service.config.model_names
    ]
    if (wanted := request.path_params.get("name", "").rstrip("/") or None) is None:
        return JSONResponse({"object": "list", "data": cards})
    check_model(service, wanted)
    return JSONResponse(next(card for card in cards if card["id"] == wanted))


async def health(request: Request) -> Response:
    """``GET /health`` and ``GET /ready``: 200 while the engine can answer, else 503."""
    is_healthy = service_of(request).engine.healthy
    status = "ok" if is_healthy else "the engine cannot answer"
    return JSONResponse({"status": status}, 200 if is_healthy else 503)


async def metrics(request: Request) -> Response:
    """``GET /metrics`` for Prometheus."""
    service = service_of(request)
    return Response(service.metrics.exposition(service.engine.stats()), media_type=CONTENT_TYPE_LATEST)


async def tokenize(request: Request) -> Response:
    """``POST /tokenize``, as vLLM's."""
    asked = await read_request(request, TokenizeRequest)
    service = service_of(request)
    check_model(service, asked.model)
    if asked.messages is not None:
        tokens = await encode_chat(
            service,
            asked.messages,
            asked.chat_template_kwargs,
            asked.tools or (),
            asked.add_generation_prompt is not False,
            bool(asked.add_special_tokens),
        )
    elif asked.prompt is not None:
        tokens = await encode_text(service, asked.prompt, asked.add_special_tokens is not False)
    else:
        raise ApiError(400, "there is neither prompt nor messages; expected one of them", "prompt")
    told: Json = {"count": len(tokens), "max_model_len": service.context_len, "tokens": tokens}
    if asked.return_token_strs:
        told["token_strs"] = service.tokenizer.convert_ids_to_tokens(tokens)
    return JSONResponse(told)


async def detokenize(request: Request) -> Response:
    """``POST /detokenize``, as vLLM's."""
    asked = await read_request(request, DetokenizeRequest)
    service = service_of(request)
    check_model(service, asked.model)
    if len(asked.tokens) > service.context_len:
        raise ApiError(
            400, f"there are {len(asked.tokens)} tokens; expected at most {service.context_len}", "tokens"
        )
    if wrong := [token for token in asked.tokens if not 0 <= token < len(service.tokenizer)]:
        largest = len(service.tokenizer) - 1
        raise ApiError(400, f"tokens holds id {wrong[0]}; expected ids from 0 to {largest}", "tokens")

    def decode() -> str:
        text: str = service.tokenizer.decode(asked.tokens, skip_special_tokens=False)
        return text

    return JSONResponse({"prompt": await service.text_work.run(decode, len(asked.tokens))})

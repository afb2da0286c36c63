"""Log-probabilities as OpenAI writes them: by token with its bytes for chats, as parallel lists for completions."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from flashdraft.sampler import TokenLogprobs
from flashdraft.server.answer_text import TokenPiece
from flashdraft.server.api_errors import Json


@cache
def _byte_of() -> dict[str, int]:
    """The bytes behind the letters that byte-level tokenizers write for them."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters: dict[int, str] = bytes_to_unicode()  # type: ignore[no-untyped-call]
    return {letter: byte for byte, letter in letters.items()}


def token_text(tokenizer: Any, token: int) -> str:
    """The text of one token by itself; of part of a character what stands for it."""
    text: str = tokenizer.decode([token], skip_special_tokens=False)
    return text


def _token_bytes(tokenizer: Any, token: int, text: str) -> list[int]:
    if "\ufffd" in text:
        letters = tokenizer.convert_ids_to_tokens(token) or ""
        if all(letter in _byte_of() for letter in letters):
            return [_byte_of()[letter] for letter in letters]
    return list(text.encode())


def chat_logprobs(tokenizer: Any, pieces: Sequence[TokenPiece]) -> Json:
    """``choices[].logprobs`` of a chat."""

    def entry(token: int, logprob: float) -> Json:
        text = token_text(tokenizer, token)
        return {"token": text, "logprob": _finite(logprob), "bytes": _token_bytes(tokenizer, token, text)}

    content = [
        entry(one.token_id, one.logprob) | {"top_logprobs": [entry(*pair) for pair in one.top]}
        for one in _known(pieces)
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(
    tokenizer: Any,
    entries: Sequence[TokenLogprobs | int],
    text_len: int,
) -> Json:
    """``choices[].logprobs`` of a completion.

    ``entries``: of each token; a bare token id where nothing is known, as of a prompt's first. ``text_len``:
    characters before it.
    """
    told: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for one in entries:
        token = one if isinstance(one, int) else one.token_id
        text = token_text(tokenizer, token)
        told["tokens"].append(text)
        told["text_offset"].append(text_len)
        text_len += len(text)
        if isinstance(one, int):
            told["token_logprobs"].append(None)
            told["top_logprobs"].append(None)
        else:
            told["token_logprobs"].append(_finite(one.logprob))
            best = {token_text(tokenizer, other): _finite(logprob) for other, logprob in one.top}
            told["top_logprobs"].append(best | {text: _finite(one.logprob)} if best else None)
    return dict(told)


def _known(pieces: Sequence[TokenPiece]) -> list[TokenLogprobs]:
    return [piece.logprob for piece in pieces if piece.logprob is not None]


def _finite(logprob: float) -> float:
    """JSON has no -inf; OpenAI writes -9999."""
    return max(logprob, -9999.0)

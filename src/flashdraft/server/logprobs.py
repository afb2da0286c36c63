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


def token_text(tokenizer: Any, token: int, as_id: bool = False) -> str:
    """The text of one token by itself; of part of a character what stands for it. ``as_id``: vLLM's token_id:N."""
    if as_id:
        return f"token_id:{token}"
    text: str = tokenizer.decode([token], skip_special_tokens=False)
    return text


def _told(tokenizer: Any, token: int, as_id: bool) -> str:
    """A token as completions name it: part of a character by its bytes, as OpenAI does."""
    text = token_text(tokenizer, token, as_id)
    if "\ufffd" not in text:
        return text
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in _token_bytes(tokenizer, token, text))


def _token_bytes(tokenizer: Any, token: int, text: str) -> list[int]:
    if "\ufffd" in text:
        letters = tokenizer.convert_ids_to_tokens(token) or ""
        if all(letter in _byte_of() for letter in letters):
            return [_byte_of()[letter] for letter in letters]
    return list(text.encode())


def chat_logprobs(tokenizer: Any, pieces: Sequence[TokenPiece], as_ids: bool = False) -> Json:
    """``choices[].logprobs`` of a chat."""

    def entry(token: int, logprob: float) -> Json:
        text = token_text(tokenizer, token)
        told = token_text(tokenizer, token, as_ids)
        return {"token": told, "logprob": _finite(logprob), "bytes": _token_bytes(tokenizer, token, text)}

    content = [
        entry(one.token_id, one.logprob) | {"top_logprobs": [entry(*pair) for pair in one.top]}
        for one in _known(pieces)
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(
    tokenizer: Any, entries: Sequence[tuple[TokenLogprobs | int, str]], text_len: int, as_ids: bool = False
) -> Json:
    """``choices[].logprobs`` of a completion.

    ``entries``: each token with its piece of the text; a bare token id where nothing is known, as of a prompt's
    first. ``text_len``: characters before it.
    """
    told: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for one, piece in entries:
        token = one if isinstance(one, int) else one.token_id
        told["tokens"].append(_told(tokenizer, token, as_ids))
        told["text_offset"].append(text_len)
        text_len += len(piece)
        if isinstance(one, int):
            told["token_logprobs"].append(None)
            told["top_logprobs"].append(None)
        else:
            told["token_logprobs"].append(_finite(one.logprob))
            told["top_logprobs"].append(_best(tokenizer, one, as_ids) if one.top else None)
    return dict(told)


def _best(tokenizer: Any, one: TokenLogprobs, as_ids: bool) -> dict[str, float]:
    """The likeliest tokens and the chosen one; of those that read alike all but the first by their ids."""
    best: dict[str, float] = {}
    for token, logprob in dict([*one.top, (one.token_id, one.logprob)]).items():
        name = _told(tokenizer, token, as_ids)
        best[name if name not in best else token_text(tokenizer, token, as_id=True)] = _finite(logprob)
    return best


def _known(pieces: Sequence[TokenPiece]) -> list[TokenLogprobs]:
    return [piece.logprob for piece in pieces if piece.logprob is not None]


def _finite(logprob: float) -> float:
    """JSON has no -inf; OpenAI writes -9999."""
    return max(logprob, -9999.0)

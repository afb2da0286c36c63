"""Text that comes token by token: whole characters only, in sum what decoding all at once gives.

Not so where byte tokens end within a character: tokenizers then decodes the whole run of them as broken, a newline or
a character before it too (``findings/tokenizers-byte-fallback-newline.sh``); here what was whole stays.
"""

from typing import Protocol

_INCOMPLETE = "\ufffd"  # what a tokenizer decodes an unfinished multi-byte character to


class Decodes(Protocol):
    """What is asked of a tokenizer; every transformers tokenizer has it."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """The text of ``token_ids``."""
        ...


class Detokenizer:
    """Turns one answer's tokens into text as they come; special tokens are left out, unless told otherwise.

    A token may hold only part of a character (an emoji is often four tokens), and its text may depend on the
    token before it (leading spaces). So the last emitted tokens are decoded together with the new ones, and
    what ends in an unfinished character waits for the rest.
    """

    def __init__(self, tokenizer: Decodes, skip_special_tokens: bool = True) -> None:
        self._skips = skip_special_tokens
        # transformers' wrapping costs four times what the decoding does, for every token twice.
        self._tokenizer: Decodes = getattr(tokenizer, "backend_tokenizer", tokenizer)
        self._emitted: list[int] = []  # tokens of the latest emitted piece: the context of the next
        self._waiting: list[int] = []

    def push(self, token_id: int) -> str:
        """Take one token; the text that is now certain, which may be empty."""
        self._waiting.append(token_id)
        piece = self._piece()
        if not piece or piece.endswith(_INCOMPLETE):
            return ""
        self._emitted, self._waiting = self._waiting, []
        return piece

    def flush(self) -> str:
        """The answer is over: what still waits, unfinished characters included."""
        piece = self._piece()
        self._emitted, self._waiting = [], []
        return piece

    def _piece(self) -> str:
        before, together = self._decode(self._emitted), self._decode(self._emitted + self._waiting)
        if not together.startswith(before):  # a broken run of byte tokens: each byte became U+FFFD
            return self._decode(self._waiting)
        return together[len(before) :]

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skips)

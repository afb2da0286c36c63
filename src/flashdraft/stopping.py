"""When an answer is over, and the text that is certain so far: end tokens, stop tokens, stop texts, lengths."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from flashdraft.detokenizer import Decodes, Detokenizer
from flashdraft.errors import UsageError
from flashdraft.sampling_params import SamplingParams


class Kept(NamedTuple):
    """What is delivered of some new tokens."""

    num_tokens: int
    text: str
    finish_reason: str | None  # "stop", "length", or None: it goes on
    stop_reason: int | str | None  # the stop token or stop text; None for an end-of-sequence token


class StopCondition:
    """Watches one answer, token by token, so that the borders of blocks do not matter.

    An end token or stop token is the answer's last token and no part of its text. A stop text ends the answer
    with the token that completes it; the text is cut before it. Nothing but the length ends an answer of fewer
    than ``min_tokens``. Raises UsageError for a stop text without a tokenizer.
    """

    def __init__(
        self, params: SamplingParams, eos_token_ids: Iterable[int], max_tokens: int, tokenizer: Decodes | None
    ) -> None:
        if params.stop_texts and tokenizer is None:
            raise UsageError(
                f"stop is {params.stop_texts!r}, but there is no tokenizer to find it with; use stop_token_ids"
            )
        self.params, self.max_tokens = params, max_tokens
        self.eos_token_ids = set() if params.ignore_eos else set(eos_token_ids)
        self.end_ids = self.eos_token_ids | set(params.stop_token_ids)  # tokens that end the answer
        self._detokenizer = Detokenizer(tokenizer) if tokenizer else None
        self._held = ""  # text that may yet turn out to be the start of a stop text
        self._num_tokens = 0

    def push(self, token_ids: Sequence[int]) -> Kept:
        """Take the new tokens of one round."""
        text, num_kept = "", 0
        room = self.max_tokens - self._num_tokens
        if self._detokenizer is None and len(token_ids) < room and self.end_ids.isdisjoint(token_ids):
            self._num_tokens += len(token_ids)
            return Kept(len(token_ids), "", None, None)
        for token in token_ids:
            num_kept += 1
            self._num_tokens += 1
            may_stop = self._num_tokens >= self.params.min_tokens
            if may_stop and token in self.end_ids:
                reason = None if token in self.eos_token_ids else token
                return Kept(num_kept, text + self._rest(), "stop", reason)
            piece, stop = self._take(token, may_stop)
            text += piece
            if stop is not None:
                return Kept(num_kept, text, "stop", stop)
            if self._num_tokens == self.max_tokens:
                return Kept(num_kept, text + self._rest(), "length", None)
        return Kept(num_kept, text, None, None)

    def _take(self, token: int, may_stop: bool) -> tuple[str, str | None]:
        """The text that is certain after ``token``, and the stop text that it completes."""
        if self._detokenizer is None:
            return "", None
        piece = self._detokenizer.push(token)
        before, self._held = len(self._held), self._held + piece
        if piece and may_stop:
            # Only what ends in the new piece: earlier text was either searched or may not stop.
            ends = [
                (found + len(stop), -len(stop), stop)
                for stop in self.params.stop_texts
                if (found := self._held.find(stop, max(before - len(stop) + 1, 0))) >= 0
            ]
            if ends:
                end, length, stop = min(ends)
                return self._held[: end if self.params.include_stop_str_in_output else end + length], stop
        # What no stop text can begin in is certain.
        starts = [_start_len(self._held, stop) for stop in self.params.stop_texts]
        cut = len(self._held) - max(starts, default=0)
        certain, self._held = self._held[:cut], self._held[cut:]
        return certain, None

    def _rest(self) -> str:
        """The answer is over: what was held, and what is left of a character."""
        return self._held + (self._detokenizer.flush() if self._detokenizer else "")


def _start_len(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that ``stop`` begins with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)

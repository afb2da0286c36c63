"""One answer's text as its tokens come: whole characters, each token's own piece, and stop strings cut off."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from flashdraft.detokenizer import Decodes, Detokenizer
from flashdraft.sampler import TokenLogprobs


@dataclass(frozen=True)
class TokenPiece:
    """A token with the text that it completed (often "", where a character needs several tokens)."""

    token_id: int | None  # None: what was left of a character that never came whole
    text: str
    origin: (
        str  # "accepted": drafted and accepted; "bonus": the target's own after a draft; "plain": no draft
    )
    logprob: TokenLogprobs | None = None  # where asked for


class AnswerText:
    """Releases token pieces once no stop string can reach back into them."""

    def __init__(self, tokenizer: Decodes, stop_texts: Sequence[str]) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._stop_texts = stop_texts
        self._held: list[TokenPiece] = []
        self.is_stopped = False
        self.num_tokens = 0  # pushed, up to the one that completed a stop string

    def push(self, token_id: int, origin: str, logprob: TokenLogprobs | None = None) -> list[TokenPiece]:
        """Take one token; what may be shown now. Tokens after a stop string are ignored."""
        if self.is_stopped:
            return []
        self.num_tokens += 1
        return self._take(TokenPiece(token_id, self._detokenizer.push(token_id), origin, logprob))

    def flush(self) -> list[TokenPiece]:
        """The answer is over: what is still held, unfinished characters included."""
        shown: list[TokenPiece] = []
        if not self.is_stopped and (rest := self._detokenizer.flush()):
            shown = self._take(TokenPiece(None, rest, self._held[-1].origin if self._held else "plain"))
        shown, self._held = [*shown, *self._held], []
        return shown

    def _take(self, piece: TokenPiece) -> list[TokenPiece]:
        self._held.append(piece)
        if not self._stop_texts:
            return self._release(len(self._held))
        text = "".join(held.text for held in self._held)
        found = [at for stop in self._stop_texts if (at := text.find(stop)) >= 0]
        if found:
            self.is_stopped = True
            return self._cut(min(found))
        keep = len(text) - max(_start_len(text, stop) for stop in self._stop_texts)
        num_free = end = 0
        for held in self._held:
            end += len(held.text)
            if end > keep or (end == keep and not held.text):
                break
            num_free += 1
        return self._release(num_free)

    def _release(self, count: int) -> list[TokenPiece]:
        shown, self._held = self._held[:count], self._held[count:]
        return shown

    def _cut(self, text_len: int) -> list[TokenPiece]:
        shown = []
        for held in self._held:
            shown.append(replace(held, text=held.text[: max(text_len, 0)]))
            text_len -= len(held.text)
        self._held = []
        return shown


def _start_len(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that ``stop`` begins with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)

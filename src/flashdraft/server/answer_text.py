"""One answer's text shared out among its tokens, in whole characters. How far it goes says the engine."""

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
    """Gives each token its piece of the text that the engine has let go.

    The engine holds back what may become a stop text, and cuts it off: a token waits here for its text.
    """

    def __init__(self, tokenizer: Decodes) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._held: list[TokenPiece] = []
        self._room = 0  # characters that are let go and belong to no piece yet

    def push(self, token_id: int, origin: str, logprob: TokenLogprobs | None = None) -> None:
        """Take one token."""
        self._held.append(TokenPiece(token_id, self._detokenizer.push(token_id), origin, logprob))

    def release(self, text: str) -> list[TokenPiece]:
        """The pieces that the engine's new ``text`` makes whole."""
        self._room += len(text)
        num_free = 0
        for held in self._held:
            # A token without text of its own goes with the text behind it, which may never come.
            if len(held.text) > self._room or (not held.text and not self._room):
                break
            self._room -= len(held.text)
            num_free += 1
        shown, self._held = self._held[:num_free], self._held[num_free:]
        return shown

    def end(self, text: str) -> list[TokenPiece]:
        """The answer is over, with this last ``text``: every piece that is left, cut where the text ends."""
        self._room += len(text)
        if rest := self._detokenizer.flush():
            self._held.append(TokenPiece(None, rest, self._held[-1].origin if self._held else "plain"))
        shown = []
        for held in self._held:
            piece = replace(held, text=held.text[: self._room])
            self._room -= len(piece.text)
            if piece.token_id is not None or piece.text:
                shown.append(piece)
        self._held = []
        return shown

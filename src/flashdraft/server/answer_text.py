"""One answer's text shared out among its tokens, in whole characters. How far it goes says the engine."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from flashdraft.detokenizer import Decodes, Detokenizer
from flashdraft.engine.types import StepOutput
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


class AnswerPieces:
    """The pieces of an answer, step by step. They are made when somebody asks: most answers are told as text alone."""

    def __init__(self, tokenizer: Decodes) -> None:
        self._text = AnswerText(tokenizer)
        self._unread: list[StepOutput] = []
        self._pieces: list[TokenPiece] = []
        self._ends = [0]  # how many pieces there are before each step, and behind the last

    def take(self, step: StepOutput) -> int:
        """Its number."""
        self._unread.append(step)
        return len(self._ends) + len(self._unread) - 2

    def of_step(self, number: int) -> list[TokenPiece]:
        """What step ``number`` made whole."""
        return self.all()[self._ends[number] : self._ends[number + 1]]

    def all(self) -> list[TokenPiece]:
        """Those of all steps so far."""
        for step in self._unread:
            own = "bonus" if step.num_drafted else "plain"
            logprobs: Sequence[TokenLogprobs | None] = step.logprobs or [None] * len(step.token_ids)
            for idx, (token, logprob) in enumerate(zip(step.token_ids, logprobs, strict=True)):
                self._text.push(token, "accepted" if idx < step.num_accepted else own, logprob)
            self._pieces += self._text.end(step.text) if step.finished else self._text.release(step.text)
            self._ends.append(len(self._pieces))
        self._unread.clear()
        return self._pieces

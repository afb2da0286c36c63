"""One answer as it is decoded: pieces of text, each drafted and accepted or added by the target itself."""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from flashdraft.detokenizer import Decodes, Detokenizer

if TYPE_CHECKING:
    from flashdraft.answer import RoundEvent
    from flashdraft.spec_decode.metrics import RequestMetrics

ACCEPTED_STYLE = "green"
BONUS_STYLE = "bold yellow"
LEGEND = f"[{ACCEPTED_STYLE}]accepted draft tokens[/]   [{BONUS_STYLE}]bonus tokens, the target's own[/]"


@dataclass(frozen=True)
class Piece:
    """Some text of an answer. A character made of several tokens belongs to the last of them."""

    text: str
    is_accepted: bool  # drafted and accepted; else the target's own bonus or recovered token

    @property
    def style(self) -> str:
        """The colour that tells the two apart."""
        return ACCEPTED_STYLE if self.is_accepted else BONUS_STYLE


class AnswerStream:
    """Hears the rounds of one answer, hands on their text, and keeps the clock.

    Drawing is not decoding: the time that ``show`` takes is left out of :attr:`total_s`.
    """

    def __init__(self, tokenizer: Decodes, show: Callable[[list[Piece]], None]) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._show = show
        self._screen_s = 0.0
        self._stopped: float | None = None
        self._started = perf_counter()
        self.num_tokens = 0
        self._rounds: list[tuple[int, int]] = []  # tokens drafted and accepted, of all but the prefill

    def on_round(self, event: "RoundEvent") -> None:
        """Show the tokens of one verification."""
        paused = perf_counter()
        pieces = [
            Piece(text, idx < event.num_accepted)
            for idx, token in enumerate(event.token_ids)
            if (text := self._detokenizer.push(token))
        ]
        if self.num_tokens:
            self._rounds.append((event.num_drafted, event.num_accepted))
        self.num_tokens += len(event.token_ids)
        self._show(pieces)
        self._screen_s += perf_counter() - paused

    def finish(self) -> None:
        """The answer is over: stop the clock and show what still waits for the rest of a character."""
        self._stopped = perf_counter()
        if rest := self._detokenizer.flush():
            self._show([Piece(rest, False)])

    @property
    def metrics(self) -> "RequestMetrics":
        """What the answer cost so far in rounds, whether it was finished or not; without seconds."""
        from flashdraft.spec_decode.metrics import RequestMetrics

        longest = max((accepted for _, accepted in self._rounds), default=0)
        histogram = [0] * (longest + 1)
        for _, accepted in self._rounds:
            histogram[accepted] += 1
        return RequestMetrics(
            num_rounds=len(self._rounds),
            num_drafted=sum(drafted for drafted, _ in self._rounds),
            num_accepted=sum(accepted for _, accepted in self._rounds),
            num_output_tokens=self.num_tokens,
            num_requests=int(self.num_tokens > 0),
            accepted_histogram=histogram,
        )

    @property
    def total_s(self) -> float:
        """Seconds of the answer so far, end to end: prefill included, the screen left out."""
        return (self._stopped or perf_counter()) - self._started - self._screen_s

    @property
    def tokens_per_s(self) -> float:
        """Output tokens a second over :attr:`total_s`."""
        return self.num_tokens / self.total_s

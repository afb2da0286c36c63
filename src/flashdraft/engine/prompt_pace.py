"""Whose prompts a step computes, and how many tokens of them while others wait for their next token.

What a token of a prompt costs depends on the device, on the context behind it and on what is recorded, so it is not
foretold: the time from one block's tokens to the next is measured, and chunks grow or shrink until steps with them take
``slowdown`` times as long as those without. Knows seconds, but no clock. A decision by time changes which tokens share
a step, never a token.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from operator import attrgetter

from flashdraft.engine.request import Request

_FEWEST_TOKENS = 64  # of a step: with less memory than they take nothing runs
_TILE = 16  # tokens that a limited chunk is a multiple of, where none are recorded: few shapes, whole pages
_NUM_QUIET = 2  # steps without prompts: the faster one tells, for nothing makes a step faster than it is
_LOOK_EVERY = 64  # steps with prompts, until so many without are looked at anew: 2 % of the time
_MOST_CHANGE = 2.0  # from one chunk to the next: a step that something else disturbed halves it at most
_LEAST_SPEED = 1 / 4  # of prompts' own: where even short chunks take too long, they are no shorter than that


class PromptPace:
    """``most``: tokens of prompts in any step. ``slowdown``: of a step in which somebody decodes; None: no limit.

    ``lengths``: tokens that chunks are padded to, rising; between two of them a chunk costs what the longer one does.
    """

    def __init__(self, most: int, slowdown: float | None, lengths: Sequence[int] = ()) -> None:
        self.most, self.slowdown, self.lengths = most, slowdown, lengths
        self._fewest = lengths[0] if lengths else _TILE
        self._num_tokens = float(self._fewest)
        self._quiet: deque[float] = deque(maxlen=_NUM_QUIET)  # seconds
        self._since: float | None = None  # when the last blocks' tokens came
        self._have_started = False  # whether prompts did since then
        self._num_ended = 0  # tokens of prompts that ended since then
        self._num_busy = 0  # steps with prompts since the last without
        self._most_a_second = 0.0  # tokens of prompts in steps of their own
        self._is_firsts_turn = False
        self.most_prompts: int | None = None  # in any step; None: no limit

    @property
    def is_limited(self) -> bool:
        """Whether a step in which somebody decodes is limited."""
        return self.slowdown is not None

    @property
    def tokens(self) -> int:
        """Of prompts in the next step, in which somebody decodes; 0: it is to show what a step takes without."""
        if self.slowdown is None:
            return self.most
        if len(self._quiet) < _NUM_QUIET:
            return 0
        return min(self._nearest(self._num_tokens), self.most)

    def shorten(self, num_tokens: int, num_prompts: int) -> bool:
        """Prompts of ``num_tokens`` in a step did not fit the device: no more than half from now on.

        Of the fewest tokens no more than half the prompts, until a step has none. False where it was one.
        """
        if num_tokens > _FEWEST_TOKENS:
            self.most = min(self.most, max(num_tokens // 2, _FEWEST_TOKENS))
            return True
        self.most_prompts = max(num_prompts // 2, 1)
        return num_prompts > 1

    def in_turns(self, lefts: Mapping[Request, int]) -> list[Request]:
        """The order of a step's prompts, of which so many tokens are left: the first come or the shortest others.

        In turns, so that a step has few rows: the first come has every second step, and no short one waits for it.
        """
        prompts = sorted(lefts, key=attrgetter("rank"))
        if len(prompts) < 2:
            return prompts
        self._is_firsts_turn = not self._is_firsts_turn
        others = sorted(prompts[1:], key=lambda request: (request.priority, lefts[request]))
        return [prompts[0], *others] if self._is_firsts_turn else [*others, prompts[0]]

    def prompts_ran(self, have_started: bool, num_ended: int, alone_s: float | None = None) -> None:
        """Of a step: whether prompts were started, how many tokens ended; ``alone_s``: it had nothing but them."""
        self._have_started |= have_started
        self._num_ended += num_ended
        if not have_started:
            self.most_prompts = None
        if alone_s:
            self._most_a_second = max(self._most_a_second, num_ended / alone_s)

    def blocks_ran(self, now: float | None) -> None:
        """Blocks' tokens came at ``now``, seconds; None: of a step that brought none."""
        if now is not None and self._since is not None:
            self._learn(now - self._since)
        self._since, self._have_started, self._num_ended = now, False, 0

    def _learn(self, seconds: float) -> None:
        """From some blocks' tokens to the next it took ``seconds``."""
        if not (self._have_started or self._num_ended):
            self._quiet.append(seconds)
            self._num_busy = 0
            return
        self._num_busy += 1
        if self._num_busy == _LOOK_EVERY:
            self._quiet.clear()
        if not self._num_ended or not self._quiet or self.slowdown is None:
            return
        quiet_s, ended = min(self._quiet), self._num_ended
        prompts_s = max(seconds - quiet_s, 1e-9)
        fits = ended * (self.slowdown - 1) * quiet_s / prompts_s
        fits = max(fits, self._most_a_second * _LEAST_SPEED * prompts_s)
        fits = min(max(fits, ended / _MOST_CHANGE), ended * _MOST_CHANGE)
        # A step with fewer tokens than there might have been tells nothing of more of them, but that they fit.
        if fits < ended or fits > self._num_tokens:
            self._num_tokens = min(max(fits, float(self._fewest)), float(self.most))

    def _nearest(self, num_tokens: float) -> int:
        """The length nearest to ``num_tokens``, beyond those that are recorded a multiple of the shortest."""
        if self.lengths and num_tokens <= self.lengths[-1]:
            return min(self.lengths, key=lambda length: abs(length - num_tokens))
        return round(num_tokens / self._fewest) * self._fewest

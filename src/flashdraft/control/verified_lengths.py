"""How many tokens of drafts that are there are worth verifying, where a second is worth so many tokens (``rate``).

``worth``: of each draft the chances that a token and all before it are accepted, less the token's own cost; they fall
along a draft. In lists: every step does it (acceptance.py).
"""

from collections.abc import Sequence
from math import inf


def ragged_lengths(
    worth: Sequence[Sequence[float]], num_others: int, seconds: Sequence[float], rate: float
) -> list[int]:
    """For a forward without padding: it takes ``seconds[n - 1]`` for n tokens, ``num_others`` of them anyway."""
    every = sorted((one for row in worth for one in row if one > 0), reverse=True)
    best, price, gained = -rate * seconds[num_others - 1], inf, 0.0
    for count, one in enumerate(every[: len(seconds) - num_others]):
        gained += one
        value = gained - rate * seconds[num_others + count]
        if value > best:
            best, price = value, one
    return [sum(one >= price for one in row) for row in worth]


def padded_lengths(
    worth: Sequence[Sequence[float]], width: int, seconds: Sequence[float], rate: float
) -> list[int]:
    """For one as wide as its longest row: it takes ``seconds[n - 1]`` if that is n, and others' rows have ``width``."""
    best, last, gained = -rate * seconds[width - 1], 0, 0.0
    for column in range(max(map(len, worth), default=0)):
        gained += sum(max(row[column], 0.0) for row in worth if column < len(row))
        value = gained - rate * seconds[max(column + 2, width) - 1]
        if value > best:
            best, last = value, column + 1
    return [sum(one > 0 for one in row[:last]) for row in worth]

"""Where a drafter's drafts are rejected: in which slot, how far into an answer, at which kind of token.

And the anchors to train on again: those whose drafts get less accepted than is usual.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from flashdraft.data.loader import PackedRows
from flashdraft.models.base import TargetModel
from flashdraft.train.forward import Network
from flashdraft.train.simulate import Walk, accepted_at_anchors, answers_of

PLACES = (32, 128)  # tokens into the answer at which "start", "middle" and "rest" part
_BLOCKS_PER_FORWARD = 128


@dataclass(frozen=True)
class Count:
    """Of the rounds of simulated serving: drafted tokens that were looked at, and those that were rejected."""

    seen: int
    lost: int

    @property
    def rate(self) -> float:
        """Share that was rejected."""
        return self.lost / max(self.seen, 1)


Counts = dict[str, Count]


@dataclass(frozen=True)
class Lost:
    """Where drafts are rejected. A round looks at its draft up to the first rejected token."""

    by_slot: Counts  # slot 1 follows the anchor
    by_place: Counts
    by_kind: Counts


def accepted_of(
    target: TargetModel, drafter: Network, rows: PackedRows, max_seconds: float = float("inf")
) -> torch.Tensor:
    """Draft tokens that are accepted at each anchor of ``rows``, row by row; see :func:`accepted_at_anchors`.

    After ``max_seconds`` no further row begins: what is found are the first of them, one at least.
    """
    size, started = drafter.config.block_size, time.perf_counter()
    parts: list[torch.Tensor] = []
    while len(parts) < len(rows) and (not parts or time.perf_counter() - started < max_seconds):
        row = rows.rows(slice(len(parts), len(parts) + 1))
        parts.append(accepted_at_anchors(target, drafter, row, size, _BLOCKS_PER_FORWARD))
    return torch.cat(parts)


def where_lost(
    rows: PackedRows, walks: Sequence[Walk], block_size: int, kind_of: Callable[[int], str]
) -> Lost:
    """What the rounds of serving every document of ``rows`` lose; ``kind_of`` a token id.

    ``walks``: these rounds, in the order of the rows' answers.
    """
    tables: tuple[dict[str, list[int]], ...] = ({}, {}, {})
    rights = iter([count for one in walks for count in one.num_right])
    for tokens, anchors in zip(rows.token_ids.tolist(), rows.is_anchor.tolist(), strict=True):
        for begin, end in answers_of(anchors):
            anchor = begin
            while anchor < end:
                right, drafted = next(rights), min(block_size - 1, end - anchor)
                for slot in range(1, min(right + 1, drafted) + 1):
                    is_lost, place = slot > right, anchor + slot - begin
                    where = "start" if place < PLACES[0] else "middle" if place < PLACES[1] else "rest"
                    names = f"slot {slot}", where, kind_of(tokens[anchor + slot])
                    for counts, name in zip(tables, names, strict=True):
                        seen = counts.setdefault(name, [0, 0])
                        seen[0] += 1
                        seen[1] += is_lost
                anchor += min(right, end - anchor - 1) + 1
    by_slot, by_place, by_kind = ({name: Count(*two) for name, two in counts.items()} for counts in tables)
    return Lost(by_slot, by_place, by_kind)


def token_kinds(tokenizer: Any) -> Callable[[int], str]:
    """What kind of text a token id is: a word's start or a part of one, a number, space, a mark, an end."""
    known: dict[int, str] = {}
    special = set(tokenizer.all_special_ids)

    def kind_of(token: int) -> str:
        if token not in known:
            known[token] = "end" if token in special else _kind(tokenizer.decode([token]))
        return known[token]

    return kind_of


def _kind(text: str) -> str:
    bare = text.strip()
    if not bare:
        return "space"
    if any(letter.isdigit() for letter in bare):
        return "number"
    if any(letter.isalpha() for letter in bare):
        return "word" if text[0].isspace() else "word part"
    return "mark"


def with_replay(rows: PackedRows, accepted: torch.Tensor) -> PackedRows:
    """``rows``, and once more with those anchors alone that get less accepted than the mean: half of the steps.

    ``accepted`` may end before the rows do, as :func:`accepted_of` does; what is behind its end is not there twice.
    """
    is_anchor, num_looked = rows.is_anchor[: len(accepted)], len(accepted)
    mean = accepted[is_anchor].float().mean()
    hard = is_anchor & (accepted < mean)
    kept = hard.any(-1)
    return PackedRows(
        torch.cat([rows.token_ids, rows.token_ids[:num_looked][kept]]),
        torch.cat([rows.doc_start, rows.doc_start[:num_looked][kept]]),
        torch.cat([rows.is_anchor, hard[kept]]),
    )

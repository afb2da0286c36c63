"""What a tuning is: how long, what it mixes, what it measures."""

from dataclasses import dataclass, field
from typing import Any

from flashdraft.train.config import TILE, above_zero, at_least, check_fields


def _described(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TuneConfig:
    """Settings of one tuning. Raises UsageError for a value out of range."""

    max_minutes: float = _described(10.0, "Answers, training and both measurements end by then.")
    held_back: float = _described(0.2, "Share of the requests that measures and is not trained on.")
    max_measured: int = _described(64, "Most held-back requests that are measured.")
    general_share: float = _described(0.25, "Share of the tokens that comes from --general.")
    max_blocks: int = _described(10_000_000, "Blocks to train on, where the time does not end it before.")
    max_new_tokens: int = _described(256, "The longest answer, of those to be made.")
    answer_rows: int = _described(16, "Answers made at a time.")
    max_len: int = _described(1024, "Longer texts are cut there (tokens).")
    blocks_per_step: int = _described(128, "Anchors drawn in a step, from one row of texts.")
    lr: float = _described(5e-4, "Peak learning rate.")
    seed: int = _described(0, "Of rows and anchors.")

    def __post_init__(self) -> None:
        checks = (
            *above_zero(self, "max_minutes", "lr"),
            *at_least(self, 1, "max_blocks", "answer_rows", "blocks_per_step"),
            (self.max_new_tokens >= 2, "max_new_tokens", "2 or more (an anchor and what is drafted)"),
            (0 < self.held_back < 1, "held_back", "a share between 0 and 1"),
            (0 <= self.general_share < 1, "general_share", "a share from 0, below 1"),
            *at_least(self, 2, "max_measured"),
            (self.max_len >= TILE and self.max_len % TILE == 0, "max_len", f"a multiple of {TILE}"),
        )
        check_fields(self, checks)

"""What a training run is: saved beside its checkpoints and compared when it resumes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from flashdraft.errors import UsageError

Check = tuple[bool, str, str]  # whether a field's value is fine, the field, what is expected of it

TILE = 128  # of the attention's masks
METHODS = ("dflash", "mtp")
HEADS = ("dflash", "dflash2")
MISSING = ("inject", "skip")
WEIGHTINGS = ("decay", "dpace")


def _described(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


def check_fields(config: Any, checks: Sequence[Check]) -> None:
    """Raise UsageError for the first field of ``config`` whose value is not fine."""
    for is_fine, name, expected in checks:
        if not is_fine:
            raise UsageError(f"{name} is {getattr(config, name)}; expected {expected}")


def at_least(config: Any, least: float, *names: str) -> list[Check]:
    """Checks that these fields of ``config`` are no less, and numbers at all."""
    return [(getattr(config, name) >= least, name, f"{least} or more") for name in names]


def above_zero(config: Any, *names: str) -> list[Check]:
    """Checks that these fields of ``config`` are more than nothing, and numbers at all."""
    return [(getattr(config, name) > 0, name, "more than 0") for name in names]


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one run. Raises UsageError for values that do not go together."""

    method: Literal["dflash", "mtp"] = field(
        default="dflash", metadata={"help": "dflash, or mtp: a head that drafts token by token."}
    )
    head: Literal["dflash", "dflash2"] = field(
        default="dflash",
        metadata={"help": "dflash, or dflash2: with convolutions, and a selector of --selector-rank."},
    )
    conv_group_size: int = _described(16, "DFlash 2: channels that share a kernel of its convolutions.")
    selector_rank: int = _described(64, "DFlash 2: rank of its candidate selector; 0: none.")
    selector_top_k: int = _described(16, "DFlash 2: candidates of a slot.")
    selector_projects_head: bool = _described(
        False, "DFlash 2: its codebooks are projections of the target's head, not tables of their own."
    )
    selector_loss: float = _described(1.0, "DFlash 2: weight of the selector's loss.")
    selector_missing: Literal["inject", "skip"] = field(
        default="inject",
        metadata={
            "help": "DFlash 2: a token outside a slot's candidates takes the last one's place (inject), or is left out"
            " (skip)."
        },
    )
    selector_stops: bool = _described(False, "DFlash 2: the selector's loss leaves the layers alone.")
    num_layers: int = _described(5, "Layers of a DFlash drafter; an MTP head has one.")
    num_features: int = _described(5, "Target layers that DFlash is conditioned on, evenly spaced.")
    block_size: int = _described(16, "Tokens of a block, anchor included.")
    intermediate_size: int | None = _described(None, "Width of its MLP.  [default: the target's]")
    mask_token_id: int | None = _described(None, "Token for MASK.  [default: a spare special token]")
    seq_len: int = _described(1024, "Tokens of a packed row.")
    rows_per_step: int = _described(4, "Packed rows in a step, of all processes together.")
    accumulate: int = _described(1, "Parts of a process's rows of a step; dpace forwards twice.")
    blocks_per_row: int = _described(64, "Anchors drawn in a row.")
    slots_per_block: float = _described(4.0, "Slots whose loss is computed, drawn by --weighting.")
    weighting: Literal["decay", "dpace"] = field(
        default="dpace",
        metadata={
            "help": "How the loss weighs a block's slots: by the drafter's confidence (dpace), or by place."
        },
    )
    gamma: float = _described(4.0, "Decay: weights fall by exp(-1 / gamma) a slot.")
    dpace_alpha: float = _described(0.5, "D-PACE: smoothing of the drafter's confidence, 0 to 1.")
    dpace_power: float = _described(
        0.0, "D-PACE: blocks weigh by expected acceptance length to minus this; 2: the fewest rounds."
    )
    distill: float = _described(0.0, "Share of the loss against the target's distribution, not its token.")
    optimizer: Literal["muon", "adamw"] = field(
        default="muon", metadata={"help": "Muon for matrices, or AdamW for all."}
    )
    lr: float = _described(2e-3, "Peak learning rate.")
    warmup: float = _described(0.02, "Share of the run in which it rises.")
    final_lr: float = _described(0.02, "Share of the peak at the end of the cosine.")
    weight_decay: float = _described(0.01, "Weight decay of the matrices.")
    recompute: bool = _described(False, "Compute layers' activations twice instead of keeping them.")
    shard_target: bool = _described(True, "Of several processes each holds a part of the target (FSDP2).")
    grad_clip: float = _described(1.0, "Largest gradient norm.")
    total_blocks: int = _described(2_000_000, "Blocks to train on.")
    max_minutes: float = _described(
        0.0,
        "Of steps alone: the answers before, evaluations and a last step come on top. The schedule adapts (resuming is"
        " no longer exact); 0: no limit.",
    )
    eval_minutes: float = _described(10.0, "Between evaluations.")
    checkpoint_minutes: float = _described(10.0, "Between saved states.")
    validation_documents: int = _described(256, "Held-back answers that are evaluated.")
    served_prompts: int = _described(6, "Of their prompts so many are also served, as a check; 0: none.")
    seed: int = _described(0, "Of weights, rows and anchors.")

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UsageError(f"method is {self.method!r}; expected one of {', '.join(METHODS)}")
        if self.head not in HEADS or (self.head == "dflash2" and self.method == "mtp"):
            raise UsageError(f"head is {self.head!r}; expected dflash, or dflash2 with method dflash")
        if self.selector_missing not in MISSING:
            raise UsageError(
                f"selector_missing is {self.selector_missing!r}; expected {' or '.join(MISSING)}"
            )
        if self.weighting not in WEIGHTINGS:
            raise UsageError(f"weighting is {self.weighting!r}; expected one of {', '.join(WEIGHTINGS)}")
        check_fields(self, self._ranges())
        if self.recompute and self.method == "mtp":
            raise UsageError(
                "recompute is for the layers of a DFlash drafter; expected it off for an MTP head"
            )
        if self.rows_per_step % self.accumulate:
            raise UsageError(
                f"accumulate is {self.accumulate}; expected a divisor of rows_per_step ({self.rows_per_step})"
            )
        slots = self.blocks_per_row * self.block_size
        if slots % TILE or self.seq_len % TILE:
            raise UsageError(
                f"blocks_per_row * block_size is {slots} and seq_len {self.seq_len};"
                f" expected multiples of {TILE} (the attention tile)"
            )

    def _ranges(self) -> list[Check]:
        counts = (
            "num_layers", "num_features", "rows_per_step", "accumulate", "blocks_per_row", "total_blocks",
            "validation_documents", "conv_group_size", "selector_top_k",
        )  # fmt: skip
        amounts = "max_minutes", "eval_minutes", "checkpoint_minutes", "served_prompts"
        return [
            (self.block_size >= 2, "block_size", "2 or more (anchor and a draft token)"),
            *at_least(self, 1, *counts),
            *at_least(self, 0, *amounts, "selector_rank", "selector_loss", "weight_decay"),
            *above_zero(self, "seq_len", "gamma", "lr", "grad_clip"),
            (
                self.slots_per_block * self.rows_per_step * self.blocks_per_row >= 1,
                "slots_per_block",
                "enough for one slot in a step",
            ),
            *(
                (0 <= getattr(self, name) <= most, name, f"0 to {most}")
                for name, most in (("dpace_alpha", 1), ("distill", 1), ("dpace_power", 2), ("final_lr", 1))
            ),
            (0 <= self.warmup < 1, "warmup", "a share from 0, below 1"),
        ]

    def lr_factor(self, progress: float) -> float:
        """Share of ``lr`` at ``progress`` (0 to 1): linear warm-up, then cosine (paper, A.1)."""
        if progress < self.warmup:
            return max(progress / self.warmup, 1e-3)
        done = min((progress - self.warmup) / (1 - self.warmup), 1.0)
        return self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * done))

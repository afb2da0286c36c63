"""What a training run is: saved beside its checkpoints and compared when it resumes."""

import math
from dataclasses import dataclass

from flashdraft.errors import UsageError


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one run. Raises UsageError for values that do not go together."""

    num_layers: int = 5
    num_features: int = 5  # target layers, evenly spaced
    block_size: int = 16
    intermediate_size: int | None = None  # None: the target's
    mask_token_id: int | None = None  # None: the target's last special token
    seq_len: int = 1024  # tokens of a packed row
    rows_per_step: int = 16
    blocks_per_row: int = 256
    slots_per_block: float = 4.0  # slots whose loss is computed, drawn in proportion to the decay weights
    gamma: float = 4.0  # decay of the loss over the block's slots
    optimizer: str = "muon"
    lr: float = 2e-3
    warmup: float = 0.02  # share of the run
    final_lr: float = 0.02  # share of ``lr`` at the end of the cosine
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    total_blocks: int = 2_000_000
    max_minutes: float = 0.0  # > 0: the schedule ends by then at the latest; resuming is no longer exact
    eval_minutes: float = 10.0
    checkpoint_minutes: float = 10.0
    validation_documents: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if self.block_size < 2:
            raise UsageError(f"block_size is {self.block_size}; expected 2 or more (anchor and a draft token)")
        slots = self.blocks_per_row * self.block_size
        if slots % 128 or self.seq_len % 128:
            raise UsageError(
                f"blocks_per_row * block_size is {slots} and seq_len {self.seq_len};"
                " expected multiples of 128 (the attention tile)"
            )

    def lr_factor(self, progress: float) -> float:
        """Share of ``lr`` at ``progress`` (0 to 1): linear warm-up, then cosine (paper, A.1)."""
        if progress < self.warmup:
            return max(progress / self.warmup, 1e-3)
        done = min((progress - self.warmup) / (1 - self.warmup), 1.0)
        return self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * done))

"""A drafter as its config says it, and with one thing read otherwise: what accepts most tells what is wrong.

Every trial shares the drafter's weights and the target's own answers, so a trial costs one training forward.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from flashdraft.data.loader import PackedRows
from flashdraft.models.base import TargetModel
from flashdraft.models.dflash import DFlashModel
from flashdraft.models.dflash_config import DFlashConfig, one_dimensional
from flashdraft.train.simulate import simulate

_MAX_BLOCKS, _MAX_ROWS = (
    128,
    1 << 22,
)  # of a forward; the blocks' logits are a row of the vocabulary for every slot


IN_FLOAT16 = "in float16"


@dataclass(frozen=True)
class Trial:
    """One way to read a drafter, and what it accepts."""

    name: str
    fault: str  # what is wrong with the drafter where this way accepts more; empty: that is no fault of it
    config: DFlashConfig
    shifts_labels: bool = False
    dtype: torch.dtype | None = None  # what the network computes in; None: what the pair has
    margin: float = (
        1.1  # times the drafter's own acceptance length that this way must reach to be called right
    )
    acceptance_length: float = 0.0
    accepted_by_position: tuple[float, ...] = ()  # share of rounds that accept draft token i


class _ShiftedModel(DFlashModel):
    """The network read as if slot k predicted the token after its own position."""

    def forward(self, *arguments: Any, **named: Any) -> Tensor:
        """Each slot gets its left neighbour's output; a block's first is not used."""
        return super().forward(*arguments, **named).roll(1, dims=1)


class _TypedModel(DFlashModel):
    """The network computed in its weights' type, whatever the types around it."""

    def context(self, features: Tensor, positions: Tensor) -> list[tuple[Tensor, Tensor]]:
        """As of features in that type."""
        return super().context(features.to(self.fc.weight.dtype), positions)

    def forward(self, block: Tensor, *arguments: Any, **named: Any) -> Tensor:
        """Back in the type of ``block``."""
        return super().forward(block.to(self.fc.weight.dtype), *arguments, **named).to(block.dtype)


def trials_of(config: DFlashConfig, target_config: Any, mask_token_ids: Sequence[int]) -> Iterator[Trial]:
    """The drafter as it is, then each other reading that its config allows.

    ``mask_token_ids`` are other tokens that may stand for MASK.
    """
    yield Trial("as it is", "", config)
    for offset in (-1, 1):
        ids = tuple(layer + offset for layer in config.target_layer_ids)
        if min(ids) >= 0 and max(ids) < config.num_target_layers:
            fault = f"target_layer_ids are off by {-offset:+d}; set them to {list(ids)}"
            yield Trial(f"layer ids {offset:+d}", fault, replace(config, target_layer_ids=ids))
    for name, turned in _orders(config.target_layer_ids):
        fault = f"the features are in the wrong order; set target_layer_ids to {list(turned)}"
        yield Trial(name, fault, replace(config, target_layer_ids=turned))
    fault = "slot k predicts the token after its position (shift_label); train it to fill in its own, or convert it"
    yield Trial("labels shifted", fault, config, shifts_labels=True)
    for token_id in mask_token_ids:
        fault = f"mask_token_id is {config.mask_token_id}; set it to {token_id}"
        yield Trial(f"mask {token_id}", fault, replace(config, mask_token_id=token_id))
    theta, theirs = (
        config.rope_parameters.get("rope_theta"),
        one_dimensional(target_config.rope_parameters).get("rope_theta"),
    )
    if theta != theirs:
        fault = f"rope_theta is {theta}; set it to the target's {theirs}"
        rope = {**config.rope_parameters, "rope_theta": theirs}
        yield Trial(f"rope_theta {theirs}", fault, replace(config, rope_parameters=rope))
    yield from _rule_trials(config)
    if config.block_size >= 4:
        half = config.block_size // 2
        fault = f"block_size is {config.block_size}, larger than it was trained for; set it to {half}"
        yield Trial(f"block size {half}", fault, replace(config, block_size=half))


def _orders(ids: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    if len(ids) > 2:
        yield "features reversed", ids[::-1]
    for i, j in combinations(range(len(ids)), 2):
        swapped = list(ids)
        swapped[i], swapped[j] = ids[j], ids[i]
        yield f"features {i}, {j} swapped", tuple(swapped)


def type_trials(config: DFlashConfig, dtype: torch.dtype) -> Iterator[Trial]:
    """The drafter computed in another type than ``dtype``, its target's.

    In float32: is it 16-bit activations that it cannot bear? In float16: other engines take that type of a target in
    float16, and activations of drafters that were trained in bfloat16 may leave its range. That is no fault.
    """
    if dtype != torch.float16:
        yield Trial(IN_FLOAT16, "", config, dtype=torch.float16)
    if dtype != torch.float32:
        name = str(dtype).removeprefix("torch.")
        fault = (
            f"the drafter does not bear {name} activations, as quantized drafters often do not; serve it in float32,"
            " or make it again from its unquantized weights"
        )
        yield Trial("in float32", fault, config, dtype=torch.float32)


def _rule_trials(config: DFlashConfig) -> Iterator[Trial]:
    if config.layer_types is None:
        return
    other = not config.window_from_anchor
    where = "the anchor" if other else "the slot"
    fault = f"the sliding window counts from {where}; set window_from_anchor to {str(other).lower()}"
    yield Trial(f"window from {where}", fault, replace(config, window_from_anchor=other))
    assert config.sliding_window is not None
    for offset in (-1, 1):
        window = config.sliding_window + offset
        fault = f"sliding_window is off by {-offset:+d}; set it to {window}"
        yield Trial(f"window {offset:+d}", fault, replace(config, sliding_window=max(window, 1)))
    is_causal = False if config.is_causal is None else None
    fault = f"causality in the block is wrong; set is_causal to {'false' if is_causal is False else 'null'}"
    yield Trial(f"is_causal {is_causal}", fault, replace(config, is_causal=is_causal))


def measure(target: TargetModel, drafter: DFlashModel, rows: PackedRows, trial: Trial) -> Trial:
    """``trial`` with what it accepts on the answers in ``rows``."""
    with torch.device("meta"):
        kind = _TypedModel if trial.dtype else _ShiftedModel if trial.shifts_labels else DFlashModel
        model = kind(trial.config)
    model.load_state_dict(drafter.state_dict(), assign=True)
    if trial.dtype:
        model.to(trial.dtype)
    block_size = trial.config.block_size
    num_blocks = min(_MAX_BLOCKS, max(8, _MAX_ROWS // target.config.vocab_size))
    walked = simulate(target, model.eval(), rows, block_size, 1, num_blocks)
    num_rounds = max(len(walked.num_accepted), 1)
    by_position = tuple(
        sum(accepted > i for accepted in walked.num_accepted) / num_rounds for i in range(block_size - 1)
    )
    return replace(trial, acceptance_length=walked.acceptance_length, accepted_by_position=by_position)

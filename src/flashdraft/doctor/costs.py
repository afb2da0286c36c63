"""What drafting costs on this machine, and from which acceptance length on it pays, at each concurrency."""

from collections.abc import Sequence
from dataclasses import dataclass

from flashdraft.control.step_costs import StepCosts
from flashdraft.engine.engine import Engine
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.engine.step_timing import measure_costs
from flashdraft.models.base import TargetModel
from flashdraft.models.dflash import DFlashModel
from flashdraft.spec_decode.dflash import DFlashDrafter

CONCURRENCIES = (1, 2, 4, 8)


@dataclass(frozen=True)
class Cost:
    """Steps of ``concurrency`` requests, whole blocks drafted."""

    concurrency: int
    plain_s: float  # one token of each request
    round_s: float  # draft and verification of a whole block of each
    break_even: float  # acceptance length at which a whole block gains what it costs
    best_block: (
        int  # tokens to verify, anchor included, for the most tokens a second; 1: plain decoding is faster
    )
    speedup: float  # over plain decoding, with that block


def step_costs(target: TargetModel, drafter: DFlashModel) -> StepCosts:
    """Measured with the engine's own forwards. Raises UsageError for targets that it does not take."""
    config = EngineConfig(max_running=max(CONCURRENCIES))
    engine = Engine(target, DFlashDrafter(drafter, target), config=config)
    return measure_costs(engine.runner, drafter.config.block_size, max(CONCURRENCIES), is_thorough=True)


def judge_costs(costs: StepCosts, block_size: int, accepted_by_position: Sequence[float]) -> list[Cost]:
    """Break-even and the best block for each concurrency.

    A verified block of b tokens brings 1 + the accepted shares of its b - 1 drafts; the draft is always whole.
    """
    found = []
    for num in CONCURRENCIES:
        plain_s = _seconds(costs, num, 1, 0)
        round_s = _seconds(costs, num, block_size, block_size)
        rates = {1: 1 / plain_s}
        for verified in range(2, block_size + 1):
            gained = 1 + sum(accepted_by_position[: verified - 1])
            rates[verified] = gained / _seconds(costs, num, verified, block_size)
        best = max(rates, key=lambda verified: rates[verified])
        found.append(Cost(num, plain_s, round_s, round_s / plain_s, best, rates[best] * plain_s))
    return found


def _seconds(costs: StepCosts, num_rows: int, verified: int, drafted: int) -> float:
    draft_s = float(costs.draft_seconds(num_rows, drafted)) if drafted else 0.0
    return draft_s + float(costs.verify(num_rows, num_rows * verified))

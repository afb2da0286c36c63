"""What each constant of the controller is worth: moved to half and to twice what it is, or as far as it goes.

    python benchmarks/controller_constants.py --out benchmarks/results/controller/constants.json
    python benchmarks/controller_constants.py --costs benchmarks/results/controller/costs_recorded.json --out ...

The replay of controller_ablation.py: nothing is timed. Constants of the costs and of learning them are moved where each
step cost was measured 30 % off, and steps that are seen 5 % off correct it, as often as in the engine; one in twenty
takes twice its time. Those of the start are moved where costs are what the engine's own timing finds on a clock that
these costs drive, on a busy machine: one work in ten takes twice its time. Printed is the share of the tokens a second
that is left. A row that is in the file is not run again.
"""

import argparse
import json
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import controller_ablation
import numpy as np
from controller_ablation import BLOCKS, FOLDER, Recording, Replay, read_costs

from flashdraft.control import step_costs
from flashdraft.control.config import DEFAULTS, ControllerConfig
from flashdraft.control.controller import Controller
from flashdraft.control.step_costs import StepCosts
from flashdraft.engine import block_control, kept_costs, step_timing
from flashdraft.engine.recorded_trees import FewTrees
from flashdraft.provenance import collect_provenance

CONFIG: dict[str, tuple[Any, ...]] = {
    "prices": ((0.015, 0.05, 0.12, 0.25), (0.06, 0.2, 0.5, 0.9)),
    "block_shares": ((1.0, 0.25), (0.5, 0.25)),
    "kept_draft": (0.5, 0.85),
    "kept_usual": (0.96, 0.99),
    "prior_rate": (0.5, 0.85),
    "probe_share": (0.0015, 0.006),
    "plan_steps": (2, 8),
    "recorded_plan_steps": (6, 24),
    "recorded_probe_steps": (1, 4),
    "most_confidence": (3.5, 14.0),
    "prior_weight": (2.5, 10.0),
    "prior_offset": (0.5, 2.0),
    "kept_calibration": (0.996, 0.999),
    "most_taught": (4, 16),
}
LEARNED: dict[str, tuple[Any, ...]] = {"learn_steps": (8, 32)}
COSTS: dict[str, tuple[Any, ...]] = {
    "_FIRST": (0.15, 0.6),
    "_NOISE": (0.025, 0.1),
    "_DRIFT": (0.0015, 0.006),
    "_PACE_DRIFT": (0.025, 0.1),
    "_KINSHIP": (1.5, 6.0),
    "_MOST_SLOWER": (0.35, 1.4),
    "_TAUGHT_BY": (1, 2, 8),
}
TIMED: dict[str, tuple[Any, ...]] = {
    "_TURNS": (1, 4),
    "_RECORDED_TURNS": (2, 8),
    "_MOST_TOKENS": (16, 64, 4096),
}
ROWS: dict[str, tuple[Any, ...]] = {"_MOST_ROWS": (1, 4, 16), "MOST_RECORDED_ROWS": (8, 16)}
TRIALS: dict[str, tuple[Any, ...]] = {"_PLAIN_TRIALS": (0, 2), "_DRAFT_TRIALS": (0, 6)}
TREES: dict[str, tuple[Any, ...]] = {"STEP_TREES": (FewTrees(2), FewTrees(8))}
# What the controller knows of costs: what they are, what they are but 30 % off, what is timed at the start.
KNOWN, MISJUDGED, STARTED = "known", "30 % off", "timed"
MOVED: tuple[tuple[Any, dict[str, tuple[Any, ...]], str], ...] = (
    (None, CONFIG, KNOWN),
    (controller_ablation, TREES, KNOWN),
    (None, LEARNED, MISJUDGED),
    (step_costs, COSTS, MISJUDGED),
    (step_timing, TIMED, STARTED),
    (block_control, ROWS, STARTED),
    (kept_costs, TRIALS, STARTED),
)
# Not in a replay, which has neither contexts nor rounds.
UNSEEN = ("_CONTEXTS", "_ROUNDS", "ROUND_TREES")
SPREAD, NOISE = 0.3, 0.05  # standard deviations of logarithms: of misjudged costs, of a step's seconds
DISTURBED = 0.05  # share of steps that take twice as long as such


class TaughtReplay(Replay):
    """A replay whose steps teach the controller what they cost."""

    drafted = False  # whether the last step had drafts

    def _seconds(self, num_rows: int, blocks: list[int], verified: list[int]) -> float:
        seconds = super()._seconds(num_rows, blocks, verified)
        every = self.method.config.learn_steps if isinstance(self.method, Controller) else 1
        is_due = self.num_steps < every or self.num_steps % every == 0 or bool(blocks) != self.drafted
        is_due, self.drafted = is_due or self.costs.is_recorded, bool(blocks)
        if isinstance(self.method, Controller) and is_due:
            num_tokens = num_rows + sum(verified)
            if not self.costs.is_ragged:
                num_tokens = num_rows * (1 + max(verified, default=0))
            block, told = max(blocks, default=1), self.method.costs
            draft_s = float(self.costs.draft_seconds(len(blocks), block))
            random = np.random.default_rng(self.num_steps)
            seen = np.exp(random.normal(0.0, NOISE, 2)) * (2 if random.random() < DISTURBED else 1)
            drafted = len(blocks), len(blocks) * block
            told.learn((num_rows, num_tokens), (seconds - draft_s) * seen[0], drafted, draft_s * seen[1])
        return seconds


def misjudged(costs: StepCosts, seed: int) -> StepCosts:
    """``costs`` as a bad measurement has them."""
    made, random = deepcopy(costs), np.random.default_rng(2 + seed)
    for part in (made.verify, made.draft):
        part.scale(np.exp(random.normal(0.0, SPREAD, len(part.places))))
    return made


class Timed:
    """What ``step_timing`` times, on a clock that ``costs`` drive: 10 % off, twice as long for one in ten.

    What is run for the first time takes three times as long.
    """

    def __init__(self, costs: StepCosts, host_row_s: float, seed: int) -> None:
        self.costs, self.host_row_s, self.random = costs, host_row_s, np.random.default_rng(seed)
        self.now, self.met = 0.0, set[tuple[str, int, int]]()
        self.rows, self.drafter = list[Any](), None

    def verify(self, num_rows: int, width: int) -> None:
        """A forward of the target."""
        seconds = float(self.costs.verify(num_rows, num_rows * width)) + self.host_row_s * num_rows
        self._pass(("verify", num_rows, width), seconds)

    def draft(self, num_rows: int, block: int) -> None:
        """Drafts."""
        self._pass(("draft", num_rows, block), float(self.costs.draft_seconds(num_rows, block)))

    def _pass(self, what: tuple[str, int, int], seconds: float) -> None:
        slower = (2 if self.random.random() < 0.1 else 1) * (1 if what in self.met else 3)
        self.met.add(what)
        self.now += seconds * slower * float(np.exp(self.random.normal(0.0, 0.1)))


def started(costs: StepCosts, host_row_s: float, seed: int, num_rows: int) -> StepCosts:
    """What an engine of ``num_rows`` requests knows of ``costs`` when it starts."""
    timed = Timed(costs, host_row_s, seed)
    most = block_control.MOST_RECORDED_ROWS if costs.is_recorded else block_control._MOST_ROWS
    timed.rows = [None] * (min(num_rows, most) if costs.is_recorded else most)
    backend = SimpleNamespace(is_recorded=costs.is_recorded, is_ragged=costs.is_ragged)
    runner: Any = SimpleNamespace(
        backend=backend, drafts_in_rounds=False, target=SimpleNamespace(threads=nullcontext)
    )
    timed.drafter = SimpleNamespace(leave=lambda _: None)  # type: ignore[assignment]
    with mock.patch.multiple(step_timing, _Steps=lambda *_: timed, perf_counter=lambda: timed.now):
        made = step_timing.measure_costs(runner, max(BLOCKS), len(timed.rows))
    if not costs.is_recorded:
        made.plain_trials, made.draft_trials = kept_costs._PLAIN_TRIALS, kept_costs._DRAFT_TRIALS
    return made


def options() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32], help="requests at a time")
    parser.add_argument("--orders", type=int, default=3, help="of the answers")
    parser.add_argument("--drafts", type=Path, default=FOLDER / "drafts.npz")
    parser.add_argument("--costs", type=Path, default=FOLDER / "costs.json")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    """Replay with each constant moved, print and write."""
    assert {*CONFIG, *LEARNED} == {field.name for field in fields(ControllerConfig)}, "each constant is moved"
    args = options()
    recording, (costs, host_row_s) = Recording(args.drafts), read_costs(args.costs)
    orders = recording.orders(2 * args.orders)

    def rate(config: ControllerConfig, knows: str, rows: int, seed: int) -> float:
        """Tokens a second of ``rows`` requests at a time."""
        known = deepcopy(costs)
        if knows != KNOWN:
            known = misjudged(costs, seed) if knows == MISJUDGED else started(costs, host_row_s, seed, rows)
        kind = Replay if knows == KNOWN else TaughtReplay
        controller = Controller(max(BLOCKS), known, config)
        return kind(recording, costs, host_row_s, controller).rate(rows, orders[seed])

    def rates(config: ControllerConfig, knows: str) -> list[float]:
        """For each number of requests; of one, whose answers come one by one, more orders."""
        num_orders = {rows: args.orders * (2 if rows == 1 else 1) for rows in args.rows}
        return [
            float(np.mean([rate(config, knows, rows, seed) for seed in range(num_orders[rows])]))
            for rows in args.rows
        ]

    told = json.loads(args.out.read_text()) if args.out.exists() else {"requests": args.rows, "rows": []}

    def tell(name: str, value: Any, config: ControllerConfig, knows: str) -> list[float]:
        row = next((one for one in told["rows"] if (one["constant"], one["is"]) == (name, str(value))), None)
        if row is None:
            row = {"constant": name, "is": str(value), "tokens_a_second": rates(config, knows)}
            told["rows"].append(row)
            told["provenance"] = collect_provenance()
            args.out.write_text(json.dumps(told, indent=1) + "\n")
        return list(row["tokens_a_second"])

    whole = {
        knows: tell("all as they are", f"costs: {knows}", DEFAULTS, knows)
        for knows in (KNOWN, MISJUDGED, STARTED)
    }
    for module, constants, knows in MOVED:
        for name, some in constants.items():
            for value in some:
                config = replace(DEFAULTS, **{name: value}) if module is None else DEFAULTS
                before = None if module is None else getattr(module, name)
                if module is not None:
                    setattr(module, name, value)
                moved = tell(name, value, config, knows)
                if module is not None:
                    setattr(module, name, before)
                left = (one / all_on for one, all_on in zip(moved, whole[knows], strict=True))
                print(
                    f"| `{name.strip('_')}` | {value} |" + "".join(f" {share:.3f} |" for share in left),
                    flush=True,
                )
    print("not seen by a replay:", *UNSEEN)


if __name__ == "__main__":
    main()

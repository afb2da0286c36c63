"""What each constant of the controller is worth: moved to half and to twice what it is, or as far as it goes.

    python benchmarks/controller_constants.py --out benchmarks/results/controller/constants.json
    python benchmarks/controller_constants.py --costs benchmarks/results/controller/costs_recorded.json --out ...

The replay of controller_ablation.py: nothing is timed. Constants of the costs and of learning them are moved where each
step cost was measured 30 % off, and steps that are seen 5 % off correct it, as often as in the engine. Printed is the
share of the tokens a second that is left. A row that is in the file is not run again.
"""

import argparse
import json
from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from controller_ablation import BLOCKS, FOLDER, Recording, Replay, read_costs

from flashdraft.control import step_costs
from flashdraft.control.config import DEFAULTS, ControllerConfig
from flashdraft.control.controller import Controller
from flashdraft.control.step_costs import StepCosts
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
    "most_confidence": (3.5, 14.0),
    "probe_plans": (8, 32),
    "prior_weight": (2.5, 10.0),
    "kept_calibration": (0.999, 0.99975),
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
}
# (module, its constants, whether costs are misjudged and learned)
MOVED: tuple[tuple[Any, dict[str, tuple[Any, ...]], bool], ...] = (
    (None, CONFIG, False),
    (None, LEARNED, True),
    (step_costs, COSTS, True),
)
# Not in a replay: which shapes are measured at the start, and when they are kept on disk.
UNSEEN = ("_MOST_ROWS", "MOST_RECORDED_ROWS", "_KEEP_EVERY")
MISJUDGED, NOISE = 0.3, 0.05  # standard deviations of logarithms


class TaughtReplay(Replay):
    """A replay whose steps teach the controller what they cost."""

    def _seconds(self, num_rows: int, blocks: list[int], verified: list[int]) -> float:
        seconds = super()._seconds(num_rows, blocks, verified)
        every = self.method.config.learn_steps if isinstance(self.method, Controller) else 1
        if isinstance(self.method, Controller) and (self.num_steps < every or self.num_steps % every == 0):
            num_tokens = num_rows + sum(verified)
            if not self.costs.is_ragged:
                num_tokens = num_rows * (1 + max(verified, default=0))
            block, told = max(blocks, default=1), self.method.costs
            draft_s = float(self.costs.draft_seconds(len(blocks), block))
            seen = np.exp(np.random.default_rng(self.num_steps).normal(0.0, NOISE, 2))
            drafted = len(blocks), len(blocks) * block
            told.learn((num_rows, num_tokens), (seconds - draft_s) * seen[0], drafted, draft_s * seen[1])
        return seconds


def misjudged(costs: StepCosts) -> StepCosts:
    """``costs`` as a bad measurement has them."""
    made, random = deepcopy(costs), np.random.default_rng(2)
    for part in (made.verify, made.draft):
        part.scale(np.exp(random.normal(0.0, MISJUDGED, len(part.places))))
    return made


def main() -> None:
    """Replay with each constant moved, print and write."""
    assert {*CONFIG, *LEARNED} == {field.name for field in fields(ControllerConfig)}, "each constant is moved"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32], help="requests at a time")
    parser.add_argument("--orders", type=int, default=3, help="of the answers")
    parser.add_argument("--drafts", type=Path, default=FOLDER / "drafts.npz")
    parser.add_argument("--costs", type=Path, default=FOLDER / "costs.json")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    recording, (costs, host_row_s) = Recording(args.drafts), read_costs(args.costs)
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(recording.lengths)).tolist() for _ in range(args.orders)]

    def rates(config: ControllerConfig, learns: bool) -> list[float]:
        """Tokens a second for each number of requests."""
        kind, known = (TaughtReplay, misjudged(costs)) if learns else (Replay, costs)
        found = []
        for rows in args.rows:
            replays = [
                kind(recording, costs, host_row_s, Controller(max(BLOCKS), deepcopy(known), config))
                for _ in orders[: 1 if rows == 1 else None]
            ]
            found.append(
                float(np.mean([one.rate(rows, order) for one, order in zip(replays, orders, strict=False)]))
            )
        return found

    told = json.loads(args.out.read_text()) if args.out.exists() else {"requests": args.rows, "rows": []}

    def tell(name: str, value: Any, config: ControllerConfig, learns: bool) -> list[float]:
        row = next((one for one in told["rows"] if (one["constant"], one["is"]) == (name, str(value))), None)
        if row is None:
            row = {"constant": name, "is": str(value), "tokens_a_second": rates(config, learns)}
            told["rows"].append(row)
            told["provenance"] = collect_provenance()
            args.out.write_text(json.dumps(told, indent=1) + "\n")
        return list(row["tokens_a_second"])

    whole = {
        learns: tell("all as they are", f"learns: {learns}", DEFAULTS, learns) for learns in (False, True)
    }
    for module, constants, learns in MOVED:
        for name, some in constants.items():
            for value in some:
                config = replace(DEFAULTS, **{name: value}) if module is None else DEFAULTS
                before = None if module is None else getattr(module, name)
                if module is not None:
                    setattr(module, name, value)
                moved = tell(name, value, config, learns)
                if module is not None:
                    setattr(module, name, before)
                left = (one / all_on for one, all_on in zip(moved, whole[learns], strict=True))
                print(
                    f"| `{name.strip('_')}` | {value} |" + "".join(f" {share:.3f} |" for share in left),
                    flush=True,
                )
    print("not seen by a replay:", *UNSEEN)


if __name__ == "__main__":
    main()

"""What each idea of the controller brings: the engine's steps replayed on recorded drafts, one idea off at a time.

    python benchmarks/controller_ablation.py run --out benchmarks/results/controller/ablation.json
    OMP_NUM_THREADS=1 python benchmarks/controller_ablation.py engine --out benchmarks/results/controller/engine.json

Drafts are those of controller_drafts.py: nothing is timed, step costs are those of a file, and two runs give the same
figures. ``engine`` has the real engine answer in turns instead, by one thread's own time: it is slower and rougher, and
shows what costs are worth that steps correct.
"""

import argparse
import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import thread_time
from typing import Any, NamedTuple

import numpy as np
import torch
from controller_drafts import BLOCKS, Recording

from flashdraft.admission import BlockSize
from flashdraft.bench import closed_loop
from flashdraft.bench.tasks import TASKS, load_task
from flashdraft.control import step_costs
from flashdraft.control.acceptance import Acceptance, Drafted
from flashdraft.control.config import DEFAULTS, ControllerConfig
from flashdraft.control.controller import Controller, Plan
from flashdraft.control.step_costs import Curve, ShapeTable, StepCosts
from flashdraft.engine import engine, step_timing
from flashdraft.engine.block_control import BlockControl
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.engine.step_timing import MOST_TREES
from flashdraft.llm import LLM
from flashdraft.provenance import collect_provenance
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.tree import DraftTree

FOLDER = Path("benchmarks/results/controller")
# Each idea, and the controller without it. A method is switched off by what stands in for it.
IDEAS: dict[str, dict[str, Any]] = {
    "all on": {},
    "trees": {"trees": False},
    "prices that a planned token has to be worth": {"prices": (0.0,)},
    "several prices": {"prices": (0.1,)},
    "several blocks": {"block_shares": (1.0,)},
    "the shortest of three blocks": {"block_shares": (1.0, 0.5)},
    "a request's own drafts": {"kept_draft": 1.0},
    "drafts before the last one": {"kept_draft": 0.0},
    "other requests' drafts": {"kept_usual": 1.0},
    "what confidence is worth is learned": {"prior_weight": 1e9},
    "selecting by confidence": {"selects": False},
    "probes": {"probe_plans": 0},
    "plans that last": {"plan_steps": 1},
    "deciding before the last step is known": {"ahead": False},
    "costs that were measured well (30 % off)": {"misjudged": 0.3, "corrects": True},
    "costs that were measured well, nor corrected": {"misjudged": 0.3},
}
# Each constant at half and at twice what it is, or as far away as it can be.
CONSTANTS: dict[str, tuple[Any, ...]] = {
    "prices": ((0.015, 0.05, 0.12, 0.25), (0.06, 0.2, 0.5, 0.9)),
    "block_shares": ((1.0, 0.25), (0.5, 0.25)),
    "kept_draft": (0.5, 0.85),
    "kept_usual": (0.96, 0.99),
    "prior_rate": (0.5, 0.85),
    "prior_weight": (2.5, 10.0),
    "kept_calibration": (0.999, 0.99975),
    "probe_plans": (8, 32),
    "probe_rate": (0.25, 0.9),
    "plan_steps": (2, 8),
    "recorded_plan_steps": (6, 24),
}
COSTS = {"FIRST": (0.15, 0.6), "NOISE": (0.025, 0.1), "DRIFT": (0.005, 0.02), "PACE_DRIFT": (0.025, 0.1)}
COSTS |= {"MOST_SURPRISE": (0.35, 1.4), "cost_steps": (2, 8)}
COST_DEFAULTS = {name: getattr(step_costs, name) for name in COSTS if name.isupper()}
MISJUDGED = "costs that were measured well (30 % off)"
IDEAS |= {f"{name} {value}": {name: value} for name, some in CONSTANTS.items() for value in some}
IDEAS |= {
    f"{MISJUDGED}, {name} {value}": {**IDEAS[MISJUDGED], name: value}
    for name, some in COSTS.items()
    for value in some
}
ENGINE_IDEAS: dict[str, dict[str, Any]] = {
    **{
        name: IDEAS[name]
        for name in ("all on", "trees", "several prices", "several blocks", "a request's own drafts")
    },
    **{name: IDEAS[name] for name in ("what confidence is worth is learned", "probes", "plans that last")},
    "drafts that tell how sure the drafter is": {"selects": False},
    "costs that steps correct": {"corrects": False},
}


class HostSeconds(NamedTuple):
    """What is added to a step and to each of its rows, and the controller does not know of."""

    step_s: float
    row_s: float
    verify_row_s: float
    draft_row_s: float


@dataclass(eq=False)
class Going:
    """An answer under way."""

    answer: int
    left: int  # tokens to come
    place: int = 0  # of its anchor
    state: Acceptance = field(default_factory=Acceptance)


class Replay:
    """``num_rows`` requests at a time, decoded on the recording: tokens a second by the file's step costs.

    ``method``: a block size, 1 for plain decoding, or a controller. ``ahead``: a step is planned before it is known
    what came of the last one, as where the host is a step behind the device. ``corrects``: steps tell the controller,
    5 % off, what they took.
    """

    def __init__(
        self, recording: Recording, costs: StepCosts, host: HostSeconds, method: int | Controller,
        is_tree: bool = True, selects: bool = True, ahead: bool = True, corrects: bool = False,
    ) -> None:  # fmt: skip
        self.recording, self.costs, self.host, self.method = recording, costs, host, method
        self.corrects, self._noise = corrects, np.random.default_rng(1)
        self.is_tree, self.selects, self.ahead = is_tree, selects, ahead
        self.plan_s, self.num_steps = 0.0, 0  # of the host, in planning and learning
        self._untold: list[Drafted] = []  # of the last step

    def rate(self, num_rows: int, order: Sequence[int]) -> float:
        """Tokens a second over the answers in ``order``."""
        lengths = self.recording.lengths
        waiting = [Going(answer, lengths[answer] - 1) for answer in order if lengths[answer] > 2]
        total, seconds = sum(one.left for one in waiting), 0.0
        running: list[Going] = []
        while waiting or running:
            running += [waiting.pop(0) for _ in range(min(num_rows - len(running), len(waiting)))]
            seconds += self._step(running)
            running = [one for one in running if one.left > 0]
        return total / seconds

    def _step(self, running: list[Going]) -> float:
        plan = self._plan(running)
        drafts = {}
        for one in running:
            length = self.method if isinstance(self.method, int) else plan.length(one.state) if plan else 1
            if length > 1 and one.left > 1:
                draft = self._draft(one, length, len(running)).up_to(one.left - 1)
                drafts[one] = Drafted(one.state, length, draft, len(draft))
        verified = [draft.num_tokens for draft in drafts.values()]
        if isinstance(self.method, Controller) and drafts and self.selects:
            verified = self.method.select(list(drafts.values()), [1] * (len(running) - len(drafts)))
        seen = []
        for (one, draft), count in zip(drafts.items(), verified, strict=True):
            path = self.recording.path(one.answer, one.place, draft.block, draft.draft.first(count))
            seen.append(draft._replace(num_verified=count, path=path))
            one.place, one.left = one.place + len(path) - 1, one.left - len(path) + 1
        for one in running:
            one.place, one.left = one.place + 1, one.left - 1
        self._untold += seen
        if not self.ahead:
            self._tell()
        self.num_steps += 1
        return self._seconds(len(running), [draft.block for draft in seen], verified)

    def _plan(self, running: list[Going]) -> Plan | None:
        if isinstance(self.method, int):
            return None
        started = thread_time()
        plan = self.method.plan({one.state: max(one.left, 1) for one in running})
        self.plan_s += thread_time() - started
        self._tell()
        return plan

    def _tell(self) -> None:
        assert isinstance(self.method, Controller)
        started = thread_time()
        if self._untold and self.method.listens:
            self.method.observe(self._untold)
        self._untold = []
        self.plan_s += thread_time() - started

    def _draft(self, one: Going, block: int, num_rows: int) -> DraftTree:
        size = 0
        if self.is_tree and isinstance(self.method, Controller):
            size = (block if num_rows <= MOST_TREES else 0) if self.costs.is_recorded else max(BLOCKS)
        return self.recording.draft(one.answer, one.place, block, size)

    def _seconds(self, num_rows: int, blocks: list[int], verified: list[int]) -> float:
        num_tokens = num_rows + sum(verified)
        if not self.costs.is_ragged:
            num_tokens = num_rows * (1 + max(verified, default=0))
        block = max(blocks, default=1)
        verify_s = float(self.costs.forward_seconds(num_rows, num_tokens)) + self.host.verify_row_s * num_rows
        draft_s = float(self.costs.draft_seconds(len(blocks), block)) + self.host.draft_row_s * len(blocks)
        if (
            self.corrects
            and isinstance(self.method, Controller)
            and self.num_steps % self.method.config.cost_steps == 0
        ):
            seen = np.exp(self._noise.normal(0.0, 0.05, 2)) * (verify_s, draft_s)
            drafted = len(blocks), len(blocks) * block
            self.method.costs.learn((num_rows, num_tokens), seen[0], drafted, seen[1])
        return self.host.step_s + self.host.row_s * num_rows + verify_s + draft_s


def controller_without(costs: StepCosts, off: dict[str, Any]) -> Controller:
    """One with ``off`` in place of its defaults."""
    names = ControllerConfig.__dataclass_fields__
    config = replace(DEFAULTS, **{name: value for name, value in off.items() if name in names})
    for name, value in COST_DEFAULTS.items():
        setattr(step_costs, name, off.get(name, value))
    made = Controller(max(BLOCKS), deepcopy(costs), config)
    for part in (made.costs.verify, made.costs.draft):
        part.variance = np.full_like(part.variance, step_costs.FIRST**2)
    if wrong := off.get("misjudged"):
        random = np.random.default_rng(2)
        for part in (made.costs.verify, made.costs.draft):
            part.scale(np.exp(random.normal(0.0, wrong, part.seconds.shape)))
    return made


def run(args: argparse.Namespace) -> None:
    """Print and write tokens a second with everything, and what share of it is left without each idea."""
    recording = Recording(args.drafts, args.spoiled)
    costs, host = read_costs(args.costs)
    rng = np.random.default_rng(0)
    orders = {
        rows: [
            rng.permutation(len(recording.lengths)).tolist() for _ in range(1 if rows == 1 else args.orders)
        ]
        for rows in args.rows
    }
    table: dict[str, dict[int, float]] = {}
    fixed = {f"block {block}": block for block in (1, 4, 8, 16)}
    for name in [*fixed, *(args.ideas or IDEAS)]:
        table[name], planned = {}, []
        off = IDEAS.get(name, {})
        switches = {key: off[key] for key in ("selects", "ahead", "corrects") if key in off}
        for rows, some in orders.items():
            rates, plan_s, num_steps = [], 0.0, 0
            for order in some:
                method = fixed[name] if name in fixed else controller_without(costs, off)
                replay = Replay(recording, costs, host, method, off.get("trees", True), **switches)
                rates.append(replay.rate(rows, order))
                plan_s, num_steps = plan_s + replay.plan_s, num_steps + replay.num_steps
            table[name][rows] = float(np.mean(rates))
            planned.append(1e6 * plan_s / num_steps)
        whole = table.get("all on", table[name])
        shares = "".join(f"{rate:9.1f} {rate / whole[rows]:6.3f}" for rows, rate in table[name].items())
        print(f"{name:46}{shares}   us a step:" + "".join(f"{one:6.0f}" for one in planned), flush=True)
    best = {rows: max(table[name][rows] for name in fixed) for rows in args.rows}
    print("all on / best block" + "".join(f"{table['all on'][rows] / best[rows]:9.3f}" for rows in args.rows))
    if args.out:
        told = {"tokens_a_second": table, "provenance": collect_provenance()}
        args.out.write_text(json.dumps(told, indent=1) + "\n")


def run_engine(args: argparse.Namespace) -> None:
    """The real engine, plain and with the controller whole and without one idea after the other, in turns."""
    torch.set_num_threads(1)
    for module in (closed_loop, engine, step_timing):
        module.perf_counter = thread_time  # type: ignore[attr-defined]
    llm = LLM()
    assert llm.drafter is not None
    prompts = [
        prompt
        for some in zip(*(load_task(task, args.prompts) for task in TASKS), strict=True)
        for prompt in some
    ]
    asked = [llm.chat_token_ids([{"role": "user", "content": one.turns[0]}]) for one in prompts]
    params = SamplingParams(temperature=0.0, max_tokens=args.max_tokens, ignore_eos=True)
    config = EngineConfig(max_running=args.rows, prefix_caching=False)
    engines: dict[str, tuple[engine.Engine, BlockSize]] = {}
    for name in ["block 1", "block 8", *(args.ideas or ENGINE_IDEAS)]:
        made = engine.Engine(llm.target, llm.drafter, config, llm.eos_token_ids)
        engines[name] = made, int(name[6:]) if name.startswith("block") else "auto"
        if engines[name][1] == "auto":
            without(made.control, ENGINE_IDEAS[name])
        closed_loop.answer_all(made, asked[:2], replace(params, max_tokens=8), engines[name][1], args.rows)
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(args.passes):
        for name, (made, block) in engines.items():
            started = thread_time()
            answers = closed_loop.answer_all(made, asked, params, block, args.rows)
            seconds[name].append(thread_time() - started)
            num_tokens = sum(len(one.token_ids) for one in answers)
            print(f"{name:46}{num_tokens / seconds[name][-1]:9.1f}", flush=True)
    rates = {name: num_tokens / min(some) for name, some in seconds.items()}
    for name, rate in rates.items():
        print(f"{name:46}{rate:9.1f} {rate / rates['all on']:6.3f}")
    if args.out:
        told = {"requests": args.rows, "tokens_a_second": rates, "provenance": collect_provenance()}
        args.out.write_text(json.dumps(told, indent=1) + "\n")


def without(control: BlockControl, off: dict[str, Any]) -> None:
    """Switch one idea of an engine's controller off."""
    measured = control.calibrate()
    control.controller = controller_without(measured.costs, off)
    control.draws_trees &= off.get("trees", True)
    control.trusts_drafter &= off.get("selects", True)
    if not off.get("corrects", True):
        control.controller.costs.learn = nothing_learned  # type: ignore[method-assign]


def nothing_learned(*_seconds: object) -> None:
    """Costs stay as they were measured."""


def read_costs(path: Path) -> tuple[StepCosts, HostSeconds]:
    """Step costs of a machine, without padding or recorded."""
    told = json.loads(path.read_text())
    rows_s = (told.get(name, 0.0) for name in ("host_row_s", "verify_row_s", "draft_row_s"))
    host = HostSeconds(told["host_s"], *rows_s)
    if "widths" in told:
        rows, blocks = told["rows"], [width for width in told["widths"] if width > 1]
        verify = ShapeTable(rows, told["widths"], told["verify_s"])
        return StepCosts(verify, ShapeTable(rows, blocks, told["draft_s"])), host
    curves = (Curve(told[name]["n"], told[name]["s"]) for name in ("verify", "draft"))
    return StepCosts(*curves, is_ragged=not told.get("is_padded")), host


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True)
    runner, timer = (verbs.add_parser(name) for name in ("run", "engine"))
    runner.set_defaults(verb=run)
    runner.add_argument("--rows", type=int, nargs="+", default=[1, 8, 16, 32], help="requests at a time")
    runner.add_argument("--orders", type=int, default=6, help="of the answers")
    runner.add_argument("--drafts", type=Path, default=FOLDER / "drafts.npz")
    runner.add_argument("--costs", type=Path, default=FOLDER / "costs.json")
    runner.add_argument(
        "--spoiled", type=float, default=0.0, help="share of right draft tokens that are made wrong"
    )
    runner.add_argument("--ideas", nargs="+", help="some of them; 'all on' first")
    runner.add_argument("--out", type=Path)
    timer.set_defaults(verb=run_engine)
    timer.add_argument("--rows", type=int, default=8, help="requests at a time")
    timer.add_argument("--prompts", type=int, default=4, help="of each task")
    timer.add_argument("--max-tokens", type=int, default=64)
    timer.add_argument("--passes", type=int, default=2)
    timer.add_argument("--ideas", nargs="+", help="some of them; 'all on' first")
    timer.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.verb(args)


if __name__ == "__main__":
    main()

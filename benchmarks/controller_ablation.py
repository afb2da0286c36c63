"""What each idea of the controller brings: the engine's steps replayed on recorded drafts, one idea off at a time.

    python benchmarks/controller_ablation.py record --out benchmarks/results/controller/drafts.npz
    python benchmarks/controller_ablation.py run --out benchmarks/results/controller/ablation.json
    OMP_NUM_THREADS=1 python benchmarks/controller_ablation.py engine --out benchmarks/results/controller/engine.json

Behind every token of greedy answers is recorded what the drafter would draft in blocks of 16, 8 and 4 tokens: for each
slot the log-probabilities of its likeliest tokens, and which of them the answer has. So any controller can be replayed:
nothing is timed, step costs are those of a file, and two runs give the same figures. ``engine`` has the real engine
answer in turns instead, by one thread's own time: it is slower and rougher, and shows what costs are worth that steps
correct.
"""

import argparse
import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

import numpy as np
import torch

from flashdraft.admission import BlockSize
from flashdraft.batch import ForwardBatch
from flashdraft.bench import closed_loop
from flashdraft.bench.tasks import TASKS, load_task
from flashdraft.cache.paged_kv_cache import CacheRow
from flashdraft.control.acceptance import Acceptance, Drafted
from flashdraft.control.config import DEFAULTS, ControllerConfig
from flashdraft.control.controller import Controller, Plan
from flashdraft.control.step_costs import Curve, ShapeTable, StepCosts
from flashdraft.engine import engine, step_timing
from flashdraft.engine.block_control import BlockControl
from flashdraft.engine.recorded_trees import STEP_TREES
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.llm import LLM
from flashdraft.provenance import collect_provenance
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.dflash import DFlashBatch, DFlashDrafter
from flashdraft.spec_decode.tree import DraftTree, best_first

BLOCKS, RANKS = (16, 8, 4), 4
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
    "what confidence is worth is learned": {"calibrates": False},
    "selecting by confidence": {"selects": False},
    "what confidence was worth fades": {"kept_calibration": 1.0},
    "probes": {"probe_share": 0.0},
    "plans that last": {"plan_steps": 1, "recorded_plan_steps": 1},
    "plans for few steps, but for twelve": {"plan_steps": 12, "recorded_plan_steps": 12},
    "deciding before the last step is known": {"ahead": False},
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


class Recording:
    """Drafts behind each token of each answer. ``spoiled``: shares of the right tokens that are made wrong.

    Of several shares there are the answers once for each: a drafter that becomes another one meanwhile.
    """

    def __init__(self, path: Path, spoiled: Sequence[float] = (0.0,)) -> None:
        with np.load(path) as file:
            self.hits, self.log_probs = file["hits"], file["log_probs"]
            self.lengths = file["lengths"].tolist()
        # A drafter that is as sure as before and right less often: a pair that no constant was made for.
        chances = np.random.default_rng(0).random(self.hits.shape)
        self.hits = np.concatenate([np.where(chances < share, -1, self.hits) for share in spoiled])
        self.log_probs = np.concatenate([self.log_probs] * len(spoiled))
        self.lengths, self.num_parts = self.lengths * len(spoiled), len(spoiled)
        self.first = {block: sum(b - 1 for b in BLOCKS if b > block) for block in BLOCKS}

    def orders(self, number: int) -> list[list[int]]:
        """So many orders of the answers, each part's one after the other."""
        rng, num_answers = np.random.default_rng(0), len(self.lengths) // self.num_parts
        starts = range(0, len(self.lengths), num_answers)
        return [
            [start + answer for start in starts for answer in rng.permutation(num_answers).tolist()]
            for _ in range(number)
        ]

    def draft(self, answer: int, place: int, block: int, tree_size: int) -> DraftTree:
        """What is drafted behind ``place``; tokens are numbered by slot and rank. ``tree_size``: 0 for a chain."""
        first = self.first[block]
        values = self.log_probs[answer, place, first : first + block - 1].astype(float)
        if not tree_size:
            return DraftTree.chain([RANKS * slot for slot in range(block - 1)], values[:, 0].tolist())
        ids = [[RANKS * slot + rank for rank in range(RANKS)] for slot in range(block - 1)]
        return best_first(ids, [[row] for row in values.tolist()], tree_size - 1)

    def path(self, answer: int, place: int, block: int, draft: DraftTree) -> list[int]:
        """The places of ``draft`` that the answer takes, the anchor's first."""
        hits = self.hits[answer, place, self.first[block] :]
        child = {key: i + 1 for i, key in enumerate(zip(draft.parents, draft.token_ids, strict=True))}
        path = [0]
        while len(path) < block and hits[len(path) - 1] >= 0:
            found = child.get((path[-1], RANKS * (len(path) - 1) + int(hits[len(path) - 1])))
            if found is None:
                break
            path.append(found)
        return path


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
    what came of the last one, as where the host is a step behind the device.
    """

    def __init__(
        self, recording: Recording, costs: StepCosts, host_row_s: float, method: int | Controller,
        is_tree: bool = True, selects: bool = True, ahead: bool = True,
    ) -> None:  # fmt: skip
        self.recording, self.costs, self.host_row_s, self.method = recording, costs, host_row_s, method
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
        if self._untold:
            self.method.observe(self._untold)
        self._untold = []
        self.plan_s += thread_time() - started

    def _draft(self, one: Going, block: int, num_rows: int) -> DraftTree:
        size = 0
        if self.is_tree and isinstance(self.method, Controller):
            size = STEP_TREES.size(num_rows, block) if self.costs.is_recorded else max(BLOCKS)
        return self.recording.draft(one.answer, one.place, block, size)

    def _seconds(self, num_rows: int, blocks: list[int], verified: list[int]) -> float:
        num_tokens = num_rows + sum(verified)
        if not self.costs.is_ragged:
            num_tokens = num_rows * (1 + max(verified, default=0))
        seconds = self.host_row_s * num_rows
        seconds += float(self.costs.draft_seconds(len(blocks), max(blocks, default=1)))
        return seconds + float(self.costs.verify(num_rows, num_tokens))


def controller_without(costs: StepCosts, off: dict[str, Any]) -> Controller:
    """One with ``off`` in place of its defaults."""
    names = ControllerConfig.__dataclass_fields__
    config = replace(DEFAULTS, **{name: value for name, value in off.items() if name in names})
    made = Controller(max(BLOCKS), deepcopy(costs), config)
    if not off.get("calibrates", True):
        known = made.acceptance._known
        made.acceptance._known = (1e9 * known[0], 1e9 * known[1], 1e9 * known[2])  # beside it nothing weighs
    return made


def run(args: argparse.Namespace) -> None:
    """Print and write tokens a second with everything, and what share of it is left without each idea."""
    recording = Recording(args.drafts, args.spoiled)
    costs, host_row_s = read_costs(args.costs)
    orders = {rows: recording.orders(1 if rows == 1 else args.orders) for rows in args.rows}
    table: dict[str, dict[int, float]] = {}
    fixed = {f"block {block}": block for block in (1, 4, 8, 16)}
    for name in [*fixed, *(args.ideas or IDEAS)]:
        table[name], planned = {}, []
        off = IDEAS.get(name, {})
        switches = {key: off[key] for key in ("selects", "ahead") if key in off}
        for rows, some in orders.items():
            rates, plan_s, num_steps = [], 0.0, 0
            for order in some:
                method = fixed[name] if name in fixed else controller_without(costs, off)
                replay = Replay(recording, costs, host_row_s, method, off.get("trees", True), **switches)
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


def read_costs(path: Path) -> tuple[StepCosts, float]:
    """Step costs of a machine, without padding or recorded, and the host's seconds for each row of a step."""
    told = json.loads(path.read_text())
    if "widths" in told:
        rows, blocks = told["rows"], [width for width in told["widths"] if width > 1]
        verify = ShapeTable(rows, told["widths"], np.array(told["verify_s"]) + told["host_s"])
        return StepCosts(verify, ShapeTable(rows, blocks, told["draft_s"])), told["host_row_s"]
    verify_s = np.array(told["verify"]["s"]) + told["host_s"]
    verify = Curve(told["verify"]["n"], verify_s, told["verify_row_s"])
    draft = Curve(told["draft"]["n"], told["draft"]["s"], told["draft_row_s"])
    return StepCosts(verify, draft, is_ragged=True), 0.0


@torch.inference_mode()
def record(args: argparse.Namespace) -> None:
    """Answer prompts of the five tasks, and draft behind every token of the answers."""
    llm = LLM()
    assert isinstance(llm.drafter, DFlashDrafter)
    prompts = [prompt for task in TASKS for prompt in load_task(task, args.prompts)]
    params = SamplingParams(temperature=0.0, max_tokens=args.max_tokens)
    outputs = llm.chat([[{"role": "user", "content": one.turns[0]}] for one in prompts], params)
    texts = [(list(one.prompt_token_ids), list(one.outputs[0].token_ids)) for one in outputs]
    shape = len(texts), args.max_tokens, sum(block - 1 for block in BLOCKS)
    hits, log_probs = np.full(shape, -1, np.int8), np.zeros((*shape, RANKS), np.float16)
    for row, (prompt, answer) in enumerate(texts):
        started = perf_counter()
        features = features_of(llm, prompt + answer)
        pages = range(-(-len(prompt + answer) // 16))
        drafts = llm.drafter.open(1, len(pages), 16)
        assert isinstance(drafts, DFlashBatch)
        drafts.observe([CacheRow(0, pages, 0)], [prompt], [features[: len(prompt)]])
        for place in range(len(answer) - 1):
            here, first = CacheRow(0, pages, len(prompt) + place), 0
            for block in BLOCKS:
                found = drafts._candidates([here], [answer[place]], [block], RANKS)
                rest = np.array(answer[place + 1 : place + block])
                same = found.token_ids[0, : len(rest)].numpy() == rest[:, None]
                hits[row, place, first : first + len(rest)] = np.where(same.any(1), same.argmax(1), -1)
                log_probs[row, place, first : first + block - 1] = found.log_probs[0].numpy()
                first += block - 1
            drafts.observe([here], [[answer[place]]], [features[here.start : here.start + 1]])
        print(f"{row + 1} of {len(texts)}: {perf_counter() - started:.1f} s", flush=True)
    lengths = np.array([len(answer) for _, answer in texts])
    np.savez_compressed(args.out, hits=hits, log_probs=log_probs, lengths=lengths)


def features_of(llm: LLM, token_ids: list[int]) -> torch.Tensor:
    """The target's, [num_tokens, feature_size]."""
    assert llm.drafter is not None
    cache = llm.target.new_cache(1, len(token_ids))
    batch = ForwardBatch.of_row(token_ids, 0)
    features = llm.target.forward(batch, cache, llm.drafter.feature_layers).features
    assert features is not None
    return features[0].clone()


def main() -> None:
    """Record or run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True)
    recorder, runner, timer = (verbs.add_parser(name) for name in ("record", "run", "engine"))
    recorder.set_defaults(verb=record)
    recorder.add_argument("--prompts", type=int, default=7, help="of each task")
    recorder.add_argument("--max-tokens", type=int, default=96)
    recorder.add_argument("--out", type=Path, required=True)
    runner.set_defaults(verb=run)
    runner.add_argument("--rows", type=int, nargs="+", default=[1, 8, 16, 32], help="requests at a time")
    runner.add_argument("--orders", type=int, default=6, help="of the answers")
    runner.add_argument("--drafts", type=Path, default=FOLDER / "drafts.npz")
    runner.add_argument("--costs", type=Path, default=FOLDER / "costs.json")
    shares = "of the right draft tokens that are made wrong, one after the other"
    runner.add_argument("--spoiled", type=float, nargs="+", default=[0.0], help=shares)
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

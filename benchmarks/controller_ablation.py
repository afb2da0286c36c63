"""What each idea of the controller brings: the engine's steps replayed on recorded drafts, one idea off at a time.

    python benchmarks/controller_ablation.py record --out benchmarks/results/controller/drafts.npz
    python benchmarks/controller_ablation.py run --out benchmarks/results/controller/ablation.json

Behind every token of greedy answers is recorded what the drafter would draft in blocks of 16, 8 and 4 tokens: for each
slot the log-probabilities of its likeliest tokens, and which of them the answer has. So any controller can be replayed:
nothing is timed, step costs are those of a file, and two runs give the same figures.
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

from flashdraft.batch import ForwardBatch
from flashdraft.bench.tasks import TASKS, load_task
from flashdraft.cache.paged_kv_cache import CacheRow
from flashdraft.control.acceptance import Acceptance, Drafted
from flashdraft.control.block_search import Candidate, Others
from flashdraft.control.config import DEFAULTS, ControllerConfig
from flashdraft.control.controller import Controller
from flashdraft.control.step_costs import Curve, StepCosts
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
    "a price that a planned token has to be worth": {"prices": (0.0,)},
    "several blocks": {"block_shares": (1.0,)},
    "the shortest of three blocks": {"block_shares": (1.0, 0.5)},
    "a request's own drafts": {"kept_draft": 0.0, "first_weight": 1e6},
    "drafts before the last one": {"kept_draft": 0.0},
    "fading in plain rounds": {"kept_plain": 1.0},
    "other requests' first drafts": {"kept_first": 1.0},
    "what confidence is worth is learned": {"calibrates": False},
    "selecting by confidence": {"selects": False},
    "probes": {"probe_share": 0.0},
    "plans that last": {"plan_steps": 1, "uneven_plan_steps": 1},
    "uneven plans last less": {"uneven_plan_steps": DEFAULTS.plan_steps},
    "plans end that are in vain": {"most_in_vain": 1000},
    "observing is spread over rounds": {"observed_rounds": 1},
}


class Recording:
    """Drafts behind each token of each answer."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as file:
            self.hits, self.log_probs, self.lengths = (
                file["hits"],
                file["log_probs"],
                file["lengths"].tolist(),
            )
        self.first = {block: sum(b - 1 for b in BLOCKS if b > block) for block in BLOCKS}

    def draft(self, answer: int, place: int, block: int, is_tree: bool) -> DraftTree:
        """What is drafted behind ``place``; tokens are numbered by slot and rank."""
        first = self.first[block]
        values = self.log_probs[answer, place, first : first + block - 1].astype(float)
        if not is_tree:
            return DraftTree.chain([RANKS * slot for slot in range(block - 1)], values[:, 0].tolist())
        ids = [[RANKS * slot + rank for rank in range(RANKS)] for slot in range(block - 1)]
        return best_first(ids, [[row] for row in values.tolist()], max(BLOCKS) - 1)

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
    num_pending: int = 0
    state: Acceptance = field(default_factory=Acceptance)


class Replay:
    """``num_rows`` requests at a time, decoded on the recording: tokens a second by the file's step costs."""

    def __init__(self, recording: Recording, costs: StepCosts, num_rows: int, order: Sequence[int]) -> None:
        self.recording, self.costs, self.num_rows, self.order = recording, costs, num_rows, order
        self.plan_s = 0.0  # of the host, in planning

    def rate(self, method: int | Controller, is_tree: bool = True, selects: bool = True) -> float:
        """``method``: a block size, 1 for plain decoding, or a controller."""
        lengths = self.recording.lengths
        waiting = [Going(answer, lengths[answer] - 1) for answer in self.order if lengths[answer] > 2]
        total, seconds = sum(one.left for one in waiting), 0.0
        running: list[Going] = []
        while waiting or running:
            running += [waiting.pop(0) for _ in range(min(self.num_rows - len(running), len(waiting)))]
            seconds += self._step(running, method, is_tree, selects)
            running = [one for one in running if one.left > 0]
        return total / seconds

    def _step(self, running: list[Going], method: int | Controller, is_tree: bool, selects: bool) -> float:
        if isinstance(method, int):
            block, lengths, is_tree = method, [method] * len(running), False
        else:
            started = thread_time()
            plan = method.plan([Candidate(one.state, max(one.left, 1), one.num_pending) for one in running])
            self.plan_s += thread_time() - started
            block, lengths = plan.block, plan.lengths
        drafts, num_observed = dict[Going, Drafted](), 0
        for one, length in zip(running, lengths, strict=True):
            if length > 1 and block > 1:
                draft = self.recording.draft(one.answer, one.place, block, is_tree).up_to(one.left - 1)
                most = len(draft) if is_tree else min(length - 1, len(draft))
                drafts[one] = Drafted(one.state, block, draft, most)
                num_observed, one.num_pending = num_observed + one.num_pending, 0
        verified = [draft.num_tokens for draft in drafts.values()]
        if isinstance(method, Controller) and drafts:
            others = Others((1,) * (len(running) - len(drafts)))
            verified = method.select(list(drafts.values()), others) if selects else verified
        seen = []
        for (one, draft), count in zip(drafts.items(), verified, strict=True):
            path = self.recording.path(one.answer, one.place, block, draft.draft.first(count))
            seen.append(draft._replace(num_verified=count, path=path))
        gained = {one: len(draft.path) for one, draft in zip(drafts, seen, strict=True)}
        for one in running:
            one.place, one.left = one.place + gained.get(one, 1), one.left - gained.get(one, 1)
            one.num_pending += gained.get(one, 1)
        if isinstance(method, Controller) and seen:
            method.observe(seen)
        seconds = self.costs.host_s + self.costs.observe_token_s * num_observed
        seconds += float(self.costs.draft_seconds(len(drafts), block))
        return seconds + float(self.costs.forward_seconds(len(running), len(running) + sum(verified)))


def controller_without(costs: StepCosts, off: dict[str, Any]) -> Controller:
    """One with ``off`` in place of its defaults."""
    names = ControllerConfig.__dataclass_fields__
    config = replace(DEFAULTS, **{name: value for name, value in off.items() if name in names})
    made = Controller(max(BLOCKS), deepcopy(costs), config)
    if not off.get("calibrates", True):
        made.acceptance._calibrate = _nothing_learned  # type: ignore[method-assign]
    return made


def _nothing_learned(_known: Sequence[tuple[float, bool]]) -> None:
    pass


def run(args: argparse.Namespace) -> None:
    """Print and write tokens a second with everything, and what share of it is left without each idea."""
    recording, costs = Recording(args.drafts), read_costs(args.costs)
    rng = np.random.default_rng(0)
    orders = {
        rows: [
            rng.permutation(len(recording.lengths)).tolist() for _ in range(1 if rows == 1 else args.orders)
        ]
        for rows in args.rows
    }
    table: dict[str, dict[int, float]] = {}
    fixed = {f"block {block}": block for block in (1, 8, 16)}
    for name in [*fixed, *IDEAS]:
        table[name] = {}
        for rows, some in orders.items():
            off = IDEAS.get(name, {})
            rates, plan_s = [], 0.0
            for order in some:
                replay = Replay(recording, costs, rows, order)
                method = fixed[name] if name in fixed else controller_without(costs, off)
                rates.append(replay.rate(method, off.get("trees", True), off.get("selects", True)))
                plan_s += replay.plan_s
            table[name][rows] = float(np.mean(rates))
        whole = table.get("all on", table[name])
        shares = "".join(f"{rate:9.1f} {rate / whole[rows]:6.3f}" for rows, rate in table[name].items())
        print(f"{name:46}{shares}", flush=True)
    if args.out:
        told = {"tokens_a_second": table, "provenance": collect_provenance()}
        args.out.write_text(json.dumps(told, indent=1) + "\n")


def read_costs(path: Path) -> StepCosts:
    """Step costs of a machine without padding."""
    told = json.loads(path.read_text())
    curves = [Curve(told[name]["n"], told[name]["s"]) for name in ("verify", "draft")]
    others = {name: told[name] for name in ("verify_row_s", "draft_row_s", "observe_token_s", "host_s")}
    return StepCosts(*curves, **others, is_ragged=True)


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
    recorder, runner = verbs.add_parser("record"), verbs.add_parser("run")
    recorder.set_defaults(verb=record)
    recorder.add_argument("--prompts", type=int, default=7, help="of each task")
    recorder.add_argument("--max-tokens", type=int, default=96)
    recorder.add_argument("--out", type=Path, required=True)
    runner.set_defaults(verb=run)
    runner.add_argument("--rows", type=int, nargs="+", default=[1, 8, 16, 32], help="requests at a time")
    runner.add_argument("--orders", type=int, default=6, help="of the answers")
    runner.add_argument("--drafts", type=Path, default=FOLDER / "drafts.npz")
    runner.add_argument("--costs", type=Path, default=FOLDER / "costs.json")
    runner.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.verb(args)


if __name__ == "__main__":
    main()

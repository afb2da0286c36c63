"""What DFlash 2's two parts cost on a GPU: a round of serving, and blocks trained a second, beside plain DFlash.

    python benchmarks/gpu_heads.py rounds OUT.jsonl --seconds 60
    python benchmarks/gpu_heads.py training OUT.jsonl --seconds 60

``rounds``: the shipped pair, all requests decoding, with the whole drafter, without its selector, and without its
convolutions too (the same layers). How many draft tokens are accepted is drawn, for all ways and turns the same: what
is drafted without a part is worse, and a round that accepts fewer commits, features and answers fewer, which would seem
to be what the part costs. ``training``: steps of a trainer on random tokens with a new drafter of each kind. Ways take
turns, another one first each time; a row says the median.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from train_speed import random_drafter, random_rows, random_target, timed

from flashdraft.checkpoint.load import load_drafter
from flashdraft.engine.engine import Engine
from flashdraft.engine.scheduler import EngineConfig
from flashdraft.llm import LLM
from flashdraft.models.dflash import DFlashModel
from flashdraft.models.dflash_config import DFlashConfig
from flashdraft.provenance import collect_provenance
from flashdraft.sampling_params import SamplingParams
from flashdraft.spec_decode.build import drafter_of
from flashdraft.spec_decode.simulated import SimulatedAcceptance
from flashdraft.train.config import TrainConfig
from flashdraft.train.run import with_dflash2
from flashdraft.train.trainer import Trainer

PROMPT_TOKENS, ROUNDS = 200, 60
ACCEPTED = 5.4  # tokens a round of blocks of 16: the shipped drafter's over five tasks
PARTS = ("both parts", "no selector", "plain")  # that a drafter has


def without(config: DFlashConfig, part: str) -> DFlashConfig:
    """``config`` with neither of the two parts, without the selector, or as it is."""
    if part == "both parts":
        return config
    config = replace(config, selector_rank=0, selector_projects_head=False)
    return config if part == "no selector" else replace(config, conv_kernel_size=0)


def parts_of(whole: DFlashModel) -> dict[str, DFlashModel]:
    """``whole`` and the same layers without its selector, and without its convolutions too."""
    made = {}
    for part in PARTS:
        model = DFlashModel(without(whole.config, part)).to(whole.fc.weight)
        model.load_state_dict(whole.state_dict(), strict=False)
        made[part] = model.requires_grad_(False)
    return made


def engines(running: int, block_size: int, args: argparse.Namespace) -> dict[str, Engine]:
    """One for each way, on one target."""
    llm = LLM(device=args.device, dtype=args.dtype)
    whole = load_drafter("embedded", llm.target, dtype=args.dtype, device=args.device)
    assert isinstance(whole, DFlashModel)
    found = {}
    for part, model in parts_of(whole).items():
        config = EngineConfig(max_running=running, prefix_caching=False, num_pages=256 * running)
        drafter = drafter_of(model, llm.target)
        dice = SimulatedAcceptance.of_length(min(ACCEPTED, block_size), block_size)
        found[part] = Engine(
            llm.target, drafter, config, llm.eos_token_ids, llm.tokenizer, block_size, simulated=dice
        )
    return found


def begin(engine: Engine, running: int) -> None:
    """Let ``running`` requests decode until they are stopped, with the same luck every time."""
    assert engine.simulated is not None
    engine.simulated.restart()
    generator = torch.Generator().manual_seed(0)
    for number in range(running):
        ids = torch.randint(100, 40_000, (PROMPT_TOKENS,), generator=generator).tolist()
        params = SamplingParams(temperature=0.0, max_tokens=3000, ignore_eos=True)
        engine.add_request(f"{number}", ids, params)
    while any(request.is_prefilling for request in engine.requests.values()):
        engine.step()


def end(engine: Engine) -> None:
    for name in list(engine.requests):
        engine.abort(name)
    engine.step()


def rounds(args: argparse.Namespace, deadline: float) -> None:
    """Rows of milliseconds a round."""
    for running in args.requests:
        ways = engines(running, args.block_size, args)

        def several(engine: Engine, running: int = running) -> float:
            begin(engine, running)
            for _ in range(5):
                engine.step()
            started = time.perf_counter()
            for _ in range(args.rounds):
                engine.step()
            seconds = time.perf_counter() - started
            end(engine)
            return 1e3 * seconds / args.rounds

        for engine in ways.values():
            several(engine)  # recordings
        found = in_turns(
            ways, several, deadline - (len(args.requests) - 1 - args.requests.index(running)) * 15
        )
        write(args, {"what": "ms a round", "requests": running, "block_size": args.block_size}, found)


def training(args: argparse.Namespace, deadline: float) -> None:
    """A row of blocks a second."""
    dtype = getattr(torch, args.dtype)
    target = random_target(args.device, dtype)
    shape = {
        "seq_len": args.seq_len,
        "rows_per_step": args.rows_per_step,
        "blocks_per_row": args.blocks_per_row,
    }
    packed, ways = random_rows(8 * args.rows_per_step * args.seq_len // 384, args.seq_len, args.device), {}
    for part in PARTS:
        rank = 128 if part == "both parts" else 0
        config = TrainConfig(
            head="dflash" if part == "plain" else "dflash2", conv_group_size=32, selector_rank=rank,
            selector_projects_head=rank > 0, dpace_power=1.0, **shape,
        )  # fmt: skip
        drafter = random_drafter(target, 5, args.device)
        drafter = drafter if part == "plain" else with_dflash2(drafter, config)
        ways[part] = Trainer(target, drafter, packed, {}, config, Path(tempfile.mkdtemp()))

    def several(trainer: Trainer) -> float:
        def step() -> None:
            trainer._step()
            trainer.progress.step += 1

        return args.rows_per_step * args.blocks_per_row / timed(step, args.device, args.steps)

    for trainer in ways.values():
        several(trainer)  # compiles
    write(args, {"what": "blocks a second", **shape}, in_turns(ways, several, deadline))


def in_turns(
    ways: dict[str, Any], several: Callable[[Any], float], deadline: float
) -> dict[str, list[float]]:
    """Values of every way, three or more of each, until the deadline."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    order = list(ways)
    while len(found[order[0]]) < 3 or (time.monotonic() < deadline and len(found[order[0]]) < 12):
        for name in order:
            found[name].append(several(ways[name]))
        order = [*order[1:], order[0]]
    return found


def write(args: argparse.Namespace, facts: dict[str, Any], found: dict[str, list[float]]) -> None:
    middle = {name: round(median(values), 4) for name, values in found.items()}
    row = facts | {
        **middle,
        "over_plain": {name: round(value / middle["plain"], 4) for name, value in middle.items()},
        "every": {name: [round(value, 4) for value in values] for name, values in found.items()},
        "provenance": collect_provenance(args.device),
    }
    with args.out.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps({key: value for key, value in row.items() if key != "provenance"}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["rounds", "training"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=60, help="no further turn begins later")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of a turn")
    parser.add_argument("--steps", type=int, default=10, help="of training, a turn")
    parser.add_argument("--seq-len", type=int, default=8192)
    parser.add_argument("--rows-per-step", type=int, default=6)
    parser.add_argument("--blocks-per-row", type=int, default=1024)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    {"rounds": rounds, "training": training}[args.what](args, time.monotonic() + args.seconds)


if __name__ == "__main__":
    main()

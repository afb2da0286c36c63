"""Two checkouts of this repository in turns: tokens a second of plain decoding, blocks and `auto`, as ratios.

    git worktree add /tmp/old 7f7d02d
    OMP_NUM_THREADS=1 python benchmarks/two_checkouts.py --old /tmp/old --minutes 20 --out two_checkouts.json

A process for each checkout, with the embedded target and one drafter: that of the old checkout where it has one, so
that the work is the same. Each cell is some requests answered greedily together; the checkouts take turns at every
cell, on the same prompts, the first one changing. Time is the one thread's own, also for the engine's measurements of
its steps, so that a busy machine disturbs little. The ratio of a cell is the median of its pairs.
"""

import argparse
import json
import os
import subprocess
import sys
from itertools import count
from pathlib import Path
from statistics import median
from time import perf_counter, thread_time
from typing import Any

DRAFTER = "src/flashdraft/weights/smollm2-135m-instruct-dflash"
TASKS = ("gsm8k", "math500", "humaneval", "mbpp", "mt-bench")


def work() -> None:
    """In a checkout's own process: each line of the input is a cell, each of the output its tokens and seconds."""
    import torch

    from flashdraft.engine import engine as engine_file
    from flashdraft.engine import step_timing
    from flashdraft.llm import LLM
    from flashdraft.sampling_params import SamplingParams

    torch.set_num_threads(1)
    for module in (engine_file, step_timing):
        module.perf_counter = thread_time  # type: ignore[attr-defined]
    told, numbers = sys.stdout, count()
    sys.stdout = sys.stderr  # what the package prints is no answer
    llm = LLM(draft=sys.stdin.readline().strip())
    for line in sys.stdin:
        cell = json.loads(line)
        params = SamplingParams(temperature=0.0, max_tokens=cell["max_tokens"], ignore_eos=True)
        prompts = [llm.chat_token_ids([{"role": "user", "content": text}]) for text in cell["texts"]]
        started, num_tokens = thread_time(), 0
        for prompt in prompts:
            llm.engine.add_request(str(next(numbers)), prompt, params, cell["block_size"])
        while llm.engine.has_unfinished:
            num_tokens += sum(len(news.token_ids) for news in llm.engine.step())
        print(json.dumps({"tokens": num_tokens, "seconds": thread_time() - started}), file=told, flush=True)


class Checkout:
    """A process that runs the code of ``folder``."""

    def __init__(self, folder: Path, draft: str) -> None:
        env = {**os.environ, "PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(Path(__file__).resolve()), "--work"]
        self._process = subprocess.Popen(
            command, env=env, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._tell(draft)

    def rate(self, cell: dict[str, Any]) -> float:
        """Tokens a second."""
        self._tell(json.dumps(cell))
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("a checkout's process ended; its last words are above")
        found = json.loads(line)
        return float(found["tokens"] / found["seconds"])

    def _tell(self, line: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()


def texts() -> list[str]:
    """Prompts of the five tasks in turns."""
    from flashdraft.bench.tasks import load_task

    every = [[prompt.turns[0] for prompt in load_task(task, 40)] for task in TASKS]
    return [text for some in zip(*every, strict=False) for text in some]


def main() -> None:
    """Measure in turns until the time is up, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    here = Path(__file__).resolve().parent.parent
    parser.add_argument("--old", type=Path, required=True)
    parser.add_argument("--new", type=Path, default=here)
    parser.add_argument(
        "--draft", help=f"a drafter's folder, or embedded; left out: {DRAFTER} of the old one"
    )
    parser.add_argument("--block-sizes", nargs="+", default=["1", "8", "16", "auto"])
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    carried = args.old.resolve() / DRAFTER
    draft = args.draft or (str(carried) if carried.is_dir() else "embedded")
    checkouts = {
        name: Checkout(folder.resolve(), draft) for name, folder in (("old", args.old), ("new", args.new))
    }
    prompts, first, deadline = texts(), 0, perf_counter() + 60 * args.minutes
    blocks: list[int | str] = [int(size) if size.isdecimal() else size for size in args.block_sizes]
    rates: dict[str, list[dict[str, float]]] = {f"{b} x {n}": [] for b in blocks for n in args.requests}
    turn = 0
    while turn < 2 or perf_counter() < deadline:
        for block_size in blocks:
            for num_requests in args.requests:
                if turn > 1 and perf_counter() > deadline:
                    break
                some = [prompts[(first + k) % len(prompts)] for k in range(num_requests)]
                first += num_requests
                cell = {"texts": some, "block_size": block_size, "max_tokens": args.max_tokens}
                names = ("old", "new") if turn % 2 else ("new", "old")
                found = {name: checkouts[name].rate(cell) for name in names}
                if turn:  # the first pays for memory and for costs that are measured
                    rates[f"{block_size} x {num_requests}"].append(found)
        turn += 1
    report(rates, draft, args.out)


def report(rates: dict[str, list[dict[str, float]]], draft: str, out: Path | None) -> None:
    """Medians of each cell."""
    from flashdraft.provenance import collect_provenance

    rows = []
    for cell, pairs in rates.items():
        ratios = sorted(one["new"] / one["old"] for one in pairs)
        old, new = (median(one[name] for one in pairs) for name in ("old", "new"))
        rows.append({"cell": cell, "old": old, "new": new, "ratio": median(ratios), "ratios": ratios})
        print(
            f"{cell:>10}  old {old:7.1f}  new {new:7.1f}  ratio {median(ratios):.3f}"
            f"  ({ratios[0]:.3f} to {ratios[-1]:.3f}, {len(ratios)} pairs)"
        )
    if out:
        result = {"draft": draft, "rows": rows, "provenance": collect_provenance()}
        out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    work() if "--work" in sys.argv else main()

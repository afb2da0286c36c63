"""Peak memory of training steps on a CPU, by length of the rows: the embedded target, one process for each row.

python benchmarks/train_memory.py --out benchmarks/results/train_memory.json
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from flashdraft.checkpoint.load import load_target, load_tokenizer
from flashdraft.data.loader import pack
from flashdraft.data.on_policy import Document
from flashdraft.provenance import collect_provenance
from flashdraft.train.config import TrainConfig
from flashdraft.train.run import new_drafter
from flashdraft.train.trainer import Trainer

BASE = {"rows_per_step": 2, "blocks_per_row": 64}
RUNS: list[dict[str, Any]] = [
    {"seq_len": 1024},
    {"seq_len": 4096},
    {"seq_len": 4096, "recompute": True},
    {"seq_len": 4096, "accumulate": 2},
    {"seq_len": 4096, "accumulate": 2, "recompute": True},
]


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(changes: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Two steps on random texts that fill the rows; memory before the first and at the peak."""
    config = TrainConfig(**{**BASE, **changes})
    target = load_target("embedded", dtype=dtype).requires_grad_(False)
    drafter = new_drafter(target, load_tokenizer("embedded"), config).to(target.dtype)
    rng = random.Random(0)
    texts = [[rng.randrange(17, 49152) for _ in range(config.seq_len)] for _ in range(4)]
    rows = pack([Document("", "", 0.0, text[:64], text[64:], "length") for text in texts], config.seq_len)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(target, drafter, rows, {}, config, Path(folder))
        before = peak_bytes()
        losses = []
        for _ in range(2):
            losses.append(round(float(trainer._step()), 4))
            trainer.progress.step += 1
    return {
        **BASE, **changes, "dtype": dtype, "losses": losses,
        "loaded_gb": round(before / 1e9, 2), "peak_gb": round(peak_bytes() / 1e9, 2),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--first", type=int, default=len(RUNS), help="Measure so many of the rows.")
    parser.add_argument("--one", help="Measure this one, JSON, in this process.")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(json.loads(args.one), args.dtype)))
        return
    results = []
    for run in RUNS[: args.first]:
        command = [sys.executable, __file__, "--dtype", args.dtype, "--one", json.dumps(run)]
        results.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(results[-1])
    if args.out:
        args.out.write_text(
            json.dumps({"steps": results, "provenance": collect_provenance()}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()

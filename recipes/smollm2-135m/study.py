"""Which choices in training pay: controlled runs of equal time on one card, each a row of a JSON Lines file.

    python recipes/smollm2-135m/study.py --answers runs/answers --minutes 1.2 --out runs/study

Each run trains a new drafter and is evaluated by simulated acceptance length on the same held-back greedy answers, at
block 16 and 8 (or what it was trained for). Rows that the file already holds are not run again.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from flashdraft.checkpoint.load import load_target, load_tokenizer
from flashdraft.data.loader import PackedRows, pack
from flashdraft.data.on_policy import Document, read_documents
from flashdraft.models.base import TargetModel
from flashdraft.provenance import collect_provenance
from flashdraft.train.config import TrainConfig
from flashdraft.train.run import is_held_back, new_drafter, split
from flashdraft.train.simulate import simulate
from flashdraft.train.trainer import Trainer

# A row's name -> how its settings differ from the default recipe. "data" chooses the answers instead.
ROWS: dict[str, dict[str, Any]] = {
    "base": {},
    "distill 0.5": {"distill": 0.5},
    "dpace": {"weighting": "dpace"},
    "distill 1": {"distill": 1.0},
    "gamma 7": {"gamma": 7.0},
    "lr 4e-3": {"lr": 4e-3},
    "adamw 1e-3": {"optimizer": "adamw", "lr": 1e-3},
    "base, seed 1": {"seed": 1},
    "layers 3": {"num_layers": 3},
    "greedy answers": {"data": "greedy"},
    "block 8": {"block_size": 8, "blocks_per_row": 768},
    "layers 2": {"num_layers": 2},
    "features 3": {"num_features": 3},
    "base, seed 2": {"seed": 2},
    "anchors 128": {"blocks_per_row": 128, "rows_per_step": 48},
    "sampled answers": {"data": "sampled"},
    "layers 1": {"num_layers": 1},
    "features 8": {"num_features": 8},
    "slots 15": {"slots_per_block": 15.0},
    "gamma 2": {"gamma": 2.0},
    "adamw 6e-4": {"optimizer": "adamw", "lr": 6e-4},
    "distill 0.5, dpace": {"distill": 0.5, "weighting": "dpace"},
}


def is_wanted(document: Document, data: str) -> bool:
    if is_held_back(document):
        return False
    return data == "all" or (document.temperature == 0) == (data == "greedy")


def run(
    name: str, target: TargetModel, tokenizer: Any, config: TrainConfig, rows: PackedRows,
    validation: dict[str, PackedRows], folder: Path,
) -> dict[str, Any]:  # fmt: skip
    started = time.perf_counter()
    drafter = new_drafter(target, tokenizer, config).to(device=target.device, dtype=target.dtype)
    trainer = Trainer(target, drafter, rows, {}, config, folder)
    trainer.train(lambda _: None)
    lengths = {}
    for block_size in sorted({8, config.block_size}):
        num_tokens = num_rounds = 0
        by_group = {}
        for group, held_back in validation.items():
            walk = simulate(target, drafter, held_back, block_size, 24, 384)
            by_group[group] = round(walk.acceptance_length, 4)
            num_tokens += walk.num_tokens
            num_rounds += len(walk.num_accepted)
        lengths[str(block_size)] = {**by_group, "all": round(num_tokens / num_rounds, 4)}
    return {
        "row": name,
        "differs": ROWS[name],
        "blocks": trainer.progress.step * config.rows_per_step * config.blocks_per_row,
        "train_s": round(trainer.progress.elapsed_s, 1),
        "wall_s": round(time.perf_counter() - started, 1),
        "simulated_acceptance_length": lengths,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=Path, nargs="+", required=True)
    parser.add_argument("--minutes", type=float, default=1.2)
    parser.add_argument("--rows", nargs="*", default=list(ROWS))
    parser.add_argument("--stop-after-s", type=float, default=float("inf"), help="begin no row after this")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    started = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    results = args.out / "study.jsonl"
    done = (
        {json.loads(line)["row"] for line in results.read_text().splitlines()} if results.exists() else set()
    )
    target = load_target("embedded", dtype="bfloat16", device=args.device).requires_grad_(False)
    tokenizer = load_tokenizer("embedded")
    documents = [doc for folder in args.answers for doc in read_documents(folder)]
    base = TrainConfig(
        rows_per_step=24, blocks_per_row=384, total_blocks=10**9, max_minutes=args.minutes, eval_minutes=1e9,
        checkpoint_minutes=1e9,
    )  # fmt: skip
    everything, validation = split(documents, base, args.device)
    packed = {"all": everything}
    (args.out / "provenance.json").write_text(json.dumps(collect_provenance(args.device), indent=2) + "\n")
    for name in args.rows:
        if name in done or time.perf_counter() - started > args.stop_after_s:
            continue
        differs = dict(ROWS[name])
        data = differs.pop("data", "all")
        if data not in packed:
            wanted = [doc for doc in documents if is_wanted(doc, data)]
            packed[data] = pack(wanted, base.seq_len, args.device)
        row = run(name, target, tokenizer, dataclasses.replace(base, **differs), packed[data], validation,
                  args.out / name.replace(" ", "-").replace(",", ""))  # fmt: skip
        with results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

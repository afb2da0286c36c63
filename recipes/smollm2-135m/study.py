"""Which choices in training pay: controlled runs of equal time on one card, each a row of a JSON Lines file.

    python recipes/smollm2-135m/study.py --answers runs/answers --minutes 1.2 --out runs/study

Each run trains a new drafter and is evaluated by simulated acceptance length on the same held-back greedy answers, at
block 16 and 8 (or what it was trained for), after a few steps of a drafter that is thrown away, so that no row's time
goes into compiling. Rows that the file already holds are not run again.
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

# A row's name -> how its settings differ from train.sh's rows and anchors, all else TrainConfig's defaults. "data"
# chooses the answers instead.
ROWS: dict[str, dict[str, Any]] = {
    "base": {},
    "base, seed 1": {"seed": 1},
    "base, seed 2": {"seed": 2},
    "layers 3": {"num_layers": 3},
    "layers 2": {"num_layers": 2},
    "layers 1": {"num_layers": 1},
    "decay 4": {"weighting": "decay"},
    "decay 7": {"weighting": "decay", "gamma": 7.0},
    "decay 2": {"weighting": "decay", "gamma": 2.0},
    "distill 0.5": {"distill": 0.5},
    "features 3": {"num_features": 3},
    "features 8": {"num_features": 8},
    "block 8": {"block_size": 8},
    "anchors 384": {"blocks_per_row": 384, "rows_per_step": 24},
    "anchors 64": {"blocks_per_row": 64, "rows_per_step": 96},
    "adamw 1e-3": {"optimizer": "adamw", "lr": 1e-3},
    "adamw 3e-3": {"optimizer": "adamw", "lr": 3e-3},
    "lr 4e-3": {"lr": 4e-3},
    "lr 8e-3": {"lr": 8e-3},
    "greedy answers": {"data": "greedy"},
    "sampled answers": {"data": "sampled"},
    "slots 15": {"slots_per_block": 15.0},
}
WARM_UP_STEPS = 3


def is_wanted(document: Document, data: str) -> bool:
    if is_held_back(document):
        return False
    return data == "all" or (document.temperature == 0) == (data == "greedy")


def trained(
    target: TargetModel, tokenizer: Any, config: TrainConfig, rows: PackedRows, folder: Path
) -> Trainer:
    """A new drafter after its run."""
    drafter = new_drafter(target, tokenizer, config).to(device=target.device, dtype=target.dtype)
    trainer = Trainer(target, drafter, rows, {}, config, folder)
    trainer.train(lambda _: None)
    return trainer


def run(
    name: str, target: TargetModel, tokenizer: Any, config: TrainConfig, rows: PackedRows,
    validation: dict[str, PackedRows], folder: Path,
) -> dict[str, Any]:  # fmt: skip
    # Compiling is paid for before the clock runs: another shape would have less time for its steps.
    step = config.rows_per_step * config.blocks_per_row
    few = dataclasses.replace(config, max_minutes=0.0, total_blocks=WARM_UP_STEPS * step)
    trained(target, tokenizer, few, rows, folder / "warm-up")
    started = time.perf_counter()
    trainer = trained(target, tokenizer, config, rows, folder)
    drafter, lengths = trainer.drafter, {}
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
        "minutes": config.max_minutes,
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
        rows_per_step=48, blocks_per_row=128, total_blocks=10**9, max_minutes=args.minutes, eval_minutes=1e9,
        checkpoint_minutes=1e9,
    )  # fmt: skip
    everything, validation = split(documents, base, args.device)
    packed = {"all": everything}
    facts = collect_provenance(args.device) | {
        "num_documents": len(documents),
        "num_answer_tokens": sum(len(doc.answer_token_ids) for doc in documents),
    }
    (args.out / "provenance.json").write_text(json.dumps(facts, indent=2) + "\n")
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

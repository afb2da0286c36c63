"""Our trainer in its turn (trainer_turn.py), with `flashdraft train`'s defaults; features are computed at every step.

python trainer_ours.py WORK --seconds 60 --device cuda    -> WORK/ours/drafter, WORK/ours/turn.json
"""

import argparse
import json
from pathlib import Path

import torch
from trainer_turn import WARM_UP_STEPS, Turn

from flashdraft.checkpoint.load import load_target, load_tokenizer, save_drafter
from flashdraft.data.on_policy import read_documents
from flashdraft.train.config import TrainConfig
from flashdraft.train.optimizer import Optimizer
from flashdraft.train.run import new_drafter, split
from flashdraft.train.trainer import Progress, Trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    folder = args.work / "ours"
    told = json.loads((args.work / "shape.json").read_text())
    config = TrainConfig(
        num_layers=told["layers"],
        num_features=len(told["features"]),
        block_size=told["block_size"],
        seq_len=told["row_tokens"],
        rows_per_step=told["rows"],
        blocks_per_row=told["anchors"] // told["rows"],
        total_blocks=10**12,  # the clock ends it
        max_minutes=args.seconds / 60,
        eval_minutes=float("inf"),
        checkpoint_minutes=float("inf"),
        served_prompts=0,
    )
    target = load_target("embedded", dtype="bfloat16", device=args.device).requires_grad_(False)
    drafter = new_drafter(target, load_tokenizer("embedded"), config).to(args.device, target.dtype)
    rows, _ = split(read_documents(args.work / "answers"), config, args.device)
    trainer = Trainer(target, drafter, rows, {}, config, folder)
    first = {name: value.detach().clone() for name, value in drafter.named_parameters()}

    def begin_again() -> None:
        with torch.no_grad():
            for name, value in drafter.named_parameters():
                value.copy_(first[name])
        trainer.optimizer = Optimizer(
            drafter, config.optimizer, config.lr, config.weight_decay, config.grad_clip
        )
        trainer.progress = Progress()

    turn = Turn(folder, args.seconds, begin_again)
    for _ in range(WARM_UP_STEPS):
        trainer._step()
        trainer.progress.step += 1
    turn.begin()
    trainer.train(print)
    turn.num_steps, turn.seconds = trainer.progress.step, trainer.progress.elapsed_s
    turn.tell(turn.num_steps * told["anchors"])
    save_drafter(drafter, folder / "drafter", torch.bfloat16, {"chat_template_kwargs": {}})


if __name__ == "__main__":
    main()

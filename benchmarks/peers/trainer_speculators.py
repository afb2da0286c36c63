"""speculators' own trainer in its turn (trainer_turn.py): `speculators train`, its schedule in time instead of steps.

Run by its own environment (setup.sh speculators); options are those of `speculators train`, and FLASHDRAFT_TURN is the
turn's length in seconds. Between epochs it neither validates nor saves: its seconds are spent on training. On a machine
without an accelerator its trainer (0.9) takes "cuda", and fails before the first step; here it gets the device that
there is, in the two fields where it keeps it, and a clock that waits for no device. Its data set is made of what
trainers.py wrote in WORK.

    FLASHDRAFT_TURN=60 python trainer_speculators.py WORK train --speculator-type dflash --data-path WORK/arrow ...
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from speculators.train import cli
from speculators.train.config import TrainConfig
from speculators.train.trainer import Trainer
from torch.optim.lr_scheduler import LambdaLR
from trainer_turn import Turn

WARM_UP = 0.01  # of its schedule, which then falls to 0 on a line: `speculators train`'s default


class TurnOverError(Exception):
    """Ends the loops over steps and epochs."""


class TimedTrainer(Trainer):
    """Their trainer, for a turn."""

    def setup_trainer(self) -> None:
        if not torch.accelerator.is_available():
            self.local_rank, self.device_type = torch.device("cpu"), "cpu"
        self.val_loader, self.is_over = None, False
        self.config = self.config._replace(num_epochs=10**6)
        super().setup_trainer()

    def setup_optimizer(self) -> None:
        super().setup_optimizer()
        seconds = float(os.environ["FLASHDRAFT_TURN"])
        self.turn = Turn(Path(self.config.save_path), seconds, self.begin_again)
        self.first = {name: value.detach().clone() for name, value in self.model.named_parameters()}
        self.schedulers = [LambdaLR(one, lambda _: self.lr_factor()) for one in self.optimizers]

    def lr_factor(self) -> float:
        share = self.turn.share()
        return min(share / WARM_UP, (1 - share) / (1 - WARM_UP))

    def begin_again(self) -> None:
        with torch.no_grad():
            for name, value in self.model.named_parameters():
                value.copy_(self.first[name])
        for one in self.optimizers:
            one.state.clear()

    def run_training(self) -> None:
        try:
            super().run_training()
        except TurnOverError:
            self.is_over = True
        epoch = self.current_epoch
        self.maybe_save_checkpoint(0)
        anchors = (self.config.train_call_kwargs or {})["max_anchors"]
        self.turn.tell(self.turn.num_steps * anchors, epochs=epoch)

    def train_epoch(self, epoch: int, **more: Any) -> None:
        self.current_epoch = epoch
        super().train_epoch(epoch, step_callback=self.end_step, **more)

    def end_step(self) -> None:
        if self.turn.step_ended():
            raise TurnOverError

    def maybe_save_checkpoint(self, *args: Any, **more: Any) -> None:
        if self.is_over:
            super().maybe_save_checkpoint(*args, **more)


def dataset(folder: Path) -> None:
    """Its data set, in ``folder``/arrow, of ``folder``/documents.jsonl; the hidden states lie there already."""
    if (folder / "arrow" / "dataset_info.json").exists():
        return
    rows = [json.loads(line) for line in (folder / "documents.jsonl").read_text().splitlines()]
    made = Dataset.from_list(rows)
    made.set_format("torch", columns=["input_ids", "loss_mask"], output_all_columns=True)
    made.save_to_disk(str(folder / "arrow"))


def main() -> None:
    dataset(Path(sys.argv[1]))
    if not torch.accelerator.is_available():
        torch.accelerator.synchronize = lambda *_: None  # type: ignore[assignment]
    cli.Trainer = TimedTrainer
    cli.main(TrainConfig.resolve(sys.argv[3:]))


if __name__ == "__main__":
    main()

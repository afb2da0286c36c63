"""speculators' own trainer with a clock: `speculators train`, but for what a clock and a CPU need.

Run by its own environment, see speculators_train.sh; options are those of `speculators train`. It does not validate
between epochs: its minutes are spent on training. On a machine without an accelerator its trainer (0.9) takes "cuda",
and fails before the first step; here it gets the device that there is, in the two fields where it keeps it, and a
clock that waits for no device. `dataset` makes its data set of what speculators_train.py wrote.

    python speculators_timed.py dataset FOLDER
    python speculators_timed.py train --speculator-type dflash ...
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from speculators.train import cli
from speculators.train.config import TrainConfig
from speculators.train.trainer import Trainer


class Timed(Trainer):
    """Their trainer; writes when its first step ended, and its last."""

    def setup_trainer(self) -> None:
        if not torch.accelerator.is_available():
            self.local_rank, self.device_type = torch.device("cpu"), "cpu"
        self.val_loader = None
        # One checkpoint, at the end: --max-steps alone would go on for a step of every epoch that is left.
        epochs = -(-(self.config.max_steps or 1) // len(self.train_loader))
        self.config = self.config._replace(num_epochs=epochs, checkpoint_freq=epochs)
        self.ends: list[float] = []
        super().setup_trainer()

    def run_training(self) -> Any:
        started = time.perf_counter()
        result = super().run_training()
        kwargs = self.config.train_call_kwargs or {}
        told = {
            "num_steps": self.global_step,
            "num_blocks": self.global_step * kwargs["max_anchors"],
            "seconds": self.ends[-1] - started,
            "first_step_s": self.ends[0] - started,
            "threads": torch.get_num_threads(),
        }
        Path(self.config.save_path, "steps.json").write_text(json.dumps(told) + "\n")
        return result

    def train_epoch(self, epoch: int, **more: Any) -> None:
        super().train_epoch(epoch, step_callback=self.note_step, **more)

    def note_step(self) -> None:
        """A step was launched: it is over when the device is."""
        if not self.ends or self.global_step == self.config.max_steps:
            torch.accelerator.synchronize()
        self.ends.append(time.perf_counter())


def dataset(folder: Path) -> None:
    """Its data set, on disk, of ``folder``/documents.jsonl; the hidden states lie beside it already."""
    rows = [json.loads(line) for line in (folder / "documents.jsonl").read_text().splitlines()]
    made = Dataset.from_list(rows)
    made.set_format("torch", columns=["input_ids", "loss_mask"], output_all_columns=True)
    made.save_to_disk(str(folder / "arrow"))


def main() -> None:
    if sys.argv[1] == "dataset":
        dataset(Path(sys.argv[2]))
        return
    if not torch.accelerator.is_available():
        torch.accelerator.synchronize = lambda *_: None  # type: ignore[assignment]
    cli.Trainer = Timed
    cli.main(TrainConfig.resolve(sys.argv[2:]))


if __name__ == "__main__":
    main()

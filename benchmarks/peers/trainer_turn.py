"""A trainer's turn on the machine, for trainers.py: it warms up, waits for its turn, and is told when its time is over.

Beside trainers of other environments, so PyTorch alone is imported.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

WARM_UP_STEPS = 12  # what is compiled is compiled in these: several lengths of documents are seen
STEPS_BETWEEN_READS = 20  # the device is waited for this often; ours reads its loss as often


class Turn:
    """Of one trainer, in ``folder``: ``ready`` is written by it, ``turn`` by trainers.py when the machine is its own.

    ``begin_again``: called when the warm-up is over, to take back what it learned. ``seconds``: the turn's length.
    """

    def __init__(self, folder: Path, seconds: float, begin_again: Callable[[], None]) -> None:
        self.folder, self.length, self.begin_again = folder, seconds, begin_again
        self.born, self.parent = time.perf_counter(), os.getppid()
        self.started: float | None = None
        self.num_steps = 0
        self.seconds = 0.0

    def step_ended(self) -> bool:
        """To be called when a step was launched; whether the turn is over."""
        self.num_steps += 1
        if self.started is None:
            if self.num_steps == WARM_UP_STEPS:
                self.begin()
            return False
        is_over = time.perf_counter() - self.started >= self.length
        if is_over or self.num_steps % STEPS_BETWEEN_READS == 0:
            wait_for_device()
            self.seconds = time.perf_counter() - self.started
        return self.seconds >= self.length

    def begin(self) -> None:
        """Say that the warm-up is over, wait for the turn and start its clock."""
        self.begin_again()
        wait_for_device()
        (self.folder / "ready").write_text(f"{time.perf_counter() - self.born:.1f}\n")
        while not (self.folder / "turn").exists():
            if os.getppid() != self.parent:  # killed: nobody gives turns any more, and the device is held
                raise SystemExit("trainers.py has ended before this trainer's turn")
            time.sleep(0.05)
        self.num_steps, self.started = 0, time.perf_counter()

    def share(self) -> float:
        """How much of the turn is over, 0 to 1: what the learning rate's schedule follows."""
        if self.started is None:
            return 0.0
        return min((time.perf_counter() - self.started) / self.length, 1.0)

    def tell(self, num_blocks: int, **more: Any) -> None:
        """Write what the turn came to: ``folder``/turn.json."""
        told = {"num_steps": self.num_steps, "num_blocks": num_blocks, "seconds": round(self.seconds, 3)}
        (self.folder / "turn.json").write_text(json.dumps(told | more) + "\n")


def wait_for_device() -> None:
    """Until all that was launched is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()

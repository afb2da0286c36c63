"""What a training run shows while it runs: a live line in a terminal, plain lines elsewhere."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SMOOTHING_S = 600.0  # the time left follows from the progress of this long


class TrainScreen:
    """Gets every line of the run's log; a context, for the live line's sake."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self.live: Progress | None = None
        if self.console.is_terminal:
            self.live = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>5.1f} %"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[news]}"),
                console=self.console,
                speed_estimate_period=SMOOTHING_S,
            )
            self.bar = self.live.add_task("training", total=1.0, news="")
        self.news: dict[str, str] = {}

    def __enter__(self) -> "TrainScreen":
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def __call__(self, line: dict[str, Any]) -> None:
        """Show one line of the log."""
        if self.live is None or "loss" not in line:  # a plain line, above the live one
            self.console.print(_plain(line), soft_wrap=True, highlight=False, markup=False)
        if self.live is None:
            return
        if "loss" in line:
            self.news["loss"] = f"loss {line['loss']:.3f}"
            self.news["rate"] = f"{line['blocks_per_s']:,.0f} blocks/s"
            self.live.update(self.bar, completed=min(line["progress"], 1.0))
        for name in ("simulated", "served"):
            if lengths := line.get(f"{name}_acceptance_length"):
                self.news[name] = f"{name} {lengths['all']:.2f}"
        self.live.update(self.bar, news="  ".join(self.news.values()))


@contextmanager
def watched(folder: Path, tensorboard: bool, here: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """What shows each line of the log, and writes it for TensorBoard where wanted. Raises UsageError.

    ``here``: whether it is this process of the run's that shows anything.
    """
    from flashdraft.train.log_file import tensorboard_log

    with ExitStack() as stack:
        listeners = [stack.enter_context(tensorboard_log(folder))] if tensorboard and here else []
        if here:
            listeners.append(stack.enter_context(TrainScreen()))

        def tell(line: dict[str, Any]) -> None:
            for listener in listeners:
                listener(line)

        yield tell


def _plain(line: dict[str, Any]) -> str:
    return "  ".join(f"{name} {_short(value)}" for name, value in line.items())


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

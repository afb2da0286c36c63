"""What a training run shows while it runs: a live line in a terminal, plain lines elsewhere, evaluations as tables."""

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SMOOTHING_S = 600.0  # the time left follows from the progress of this long
_NOTHING_ACCEPTED = 1.005  # acceptance lengths up to here show as 1.00
STOPPED = 130  # exit code after ctrl-C, as shells have it
_SIMULATED, _SERVED, _ON_SERVED = (
    "simulated_acceptance_length",
    "served_acceptance_length",
    "simulated_on_served",
)


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
        self.last: Mapping[str, float] = {}  # simulated acceptance length by kind of text, one evaluation ago

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
        if self.live is None or "loss" not in line:  # plain lines, above the live one
            self.console.print(self._told(line), soft_wrap=True, highlight=False, markup=False)
        if _SIMULATED in line:
            self.last = line[_SIMULATED]
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

    def _told(self, line: dict[str, Any]) -> str:
        if _SIMULATED in line:
            return evaluation_table(line, self.last)
        if "loss" in line and "progress" in line:
            return (
                f"step {line['step']:,}  {line['blocks']:,} blocks  {line['progress']:.1%}  loss {line['loss']:.3f}"
                f"  {line['blocks_per_s']:,.0f} blocks/s"
            )
        return "  ".join(f"{name.replace('_', ' ')} {_short(value)}" for name, value in line.items())


def evaluation_table(line: Mapping[str, Any], before: Mapping[str, float]) -> str:
    """An evaluation by kind of text; ``before``: the simulated acceptance lengths of the one before it."""
    rows = [
        f"evaluation after {line['blocks']:,} blocks, {line['elapsed_s'] / 60:.1f} minutes: acceptance length"
    ]
    served, on_served = line.get(_SERVED, {}), line.get(_ON_SERVED, {})
    rows.append(
        f"  {'kind':<20} {'simulated':>9} {'change':>7}"
        + f" {'served':>7} {'simulated there':>16}" * bool(served)
    )
    for kind, length in line[_SIMULATED].items():
        change = f"{length - before[kind]:+.2f}" if kind in before else "–"
        there = f" {_number(served.get(kind)):>7} {_number(on_served.get(kind)):>16}" if served else ""
        rows.append(f"  {kind:<20} {length:>9.2f} {change:>7}{there}")
    if at := line.get("at_drafts"):
        rows.append(
            "  by drafts a round: " + ", ".join(f"{count} {length:.2f}" for count, length in at.items())
        )
    for which, shares in line.get("accepted_by_position", {}).items():
        rows.append(f"  accepted by position, {which}: " + " ".join(f"{share:.0%}" for share in shares))
    if told := line.get("answers_as_stored"):
        rows.append(f"  served answers that are the stored ones: {told}")
    if warning := line.get("warning"):
        rows.append(f"  warning: {warning}")
    return "\n".join(rows)


def outcome(drafter: Path, log: Sequence[Mapping[str, Any]], total_blocks: int) -> str:
    """What came of a run by its ``log``, and what to do next: to publish the drafter, or to train one longer."""
    evaluated = [line for line in log if _SIMULATED in line]
    if not evaluated or evaluated[-1][_SIMULATED]["all"] > _NOTHING_ACCEPTED:
        return f"the drafter is in {drafter}, with a model card; hf upload USER/NAME {drafter}"
    last = evaluated[-1]
    longer = "the same command with a larger --max-minutes goes on from there"
    if last["blocks"] >= total_blocks:
        longer = "give another --out and more --total-blocks"
    return (
        f"the drafter is in {drafter}, but accepts nothing yet (acceptance length {last[_SIMULATED]['all']:.2f} after"
        f" {last['blocks']:,} blocks in {last['elapsed_s'] / 60:.1f} minutes): train longer (the guide's first run"
        f" takes --max-minutes 60); {longer}"
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


@contextmanager
def watched(
    folder: Path, here: bool, tensorboard: bool, trackers: Mapping[str, str | None]
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """What shows each line of the log, and tells it to TensorBoard and to trackers, by project. Raises UsageError.

    ``here``: whether it is this process of the run's that shows anything.
    """
    from flashdraft.train.log_file import tensorboard_log, tracker_log

    with ExitStack() as stack:
        listeners: list[Callable[[dict[str, Any]], None]] = []
        if here:
            if tensorboard:
                listeners.append(stack.enter_context(tensorboard_log(folder)))
            for package, project in trackers.items():
                if project is not None:
                    listeners.append(stack.enter_context(tracker_log(package, project, folder)))
            listeners.append(stack.enter_context(TrainScreen()))

        def tell(line: dict[str, Any]) -> None:
            for listener in listeners:
                listener(line)

        yield tell


@contextmanager
def asked_to_stop(is_alone: bool) -> Iterator[Callable[[], bool]]:
    """Whether ctrl-C was pressed: once asks for an end between two steps, twice ends at once.

    ``is_alone``: whether one process trains; several do not agree on a step to end at.
    """
    pressed = False

    def press(_signal: int, _frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True
        typer.echo("\nstopping after this step; ctrl-C again stops at once", err=True)

    before = signal.signal(signal.SIGINT, press) if is_alone else None
    try:
        yield lambda: pressed
    finally:
        if is_alone:
            signal.signal(signal.SIGINT, before)


@contextmanager
def interruptible(kept: Callable[[], str]) -> Iterator[None]:
    """Turn ctrl-C into a line that says what is kept and how to go on, and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"\nstopped: {kept()}; the same command goes on from there", err=True)
        raise typer.Exit(STOPPED) from None


def _short(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_short(one)}" for name, one in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (
        f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)
    )

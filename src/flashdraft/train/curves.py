"""The curves of training runs as one figure: acceptance length against blocks and hours, and the loss."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, StrMethodFormatter

from flashdraft.errors import DataError, UsageError
from flashdraft.train.log_file import LOG_FILE, Line, read_log

FORMS = (".png", ".svg", ".pdf")
NUM_BLOCKS = EngFormatter(sep="")  # 500, 1.5k, 2M
COLOURS = ("#0b6bcb", "#b45309", "#047857", "#be185d", "#7c3aed", "#6b7280")
HALF_LIFE = 0.03  # of the smoothed loss, as a share of the blocks so far
SIMULATED, SERVED = "simulated_acceptance_length", "served_acceptance_length"
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "svg.fonttype": "none",
    "svg.hashsalt": "flashdraft",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#d9dce3",
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Curve:
    """One value of a run as it trained."""

    blocks: list[float]  # millions
    hours: list[float]
    values: list[float]


def curve_of(lines: Sequence[Line], *path: str) -> Curve:
    """The lines that tell the value at ``path``."""
    curve = Curve([], [], [])
    for line in lines:
        value: Any = line
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            curve.blocks.append(line["blocks"] / 1e6)
            curve.hours.append(line["elapsed_s"] / 3600)
            curve.values.append(value)
    return curve


def draw_curves(runs: Sequence[Path], file: Path, kind: str = "all") -> None:
    """Draw the runs into ``file``, PNG, SVG or PDF by its name.

    ``kind``: of text, as the evaluations name it. Raises UsageError for another form of file, DataError for runs
    without a log or without that kind.
    """
    if file.suffix not in FORMS:
        raise UsageError(f"the figure is {file.name!r}; expected a name that ends in {', '.join(FORMS)}")
    logs = {_name(run, runs): read_log(run) for run in runs}
    for name, log in logs.items():
        if not log:
            raise DataError(f"{name}: its {LOG_FILE} is empty; leave it out until it has told something")
    kinds = {name for log in logs.values() for line in log for name in line.get(SIMULATED, ())}
    if kinds and kind not in kinds:
        raise DataError(
            f"no evaluation tells of the kind of text {kind!r}; there are: {', '.join(sorted(kinds))}"
        )
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(13.2, 3.6), layout="constrained")
        by_blocks, by_time, losses = figure.subplots(1, 3)
        longest_h = max(line["elapsed_s"] / 3600 for log in logs.values() for line in log)
        across_time, per_hour = ("hours", 1.0) if longest_h >= 2 else ("minutes", 60.0)
        for number, (name, log) in enumerate(logs.items()):
            colour = COLOURS[number % len(COLOURS)]
            _draw_acceptance(by_blocks, by_time, per_hour, log, kind, name, colour)
            loss = curve_of(log, "loss")
            losses.plot(loss.blocks, loss.values, ".", color=colour, alpha=0.35, markersize=3)
            losses.plot(loss.blocks, smooth(loss.blocks, loss.values), color=colour, label=name)
        for axes, across, title in (
            (by_blocks, "blocks", f"acceptance length: {kind}"),
            (by_time, across_time, f"acceptance length: {kind}"),
            (losses, "blocks", "loss"),
        ):
            axes.set_xlabel(across)
            if axes is not by_time:
                axes.xaxis.set_major_formatter(lambda value, _place: NUM_BLOCKS(value * 1e6))
            axes.set_title(title, loc="left", fontsize=10)
            axes.set_xlim(left=0)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(fontsize=8)
        losses.set_yscale("log")
        for axis_of in (losses.yaxis.set_major_formatter, losses.yaxis.set_minor_formatter):
            axis_of(StrMethodFormatter("{x:g}"))
        losses.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5)))
        drawn = io.BytesIO()
        form = file.suffix.removeprefix(".")
        figure.savefig(drawn, format=form, dpi=160, metadata={"Date": None} if form == "svg" else None)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(drawn.getvalue())


def _draw_acceptance(
    by_blocks: Axes, by_time: Axes, per_hour: float, log: Sequence[Line], kind: str, name: str, colour: str
) -> None:
    # Served and simulated mostly agree: crosses within rings keep both to be seen.
    for what, look, size, label in ((SIMULATED, "-o", 6, name), (SERVED, ":x", 4, f"{name}, served")):
        curve = curve_of(log, what, kind)
        times = [per_hour * hours for hours in curve.hours]
        for axes, across in ((by_blocks, curve.blocks), (by_time, times)):
            if curve.values:
                axes.plot(
                    across, curve.values, look, color=colour, label=label, markersize=size, fillstyle="none"
                )


def smooth(blocks: Sequence[float], values: Sequence[float]) -> list[float]:
    """Exponential mean; its half-life is 3 % of the blocks so far, so that the fall at the start stays."""
    smoothed: list[float] = []
    for place, (now, value) in enumerate(zip(blocks, values, strict=True)):
        passed = now - blocks[place - 1] if place else now
        kept = 0.5 ** (passed / (HALF_LIFE * now)) if place and now > 0 else 0.0
        smoothed.append(kept * (smoothed[-1] if smoothed else 0.0) + (1 - kept) * value)
    return smoothed


def _name(run: Path, runs: Sequence[Path]) -> str:
    """The folder's name, where that tells the runs apart; else the path."""
    folders = [one if one.is_dir() else one.parent for one in runs]
    mine = run if run.is_dir() else run.parent
    return mine.name if len({one.name for one in folders}) == len(folders) else str(run)

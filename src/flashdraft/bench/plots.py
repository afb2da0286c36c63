"""Charts of benchmark rows, by matplotlib, without its global state: panels for the page, whole figures for papers.

Colours are written as roles (``ROLES``); an SVG for the page keeps them as CSS variables, so that it follows the
reader's light or dark theme, and a file gets the light theme's values.
"""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flashdraft.bench.results import BASELINE, BenchRow
from flashdraft.bench.tables import Column, columns_of, drafted, method_label

# Role: (light, dark). Method colours keep apart under the common forms of colour blindness, and by marker too.
ROLES = {
    "ink": ("#1f2430", "#e6e8ee"),
    "grid": ("#d9dce3", "#3a3f4b"),
    "ar": ("#6b7280", "#9aa3b2"),
    "ngram": ("#b45309", "#f0a040"),
    "mtp": ("#7c3aed", "#b794f6"),
    "dflash": ("#0b6bcb", "#5aa9ff"),
    "auto": ("#047857", "#34d399"),
    "other": ("#be185d", "#f472b6"),
    "draft": ("#e08a1e", "#f0a040"),
    "verify": ("#3b6fb5", "#6ea8f0"),
    "host": ("#9aa0ab", "#767d8b"),
}
# What matplotlib is told instead of a role: a colour that nothing else has.
_STAND_IN = {role: f"#0000{number:02x}" for number, role in enumerate(ROLES, 1)}
_METHOD_ROLES = {BASELINE: "ar", "n-gram": "ngram", "MTP": "mtp", "DFlash": "dflash", "auto": "auto"}
_OTHER_MARKERS = "vDPX*<>"
_STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "svg.fonttype": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "legend.frameon": False,
}
_PANEL_INCHES = (4.4, 3.1)
# SVG ids of groups; nothing refers to them, and several charts on a page must not share any.
_GROUP_ID = re.compile(r' id="[A-Za-z0-9.]+_\d+"')
_METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
_OPENING = re.compile(r'<svg[^>]*?(viewBox="[^"]*")[^>]*>', re.DOTALL)
_NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'


@dataclass(frozen=True)
class Chart:
    """One kind of chart: a panel for each of ``panels``, drawn by ``draw(axes, rows of the panel)``."""

    name: str
    title: str
    note: str
    panels: dict[str, list[BenchRow]]
    draw: Callable[[Axes, Sequence[BenchRow], dict[str, str]], None]


def charts_of(rows: Sequence[BenchRow]) -> list[Chart]:
    """The four charts of a report, as far as the rows have something to show."""
    by_task: dict[str, list[BenchRow]] = {}
    by_concurrency: dict[str, list[BenchRow]] = {}
    for row in rows:
        by_task.setdefault(row.task, []).append(row)
        by_concurrency.setdefault(f"concurrency {row.concurrency}", []).append(row)
    lowest = min((row.concurrency for row in rows), default=1)
    first = {
        task: [row for row in drafted(own) if row.concurrency == lowest] for task, own in by_task.items()
    }
    charts = [
        Chart(
            "speedup",
            "Speed-up by task and concurrency",
            "Output tokens a second over plain decoding's at the same concurrency; bars: 95 % intervals.",
            {task: drafted(own) for task, own in by_task.items()},
            _draw_speedup,
        ),
        Chart(
            "frontier",
            "Throughput against latency",
            "One point a concurrency. Up and to the left is better.",
            by_task,
            _draw_frontier,
        ),
        Chart(
            "acceptance",
            "Acceptance by position",
            f"Share of rounds that accepted the draft token, at concurrency {lowest}.",
            first,
            _draw_acceptance,
        ),
        Chart(
            "time",
            "Time of a round",
            "Step time over requests in the step, mean of tasks.",
            by_concurrency,
            _draw_time,
        ),
    ]
    return [chart for chart in charts if any(chart.panels.values())]


def panel_svg(chart: Chart, panel: str) -> str:
    """One panel as an SVG element for an HTML page: scales with its place, coloured by CSS variables."""
    with mpl.rc_context(_style(_STAND_IN) | {"svg.hashsalt": f"{chart.name} {panel}"}):
        figure = Figure(figsize=_PANEL_INCHES, layout="constrained")
        _draw_panel(figure.subplots(), chart, panel, _STAND_IN)
        svg = _saved(figure, "svg").decode()
    for role, stand_in in _STAND_IN.items():
        svg = svg.replace(stand_in, f"var(--{role})")
    svg = _METADATA.sub("", _GROUP_ID.sub("", svg[svg.index("<svg") :]))
    label = f"{chart.title}: {panel}"
    return _OPENING.sub(rf'<svg \1 role="img" aria-label="{label}" {_NAMESPACES}>', svg, count=1)


def figure_file(chart: Chart, form: str) -> bytes:
    """All panels of a chart as one file, ``form`` "svg" or "png", in the light theme."""
    colours = {role: light for role, (light, _) in ROLES.items()}
    with mpl.rc_context(_style(colours) | {"svg.hashsalt": chart.name}):
        panels = [panel for panel, own in chart.panels.items() if own]
        num_columns = min(len(panels), 3)
        num_rows = -(-len(panels) // num_columns)
        size = _PANEL_INCHES[0] * num_columns, _PANEL_INCHES[1] * num_rows
        figure = Figure(figsize=size, layout="constrained")
        every = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
        for axes, panel in zip(every, panels, strict=False):
            _draw_panel(axes, chart, panel, colours)
        for axes in every[len(panels) :]:
            axes.set_visible(False)
        return _saved(figure, form)


def _style(colours: dict[str, str]) -> dict[Any, Any]:
    ink = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), colours["ink"])
    return _STYLE | ink | {"axes.edgecolor": colours["grid"], "grid.color": colours["grid"]}


def _saved(figure: Figure, form: str) -> bytes:
    file = io.BytesIO()
    is_svg = form == "svg"
    figure.savefig(
        file, format=form, dpi=200, transparent=is_svg, metadata={"Date": None} if is_svg else None
    )
    return file.getvalue()


def _draw_panel(axes: Axes, chart: Chart, panel: str, colours: dict[str, str]) -> None:
    chart.draw(axes, chart.panels[panel], colours)
    axes.set_title(panel, loc="left", fontweight="bold", fontsize=11)


def _series(rows: Sequence[BenchRow]) -> list[tuple[Column, list[BenchRow]]]:
    return [(c, [row for row in rows if (row.method, row.block_size) == c]) for c in columns_of(rows)]


def _line(column: Column, rows: Sequence[BenchRow], colours: dict[str, str]) -> dict[str, Any]:
    """How the line of a method looks: colour by method, dashes and marker by block size."""
    sizes = [size for _, size in columns_of(rows) if isinstance(size, int) and size > 1]
    order = sorted(set(sizes), reverse=True).index(column[1]) if column[1] in sizes else 0
    style, marker = [("-", "o"), ("--", "s"), (":", "^")][min(order, 2)]
    if column[0] not in _METHOD_ROLES:  # they share a colour
        others = [one for one in columns_of(rows) if one[0] not in _METHOD_ROLES]
        marker = _OTHER_MARKERS[others.index(column) % len(_OTHER_MARKERS)]
    colour = colours[_METHOD_ROLES.get(column[0], "other")]
    label = method_label(*column)
    return {"color": colour, "linestyle": style, "marker": marker, "markersize": 5, "label": label}


def _draw_speedup(axes: Axes, rows: Sequence[BenchRow], colours: dict[str, str]) -> None:
    places = sorted({row.concurrency for row in rows})
    columns = _series(rows)
    for number, (column, own) in enumerate(columns):
        shift = (number - (len(columns) - 1) / 2) * 0.06  # intervals stand beside one another
        x = [places.index(row.concurrency) + shift for row in own]
        y = [row.speedup for row in own]
        ends = [row.speedup_interval or (row.speedup, row.speedup) for row in own]
        low = [max(row.speedup - end[0], 0) for row, end in zip(own, ends, strict=True)]
        high = [max(end[1] - row.speedup, 0) for row, end in zip(own, ends, strict=True)]
        axes.errorbar(x, y, (low, high), elinewidth=1, **_line(column, rows, colours))
    axes.axhline(1, color=colours["ar"], linewidth=1.2)
    axes.set_xticks(range(len(places)), [str(place) for place in places])
    axes.set_xlim(-0.4, len(places) - 0.6)
    axes.set_ylim(0, axes.get_ylim()[1] * (1.25 + 0.07 * -(-len(columns) // 2)))  # room for the legend
    axes.set_xlabel("concurrency")
    axes.set_ylabel("speed-up over AR")
    axes.legend(fontsize=8, ncols=2, loc="upper center")


def _draw_frontier(axes: Axes, rows: Sequence[BenchRow], colours: dict[str, str]) -> None:
    for column, own in _series(rows):
        timed = [row for row in own if row.tpot_s]
        x = [row.tpot_s.p50 * 1e3 for row in timed if row.tpot_s]
        y = [row.output_tokens_per_s for row in timed]
        axes.plot(x, y, **_line(column, rows, colours))
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("median TPOT, ms")
    axes.set_ylabel("output tokens/s")
    axes.legend(fontsize=8)


def _draw_acceptance(axes: Axes, rows: Sequence[BenchRow], colours: dict[str, str]) -> None:
    longest = 1
    for column, own in _series(rows):
        shares = own[0].accepted_by_position
        longest = max(longest, len(shares))
        axes.plot(range(1, len(shares) + 1), shares, **_line(column, rows, colours))
    axes.set_xticks(range(1, longest + 1, 2))
    axes.set_ylim(0, 1)
    axes.set_xlabel("position in the draft")
    axes.set_ylabel("share accepted")
    axes.legend(fontsize=8)


def _draw_time(axes: Axes, rows: Sequence[BenchRow], colours: dict[str, str]) -> None:
    columns = _series(rows)[::-1]  # the first method on top
    left = [0.0] * len(columns)
    for part in ("draft", "verify", "host"):
        widths = [fmean(getattr(row, f"round_{part}_s") or 0.0 for row in own) * 1e3 for _, own in columns]
        axes.barh(range(len(columns)), widths, 0.6, left, color=colours[part], label=part)
        left = [so_far + width for so_far, width in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(columns)), [method_label(*column) for column, _ in columns])
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("ms a round")
    axes.set_xlim(0, max(left, default=0) * 1.02 or 1)
    axes.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.2))

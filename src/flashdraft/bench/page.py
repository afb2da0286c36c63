"""The report as one HTML page that needs nothing else: charts and tables, light and dark, for screens of any width."""

from collections.abc import Sequence
from importlib.resources import files
from statistics import fmean

from jinja2 import Environment
from markdown_it import MarkdownIt

from flashdraft.bench.plots import ROLES, charts_of, panel_svg
from flashdraft.bench.results import BenchRow
from flashdraft.bench.tables import columns_of, drafted, method_label


def html_page(rows: Sequence[BenchRow], markdown: str, title: str = "flashdraft benchmark") -> str:
    """``markdown`` is the report whose tables stand below the charts."""
    template = files("flashdraft.bench").joinpath("page.html").read_text()
    charts = [
        (chart, [panel_svg(chart, panel) for panel, own in chart.panels.items() if own])
        for chart in charts_of(rows)
    ]
    body = markdown.partition("\n")[2]  # the page has a title of its own
    tables = MarkdownIt("commonmark", {"html": False}).enable("table").render(body)
    tables = tables.replace("<table>", '<div class="table"><table>').replace("</table>", "</table></div>")
    page = Environment(autoescape=True).from_string(template)
    return page.render(title=title, roles=ROLES, tiles=_tiles(rows), charts=charts, tables=tables) + "\n"


def _tiles(rows: Sequence[BenchRow]) -> list[tuple[str, str]]:
    """The figures that a hurried reader wants: the best method at the lowest and the highest concurrency."""
    tiles = []
    for concurrency in sorted({min(r.concurrency for r in rows), max(r.concurrency for r in rows)}):
        own = [row for row in drafted(rows) if row.concurrency == concurrency]
        means = {
            column: fmean(row.speedup for row in own if (row.method, row.block_size) == column)
            for column in columns_of(own)
        }
        if means:
            best = max(means, key=lambda column: means[column])
            where = f"{method_label(*best)}, concurrency {concurrency}, mean of tasks"
            tiles.append((f"{means[best]:.2f}x", f"plain decoding's speed: {where}"))
    if others := drafted(rows):
        longest = max(others, key=lambda row: row.acceptance_length)
        label = (
            f"longest acceptance length: {method_label(longest.method, longest.block_size)}, {longest.task}"
        )
        tiles.append((f"{longest.acceptance_length:.2f}", label))
        num_answers = sum(row.num_answers for row in others)
        num_wrong = num_answers - sum(row.num_equal + row.num_near_ties for row in others)
        tiles.append(
            (f"{num_wrong} of {num_answers}", "answers that differ from plain decoding's without a near-tie")
        )
    return tiles

"""``flashdraft report``: rows of a benchmark as Markdown, as a page and as figures."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flashdraft.errors import UsageError
from flashdraft.whole_files import write_whole


def report(
    rows: Annotated[
        list[Path], typer.Argument(help="rows.jsonl of bench (.gz too), or folders that hold one.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write to.", show_default="beside the first ROWS")
    ] = None,
    title: Annotated[str, typer.Option("--title", help="Of the page.")] = "flashdraft benchmark",
) -> None:
    """Write report.md, report.html and the charts as SVG and PNG.

    \b
    Examples:
      flashdraft report results/embedded
      flashdraft report a/rows.jsonl b/rows.jsonl --out both
    """
    for path in rows:
        if not path.exists():
            raise UsageError(
                f"{path} does not exist; expected rows.jsonl of bench, or a folder that holds one"
            )
    from flashdraft.bench.page import html_page
    from flashdraft.bench.plots import charts_of, figure_file
    from flashdraft.bench.report import markdown
    from flashdraft.bench.results import aggregate
    from flashdraft.bench.rows_file import merged, read_rows, rows_in

    files = [rows_in(path) for path in rows]
    results = merged([read_rows(file) for file in files])
    folder = out or files[0].parent
    with Console(stderr=True).status("drawing"):
        table_rows = aggregate(results.measurements)
        text = markdown(table_rows, results)
        (folder / "charts").mkdir(parents=True, exist_ok=True)
        write_whole(folder / "report.md", text)
        write_whole(folder / "report.html", html_page(table_rows, text, title))
        for chart in charts_of(table_rows):
            for form in ("svg", "png"):
                write_whole(folder / "charts" / f"{chart.name}.{form}", figure_file(chart, form))
    typer.echo(f"{folder}: report.md, report.html, charts/")

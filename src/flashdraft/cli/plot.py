"""``flashdraft plot``: the curves of training runs."""

from pathlib import Path
from typing import Annotated

import typer


def plot(
    runs: Annotated[list[Path], typer.Argument(help="Folders of `flashdraft train`, or their log.jsonl.")],
    out: Annotated[
        list[Path] | None,
        typer.Option(
            "--out", help="File to draw, .png, .svg or .pdf; repeatable.", show_default="curves.png"
        ),
    ] = None,
    kind: Annotated[
        str, typer.Option("--kind", help="Of the held-back text, as the evaluations name it.")
    ] = "all",
) -> None:
    """Draw acceptance length against blocks and against hours, and the loss, of one run or several.

    \b
    Examples:
      flashdraft plot runs/first
      flashdraft plot runs/muon runs/adamw --kind math --out muon.svg --out muon.png
    """
    from flashdraft.train.curves import draw_curves

    for file in out or [Path("curves.png")]:
        draw_curves(runs, file, kind)
        typer.echo(file)

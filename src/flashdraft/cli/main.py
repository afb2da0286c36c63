"""The entry point: which commands there are, and what an error looks like."""

import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from flashdraft import __version__
from flashdraft.cli.bench import bench
from flashdraft.cli.chat import chat
from flashdraft.cli.convert import convert
from flashdraft.cli.demo import demo
from flashdraft.cli.doctor import doctor
from flashdraft.cli.generate import generate
from flashdraft.cli.grouped_help import GroupedCommand
from flashdraft.cli.launch import launch
from flashdraft.cli.plan import plan
from flashdraft.cli.plot import plot
from flashdraft.cli.report import report
from flashdraft.cli.serve import serve
from flashdraft.cli.train import train
from flashdraft.cli.tune import tune
from flashdraft.cli.vocab import vocab
from flashdraft.errors import FlashdraftError, UsageError

# In the order of the help text. A command's name, help and options are those of its function.
COMMANDS: tuple[Callable[..., Any], ...] = (
    demo,
    generate,
    chat,
    serve,
    train,
    plot,
    tune,
    vocab,
    bench,
    report,
    plan,
    convert,
    launch,
    doctor,
)

app = typer.Typer(
    name="flashdraft",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in COMMANDS:
    app.command(cls=GroupedCommand)(command)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"flashdraft {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """DFlash speculative decoding: the target model's own text, faster.

    \b
    Examples:
      flashdraft demo
      flashdraft generate "Why is the sky blue?"
      flashdraft COMMAND --help
    """


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command line (default: the process's own) and exit.

    Exit code 0: done; 1: an error of flashdraft, told in one line on stderr; 2: a wrong use of it.
    """
    try:
        app(argv)
    except FlashdraftError as error:
        print(f"flashdraft: {error}", file=sys.stderr)
        raise SystemExit(2 if isinstance(error, UsageError) else 1) from None

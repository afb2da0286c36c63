"""The entry point: which commands there are, and what an error looks like."""

import os
import sys
from collections.abc import Callable, Sequence
from errno import EDQUOT, EFBIG, ENOSPC
from typing import Annotated, Any

import typer
from safetensors import SafetensorError
from typer.exceptions import TyperException

from flashdraft import __version__
from flashdraft.cli.bench import bench
from flashdraft.cli.chat import chat
from flashdraft.cli.convert import convert
from flashdraft.cli.demo import demo
from flashdraft.cli.doctor import doctor
from flashdraft.cli.generate import generate
from flashdraft.cli.improve import improve
from flashdraft.cli.launch import launch
from flashdraft.cli.plan import plan
from flashdraft.cli.plot import plot
from flashdraft.cli.report import report
from flashdraft.cli.serve import serve
from flashdraft.cli.setup import setup
from flashdraft.cli.train import train
from flashdraft.cli.tune import tune
from flashdraft.cli.vocab import vocab
from flashdraft.errors import FlashdraftError, UsageError

# Groups of the help text, in its order. A command's name, help and options are those of its function.
COMMANDS: dict[str, tuple[Callable[..., Any], ...]] = {
    "Run a pair": (demo, generate, chat, serve, setup),
    "Make a drafter": (train, plot, tune, improve, vocab),
    "Measure": (bench, report, plan, doctor),
    "Hand over": (convert, launch),
}

app = typer.Typer(name="flashdraft", rich_markup_mode="rich", pretty_exceptions_enable=False)
for group, commands in COMMANDS.items():
    for command in commands:
        app.command(rich_help_panel=group)(command)


_FULL = {ENOSPC, EDQUOT, EFBIG}
_PLACE_MEND = "name another place, or make room and start again"


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"flashdraft {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 - its callback does it
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
    if context.invoked_subcommand is None:
        context.get_help()  # typer's rich help writes itself


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command line (default: the process's own) and exit.

    Exit code 0: done; 1: an error of flashdraft, told in one line on stderr; 2: a wrong use of it.
    """
    try:
        code = app(argv, prog_name="flashdraft", standalone_mode=False)
    except FlashdraftError as error:
        code = _tell(str(error), 2 if isinstance(error, UsageError) else 1)
    except (
        OSError
    ) as error:  # a place that is not there, not ours or full; a fault of our own has no file's name
        if error.filename is None and error.errno not in _FULL:
            raise
        code = _tell(f"{error.filename or 'a file'}: {error.strerror}; {_PLACE_MEND}", 1)
    except SafetensorError as error:  # the writer's form of it
        reasons = [os.strerror(number) for number in _FULL if os.strerror(number) in str(error)]
        if not reasons:
            raise
        code = _tell(f"a file of weights: {reasons[0]}; {_PLACE_MEND}", 1)
    except TyperException as error:  # an option or a command that is not there, or a value of another type
        context = getattr(error, "ctx", None)
        page = f"{context.command_path if context else 'flashdraft'} --help"
        message = " ".join(error.format_message().replace("Value error, ", "").split())
        code = _tell(f"{message[:1].lower()}{message[1:].rstrip('.')}; see {page}", error.exit_code)
    raise SystemExit(code or 0)


def _tell(message: str, code: int) -> int:
    print(f"flashdraft: {message}", file=sys.stderr)
    return code

"""``flashdraft launch``: the command that serves a pair with another engine."""

import os
import shutil
from typing import Annotated, Literal

import typer

from flashdraft.cli.config_options import with_config
from flashdraft.errors import UsageError
from flashdraft.export.config import LaunchConfig


@with_config(LaunchConfig, "Serving")
def launch(
    config: LaunchConfig,
    engine: Annotated[Literal["vllm", "sglang"], typer.Argument(help="Which engine.")],
    target: Annotated[str, typer.Option("--model", help="Target: a Hugging Face folder or a hub name.")],
    draft: Annotated[str, typer.Option("--draft", help="Drafter: embedded, a folder or a hub name.")],
    run: Annotated[bool, typer.Option("--run", help="Start it, in place of this process.")] = False,
    more: Annotated[
        list[str] | None, typer.Argument(help="Behind --: flags of that engine, handed on as they are.")
    ] = None,
) -> None:
    """Print the command that serves a pair with vLLM or SGLang; refuse, with the reason, what they cannot do.

    \b
    Examples:
      flashdraft launch vllm --model Qwen/Qwen3.5-27B --draft z-lab/Qwen3.5-27B-DFlash --tp 2
      flashdraft launch sglang --model Qwen/Qwen3.5-27B --draft z-lab/Qwen3.5-27B-DFlash --memory 0.75 --run
      flashdraft launch vllm --model T --draft D --parsers -- --max-num-batched-tokens 32768
    """
    from flashdraft.export.launch import read_pair
    from flashdraft.export.sglang import sglang_command
    from flashdraft.export.vllm import vllm_command

    command = {"vllm": vllm_command, "sglang": sglang_command}[engine](
        read_pair(target, draft), config, more or ()
    )
    typer.echo(command.to_text(), err=run)
    if run:
        program = command.argv[0]
        if shutil.which(program) is None:
            raise UsageError(
                f"{program} is not on the PATH; install {engine} first, or start the command where it is"
            )
        os.execvpe(program, command.argv, os.environ | command.env)

"""``flashdraft convert``: a drafter's or target's folder in the format that another engine reads."""

from pathlib import Path
from typing import Annotated

import typer

from flashdraft.cli.options import DtypeOption
from flashdraft.errors import UsageError


def convert(
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="z-lab (SpecForge, SGLang, vLLM), speculators or transformers; a target: hf.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The new folder.")],
    draft: Annotated[
        str | None, typer.Option("--draft", help="Drafter: embedded, a folder, a GGUF file or a hub name.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="Target: embedded or a GGUF file. With --draft: its own, which speculators' format names, and whose"
            " rows a draft vocabulary takes along.",
        ),
    ] = None,
    dtype: DtypeOption = "bfloat16",
) -> None:
    """Write a drafter in another format, its weights bit by bit, or a GGUF target as a Hugging Face folder.

    A draft vocabulary (flashdraft vocab) is for flashdraft: without --model the drafter is written without it.
    With --model it becomes a head of its own, which vLLM reads.

    \b
    Examples:
      flashdraft convert --draft runs/first/drafter --model my/target --to speculators --out for-vllm
      flashdraft convert --draft from-speculators --to z-lab --out for-sglang
      flashdraft convert --draft embedded --model embedded --to speculators --out for-vllm
      flashdraft convert --model embedded --to hf --dtype float32 --out smollm2
    """
    if draft is not None:
        from flashdraft.checkpoint.convert import convert_drafter

        convert_drafter(draft, to, out, target)
        if to == "speculators" and target in (None, "embedded"):
            typer.echo(
                "note: the folder names no verifier, so `vllm serve FOLDER` and speculators cannot open it by itself;"
                " name the target's folder or hub name by --model",
                err=True,
            )
    elif target is not None:
        from flashdraft.export.target_folder import export_target

        if to != "hf":
            raise UsageError(
                f"the format of a target is {to!r}; expected hf, or a drafter by --draft ({target} is given by --model)"
            )
        export_target(target, out, dtype)
    else:
        raise UsageError("convert takes a drafter or a target; give --draft, --model or both")
    typer.echo(f"the {'target' if draft is None else 'drafter'} is in {out}")

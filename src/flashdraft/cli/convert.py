"""``flashdraft convert``: a drafter's folder in the format that another engine reads."""

from pathlib import Path
from typing import Annotated

import typer


def convert(
    draft: Annotated[str, typer.Option("--draft", help="Drafter: a folder or a hub name.")],
    to: Annotated[str, typer.Option("--to", help="z-lab (SpecForge, SGLang, vLLM) or speculators.")],
    out: Annotated[Path, typer.Option("--out", help="The new folder.")],
) -> None:
    """Write a drafter in another format; weights stay the same, bit by bit.

    \b
    Examples:
      flashdraft convert --draft runs/first/drafter --to speculators --out for-vllm
      flashdraft convert --draft from-speculators --to z-lab --out for-sglang
    """
    from flashdraft.checkpoint.convert import convert_drafter

    convert_drafter(draft, to, out)
    typer.echo(f"the drafter is in {out}")

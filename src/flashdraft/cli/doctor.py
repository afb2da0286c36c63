"""``flashdraft doctor``: why a drafter is slow, one verdict first."""

import json
from pathlib import Path
from typing import Annotated

import typer

from flashdraft.cli.options import DeviceOption, DtypeOption, JsonOption, ModelOption


def doctor(
    draft: Annotated[
        str, typer.Option("--draft", help="Drafter: embedded, a folder, a GGUF file or a hub name.")
    ],
    target: ModelOption = "embedded",
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", help="Prompts, as train reads them.", show_default="four of our own"),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="The first prompts of the file.")] = 8,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=2, help="The longest answer.")] = 128,
    url: Annotated[
        str | None,
        typer.Option("--url", help="A running server (ours, vLLM, SGLang): compare what it accepts."),
    ] = None,
    dtype: DtypeOption = "float32",
    device: DeviceOption = "cpu",
    max_seconds: Annotated[
        float, typer.Option("--max-seconds", min=1, help="About how long; what is left out is named.")
    ] = 60.0,
    as_json: JsonOption = False,
) -> None:
    """Examine a pair: format, shapes, vocabulary, then each reading of the drafter; then what drafting costs.

    Exit code: 0 healthy, 3 weak, 4 faulty, 5 unusable; 1 and 2 as everywhere: the examination itself failed.

    \b
    Examples:
      flashdraft doctor --draft embedded
      flashdraft doctor --model Qwen/Qwen3.5-27B --draft z-lab/Qwen3.5-27B-DFlash --device cuda --dtype bfloat16
    """
    from flashdraft.data.prompts import read_prompts
    from flashdraft.doctor.examine import EXIT_CODES, PROMPTS, examine

    asked = read_prompts(prompts)[:limit] if prompts else PROMPTS
    found = examine(target, draft, asked, max_tokens, dtype, device, url, max_seconds)
    typer.echo(json.dumps(found.to_dict()) if as_json else found.to_text())
    raise typer.Exit(EXIT_CODES[found.verdict])

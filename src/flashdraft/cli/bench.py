"""``flashdraft bench``: plain decoding and speculative decoding on the five tasks, one request at a time."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from flashdraft.cli.options import (
    DeviceOption,
    DraftOption,
    DtypeOption,
    JsonOption,
    MaxTokensOption,
    ModelOption,
    SeedOption,
    TemperatureOption,
    open_llm,
)
from flashdraft.errors import UsageError

if TYPE_CHECKING:
    from flashdraft.bench.offline import OfflineBench
    from flashdraft.bench.results import Measurement
    from flashdraft.bench.tasks import BenchPrompt

ALL_TASKS = "gsm8k,math500,humaneval,mbpp,mt-bench"
QUICK_LIMIT, QUICK_MAX_TOKENS = 2, 64


def bench(
    model: ModelOption = "embedded",
    draft: DraftOption = None,
    tasks: Annotated[str, typer.Option("--tasks", help="Which tasks, with commas.")] = ALL_TASKS,
    methods: Annotated[
        str,
        typer.Option("--methods", help="Which of ar, ngram, dflash; ar always runs: it is the yardstick."),
    ] = "ar,dflash",
    block_sizes: Annotated[str, typer.Option("--block-sizes", help="Block sizes, with commas.")] = "16,8",
    limit: Annotated[int, typer.Option("--limit", help="The first prompts of each task.")] = 40,
    max_tokens: MaxTokensOption = 256,
    temperature: TemperatureOption = 0.0,
    seed: SeedOption = 0,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on to --max-tokens.")] = False,
    multi_turn: Annotated[bool, typer.Option("--multi-turn", help="MT-Bench: ask both questions.")] = False,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help=f"{QUICK_LIMIT} prompts a task, {QUICK_MAX_TOKENS} tokens: minutes, not hours."
        ),
    ] = False,
    dtype: DtypeOption = "bfloat16",
    device: DeviceOption = "cpu",
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write rows.jsonl and report.md to.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure speed, acceptance and losslessness against plain decoding.

    Every prompt is answered by every method in turn. The report goes to stdout, progress to stderr.

    \b
    Examples:
      flashdraft bench --quick
      flashdraft bench --methods ar,ngram,dflash --out results/embedded
      flashdraft bench --tasks gsm8k,mbpp --limit 10 --block-sizes 8 --json
    """
    from flashdraft.bench.offline import OfflineBench, choose_methods
    from flashdraft.bench.tasks import load_task
    from flashdraft.sampling_params import SamplingParams

    if quick:
        limit, max_tokens = min(limit, QUICK_LIMIT), min(max_tokens, QUICK_MAX_TOKENS)
    prompts = {name: load_task(name, limit) for name in _names(tasks)}
    params = SamplingParams(temperature=temperature, seed=seed, max_tokens=max_tokens, ignore_eos=ignore_eos)
    sizes = _sizes(block_sizes)
    llm = open_llm(model, draft, dtype, device)
    run = OfflineBench(llm, choose_methods(llm, _names(methods), sizes), params, multi_turn)
    settings = {"model": model, "draft": draft or "default", "dtype": dtype, "limit": limit}
    settings |= {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    settings |= {"ignore_eos": ignore_eos, "multi_turn": multi_turn}
    _present(_run_with_progress(run, prompts), settings, device, out, as_json)


def _names(listed: str) -> list[str]:
    return [name.strip() for name in listed.split(",") if name.strip()]


def _sizes(listed: str) -> list[int]:
    if not all(name.isdecimal() for name in _names(listed)):
        raise UsageError(f"--block-sizes is {listed!r}; expected numbers with commas, for example 16,8")
    return [int(name) for name in _names(listed)]


def _run_with_progress(run: "OfflineBench", tasks: "dict[str, list[BenchPrompt]]") -> "list[Measurement]":
    # The bar moves after an answer, never during one: a thread that draws would share the measured cores.
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        auto_refresh=False,
    ) as progress:
        bar = progress.add_task("warming up", total=run.num_answers(tasks))

        def on_answer(measurement: "Measurement") -> None:
            speed = f"{measurement.tokens_per_s:.0f} tokens/s"
            label = f"{measurement.task} {measurement.method} {speed}"
            progress.update(bar, advance=1, description=label, refresh=True)

        return run.run(tasks, on_answer)


def _present(
    measurements: "list[Measurement]", settings: dict[str, Any], device: str, out: Path | None, as_json: bool
) -> None:
    """Write the files of ``--out``, and print the report or the JSON document."""
    from flashdraft.bench.report import json_document, jsonl, markdown
    from flashdraft.bench.results import aggregate
    from flashdraft.provenance import collect_provenance

    rows, provenance = aggregate(measurements), collect_provenance(device)
    report = markdown(rows, provenance, settings)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / "rows.jsonl").write_text(jsonl(measurements))
        (out / "report.md").write_text(report)
    console = Console()
    if as_json:
        print(json.dumps(json_document(rows, provenance, settings), ensure_ascii=False))
    elif console.is_terminal:
        console.print(Markdown(report))
    else:
        print(report, end="")
